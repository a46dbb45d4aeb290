"""Exercises of chapter 3: the decoder."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, by_message

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
                "8 // 3 is 2: whole-number division came too early.": Either(
                    2 * C // multiple * multiple, round(2 * C / multiple) * multiple
                ),
                "the exact width is right, but it must be rounded to a multiple.": 8 * C / 3,
                "the width is a whole number, but not rounded to a multiple of `multiple`. With C = 52 and multiple = 16, "
                "8 * 52 // 3 is 138, and 138 is no multiple of 16: the nearest one is 144.": Either(
                    round(8 * C / 3), 8 * C // 3
                ),
                "the multiple is always 32 here; it is the argument `multiple`.": round(C / 12) * 32,
                "rounded down; the nearest multiple is closer to the wanted number of parameters.": math.floor(exact)
                * multiple,
                "rounded up; the nearest multiple is closer to the wanted number of parameters.": math.ceil(exact)
                * multiple,
            },
        )


# --- 3.2 -----------------------------------------------------------------------------------------


def check_deepest(answer: Answer, fresh: Fresh) -> None:
    # Mistakes differ by little, and what is left over hides most of them: each of the first cases shows only some.
    many = (1000 + 8 + 2) * 6 + 200 * (12 * 6 * 6 + 13 * 6)  # all of it is spent on 200 narrow layers
    cases = [(1000, 8, 6, many + spare) for spare in (250, 380, -18, -6)]
    cases += [(50257, 1024, 768, budget) for budget in (1_000_000, 124_439_808, 124_439_807)]
    for _ in range(4):
        V, T, C, L = fresh.integer(20, 5000), fresh.integer(8, 200), 6 * fresh.integer(1, 64), fresh.integer(2, 9)
        full = (V + T + 2) * C + L * (12 * C * C + 13 * C)
        cases += [(V, T, C, full), (V, T, C, full - 1), (V, T, C, full + fresh.integer(1, 12 * C * C))]
    for V, T, C, budget in cases:
        outside, layer = (V + T + 2) * C, 12 * C * C + 13 * C

        def layers(outside: int, layer: int, budget: int = budget) -> int:
            return max(0, (budget - outside) // layer)

        answer.expect(
            (V, T, C, budget),
            layers(outside, layer),
            {
                "a model cannot have fewer than 0 layers: the budget may be too small for the embedding alone.": (
                    (budget - outside) // layer
                ),
                "rounded; a model that is a little over the budget is too large.": max(
                    0, round((budget - outside) / layer)
                ),
                "that is no whole number; `//` rounds down.": max(0, (budget - outside) / layer),
                "the head is tied to the embedding: its V x C numbers exist only once.": layers(outside + V * C, layer),
                "what stands outside of the layers is missing: embedding, positions and the last norm.": layers(
                    0, layer
                ),
                "the position embeddings are missing.": layers(outside - T * C, layer),
                "the norm after the last layer is missing.": layers(outside - 2 * C, layer),
                "the biases and norms of a layer are missing: 13 C numbers.": layers(outside, 12 * C * C),
                "there are two norms in a layer, each with a scale and a shift.": Either(
                    layers(outside, layer - 2 * C), layers(outside, layer - 4 * C)
                ),
                "the output projection is missing: attention has four C x C matrices.": layers(
                    outside, layer - C * C - C
                ),
            },
        )


# --- 3.3 -----------------------------------------------------------------------------------------


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _layer(x: Tensor, mix: Tensor, up: Tensor, down: Tensor, mode: str = "right") -> Tensor:
    def norm(y: Tensor) -> Tensor:
        return _norm(y) * math.sqrt(1 - 1 / y.shape[-1]) if mode == "unbiased" else _norm(y)

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
    x = x + mix @ norm(x)
    return x + think(norm(x))


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
        "unbiased": "the norm divides by the root of the variance with C - 1; a layer norm takes the mean over all C "
        "(`unbiased=False`).",
        "unnormed": "the feed-forward part gets the stream as it is; it needs a normed copy, too.",
    }
    # The numbers are large enough that it does not matter what a norm adds to the variance.
    by_hand = ([[5.0, 1.0]], [[1.0]], [[1.0], [0.0]], [[1.0, 1.0]])
    cases = [tuple(torch.tensor(part) for part in by_hand)]
    for T, C, hidden in ((2, 4, 4), (fresh.integer(3, 6), 8, 16), (12, 32, 64)):
        cases.append(
            (
                fresh.normal(T, C, scale=3.0) + torch.linspace(-3, 3, C),
                fresh.probabilities(T, T),
                fresh.normal(C, hidden),
                fresh.normal(hidden, C),
            )
        )
    for x, mix, up, down in cases:
        answer.expect(
            (x, mix, up, down),
            _layer(x, mix, up, down),
            by_message(mistakes, lambda mode: _layer(x, mix, up, down, mode)),
            tolerance=2e-3,
        )


# --- 3.4 -----------------------------------------------------------------------------------------


def check_fold_norm(answer: Answer, fresh: Fresh) -> None:
    by_hand = ([2.0, 3.0], [1.0, -1.0], [[1.0, 10.0]], [5.0])
    cases = [tuple(torch.tensor(part) for part in by_hand)]
    for n, C in ((2, 3), (4, 4), (fresh.integer(5, 9), fresh.integer(10, 60))):
        cases.append((fresh.normal(C) + 2, fresh.normal(C), fresh.normal(n, C), fresh.normal(n)))
    for scale, shift, weight, bias in cases:
        right = (weight * scale, weight @ shift + bias)
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
                    lambda: (weight * scale[:, None], right[1])
                ),
                "dividing by the scale undoes the norm; the linear layer has to do what the scale did.": (
                    weight / scale,
                    right[1],
                ),
                "the shift was multiplied with the scale: it is added after the scale.": (
                    right[0],
                    right[0] @ shift + bias,
                ),
                "the old bias is lost.": (right[0], weight @ shift),
            },
            tolerance=1e-3,
        )


# --- 3.5 -----------------------------------------------------------------------------------------


def _gpt2(ids: Tensor, weights: dict[str, Tensor], layers: int, heads: int, fault: str = "") -> Tensor:
    """GPT-2 in a few lines, with one fault or none."""

    def linear(x: Tensor, name: str) -> Tensor:
        x = x @ weights[f"{name}.weight"].T
        return x if fault == "biases" else x + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / ((x * x).mean(dim=-1, keepdim=True) + (0 if fault == "epsilon" else 1e-5)).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(y: Tensor, name: str) -> Tensor:
        split = [linear(y, f"{name}.{part}") for part in ("query", "key", "value")]
        if fault == "view":
            query, key, value = (part.view(B, heads, T, C // heads) for part in split)
        else:
            query, key, value = (part.view(B, T, heads, C // heads).transpose(1, 2) for part in split)
        scores = query @ key.transpose(-2, -1) / (1 if fault == "scale" else math.sqrt(C // heads))
        if fault != "mask":
            scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
        mixed = scores.softmax(dim=-1) @ value
        mixed = mixed.reshape(B, T, C) if fault in ("view", "merge") else mixed.transpose(1, 2).reshape(B, T, C)
        return mixed if fault == "output" else linear(mixed, f"{name}.output")

    def feed_forward(y: Tensor, name: str) -> Tensor:
        y = linear(y, f"{name}.up")
        y = y.relu() if fault == "relu" else F.gelu(y, approximate="none" if fault == "exact" else "tanh")
        return linear(y, f"{name}.down")

    B, T = ids.shape
    x = weights["embedding.weight"][ids]
    C = x.shape[-1]
    if fault != "positions":
        first = 1 if fault == "from 1" else 0
        x = x + weights["positions.weight"][first : first + T]
    for layer in range(layers):
        for part in (attention, feed_forward):
            name = f"layers.{layer}.{part.__name__}"
            y = x if fault in ("norms", "post") else norm(x, f"{name}_norm")
            x = y if fault == "normed stream" else x
            x = part(y, name) if fault == part.__name__ else x + part(y, name)
            x = norm(x, f"{name}_norm") if fault == "post" else x
    if fault != "last norm":
        x = norm(x, "norm")
    return x @ weights["embedding.weight"].T


def _gpt2_weights(fresh: Fresh, V: int, C: int, T: int, layers: int) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, C), "positions": (T, C), "norm": (C,)}
    for layer in range(layers):
        name = f"layers.{layer}"
        shapes |= {f"{name}.attention.{part}": (C, C) for part in ("query", "key", "value", "output")}
        shapes |= {f"{name}.feed_forward.up": (4 * C, C), f"{name}.feed_forward.down": (C, 4 * C)}
        shapes |= {f"{name}.attention_norm": (C,), f"{name}.feed_forward_norm": (C,)}
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = fresh.normal(*shape, scale=0.5)
        if len(shape) == 1:
            weights[f"{name}.weight"] += 1
        if name not in ("embedding", "positions"):
            weights[f"{name}.bias"] = fresh.normal(shape[0], scale=0.5)
    # So small that it matters what a norm adds to the variance.
    weights["embedding.weight"][0] *= 0.05
    weights["positions.weight"][0] *= 0.05
    return weights


def check_gpt2_logits(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "mask": "the causal mask is missing.",
        "positions": "the position embeddings are missing: without them the order of the words is lost.",
        "last norm": "the norm after the last layer is missing.",
        "scale": "the scores are not divided by the root of D, the size of a head.",
        "attention": "attention replaces the stream instead of adding to it.",
        "feed_forward": "the second residual connection is missing: the feed-forward part replaces the stream instead of "
        "adding to it.",
        "relu": "the feed-forward part needs GELU, not ReLU.",
        "exact": 'GELU is the tanh approximation here: `F.gelu(..., approximate="tanh")`.',
        "output": "the output projection of attention is missing.",
        "norms": "attention and feed-forward part read the stream as it is; each needs a normed copy.",
        "normed stream": "the stream itself is normed: give the norm's result a name of its own, and add to `x` as it was.",
        "post": "the norms stand after the additions; in GPT-2 they stand before the parts, on a copy of the stream.",
        "biases": "the biases of the linear layers are missing.",
        "from 1": "the positions begin at 1; the first token has position 0.",
        "epsilon": "the norms add 1e-5 to the variance; without it the numbers are slightly off.",
        "view": "the heads are cut wrongly: a head is a slice of the channels, not of the positions. Split with "
        "`.view(B, T, heads, C // heads).transpose(1, 2)`, and undo the transpose before the heads are joined.",
        "merge": "the heads are joined wrongly: undo the transpose first, `.transpose(1, 2).reshape(B, T, C)`.",
    }
    shapes = [(1, 1, 3, 1, 2, 4), (1, 3, 5, 1, 2, 4), (1, 4, 6, 2, 2, 8), (2, fresh.integer(5, 9), 11, 3, 4, 16)]
    for B, T, V, layers, heads, C in shapes:
        weights = _gpt2_weights(fresh, V, C, T + 2, layers)
        ids = fresh.integers(0, V, B, T)
        ids[0, 0] = 0
        arguments = (ids, weights, layers, heads)
        answer.expect(
            arguments,
            _gpt2(*arguments),
            by_message(mistakes, lambda fault: _gpt2(*arguments, fault)),
            tolerance=1e-4,
        )


EXERCISES = (
    Exercise(
        number="3.1",
        title="How wide may a gate be?",
        minutes=5,
        difficulty=1,
        task="""\
