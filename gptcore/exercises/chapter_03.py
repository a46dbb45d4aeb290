"""Exercises of chapter 3: the decoder."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcore.exercises.exercise import Answer, Exercise, Fresh

# --- 3.1 -----------------------------------------------------------------------------------------


def check_gated_width(answer: Answer, fresh: Fresh) -> None:
    cases = [(12, 1), (13, 2), (52, 16), (100, 32), (192, 32), (768, 64)]
    cases += [(3 * fresh.integer(10, 400), 16), (96 * fresh.integer(1, 20) + 4, 32)]
    for C, multiple in cases:
        exact = 8 * C / 3 / multiple
        if abs(exact % 1 - 0.5) < 0.05:  # either way is right
            continue
        answer.expect(
            (C, multiple),
            round(exact) * multiple,
            {
                "that is the width of the part with two matrices; three of them have more parameters.": 4 * C,
                "8 // 3 is 2: whole-number division came too early.": 2 * C // multiple * multiple,
                "8 // 3 is 2: whole-number division came too early. ": round(2 * C / multiple) * multiple,
                "the exact width is right, but it must be rounded to a multiple.": 8 * C / 3,
                "the width is rounded to a whole number, but not to a multiple.": round(8 * C / 3),
                "rounded down; the nearest multiple is closer to the wanted number of parameters.": math.floor(exact)
                * multiple,
                "rounded up; the nearest multiple is closer to the wanted number of parameters.": math.ceil(exact)
                * multiple,
            },
        )


# --- 3.2 -----------------------------------------------------------------------------------------


def check_decoder_parameters(answer: Answer, fresh: Fresh) -> None:
    cases = [(10, 4, 2, 1), (50257, 1024, 768, 12)]
    cases += [(fresh.integer(20, 5000), fresh.integer(8, 200), 6 * fresh.integer(1, 64), fresh.integer(1, 9))]
    for V, T, C, L in cases:
        attention, forward, norms = 4 * (C * C + C), 8 * C * C + 5 * C, 4 * C
        right = V * C + T * C + L * (attention + forward + norms) + 2 * C
        answer.expect(
            (V, T, C, L),
            right,
            {
                "the head is tied to the embedding: its V x C numbers exist only once.": right + V * C,
                "the position embeddings are missing.": right - T * C,
                "the norm after the last layer is missing.": right - 2 * C,
                "the norms inside the layers are missing: two in each, with a scale and a shift.": right - L * norms,
                "all norms are missing, with their scales and shifts.": right - L * norms - 2 * C,
                "a layer norm has a scale and a shift, 2 C numbers, not only C.": right - L * norms // 2 - C,
                "the biases of attention and feed-forward are missing.": right - 9 * L * C,
                "the biases of the feed-forward part are missing: 4 C and C.": right - 5 * L * C,
                "the biases of attention are missing: C for each of the four projections.": right - 4 * L * C,
                "the embedding is missing.": right - V * C,
            },
        )


# --- 3.3 -----------------------------------------------------------------------------------------


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _layer(x: Tensor, mix: Tensor, up: Tensor, down: Tensor, mode: str = "right") -> Tensor:
    def think(y: Tensor) -> Tensor:
        return F.gelu(y @ up) @ down

    if mode == "stub":
        x = _norm(x)
        x = x + mix @ x
        x = _norm(x)
        return x + think(x)
    if mode == "post":
        x = _norm(x + mix @ x)
        return _norm(x + think(x))
    if mode == "first":
        x = x + mix @ _norm(x)
        x = _norm(x)
        return x + think(x)
    if mode == "second":
        x = _norm(x)
        x = x + mix @ x
        return x + think(_norm(x))
    if mode == "bare":
        x = x + mix @ x
        return x + think(x)
    if mode == "stale":
        return x + mix @ _norm(x) + think(_norm(x))
    if mode == "lost":
        x = x + mix @ _norm(x)
        return think(_norm(x))
    if mode == "unnormed":
        x = x + mix @ _norm(x)
        return x + think(x)
    x = x + mix @ _norm(x)
    return x + think(_norm(x))


def check_layer(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "stub": "the stream itself is normed: what earlier layers have written is rescaled and lost. Only the copy that "
        "goes into a part is normed.",
        "first": "before the feed-forward part the stream itself is still normed; norm the copy only.",
        "second": "before attention the stream itself is still normed; norm the copy only.",
        "post": "the norm stands after the addition, as in the paper of 2017: the stream is rescaled at every step, and "
        "deep stacks are hard to train. Norm the copy that goes into a part.",
        "bare": "there is no norm left: each part must get a normed copy of the stream.",
        "stale": "the feed-forward part reads the stream as it was before attention: it cannot think about what has "
        "just been gathered.",
        "lost": "the feed-forward part replaces the stream instead of adding to it.",
        "unnormed": "the feed-forward part gets the stream as it is; it needs a normed copy, too.",
    }
    for T, C, hidden in ((2, 3, 4), (fresh.integer(3, 6), 8, 16), (12, 32, 64)):
        for dtype in (torch.float32, torch.float64):
            x = fresh.normal(T, C, dtype=dtype, scale=3.0)
            mix = fresh.probabilities(T, T, dtype=dtype)
            up, down = fresh.normal(C, hidden, dtype=dtype), fresh.normal(hidden, C, dtype=dtype)
            parts = (x, mix, up, down)
            answer.expect(
                parts,
                _layer(*parts),
                {text: lambda mode=mode, parts=parts: _layer(*parts, mode) for mode, text in mistakes.items()},
            )


# --- 3.4 -----------------------------------------------------------------------------------------


def check_fold_norm(answer: Answer, fresh: Fresh) -> None:
    for outputs, C in ((1, 2), (2, 3), (4, 4), (fresh.integer(5, 9), fresh.integer(10, 60))):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            scale, shift = fresh.normal(C, dtype=dtype) + 2, fresh.normal(C, dtype=dtype)
            weight, bias = fresh.normal(outputs, C, dtype=dtype), fresh.normal(outputs, dtype=dtype)
            # In double precision: of bfloat16, only the result is rounded.
            s, h, w, b = (part.double() for part in (scale, shift, weight, bias))
            right = ((w * s).to(dtype), (w @ h + b).to(dtype))
            answer.expect(
                (scale, shift, weight, bias),
                right,
                {
                    "the new weight is right, but the shift has not been carried into the bias: it goes through the "
                    "linear layer, too.": (right[0], bias),
                    "the shift is added to the bias as it is; it goes through the linear layer first, weight @ shift.": (
                        lambda: (right[0], bias + shift)
                    ),
                    "the scale belongs to the inputs of the linear layer, the columns of its weight, not to the rows.": (
                        lambda: ((w * s[:, None]).to(dtype), right[1])
                    ),
                    "dividing by the scale undoes the norm; the linear layer has to do what the scale did.": (
                        (w / s).to(dtype),
                        right[1],
                    ),
                    "the shift was multiplied with the scale: it is added after the scale.": (
                        right[0],
                        ((w * s) @ h + b).to(dtype),
                    ),
                    "the old bias is lost.": (right[0], (w @ h).to(dtype)),
                },
            )


# --- 3.5 -----------------------------------------------------------------------------------------


def _gpt2(ids: Tensor, weights: dict[str, Tensor], layers: int, heads: int, fault: str = "") -> Tensor:
    """GPT-2 in a few lines, with one fault or none."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / ((x * x).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    B, T = ids.shape
    x = weights["embedding.weight"][ids]
    C = x.shape[-1]
    if fault != "positions":
        x = x + weights["positions.weight"][:T]
    for layer in range(layers):
        name = f"layers.{layer}"
        y = norm(x, f"{name}.attention_norm") if fault != "norms" else x
        query, key, value = (
            linear(y, f"{name}.attention.{part}").view(B, T, heads, C // heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(-2, -1) / (1 if fault == "scale" else math.sqrt(C // heads))
        if fault != "mask":
            scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(B, T, C)
        if fault != "output":
            mixed = linear(mixed, f"{name}.attention.output")
        x = mixed if fault == "residual" else x + mixed
        y = norm(x, f"{name}.feed_forward_norm")
        y = linear(y, f"{name}.feed_forward.up")
        y = y.relu() if fault == "relu" else F.gelu(y, approximate="tanh")
        x = x + linear(y, f"{name}.feed_forward.down")
    if fault != "last norm":
        x = norm(x, "norm")
    return x @ weights["embedding.weight"].T


def _gpt2_weights(fresh: Fresh, V: int, C: int, T: int, layers: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, C), "positions": (T, C), "norm": (C,)}
    for layer in range(layers):
        name = f"layers.{layer}"
        shapes |= {f"{name}.attention.{part}": (C, C) for part in ("query", "key", "value", "output")}
        shapes |= {f"{name}.feed_forward.up": (4 * C, C), f"{name}.feed_forward.down": (C, 4 * C)}
        shapes |= {f"{name}.attention_norm": (C,), f"{name}.feed_forward_norm": (C,)}
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = fresh.normal(*shape, dtype=dtype, scale=0.7)
        if len(shape) == 1:
            weights[f"{name}.weight"] += 1
        if name not in ("embedding", "positions"):
            weights[f"{name}.bias"] = fresh.normal(shape[0], dtype=dtype, scale=0.5)
    return weights


def check_gpt2_logits(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "mask": "the causal mask is missing.",
        "positions": "the position embeddings are missing: without them the order of the words is lost.",
        "last norm": "the norm after the last layer is missing.",
        "scale": "the scores are not divided by the root of D, the size of a head.",
        "residual": "attention replaces the stream instead of adding to it.",
        "relu": "the feed-forward part needs GELU, not ReLU.",
        "output": "the output projection of attention is missing.",
        "norms": "attention reads the stream as it is; it needs a normed copy.",
    }
    shapes = [(1, 1, 3, 1, 1, 2), (1, 3, 5, 1, 1, 2), (1, 4, 6, 1, 2, 4), (2, fresh.integer(5, 9), 11, 3, 4, 16)]
    for B, T, V, layers, heads, C in shapes:
        for dtype in (torch.float64, torch.float32):
            weights = _gpt2_weights(fresh, V, C, T + 2, layers, dtype)
            arguments = (fresh.integers(0, V, B, T), weights, layers, heads)
            answer.expect(
                arguments,
                _gpt2(*arguments),
                {text: lambda fault=fault, a=arguments: _gpt2(*a, fault) for fault, text in mistakes.items()},
                tolerance=1e-6 if dtype is torch.float64 else 2e-3,
            )


EXERCISES = (
    Exercise(
        number="3.1",
        title="How wide may a gate be?",
        minutes=5,
        difficulty=1,
        task="""\
The plain feed-forward part has two matrices between `C` and `4 C` features, the gated one three between `C` and `h`.
Which `h` gives both the same number of weights? Round it to the nearest multiple of `multiple`, since hardware likes
round numbers. Predict it for a width of 192 and multiples of 32; the last line asks gptcore.""",
        stub='''\
def gated_width(C, multiple):
    """Inner width of a gated feed-forward part that weighs as much as a plain one of inner width 4 C."""
    ...''',
        demo="""\
from gptcore.decoder import DecoderConfig

print("yours:", gated_width(192, 32), "  gptcore's:", DecoderConfig(100, width=192).feed_forward_width)""",
        checker=check_gated_width,
        hints=("2 x C x 4 C weights on one side, 3 x C x h on the other.", "`round(x / multiple) * multiple`."),
        solution='''\
def gated_width(C, multiple):
    """Inner width of a gated feed-forward part that weighs as much as a plain one of inner width 4 C."""
    return round(8 / 3 * C / multiple) * multiple''',
        praise="Two designs can only be compared fairly at the same number of parameters, or the same cost; this is "
        "where the odd factor 8/3 in Llama's code comes from.",
    ),
    Exercise(
        number="3.2",
        title="124,439,808",
        minutes=15,
        difficulty=2,
        task="""\
Count the parameters of a `gpt2` decoder: vocabulary `V`, context `T`, width `C`, `L` layers, feed-forward parts of
inner width 4 C, biases everywhere, layer norms with scale and shift, learned positions, and a head that is tied to
the embedding. For the smallest published GPT-2 (V = 50257, T = 1024, C = 768, L = 12) the number must be the one in
the title.""",
        stub='''\
def decoder_parameters(V, T, C, L):
    """Number of parameters of a `gpt2` decoder."""
    ...''',
        demo="print(decoder_parameters(50257, 1024, 768, 12))",
        checker=check_decoder_parameters,
        hints=(
            "Outside the layers: embedding, positions, one norm. What the head has is the embedding's.",
            "In a layer: attention 4 (C C + C), feed-forward C 4C + 4C + 4C C + C, two norms of 2 C.",
        ),
        solution='''\
def decoder_parameters(V, T, C, L):
    """Number of parameters of a `gpt2` decoder."""
    norm = 2 * C
    attention = 4 * (C * C + C)
    feed_forward = (C * 4 * C + 4 * C) + (4 * C * C + C)
    return V * C + T * C + L * (attention + feed_forward + 2 * norm) + norm''',
        praise="About 12 C C for each layer: with this rule you can tell a model's size from its width and depth in "
        "your head.",
    ),
    Exercise(
        number="3.3",
        title="Find the bug: a stream that forgets",
        minutes=12,
        difficulty=3,
        task="""\
A decoder layer in small: `mix`, `(T, T)`, stands for attention (each row says what a position takes from all), `up`
and `down` make the feed-forward part. The layer works and even trains. But the last lines show something odd: make
the input a hundred times larger, and the output is the same. What earlier layers have written into the stream is
rescaled, layer after layer, and the short way for the gradient is gone. Repair it: each part gets a *normed copy*,
and its result is added to the stream as it was.""",
        stub='''\
import torch
from torch.nn import functional as F


def layer(x, mix, up, down):
    """One decoder layer on a stream x (T, C), with mix (T, T), up (C, h) and down (h, C)."""
    x = F.layer_norm(x, x.shape[-1:])
    x = x + mix @ x
    x = F.layer_norm(x, x.shape[-1:])
    return x + F.gelu(x @ up) @ down''',
        demo="""\
generator = torch.Generator().manual_seed(0)
x, up, down = (torch.randn(*shape, generator=generator) for shape in ((3, 4), (4, 8), (8, 4)))
mix = torch.ones(3, 3).tril().softmax(dim=-1)
print("input:                  ", x[0].tolist())
print("output:                 ", layer(x, mix, up, down)[0].tolist())
print("for 100 times the input:", layer(100 * x, mix, up, down)[0].tolist())""",
        checker=check_layer,
        hints=(
            "Where does the variable `x` still hold what came in? After the first line it does not.",
            "Give the copy a name of its own, and add to `x`.",
        ),
        solution='''\
import torch
from torch.nn import functional as F


def layer(x, mix, up, down):
    """One decoder layer on a stream x (T, C), with mix (T, T), up (C, h) and down (h, C)."""
    copy = F.layer_norm(x, x.shape[-1:])
    x = x + mix @ copy
    copy = F.layer_norm(x, x.shape[-1:])
    return x + F.gelu(copy @ up) @ down''',
        praise="An untouched stream gives the gradient a way from the loss to the first layer on which nothing is "
        "multiplied; that is what makes a hundred layers trainable.",
    ),
    Exercise(
        number="3.4",
        title="A norm that disappears",
        minutes=20,
        difficulty=3,
        task="""\
A layer norm ends with `y * scale + shift`, and next comes a linear layer, `weight @ z + bias` for each position. Two
linear steps in a row can be one. Derive the weight and the bias of a single linear layer that does both, so that
the norm needs no scale and no shift any more. Shapes: scale and shift `(C,)`, weight `(n, C)`, bias `(n,)`.""",
        stub='''\
def fold_norm(scale, shift, weight, bias):
    """Weight (n, C) and bias (n,) of a linear layer that does scale and shift of the norm before it, too."""
    ...''',
        checker=check_fold_norm,
        hints=(
            "Write out weight @ (y * scale + shift) + bias and sort by what contains y and what does not.",
            "(weight @ (y * scale))_i is the sum over j of weight_ij scale_j y_j: so the scale multiplies columns.",
            "What does not contain y is weight @ shift + bias.",
        ),
        solution='''\
def fold_norm(scale, shift, weight, bias):
    """Weight (n, C) and bias (n,) of a linear layer that does scale and shift of the norm before it, too."""
    return weight * scale, weight @ shift + bias''',
        praise="Programs that run models fold such steps before they start, and whoever takes a model apart to see "
        "what its weights mean does so, too.",
    ),
    Exercise(
        number="3.5",
        title="Project: GPT-2 on one page",
        minutes=45,
        difficulty=5,
        task="""\
Write the whole forward pass of GPT-2 as one function, without a class and without `torch.nn` modules. `weights` is a
dictionary with the names of gptcore's `gpt2` preset: `embedding.weight` `(V, C)`, `positions.weight`,
`norm.weight` and `norm.bias` for the last norm, and for each layer i, after `layers.i.`: `attention_norm`,
`attention.query`, `.key`, `.value`, `.output`, `feed_forward_norm`, `feed_forward.up`, `feed_forward.down`, each with
`.weight` and `.bias`; linear weights are stored `(outputs, inputs)`. The head is the embedding. GELU is the `tanh`
approximation, the norms add 1e-5 to the variance. The last lines compare with gptcore.""",
        stub='''\
import torch
from torch.nn import functional as F


def gpt2_logits(ids, weights, layers, heads):
    """Logits (B, T, V) of the next token at every position for ids (B, T)."""
    ...''',
        demo="""\
from gptcore.decoder import Decoder, DecoderConfig

model = Decoder(DecoderConfig(50, context_length=16, layers=2, width=16, heads=4, preset="gpt2"))
ids = torch.tensor([[3, 1, 4, 1, 5]])
own = gpt2_logits(ids, model.state_dict(), 2, 4)
if own is not None:
    print("largest difference:", (own - model(ids)).abs().max().item())""",
        checker=check_gpt2_logits,
        seconds=30.0,
        hints=(
            "Begin with embedding plus positions, then the last norm and the head; add the layers when that runs.",
            "`F.linear(x, weights[name + '.weight'], weights[name + '.bias'])` and `F.layer_norm(x, (C,), weight, bias)` "
            "do most of the work.",
            "In a layer: copy = norm(x); query, key, value = three linears of it, split into heads; "
            "F.scaled_dot_product_attention(..., is_causal=True); merge; output; add to x. Then the same with the "
            "feed-forward part.",
        ),
        solution='''\
import torch
from torch.nn import functional as F


def gpt2_logits(ids, weights, layers, heads):
    """Logits (B, T, V) of the next token at every position for ids (B, T)."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    B, T = ids.shape
    x = weights["embedding.weight"][ids] + weights["positions.weight"][:T]  # (B, T, C)
    C = x.shape[-1]
    for i in range(layers):
        here = f"layers.{i}"
        copy = norm(x, f"{here}.attention_norm")
        query, key, value = (
            linear(copy, f"{here}.attention.{part}").view(B, T, heads, C // heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).reshape(B, T, C), f"{here}.attention.output")
        copy = norm(x, f"{here}.feed_forward_norm")
        x = x + linear(F.gelu(linear(copy, f"{here}.feed_forward.up"), approximate="tanh"), f"{here}.feed_forward.down")
    return norm(x, "norm") @ weights["embedding.weight"].T''',
        praise="This is all there is: with the published weights in the dictionary, these few lines are GPT-2.",
    ),
)
