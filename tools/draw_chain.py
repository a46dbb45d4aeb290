"""Draw assets/chain.png, the picture in the README, from the shipped models' report."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ASSETS = Path(__file__).parent.parent / "assets"


def main() -> None:
    """Draw the stages as boxes, each with what came of it."""
    report = json.loads((ASSETS / "checkpoints" / "report.json").read_text(encoding="utf-8"))
    scores = report["scores"]
    boxes = [
        ("Tokenizer", "byte-pair encoding\nof two languages"),
        ("Pretraining", f"{scores['base_bits_per_byte']:.2f} bits a byte\non texts drawn anew"),
        (
            "Fine-tuning",
            f"held-out facts right:\n{scores['sft_heldout_exact_en']:.0%} English\n{scores['sft_heldout_exact_zh']:.0%} Chinese",
        ),
        ("Reward model", f"sides with the truth\non {scores['reward_pair_accuracy']:.0%}\nof held-out pairs"),
        ("PPO", f"beats fine-tuning\non {scores['ppo_gold_win_rate']:.0%}\nof held-out prompts"),
    ]
    figure, axes = plt.subplots(figsize=(12, 2.6), facecolor="white")
    axes.set_xlim(0, 10 * len(boxes))
    axes.set_ylim(0, 10)
    axes.axis("off")
    for number, (title, result) in enumerate(boxes):
        left = 10 * number + 0.5
        axes.add_patch(
            FancyBboxPatch(
                (left, 0.8), 8, 8.4, boxstyle="round,pad=0.1", facecolor="#E8F1FA", edgecolor="#0072B2", lw=1.5
            )
        )
        axes.text(left + 4, 7.9, title, ha="center", va="center", fontsize=12, weight="bold")
        axes.text(left + 4, 4, result, ha="center", va="center", fontsize=9.5)
        if number:
            axes.annotate(
                "", (left - 0.1, 5), (left - 1.9, 5), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "#0072B2"}
            )
    figure.savefig(ASSETS / "chain.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
