"""Write what notebooks have from elsewhere: Colab badge, set-up cell, stated cost, exercises; and README.md its costs.

    python tools/prepare_notebooks.py

Run it when the repository's address (in pyproject.toml), an exercise or a measured cost has changed or a notebook
is new; `test_notebooks.py` notices when it was forgotten. The badge is the third line of the first cell, the
cost stands in that cell, the set-up cell is the second cell, the exercises stand before "What you have learned".
"""

import re
from pathlib import Path
from typing import Any

import nbformat

from gptcore.costs import read_costs
from gptcore.exercises import CHAPTERS
from gptcore.exercises.classroom import chapter_cells

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"

SETUP = """\
# On Colab this cell fetches the course and installs what is missing there, but never torch. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import importlib.metadata
    import importlib.util
    import os
    import re
    import subprocess
    from pathlib import Path

    address, folder = "{address}", Path("/content/gptcore")
    if not folder.exists():
        if "/OWNER/" in address:
            raise RuntimeError(
                "This course has no public address yet. Upload its folder to /content/gptcore (the files' "
                "panel on the left), or write the address of your own copy into this cell; then run it again."
            )
        subprocess.run(["git", "clone", "--quiet", "--depth=1", address, folder], check=True)
    needed = re.findall(r"^[\\w-]+", (folder / "requirements.txt").read_text(), re.MULTILINE)
    missing = [n for n in needed if n not in ("torch", "jupyterlab") and importlib.util.find_spec(n) is None]
    if missing:
        held = folder.parent / "held.txt"  # whatever is installed, torch stays the one that Colab brings
        held.write_text(f"torch=={{importlib.metadata.version('torch')}}\\n")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-c", held, *missing], check=True)
    sys.path.insert(0, str(folder))
    os.chdir(folder / "notebooks")"""


def address_of_repository() -> str:
    """The address in `[project.urls]` of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(https://github\.com/[\w.-]+/[\w.-]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit('pyproject.toml needs a line like Repository = "https://github.com/OWNER/gptcore"')
    return found[1]


def badge(name: str, address: str) -> str:
    """Markdown of the badge that opens a notebook in Colab."""
    place = address.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}"
    return f"[![Open in Colab](../assets/colab.svg)]({link})"


STATED = re.compile(r"\*\*Time on two cores:\*\* [^*]*\*\*Memory:\*\* [^*]*GB\.")
"""What a notebook says about its cost."""


def minutes(seconds: float) -> float:
    """For people: to the tenth of a minute, and never 0."""
    return max(0.1, round(seconds / 60, 1))


def state_cost(text: str, stem: str, costs: dict[str, Any]) -> str:
    """Put a notebook's measured time on both profiles, and the larger memory, into its first cell's text.

    Raises:
        ValueError: if the text has no place for them.
    """
    found = STATED.search(text)
    if not found:
        raise ValueError("the first cell needs a line '**Time on two cores:** 0 minutes. **Memory:** 0 GB.'")
    laptop, amx = (costs[name]["chapters"][stem] for name in ("laptop", "AMX"))
    memory = max(0.1, round(max(laptop["gigabytes"], amx["gigabytes"]), 1))
    return text.replace(
        found[0],
        f"**Time on two cores:** {minutes(laptop['seconds'])} minutes on a laptop (AVX2), "
        f"{minutes(amx['seconds'])} with AMX; chapter 0 says what it is on yours. **Memory:** {memory} GB.",
    )


SUMS = re.compile(r"\| [\d,]+ \| [\d,]+ \| all chapters \|\n\| [\d,]+ \| [\d,]+ \| the longest of them \|")
"""What README.md says about the cost of the chapters."""


def state_sums(text: str, costs: dict[str, Any]) -> str:
    """Put the seconds of all chapters and of the longest, on both profiles, into README.md's text.

    Raises:
        ValueError: if the text has no place for them.
    """
    if not SUMS.search(text):
        raise ValueError("README.md needs the rows '| 0 | 0 | all chapters |' and '| 0 | 0 | the longest of them |'")
    of_both = [[cost["seconds"] for cost in costs[name]["chapters"].values()] for name in ("laptop", "AMX")]
    rows = (("all chapters", sum), ("the longest of them", max))
    stated = (f"| {' | '.join(f'{total(seconds):,.0f}' for seconds in of_both)} | {name} |" for name, total in rows)
    return SUMS.sub("\n".join(stated), text)


def put_exercises(notebook: nbformat.NotebookNode, chapter: int) -> None:
    """Write a chapter's exercises into its notebook; a cell that is the same as before keeps its output."""
    old = {cell.id: cell for cell in notebook.cells}
    of_exercises = re.compile(r"exercises|exercises-imports|(task|exercise|check)-\d+-\d+")
    cells = [cell for cell in notebook.cells if not of_exercises.fullmatch(cell.id)]
    place = next(n for n, cell in enumerate(cells) if cell.source.startswith("## What you have learned"))
    kept = [
        old[cell["id"]] if cell["id"] in old and old[cell["id"]].source == cell["source"] else nbformat.from_dict(cell)
        for cell in chapter_cells(chapter)
    ]
    notebook.cells = cells[:place] + kept + cells[place:]


def prepare(path: Path, address: str) -> None:
    """Write badge, set-up cell and exercises into one notebook."""
    notebook = nbformat.read(path, as_version=4)
    title, *rest = notebook.cells[0].source.split("\n")
    while rest and (not rest[0].strip() or rest[0].startswith("[![Open in Colab]")):
        rest.pop(0)
    text = "\n".join([title, "", badge(path.name, address), "", *rest])
    notebook.cells[0].source = state_cost(text, path.stem, read_costs())
    setup = SETUP.format(address=address)
    if notebook.cells[1].id != "setup":
        notebook.cells.insert(1, nbformat.v4.new_code_cell(id="setup"))
    # Folded in JupyterLab, and a form on Colab: readers need not begin with it.
    notebook.cells[1].metadata = nbformat.from_dict({"cellView": "form", "jupyter": {"source_hidden": True}})
    if notebook.cells[1].source != setup:
        notebook.cells[1].source = setup
    if int(path.stem[:2]) in CHAPTERS:
        put_exercises(notebook, int(path.stem[:2]))
    nbformat.write(notebook, path)


def main() -> None:
    """Prepare all notebooks, and state in README.md what they cost."""
    readme = ROOT / "README.md"
    readme.write_text(state_sums(readme.read_text(encoding="utf-8"), read_costs()), encoding="utf-8")
    address = address_of_repository()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        prepare(path, address)
        print(path.name)


if __name__ == "__main__":
    main()
