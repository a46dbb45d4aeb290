"""The data behind each view, and what all views promise: words for errors, no harm from any text."""

import asyncio
import base64
import json
import math
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from gptcore.attention import causal_mask
from gptcore.ballots import Ballot
from gptcore.bpe import learn_merges
from gptcore.chat_template import decode_answer, encode_answer, encode_conversation, encode_prompt
from gptcore.checkpoint import SHIPPED
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.generation import SamplingConfig, next_token_probabilities
from gptcore.loss import IGNORED
from gptcore.own_data import Question, read_comparisons
from gptcore.questions import Prompt, fact_prompts
from gptcore.reward import RewardModel
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, Tokenizer
from gptcore.training import StepReport, Trainer, TrainingConfig
from gptcore.widgets import (
    AttentionExplorer,
    ChatWindow,
    MaskInspector,
    MergeStepper,
    PipelineMap,
    PPOLab,
    PreferenceLabels,
    SamplingLab,
    TrainingDashboard,
    _view,
    attention,
    bertviz,
    chat,
    held_out_batches,
    labels,
    merges,
    pipeline,
    ppo_lab,
    sampling,
    single_pairs,
    training,
)
from gptcore.widgets.mask import mask_columns

NASTY = [
    "",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\u202egnirts desrever",
    "שלום עולם مرحبا",
    "👩‍👩‍👧‍👦 🇨🇳",
    "e\u0301\u0301\u0301",
    "a\x00b\x1b[31m",
    "$x_1$ and \\alpha",
    "长" * 300,
    "\n\t  ",
]
VIEWS = sorted((_view.STATIC).glob("*.js"))

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(learn_merges(["the capital of Peru is Lima. 秘鲁的首都是利马。"], 30))


def decoder(tokenizer: Tokenizer, preset="llama", context_length=128, **shape) -> Decoder:
    config = DecoderConfig(
        tokenizer.vocabulary_size,
        context_length,
        layers=2,
        width=16,
        heads=4,
        preset=preset,
        separator=tokenizer.special[END_OF_TEXT],
        **shape,
    )
    model = Decoder(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def ask(view, what, **values):
    """What the browser sends when the reader does something."""
    view.receive({"do": what, "with": values, "number": 1})
    return view


# --- Tokens, errors, pictures --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" Peru", "␣Peru"),
        ("利马".encode(), "利马"),
        ("利".encode()[:2], "‹E5 88›"),
        (b"\n\t", "↵⇥"),
        ("\u202e".encode(), "‹202E›"),
        ("\u0301".encode(), "◌\u0301"),
        (b"<b>", "<b>"),
        (b"", ""),
    ],
)
def test_a_token_is_shown_as_people_read_it(piece, shown):
    assert _view.readable(piece) == shown


def test_special_tokens_are_shown_by_name(tokenizer):
    ids = encode_prompt(tokenizer, "Hi")
    assert _view.token_labels(tokenizer, ids)[:2] == ["<|endoftext|>", "<|user|>"]


@pytest.mark.parametrize("text", NASTY)
def test_no_label_holds_an_invisible_sign(tokenizer, text):
    for label in _view.token_labels(tokenizer, tokenizer.encode(text)):
        assert all(sign.isprintable() for sign in label)


def test_what_matplotlib_cannot_draw_is_replaced_by_its_number():
    assert _view.drawable("Lima", 7) == "Lima"
    assert _view.drawable("利马", 7) == "#7"
    assert _view.drawable("利马") == "[2 characters]"
    assert _view.drawable("$x$", 7) == r"\$x\$"


class Broken(_view.View):
    _esm = "export default {}"

    def do_refuse(self):
        raise ValueError("too long: shorten it")

    def do_fail(self):
        raise KeyError("nowhere")

    def do_work(self):
        self.data = {"worked": True}


def test_a_reader_s_mistake_is_shown_and_one_of_ours_is_raised_too():
    view = Broken()
    ask(view, "refuse")
    assert view.error == "too long: shorten it"
    with pytest.raises(KeyError):
        ask(view, "fail")
    assert "KeyError" in view.error
    assert "Run its cell again" in view.error
    ask(view, "work")
    assert view.error == ""


def test_each_request_is_confirmed_even_if_it_failed(monkeypatch):
    view, sent = Broken(), []
    monkeypatch.setattr(view, "send", lambda content: sent.append(content))
    ask(view, "refuse")
    with pytest.raises(KeyError):
        ask(view, "fail")
    assert sent == [{"done": 1}] * 2


def test_only_methods_made_for_it_can_be_called_from_the_browser():
    view = Broken()
    with pytest.raises(AttributeError):
        ask(view, "close")  # exists, but not as do_close


def test_scripts_put_text_into_the_page_as_text_only_and_load_nothing():
    assert len(VIEWS) >= 10
    for path in [*VIEWS, _view.STATIC / "views.css"]:
        text = path.read_text(encoding="utf-8")
        for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert danger not in text, f"{path.name}: {danger}"
        assert "import" not in re.findall(r"^\s*(\w+)", text, re.MULTILINE), path.name
        addresses = re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name
        assert "url(" not in text
        assert "fetch(" not in text


def is_png(bundle) -> bool:
    return base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


@cache
def some_prompts() -> list[Prompt]:
    return fact_prompts("train", "en", "train")[:4]


def every_view(tokenizer, tmp_path, text="The capital of Peru is Lima."):
    model = decoder(tokenizer)
    pair = Ballot(some_prompts()[0], [1, 2], [encode_answer(tokenizer, text), [5]], [])
    return [
        AttentionExplorer(model, tokenizer, text),
        SamplingLab(model, tokenizer, text[:20]),
        MergeStepper(text, tokenizer),
        MaskInspector(tokenizer, [(text, text)]),
        PipelineMap(SHIPPED / "report.json"),
        ChatWindow(model, tokenizer, opening=[text[:20]] if text.strip() else []),
        PreferenceLabels([pair], tokenizer, tmp_path / "votes.jsonl"),
        PPOLab(tmp_path / "none.json"),
    ]