The plain feed-forward part has two matrices between `C` and `4 C` features, the gated one three between `C` and `h`.
Derive which `h` gives both the same number of weights, biases left out. Round it to the nearest multiple of
`multiple`, since hardware likes round numbers. Predict it by hand for the widths 128 and 160 and multiples of 32; the
last lines ask gptcore as soon as your function returns a number.""",
        stub='''\
def gated_width(C, multiple):
    """Inner width of a gated feed-forward part that weighs as much as a plain one of inner width 4 C."""
    ...''',
        demo="""\
from gptcore.decoder import DecoderConfig

for C in (128, 160):
    if (yours := gated_width(C, 32)) is not None:
        print(C, "yours:", yours, "  gptcore's:", DecoderConfig(100, width=C, heads=1).feed_forward_width)""",
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
        title="How deep?",
        minutes=8,
        difficulty=2,
        task="""\
The chapter counts the parameters of a model of given depth. Turn it round: a `gpt2` decoder with vocabulary `V`, context
`T` and width `C` may have at most `budget` parameters. How many layers can it have? It is built as in the chapter:
feed-forward parts of inner width 4 C, biases everywhere, layer norms with scale and shift, learned positions, a norm
after the last layer, and a head that is tied to the embedding. Where the budget is too small for a single layer, the
answer is 0.""",
        stub='''\
def deepest(V, T, C, budget):
    """Most layers of a `gpt2` decoder with at most `budget` parameters."""
    ...''',
        demo="""\
