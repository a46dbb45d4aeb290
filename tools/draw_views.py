"""Put pictures of the views into assets/views, for the README, from the last browser test's screenshots.

python -m pytest tests/test_browser.py && python tools/draw_views.py
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST = ROOT / "runs" / "screenshots" / "first"
SHOWN = {  # the PPO lab comes twice: first with made-up runs, for the test, then with the recorded ones
    "attention-explorer-1": "attention",
    "bertviz-1": "bertviz",
    "training-dashboard-1": "training",
    "sampling-lab-1": "sampling",
    "merge-stepper-1": "merges",
    "mask-inspector-1": "mask",
    "preference-labelling-1": "labels",
    "ppo-lab-2": "ppo_lab",
    "chat-1": "chat",
    "pipeline-map-1": "pipeline",
}


def main() -> None:
    """Copy each view's picture as it was before the test touched it."""
    missing = [name for name in SHOWN if not (FIRST / f"{name}.png").exists()]
    if missing:
        sys.exit(
            f"no picture of {', '.join(missing)}: run the browser test first (the PPO lab needs its recorded runs)"
        )
    target = ROOT / "assets" / "views"
    target.mkdir(exist_ok=True)
    for name, short in SHOWN.items():
        shutil.copy(FIRST / f"{name}.png", target / f"{short}.png")


if __name__ == "__main__":
    main()