@pytest.mark.parametrize("text", ["The capital of Peru is Lima.", "", " ".join(NASTY[:8])])
@pytest.mark.filterwarnings("error::UserWarning:matplotlib")
def test_every_view_has_a_picture_in_its_place(tokenizer, tmp_path, text):
    for view in every_view(tokenizer, tmp_path, text):
        bundle, _ = view._repr_mimebundle_()
        assert is_png(bundle), view
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert "text/html" not in bundle
        assert bundle["text/plain"]


def test_a_view_is_shown_beside_a_picture_that_stands_in_its_place(tokenizer, tmp_path, monkeypatch):
    for view in every_view(tokenizer, tmp_path):
        shown = Shown()
        monkeypatch.setattr(_view, "display", shown)
        view._ipython_display_()
        picture, live = shown.bundles
        assert is_png(picture)
        assert f'data-gptcore="{view.key}"' in picture["text/html"]
        assert picture["image/png"] in picture["text/html"]
        assert set(live) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert len({view.key for view in every_view(tokenizer, tmp_path)}) == 8


def test_a_run_that_was_not_finished_leaves_words_in_its_place(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(_view, "display", shown)
    monkeypatch.setattr(training, "INTERVAL", 0.0)
    view = TrainingDashboard()
    monkeypatch.setattr(view.budget, "allows", lambda _: True)
    view(StepReport(1, 5, 1.0, 1.0, 1.0, 1.0))
    assert "image/png" not in shown.bundles[0]
    assert "step 1 of 5" in shown.bundles[0]["text/html"]
    view.finish()
    assert is_png(shown.bundles[0])


@pytest.mark.parametrize("text", NASTY)
def test_every_view_stands_any_text(tokenizer, tmp_path, text):
    for view in every_view(tokenizer, tmp_path, text):
        assert view.error == ""
        json.dumps(view.data)


# --- Attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "shared"), [("llama", None), ("llama", 2), ("gpt2", None)])
def test_maps_are_what_the_model_computes(tokenizer, preset, shared):
    model = decoder(tokenizer, preset, key_value_heads=shared)
    ids = [tokenizer.special[END_OF_TEXT], *tokenizer.encode("the capital of Peru")]
    maps = attention.attention_maps(model, ids)
    theirs: list[torch.Tensor] = []
    with torch.no_grad():
        model.hidden(torch.tensor([ids]), attention_weights=theirs)
    assert torch.allclose(maps.masked, torch.cat(theirs), atol=1e-6)
    # The scores give the same weights: masked and through softmax.
    hidden = maps.scores.masked_fill(~causal_mask(len(ids)), -math.inf)
    assert torch.allclose(hidden.softmax(dim=-1), maps.masked, atol=1e-5)
    assert torch.allclose(maps.scores.softmax(dim=-1), maps.unmasked)
    assert not torch.allclose(maps.unmasked[..., 0, :], maps.masked[..., 0, :])


def test_reading_leaves_no_hooks_behind(tokenizer):
    model = decoder(tokenizer)
    attention.attention_maps(model, [1, 2, 3])
    with pytest.raises(ValueError, match="context"):
        attention.attention_maps(model, [1] * 200)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_explorer_sends_numbers_for_the_tokens_that_it_names(tokenizer):
    view = AttentionExplorer(decoder(tokenizer), tokenizer, "the capital")
    ask(view, "read", text="Peru 利马", form="question", stage="yours")
    T = len(view.data["tokens"])
    assert view.data["ids"] == encode_prompt(tokenizer, "Peru 利马")
    assert len(view.maps) == 3 * 2 * 4 * T * T * 4
    maps = torch.frombuffer(bytearray(view.maps), dtype=torch.float32).view(3, 2, 4, T, T)
    assert torch.allclose(maps[:2].sum(dim=-1), torch.ones(()))


def test_the_still_picture_leaves_blank_what_the_mask_forbids(tokenizer, monkeypatch):
    panels = []

    def keep(draw, *_):
        draw(figure := Figure())
        panels.extend(axes.images[0].get_array() for axes in figure.axes)
        return b""

    monkeypatch.setattr(attention, "picture", keep)
    view = AttentionExplorer(decoder(tokenizer), tokenizer, "the capital")
    view.static_picture()
    T = len(view.data["tokens"])
    assert len(panels) == 2 * 4
    for panel in panels:
        blank = torch.from_numpy(np.ma.getmaskarray(panel))
        assert torch.equal(blank, torch.ones(T, T).triu(1).bool())


def test_a_long_text_is_cut_and_says_so(tokenizer):
    view = AttentionExplorer(decoder(tokenizer), tokenizer, "abc " * 200)
    assert len(view.data["tokens"]) == attention.MOST_TOKENS
    assert f"first {attention.MOST_TOKENS} of" in view.data["note"]


def test_a_lone_surrogate_is_refused_in_words(tokenizer):
    view = ask(AttentionExplorer(decoder(tokenizer), tokenizer), "read", text="\ud800", form="text", stage="yours")
    assert "Unicode" in view.error


def test_a_model_needs_its_tokenizer_and_an_unknown_stage_is_refused(tokenizer):
    with pytest.raises(ValueError, match="tokenizer"):
        AttentionExplorer(decoder(tokenizer))
    view = ask(AttentionExplorer(decoder(tokenizer), tokenizer), "read", text="a", form="text", stage="nobody")
    assert "choose one of yours" in view.error


# --- Sampling ------------------------------------------------------------------------------------


def test_the_bars_are_the_distribution_that_is_drawn_from():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    config = SamplingConfig(temperature=0.5, top_k=2)
    shown = sampling.distribution(logits, config, count=3)
    assert shown["ids"] == [0, 1, 2]
    powers = [math.exp(x) for x in (2, 1, 0, -1)]
    assert shown["before"] == pytest.approx([p / sum(powers) for p in powers[:3]], abs=1e-5)
    sharper = [math.exp(4), math.exp(2)]  # logits divided by 0.5
    assert shown["after"] == pytest.approx([sharper[0] / sum(sharper), sharper[1] / sum(sharper), 0], abs=1e-5)
    assert shown["kept"] == 2
    assert shown["rest_before"] == pytest.approx(powers[3] / sum(powers), abs=1e-5)
    assert shown["rest_after"] == 0
    assert shown["entropy_after"] < shown["entropy_before"]


def test_entropy_of_equal_chances_is_their_logarithm():
    assert sampling.entropy(torch.tensor([0.25] * 4 + [0.0])) == pytest.approx(math.log(4))


def test_sliders_clicks_and_undo(tokenizer):
    model = decoder(tokenizer)
    view = SamplingLab(model, tokenizer, "the capital")
    start = view.data
    ask(view, "shape", temperature=0.5, top_k=3, top_p=None)
    assert view.data["kept"] == 3
    assert view.data["before"] == start["before"]
    ask(view, "add", token=view.data["ids"][0], at=len(view.data["tokens"]) - 1)  # of a text that is no longer there
    assert view.data["added"] == 0
    ask(view, "add", token=view.data["ids"][0], at=len(view.data["tokens"]))
    ids = [tokenizer.special[END_OF_TEXT], *tokenizer.encode(" the capital"), start["ids"][0]]
    assert view.ids == ids
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    probabilities = next_token_probabilities(logits, SamplingConfig(temperature=0.5, top_k=3))
    assert view.data["after"] == pytest.approx(probabilities[view.data["ids"]].tolist(), abs=1e-4)
    ask(view, "draw")
    assert view.data["added"] == 2
    for _ in range(3):
        ask(view, "undo")
    assert view.data["added"] == 0
    assert view.data["tokens"] == start["tokens"]


def test_a_full_context_and_an_impossible_setting_are_refused_in_words(tokenizer):
    view = SamplingLab(decoder(tokenizer, context_length=8), tokenizer, "a")
    assert "shorten" in ask(view, "read", text="abcdefgh", form="text", stage="yours").error
    assert "temperature" in ask(view, "shape", temperature=0.0, top_k=None, top_p=None).error


# --- Merges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["low lower lowest low", "秘鲁的首都是利马，利马的首都", "aaaa aaaa", ""])
def test_each_step_applies_the_most_frequent_pair_and_loses_nothing(text):
    learned = learn_merges([text], 50)
    steps = merges.merge_steps(text, learned)
    pieces = Tokenizer(learned).token_bytes
    for before, after in pairwise(steps):
        count = Counter(pair for word in before["words"] for pair in pairwise(word))
        assert count[after["pair"]] == max(count[pair] for pair in count if pair in learned)
        lost = sum(map(len, before["words"])) - sum(map(len, after["words"]))
        assert lost == after["count"] >= 1
        assert after["left"] + after["right"] == after["new"] == pieces[after["id"]]
    for step in steps:
        assert b"".join(pieces[token] for word in step["words"] for token in word) == text.encode()


def test_the_last_step_is_the_tokenizer_s_own_encoding(tokenizer):
    text = "the capital of Lima 秘鲁"
    last = merges.merge_steps(text, tokenizer.merges)[-1]
    assert [token for word in last["words"] for token in word] == tokenizer.encode(text)


def test_the_stepper_takes_the_reader_s_text_and_either_source_of_merges(tokenizer):
    view = MergeStepper("aa aa", tokenizer)
    assert view.data["steps"][1]["new"] == "aa"
    ask(view, "read", text="the Peru", learn=False)
    assert {step["rank"] for step in view.data["steps"][1:]} <= set(range(len(tokenizer.merges)))
    assert view.data["complete"]
    assert "first 600" in ask(view, "read", text="x" * 5000, learn=True).data["note"]
    assert "Unicode" in ask(view, "read", text="\ud800", learn=True).error


# --- Mask ----------------------------------------------------------------------------------------


def test_columns_are_shifted_by_one_and_the_end_token_is_trained(tokenizer):
    columns = mask_columns(tokenizer, [("Hi", "Yo")])
    ids, targets = encode_conversation(tokenizer, [("Hi", "Yo")])
    assert [column.input for column in columns] == ids[:-1]
    assert [column.target for column in columns] == ids[1:]
    # By hand: the answer " Yo" is predicted from the assistant's token on, and the end token last.
    start = ids.index(tokenizer.special[ASSISTANT])
    assert [column.position for column in columns if column.trained] == list(range(start, len(ids) - 1))
    assert columns[-1].target == tokenizer.special[END]
    assert [target != IGNORED for target in targets[1:]] == [column.trained for column in columns]


def test_the_inspector_counts_and_follows_the_reader(tokenizer):
    view = MaskInspector(tokenizer)
    ask(view, "read", turns=[["a", "b"], ["c", ""]])
    assert view.data["trained"] == sum(column["trained"] for column in view.data["columns"])
    assert view.data["positions"] == len(encode_conversation(tokenizer, [("a", "b"), ("c", "")])[0]) - 1
    ask(view, "read", turns=[])
    assert view.data["positions"] == 0


# --- Pipeline ------------------------------------------------------------------------------------


def test_the_map_tells_what_the_report_tells():
    report = json.loads((SHIPPED / "report.json").read_text(encoding="utf-8"))
    stages = pipeline.pipeline_stages(report)
    assert [stage["name"] for stage in stages] == ["Tokenizer", "Pretraining", "Fine-tuning", "Reward model", "PPO"]
    assert stages[2]["cost"] == report["stages"]["sft"]["seconds"]
    accuracy = report["scores"]["reward_pair_accuracy"]
    assert [score[1] for score in stages[3]["scores"]] == [f"{100 * accuracy:.1f} %"]
    assert "questions" in stages[3]["scores"][0][2]


def test_a_chain_on_a_text_of_one_s_own_has_two_stages():
    report = {
        "stages": {"tokenizer": {"seconds": 1.0}, "pretrain": {"seconds": 2.0}},
        "scores": {"base_bits_per_byte": 2.5},
    }
    stages = pipeline.pipeline_stages(report)
    assert [(stage["name"], stage["cost"]) for stage in stages] == [("Tokenizer", 1.0), ("Pretraining", 2.0)]
    assert stages[1]["scores"][0][1:] == ["2.50", None]


# --- Training ------------------------------------------------------------------------------------


def test_the_budget_is_kept_whatever_looking_costs():
    now = 0.0
    budget = training.Budget(0.03, clock=lambda: now)

    def look():
        nonlocal now
        now += 0.7

    shares, begun = [], 0.1
    for _ in range(2000):
        now += 0.1
        if budget.allows("look"):
            budget.spend("look", look)
        shares.append(budget.spent / max(now - begun, 1e-9))
    assert budget.spent > 5 * 0.7
    assert max(shares[200:]) <= 0.035  # the first look may cost more than was thought


def test_smoothing_is_the_mean_of_the_last_losses():
    assert training.smoothed([4.0, 2.0, 0.0, 2.0], window=2) == pytest.approx([4, 3, 1, 1])
    # Neither what is no number nor a spike lasts longer than the window.
    odd = training.smoothed([math.inf, 2.0, math.nan, math.nan, 1e30, 4.0, 6.0], window=2)
    assert odd == pytest.approx([math.nan, 2, 2, math.nan, 1e30, 5e29, 5], nan_ok=True)


def test_thinned_curves_keep_their_ends():
    kept = training.thinned(range(1001), most=10)
    assert kept[0] == 0
    assert kept[-1] == 1000
    assert len(kept) <= 12
    assert list(training.thinned([1, 2, 3])) == [1, 2, 3]


class Shown:
    """Stands in for IPython's display; keeps what was shown, the newest of each handle."""

    def __init__(self):
        self.bundles = []

    def __call__(self, bundle, raw, display_id=False, metadata=None):  # noqa: ARG002
        self.bundles.append(bundle)
        return Handle(self.bundles, len(self.bundles) - 1)


class Handle(NamedTuple):
    bundles: list
    place: int

    def update(self, bundle, raw):  # noqa: ARG002
        self.bundles[self.place] = bundle


def test_a_run_is_watched_and_its_final_figure_stays(tokenizer, monkeypatch):
    shown = Shown()
    monkeypatch.setattr(_view, "display", shown)
    model = decoder(tokenizer)
    ids = torch.tensor(tokenizer.encode("the capital of Peru is Lima. " * 40))
    held_out = held_out_batches((ids, ids), 2, 16)
    view = TrainingDashboard(model, tokenizer, held_out, "the", tokens_per_step=32, measure_every=2)
    losses = Trainer(model, lambda _: (ids[None, :32], ids[None, 1:33]), TrainingConfig(steps=6)).run([view])
    assert [loss for _, loss in view.data["loss"]] == pytest.approx(losses, abs=1e-3)
    assert view.watched.held_out[-1][0] == 6
    assert view.data["samples"][-1][0] == 6
    assert view.data["samples"][-1][1].strip().startswith("the")
    assert "step 6 of 6" in view.data["headline"]
    assert "tokens a second" in view.data["headline"]
    assert model.training, "measuring must leave the model in training mode"
    assert len(shown.bundles) == 2
    assert is_png(shown.bundles[0])
    assert 0 < view.share < 1


def test_held_out_batches_are_neighbours_shifted_by_one():
    ids = torch.arange(10)
    ((inputs, targets),) = held_out_batches((ids, ids), 2, 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(ValueError, match="too few"):
        held_out_batches((ids, ids), 3, 4)


def test_what_the_dashboard_needs_it_asks_for():
    with pytest.raises(ValueError, match="model"):
        TrainingDashboard(prompt="a")
    view = TrainingDashboard()
    assert "not yet" in view.words()


def test_the_time_left_follows_from_the_last_steps():
    seen = training.Watched()
    for step in range(1, 31):
        seen.add(StepReport(step, 100, 1.0, 1.0, 1.0, 2.0 if step <= 10 else 1.0))
    assert "1:10 min left" in seen.headline(StepReport(30, 100, 1.0, 1.0, 1.0, 1.0))
    assert "1 steps a second" in seen.headline(StepReport(30, 100, 1.0, 1.0, 1.0, 1.0))


def test_the_time_left_of_steps_that_took_no_finite_time_is_unknown():
    seen = training.Watched()
    for seconds in (math.inf, math.nan):
        report = StepReport(1, 100, 1.0, 1.0, 1.0, seconds)
        seen.add(report)
        assert "unknown time left" in seen.headline(report)


# --- Numbers that are not finite -----------------------------------------------------------------

ODD = [math.inf, 1.0, math.nan, -math.inf, 2.0]


def test_what_json_cannot_say_is_left_out_whatever_holds_it():
    value = {"a": [1.5, math.nan, (math.inf, "inf", 3)], "b": {"c": -math.inf, "d": True, "e": None}}
    expected = {"a": [1.5, None, (None, "inf", 3)], "b": {"c": None, "d": True, "e": None}}
    assert _view.sendable(value) == expected
    assert _view.rounded(torch.tensor([0.123456, math.nan, -math.inf]), 2) == [0.12, None, None]


def sends_json(view):
    json.dumps(view.get_state(["data", "error"]), allow_nan=False)
    assert is_png(view._repr_mimebundle_()[0])


def test_a_run_with_norms_and_losses_that_are_not_finite_is_drawn_with_gaps(monkeypatch):
    monkeypatch.setattr(_view, "display", Shown())
    view = TrainingDashboard()
    view.watched.held_out = [(1, math.nan), (2, 1.0)]
    for step, odd in enumerate(ODD, start=1):
        view(StepReport(step, len(ODD), 2.0 if step < 3 else odd, odd, odd, 0.01))
    sends_json(view)
    assert [y for _, y in view.data["norm"]] == [None, 1.0, None, None, 2.0]
    assert [y for _, y in view.data["loss"]] == [2.0, 2.0, None, None, 2.0]
    assert [y for _, y in view.data["smooth"]] == [2.0] * 5
    assert [y for _, y in view.data["held_out"]] == [None, 1.0]
    only = TrainingDashboard()
    only(StepReport(1, 1, math.nan, math.nan, math.inf, math.nan))
    sends_json(only)


def test_a_model_that_has_diverged_sends_no_number_that_is_none(tokenizer):
    model = decoder(tokenizer)
    judge = RewardModel(model, tokenizer.special[ASSISTANT])
    for broken in (model, judge):
        for parameter in broken.parameters():
            nn.init.constant_(parameter, math.nan)
    sends_json(AttentionExplorer(model, tokenizer))
    lab = SamplingLab(model, tokenizer)
    sends_json(lab)
    ask(lab, "draw")
    assert "not a number" in lab.error
    sends_json(ask(lab, "shape", temperature=0.5, top_k=3, top_p=0.5))
    window = ChatWindow(model, tokenizer, judge, plain=())
    sends_json(ask(window, "say", message="Hi", stages=["yours"], temperature=1.0))
    assert [turn["answers"]["yours"]["reward"] for turn in window.data["turns"]] == [None] * 2
    pytest.importorskip("bertviz")
    assert "NaN, NaN" not in bertviz.head_view(model, tokenizer, "the capital").html  # as its weights would be


def test_records_and_reports_with_numbers_that_are_not_finite_can_be_looked_at(tmp_path):
    report = json.loads((SHIPPED / "report.json").read_text(encoding="utf-8"))
    report["stages"]["sft"]["seconds"] = math.nan
    report["scores"] |= {"ppo_kl": math.inf, "sft_unknown_honest": None}
    report["intervals"]["reward_pair_accuracy"] = [math.nan, 1.0, 5]
    view = PipelineMap(report)
    sends_json(view)
    assert view.data["stages"][2]["cost"] is None
    assert "no number" in json.dumps(view.data)
    for odd in (math.nan, None):
        points = [(1, odd), (2, 1.0), (3, odd)]
        curves = dict.fromkeys(("score", "gold", "kl", "length", "entropy", "repeated"), points)
        run = {"setting": {"ballots": 8}, "seed": 0, "curves": curves, "answers": [["Lima", odd, odd]]}
        (tmp_path / "lab.json").write_text(json.dumps({"runs": [run], "questions": ["?"], "before": [["", odd]]}))
        view = PPOLab(tmp_path / "lab.json")
        sends_json(view)
        assert view.data["runs"][0]["signs"] == []
        view.live = {"going": False, "progress": math.nan, "run": run}
        json.dumps(view.get_state(["live"]), allow_nan=False)


# --- Chat ----------------------------------------------------------------------------------------


def test_tokens_that_share_a_character_are_one_piece():
    plain = Tokenizer([])
    assert chat.whole_characters(plain, list("a利".encode())) == [("a", [0]), ("利", [1, 2, 3])]
    assert chat.whole_characters(plain, list("利".encode()[:2])) == [("\ufffd", [0, 1])]
    assert chat.whole_characters(plain, [0xFF, ord("a")]) == [("\ufffd", [0]), ("a", [1])]
    assert chat.whole_characters(plain, [*"利".encode()[:2], ord("a")]) == [("\ufffda", [0, 1, 2])]
    assert chat.whole_characters(plain, []) == []


def test_probabilities_are_those_of_the_tokens_that_were_said(tokenizer):
    model = decoder(tokenizer)
    prompt, answer = encode_prompt(tokenizer, "Hi"), tokenizer.encode(" Peru is")
    details = chat.answer_probabilities(model, prompt, answer)
    for place, token in enumerate(answer):
        with torch.no_grad():
            expected = model(torch.tensor([[*prompt, *answer[:place]]]))[0, -1].softmax(dim=-1)
        assert details[place][0] == pytest.approx(expected[token].item(), rel=1e-3)
        assert details[place][1][0][0] == expected.argmax()
    pieces = chat.annotated(model, tokenizer, prompt, answer)
    assert "".join(piece["text"] for piece in pieces) == " Peru is"
    assert chat.answer_probabilities(model, prompt, []) == []


def test_a_message_is_answered_by_every_chosen_model_and_remembered(tokenizer, monkeypatch):
    models = {"one": decoder(tokenizer), "two": decoder(tokenizer)}
    judge = RewardModel(models["one"], tokenizer.special[ASSISTANT])
    view = ChatWindow(models, tokenizer, judge, opening=[])
    sent = []
    monkeypatch.setattr(view, "send", lambda content: sent.append(content))
    ask(view, "say", message="Hi", stages=["one", "two"], temperature=0.0)
    assert view.error == ""
    turn = view.data["turns"][0]
    assert list(turn["answers"]) == ["one", "two"]
    for name, answer in turn["answers"].items():
        streamed = "".join(item["piece"] for item in sent if item.get("stage") == name and "piece" in item)
        assert "".join(piece["text"] for piece in answer["pieces"]).strip() == streamed.strip()
        assert isinstance(answer["reward"], float)
    ask(view, "say", message="And?", stages=["two"], temperature=1.0)
    assert [question for question, _ in view.conversations["two"].turns] == ["Hi", "And?"]
    assert [question for question, _ in view.conversations["one"].turns] == ["Hi"]
    ask(view, "forget")
    assert view.data["turns"] == []


@pytest.mark.parametrize(
    ("message", "stages", "words"), [(" ", ["yours"], "empty"), ("a", [], "nobody"), ("x" * 900, ["yours"], "shorter")]
)
def test_what_cannot_be_answered_is_said_and_changes_nothing(tokenizer, message, stages, words):
    view = ask(
        ChatWindow(decoder(tokenizer), tokenizer, opening=[]), "say", message=message, stages=stages, temperature=0.0
    )
    assert words in view.error
    assert view.data["turns"] == []


def test_a_text_too_long_for_a_model_that_goes_on_with_it_is_said_before_anything_is_shown(tokenizer):
    view = ChatWindow(decoder(tokenizer), tokenizer, opening=[], plain=("yours",))
    ask(view, "say", message="word " * 200, stages=["yours"], temperature=0.0)
    assert "make it shorter" in view.error
    assert view.data["turns"] == []


def test_what_was_said_before_a_failure_stays(tokenizer, monkeypatch):
    view = ChatWindow({"a": decoder(tokenizer), "b": decoder(tokenizer)}, tokenizer, opening=[])
    whole = view._answer
    monkeypatch.setattr(view, "_answer", lambda message, stage, t: 1 / 0 if stage == "b" else whole(message, stage, t))
    with pytest.raises(ZeroDivisionError):
        ask(view, "say", message="Hi", stages=["a", "b"], temperature=0.0)
    assert list(view.data["turns"][0]["answers"]) == ["a"]
    assert "ZeroDivisionError" in view.error


def test_a_reward_model_of_another_tokenizer_grades_nothing(tokenizer, monkeypatch):
    model, other = decoder(tokenizer), Tokenizer([])
    judge = RewardModel(model, tokenizer.special[ASSISTANT])
    for known, graded in ((tokenizer, True), (other, False)):
        loaded = {"reward": (judge, known)}
        monkeypatch.setattr(chat, "load_stage", lambda name, loaded=loaded: loaded[name])
        monkeypatch.setattr(_view, "load_stage", lambda name: (model, tokenizer))
        view = ChatWindow(opening=["Hi"], stages=["sft"])
        assert (view.data["turns"][0]["answers"]["sft"]["reward"] is not None) is graded


# --- Labels --------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tokenizer) -> list[Ballot]:
    found = []
    for prompt in some_prompts():
        answers = [encode_answer(tokenizer, text) for text in (prompt.references[0], "Bananas.")]
        found.append(Ballot(prompt, encode_prompt(tokenizer, prompt.question), answers, []))
    return found


def test_votes_are_saved_at_once_as_comparisons_and_found_again(tokenizer, pairs, tmp_path):
    path = tmp_path / "runs" / "votes.jsonl"
    written = [[decode_answer(tokenizer, ids) for ids in pair.answers] for pair in pairs]

    def saved() -> list[tuple[str, str, str, str]]:
        return [(vote.question.text, *vote[1:]) for vote in read_comparisons(path).items]

    def line(number: int, winner: int, voter: str) -> tuple[str, str, str, str]:
        return pairs[number].prompt.question, written[number][winner], written[number][1 - winner], voter

    view = PreferenceLabels(pairs, tokenizer, path, "anna")
    ask(view, "vote", vote="left", number=0)
    assert saved() == [line(0, 0, "anna")]
    ask(view, "vote", vote="left", number=0)  # the same key twice
    assert view.data["done"] == 1
    ask(view, "vote", vote="right", number=1)
    ask(view, "undo")
    assert saved() == [line(0, 0, "anna")]
    again = PreferenceLabels(pairs, tokenizer, path, "anna")
    assert again.data["done"] == 1
    other = PreferenceLabels(pairs[::-1], tokenizer, path, "anna")  # in another order what was compared comes first
    assert [ballot.prompt_ids for ballot in other.ballots()] == [pairs[0].prompt_ids]
    ask(other, "vote", vote="right", number=1)
    assert saved() == [line(0, 0, "anna"), line(len(pairs) - 1, 1, "anna")]
    ben = PreferenceLabels(pairs, tokenizer, path, "ben")  # who finds none of his own, and leaves hers
    assert ben.data["done"] == 0
    ask(ben, "vote", vote="right", number=0)
    assert saved() == [line(0, 0, "anna"), line(len(pairs) - 1, 1, "anna"), line(0, 1, "ben")]
    ask(ben, "undo")
    ask(again, "undo")
    assert saved() == [line(len(pairs) - 1, 1, "anna")]
    ask(view, "vote", vote="neither", number=1)
    assert "left, right or skipped" in view.error


def test_all_votes_may_be_taken_back(tokenizer, pairs, tmp_path):
    view = PreferenceLabels(pairs, tokenizer, tmp_path / "votes.jsonl")
    ask(view, "vote", vote="left", number=0)
    ask(view, "undo")
    assert PreferenceLabels(pairs, tokenizer, tmp_path / "votes.jsonl").data["done"] == 0


def test_votes_in_a_conversation_keep_what_was_said_before(tokenizer, pairs, tmp_path):
    prompt = replace(pairs[0].prompt, history=(("Hello", "Hello."), ("Who are you?", "A model.")))
    later = [replace(pairs[0], prompt=prompt)]
    ask(PreferenceLabels(later, tokenizer, tmp_path / "votes.jsonl"), "vote", vote="left", number=0)
    (vote,) = read_comparisons(tmp_path / "votes.jsonl").items
    assert vote.question == Question(prompt.question, prompt.history)
    assert PreferenceLabels(later, tokenizer, tmp_path / "votes.jsonl").data["done"] == 1


def test_any_model_answers_own_questions_to_vote_on_and_no_gold_score_is_asked(tokenizer, tmp_path):
    model = decoder(tokenizer)
    pairs = labels.drawn_pairs(model, tokenizer, ["How high is the tower?", "塔有多高？"], seed=3)
    assert [pair.prompt.language for pair in pairs] == ["en", "zh"]
    assert all(pair.answers[0] != pair.answers[1] for pair in pairs)
    again = labels.drawn_pairs(model, tokenizer, ["How high is the tower?", "塔有多高？"], seed=3)
    assert [pair.answers for pair in again] == [pair.answers for pair in pairs]
    view = PreferenceLabels(pairs, tokenizer, tmp_path / "votes.jsonl")
    for number in range(2):
        ask(view, "vote", vote="right", number=number)
    assert view.data["own"]
    assert view.data["agreement"] is None


def test_a_vote_needs_a_voter(tokenizer, pairs):
    with pytest.raises(ValueError, match="voter's name"):
        PreferenceLabels(pairs, tokenizer, "votes.jsonl", " ")


def test_decided_pairs_feed_the_reward_model_and_agree_with_gold_or_not(tokenizer, pairs, tmp_path):
    view = PreferenceLabels(pairs, tokenizer, tmp_path / "votes.jsonl")
    for number, vote in enumerate(["left", "right", "skipped", "left"]):
        ask(view, "vote", vote=vote, number=number)
    assert [ballot.votes for ballot in view.ballots()] == [[(0, 1)], [(1, 0)], [(0, 1)]]
    value, _, _, count = view.data["agreement"]
    assert (value, count) == (pytest.approx(2 / 3, abs=1e-3), 3)
    assert view.data["skipped"] == 1


def test_nothing_to_agree_on_is_no_agreement(tokenizer, pairs):
    same = [Ballot(pairs[0].prompt, [1], [[2], [2]], [(0, 1)])]
    assert labels.agreement(same, tokenizer) is None


def test_pairs_read_differently_and_come_in_both_orders(tokenizer, pairs):
    three = [
        Ballot(pair.prompt, pair.prompt_ids, [pair.answers[0], pair.answers[0], pair.answers[1]], [(0, 1)])
        for pair in pairs
    ]
    found = single_pairs(three, tokenizer, 3)
    assert len(found) == 3
    assert all(pair.answers[0] != pair.answers[1] and pair.votes == [] for pair in found)
    assert len({pair.answers[0] == pairs[i].answers[0] for i, pair in enumerate(found)}) == 2


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": "b"}'])
def test_a_file_of_something_else_is_not_overwritten(tokenizer, pairs, tmp_path, content):
    path = tmp_path / "votes.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="no file of votes"):
        PreferenceLabels(pairs, tokenizer, path)
    assert path.read_text() == content


def test_a_vote_that_cannot_be_saved_is_said(tokenizer, pairs, tmp_path):
    (tmp_path / "file").write_text("")
    view = PreferenceLabels(pairs, tokenizer, tmp_path / "file" / "votes.jsonl")
    ask(view, "vote", vote="left", number=0)
    assert "not saved" in view.error
    assert view.data["done"] == 0


# --- PPO lab -------------------------------------------------------------------------------------


def run_with(**curves):
    flat = {name: [(0, 0.1), (1, 0.1)] for name in ("score", "gold", "kl", "length", "entropy", "repeated")}
    return {"setting": {}, "curves": flat | curves}


def test_each_failure_is_told_from_the_curves():
    rising, falling = [(i, 0.2 * i) for i in range(6)], [(0, 0.5), (5, 0.1)]
    far = [(0, 0.0), (5, 3.0)]
    assert ppo_lab.signs(run_with(kl=[(1, 0.0), (2, 0.01)])) == ["frozen"]
    assert ppo_lab.signs(run_with(score=rising, gold=falling, kl=far)) == ["hacking"]
    assert ppo_lab.signs(run_with(repeated=[(0, 0.05), (5, 0.9)], kl=far)) == ["collapse"]
    assert ppo_lab.signs(run_with(score=rising, gold=rising, kl=far)) == []


def test_the_grid_holds_the_standard_setting_and_enough_runs():
    settings = ppo_lab.all_settings()
    assert len(settings) == len(set(settings)) >= 36
    assert ppo_lab.Setting() in settings


def test_the_share_of_the_commonest_sentence():
    assert ppo_lab.commonest_share(["Hi. Lima.", "Hi. Quito.", "Rome."], ["en"] * 3) == pytest.approx(2 / 3)
    # Two of three English answers hold "Hi", one of one Chinese answer its only sentence.
    mixed = ["Hi. Lima.", "Hi. Quito.", "利马。", "Rome."]
    assert ppo_lab.commonest_share(mixed, ["en", "en", "zh", "en"]) == pytest.approx(3 / 4)
    assert ppo_lab.commonest_share(["", ""], ["en", "en"]) == 1.0


@pytest.fixture
def small_lab(tokenizer, monkeypatch):
    model = decoder(tokenizer)
    judge = RewardModel(model, tokenizer.special[ASSISTANT])
    config = ppo_lab.PPOConfig(iterations=2, rollout_size=4, minibatch_size=2, value_iterations=0, max_new_tokens=4)
    monkeypatch.setattr(ppo_lab, "load_stage", lambda name: (judge if name == "reward" else model, tokenizer))
    monkeypatch.setattr(ppo_lab, "lab_questions", lambda: [Prompt("Hi?", "en", "talk", ("Yo.",))] * 2)
    return model, judge, config


def test_a_run_of_the_lab_leaves_its_models_alone_and_tells_every_curve(tokenizer, small_lab):
    model, judge, config = small_lab
    before = [parameter.clone() for parameter in (*model.parameters(), *judge.parameters())]
    setting = ppo_lab.Setting(policy_rate=1e-2)
    runs = list(ppo_lab.lab_run(setting, model, judge, tokenizer, ppo_lab.lab_questions(), config=config, every=1))
    assert len(runs) == 2
    last = runs[-1]
    assert {len(points) for points in last["curves"].values()} == {2, 3}
    assert len(last["answers"]) == 2
    json.dumps(last)
    after = (*model.parameters(), *judge.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    again = list(ppo_lab.lab_run(setting, model, judge, tokenizer, ppo_lab.lab_questions(), config=config, every=1))
    assert again[-1] == last


@pytest.mark.parametrize(("kind", "sees"), [(RewardModel, True), (ppo_lab.BlindRewardModel, False)])
def test_a_blind_reward_model_is_shown_no_surprise(tokenizer, kind, sees):
    judge = kind(decoder(tokenizer), tokenizer.special[ASSISTANT])
    tokens = torch.tensor([encode_prompt(tokenizer, "Hi?") + encode_answer(tokenizer, "The capital of Peru is Lima.")])
    with torch.no_grad():
        judge.head.weight.normal_()
        before = judge.values(tokens)
        judge.head.weight[:, -2:] += 5.0  # what the head makes of the two surprises
        assert torch.equal(judge.values(tokens), before) is not sees


def test_a_live_run_reports_and_ends(tokenizer, small_lab, tmp_path):
    view = PPOLab(tmp_path / "none.json", config=small_lab[2])
    ask(view, "run", kl_coefficient=0.02, clip=0.2, policy_rate=5e-4, ballots=4000)
    assert view.error == ""
    assert view.live["going"] is False
    assert view.live["progress"] == 1
    assert len(view.live["run"]["curves"]["kl"]) == 2


def test_a_live_run_that_fails_says_so_and_raises(small_lab, tmp_path, monkeypatch):
    view = PPOLab(tmp_path / "none.json", config=small_lab[2])
    monkeypatch.setattr(ppo_lab, "lab_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(view, "run", kl_coefficient=0.02, clip=0.2, policy_rate=5e-4, ballots=4000)
    assert "ZeroDivisionError" in view.error
    assert view.live["going"] is False


def test_a_live_run_that_fails_in_a_notebook_tells_its_loop(small_lab, tmp_path, monkeypatch):
    view = PPOLab(tmp_path / "none.json", config=small_lab[2])
    monkeypatch.setattr(ppo_lab, "lab_run", lambda *_: 1 / 0)
    told = []

    async def in_a_notebook():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        ask(view, "run", kl_coefficient=0.02, clip=0.2, policy_rate=5e-4, ballots=4000)
        while view.live["going"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    asyncio.run(in_a_notebook())
    assert "ZeroDivisionError" in view.error
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_the_recorded_runs_hold_both_failures_and_are_small():
    assert ppo_lab.RECORDED.stat().st_size <= 1_000_000
    runs = json.loads(ppo_lab.RECORDED.read_text(encoding="utf-8"))["runs"]
    assert [ppo_lab.Setting(**run["setting"]) for run in runs] == ppo_lab.all_settings()
    hacked = [ppo_lab.Setting(**run["setting"]) for run in runs if "hacking" in ppo_lab.signs(run)]
    assert hacked
    assert all(setting.ballots < 4000 for setting in hacked)
    leashed = [setting.kl_coefficient == 0.5 for setting in hacked]
    assert 0 < sum(leashed) < 4, "chapter 10 asks whether the price of 0.5 holds with each setting: with some"
    assert any("frozen" in ppo_lab.signs(run) for run in runs)


# --- bertviz -------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [bertviz.head_view, bertviz.model_view])
def test_bertviz_s_page_names_no_address_and_no_token_ends_its_script(tokenizer, view):
    pytest.importorskip("bertviz")
    page = view(decoder(tokenizer), tokenizer, "</script><script>alert(1)</script><!-- the capital")
    bundle = page._repr_mimebundle_()
    assert is_png(bundle)
    html = bundle["text/html"]
    assert html.count("</script>") == html.count("<script>") == 1
    assert "<!--" not in html
    assert "cdnjs" not in html
    assert "src=" not in html.split("<script")[0]
    assert len(html) < 1_500_000


def test_a_page_of_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"bertviz 1\.4"):
        bertviz.offline("<p>new</p>")


def test_the_libraries_come_with_their_licences():
    vendor = _view.STATIC / "vendor"
    assert "Redistribution" in (vendor / "LICENSE-d3.txt").read_text()
    assert "Permission" in (vendor / "LICENSE-jquery.txt").read_text()
    for path in vendor.glob("*.js"):
        assert re.match(r"(//|/\*!).*v\d+\.\d+\.\d+", path.read_text(encoding="utf-8")[:120]), path.name