print(deepest(50257, 1024, 768, 124_439_808))  # right: 12, the smallest published GPT-2
print(deepest(50257, 1024, 768, 124_439_807))  # right: 11, for one parameter is missing""",
        checker=check_deepest,
        hints=(
            "Outside of the layers: embedding, positions, one norm. What the head has is the embedding's.",
            "A layer has 12 C C + 13 C. How often does that go into what is left of the budget?",
        ),
        solution='''\
def deepest(V, T, C, budget):
    """Most layers of a `gpt2` decoder with at most `budget` parameters."""
    norm = 2 * C
    attention = 4 * (C * C + C)
    feed_forward = (C * 4 * C + 4 * C) + (4 * C * C + C)
    outside = V * C + T * C + norm
    return max(0, (budget - outside) // (attention + feed_forward + 2 * norm))''',
        praise="About 12 C C for each layer: with this rule you can tell a model's size from its width and depth in "
        "your head.",
    ),
    Exercise(
        number="3.3",
        title="Find the bug: a stream that forgets",
        minutes=12,
        difficulty=3,
        task="""\
A decoder layer in miniature: `mix`, `(T, T)`, stands for attention (each row says what a position takes from all), `up`
and `down` make the feed-forward part. The layer works and even trains. But the last lines show something odd: make
the input a hundred times larger, and the output hardly changes. What earlier layers have written into the stream is
rescaled, layer after layer, and the gradient's short cut is gone. Find the two lines that do it, and repair them.""",
        stub='''\
import torch
from torch.nn import functional as F


def decoder_layer(x, mix, up, down):
    """One decoder layer on a stream x (T, C), with mix (T, T), up (C, h) and down (h, C)."""
    x = F.layer_norm(x, x.shape[-1:])
    x = x + mix @ x
    x = F.layer_norm(x, x.shape[-1:])
    return x + F.gelu(x @ up) @ down''',
        demo="""\
generator = torch.Generator().manual_seed(0)
stream, widen, narrow = (torch.randn(*size, generator=generator) for size in ((3, 4), (4, 8), (8, 4)))
average = torch.full((3, 3), 1 / 3)
print("input:                  ", stream[0].tolist())
print("output:                 ", decoder_layer(stream, average, widen, narrow)[0].tolist())
print("for 100 times the input:", decoder_layer(100 * stream, average, widen, narrow)[0].tolist())
# Right: the last line holds about 100 times the numbers of the first, for the stream is kept.""",
        checker=check_layer,
        hints=(
            "Where does the variable `x` still hold what came in? After the first line it does not.",
            "Give the copy a name of its own, and add to `x`.",
        ),
        solution='''\
import torch
from torch.nn import functional as F


def decoder_layer(x, mix, up, down):
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
For each position a layer norm first makes `y` `(C,)`, with mean 0 and variance 1, and then `z = y * scale + shift`
`(C,)`. (`scale` and `shift`, both `(C,)`, are the chapter's g and b; PyTorch calls them weight and bias.) Next comes a
linear layer, `weight @ z + bias`, with weight `(n, C)`, bias `(n,)` and n the number of its outputs. Two linear steps in
a row can be one. Derive the weight and the bias of a single linear layer that makes the same result from `y`, so that
the norm needs no scale and no shift any more. The last lines compare the two ways.""",
        stub='''\
def fold_norm(scale, shift, weight, bias):
    """Weight (n, C) and bias (n,) of a linear layer that does scale and shift of the norm before it, too."""
    ...''',
        demo="""\
import torch

some_scale, some_shift = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
some_weight, some_bias = torch.tensor([[1.0, 10.0]]), torch.tensor([5.0])
some_y = torch.tensor([1.0, -1.0])
print("norm, then linear layer: ", (some_weight @ (some_y * some_scale + some_shift) + some_bias).tolist())
folded = fold_norm(some_scale, some_shift, some_weight, some_bias)
if folded is not None:
    print("your single linear layer:", (folded[0] @ some_y + folded[1]).tolist(), "(right: the same)")""",
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
dictionary with the names of gptcore's `gpt2` preset: `embedding.weight` `(V, C)`, `positions.weight` `(T_max, C)`,
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

small_gpt2 = Decoder(DecoderConfig(50, context_length=16, layers=2, width=16, heads=4, preset="gpt2"))
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for parameter in small_gpt2.parameters():  # fresh biases are zero, which would hide mistakes
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
its_weights = small_gpt2.state_dict()
its_weights.pop("head.weight")  # it is the embedding
some_ids = torch.tensor([[3, 1, 4, 1, 5]])
own_logits = gpt2_logits(some_ids, its_weights, 2, 4)
if own_logits is not None:
    largest = (own_logits - small_gpt2(some_ids)).abs().max().item()
    print("largest difference:", largest, "(a right answer stays below 1e-5)")""",
        checker=check_gpt2_logits,
        seconds=30.0,
        hints=(
            "Begin with embedding plus positions, then the last norm and the head; add the layers when that runs.",
            "`F.linear(x, weights[name + '.weight'], weights[name + '.bias'])` and `F.layer_norm(x, (C,), weight, bias)` "
            "do most of the work.",
            "In a layer: copy = norm(x); query, key and value are three linears of it, each split by `.view(B, T, heads, "
            "C // heads).transpose(1, 2)`; `F.scaled_dot_product_attention(query, key, value, is_causal=True)`; "
            "`.transpose(1, 2).reshape(B, T, C)`; output; add to x. Then the same with the feed-forward part: copy = "
            'norm(x), u = up of it, `F.gelu(u, approximate="tanh")`, down, add to x.',
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
