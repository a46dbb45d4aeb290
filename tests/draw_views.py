"""Put pictures of the views into assets/views, for the README, from the last browser test's screenshots.

    python -m pytest tests/test_browser.py && python tests/draw_views.py
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "runs" / "screenshots"
SHOWN = (
    "attention-explorer",
    "bertviz",
    "training-dashboard",
    "sampling-lab",
    "merge-stepper",
    "mask-inspector",
    "preference-labelling",
    "ppo-lab",
    "chat",
    "pipeline-map",
)


def main() -> None:
    """Copy the first light picture of each view."""
    missing = [name for name in SHOWN if not (SCREENSHOTS / f"{name}-light-1.png").exists()]
    if missing:
        sys.exit(f"no screenshot of {', '.join(missing)}: run the browser test first")
    target = ROOT / "assets" / "views"
    target.mkdir(exist_ok=True)
    for name in SHOWN:
        shutil.copy(SCREENSHOTS / f"{name}-light-1.png", target / f"{name}.png")


if __name__ == "__main__":
    main()
