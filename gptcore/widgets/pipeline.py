"""Pipeline map: the chain from raw text to an aligned model; what each stage read, learned, cost and scored."""

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from gptcore.checkpoint import find_stage
from gptcore.widgets._view import View, picture, script
from gptcore.widgets.palette import BLUE

# Of each stage: its name in the report, what people call it, what it reads, what it learns, and its scores
# in the report with what they mean.
_STAGES: tuple[tuple[str, str, str, str, dict[str, str]], ...] = (
    (
        "tokenizer",
        "Tokenizer",
        "Plain text in English and Chinese, and messages as people type them with the names left out; as bytes.",
        "Which pieces of text are frequent enough to become one token. No neural network yet.",
        {},
    ),
    (
        "pretrain",
        "Pretraining",
        "Plain text about countries, elements, planets, animals and sums, and some polite talk. No labels.",
        "To predict the next token, and with it language and facts. It continues a text; it does not answer.",
        {"base_bits_per_byte": "bits for each byte of texts drawn anew (lower is better)"},
    ),
    (
        "sft",
        "Fine-tuning",
        "Conversations as people of mixed care might write them, and some of the plain text again.",
        "To answer a question and to stop. Facts that no conversation told it are brought over from pretraining.",
        {
            "sft_heldout_exact_en": "facts that no conversation held, answered right in English",
            "sft_heldout_exact_zh": "the same in Chinese",
            "sft_unknown_honest": "says that it does not know what it cannot know",
            "sft_known_refused": "refuses what it could know (lower is better)",
        },
    ),
    (
        "reward",
        "Reward model",
        "Pairs of answers and which of the two a voter liked better. Voters err now and then.",
        "To grade an answer with a number, as the voters would.",
        {"reward_pair_accuracy": "pairs that it judges as a program does that knows the truth"},
    ),
    (
        "ppo",
        "PPO",
        "Questions only. It writes the answers itself, and the reward model grades them.",
        "To answer such that the grade is high, without straying far from the fine-tuned model.",
        {
            "ppo_gold_win_rate": "answers better than the fine-tuned model's, by the truth (a tie counts half)",
            "ppo_heldout_exact_en": "facts that no conversation held, answered right in English",
            "ppo_heldout_exact_zh": "the same in Chinese",
            "ppo_unknown_honest": "says that it does not know what it cannot know",
            "ppo_known_refused": "refuses what it could know (lower is better)",
            "translation_exact": "held-out sentences translated word for word",
            "ppo_kl": "distance from the fine-tuned model, in nats an answer",
        },
    ),
)
_NO_SHARES = ("base_bits_per_byte", "ppo_kl")


def _known(value: float | None) -> TypeGuard[float]:
    """Whether it is a finite number; a report read from JSON may hold NaN, or null in its place."""
    return value is not None and math.isfinite(value)


def _number(value: float | None) -> str:
    return f"{value:.2f}" if _known(value) else "no number"


def _percent(value: float | None) -> str:
    return f"{100 * value:.1f} %" if _known(value) else "no number"


def pipeline_stages(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages that a run has gone through, in order, in words and figures.

    Args:
        report: what `report.json` of a run holds; a run on a text of one's own has fewer stages.

    Returns:
        for each stage its `name`, what it `read` and `learned`, its `cost` in seconds, and `scores`: what is
        measured, the value, and an interval or None, as texts.
    """
    found = []
    for key, name, read, learned, meanings in _STAGES:
        if key not in report["stages"]:
            continue
        scores = []
        for score, meaning in meanings.items():
            if score not in report.get("scores", {}):
                continue
            shown = _number if score in _NO_SHARES else _percent
            interval = report.get("intervals", {}).get(score)
            between = f"{shown(interval[0])} to {shown(interval[1])}, {interval[2]} questions" if interval else None
            scores.append([meaning, shown(report["scores"][score]), between])
        found.append(
            {"name": name, "read": read, "learned": learned, "cost": report["stages"][key]["seconds"], "scores": scores}
        )
    return found


class PipelineMap(View):
    """The chain as a picture; a stage that is chosen tells what it did.

    Args:
        report: of a run, or the path of its `report.json`; None for the reader's own run, else the shipped one.
    """

    _esm = script("pipeline")
    title = "Pipeline map"

    def __init__(self, report: dict[str, Any] | str | Path | None = None) -> None:
        if report is None:
            report = find_stage("base").with_name("report.json")
        content = report if isinstance(report, dict) else json.loads(Path(report).read_text(encoding="utf-8"))
        super().__init__()
        self.data = {"stages": pipeline_stages(content)}

    def static_picture(self) -> bytes:
        """The stages as boxes with their seconds."""
        stages = self.data["stages"]

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            axes.set(xlim=(0, 10 * len(stages)), ylim=(0, 10))
            axes.axis("off")
            for number, stage in enumerate(stages):
                left = 10 * number + 0.6
                box = FancyBboxPatch((left, 2), 7.8, 6, boxstyle="round,pad=0.2", facecolor="#E8F1FA", edgecolor=BLUE)
                axes.add_patch(box)
                axes.text(left + 3.9, 6.6, stage["name"], ha="center", weight="bold", fontsize=10)
                axes.text(
                    left + 3.9, 4.9, "" if stage["cost"] is None else f"{stage['cost']:.0f} s", ha="center", fontsize=9
                )
                if number:
                    arrow = {"arrowstyle": "-|>", "color": BLUE}
                    axes.annotate("", (left - 0.2, 5), (left - 1.8, 5), arrowprops=arrow)

        return picture(draw, 2 * len(stages), 1.8)
