"""Write each notebook's Colab badge and set-up cell, from the repository's address in pyproject.toml.

    python tests/prepare_notebooks.py

Run it when the address has changed or a notebook is new; `test_notebooks.py` notices when it was
forgotten. The badge is the third line of the first cell, the set-up cell is the second cell.
"""

import re
from pathlib import Path

import nbformat

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


def prepare(path: Path, address: str) -> None:
    """Write badge and set-up cell into one notebook."""
    notebook = nbformat.read(path, as_version=4)
    title, *rest = notebook.cells[0].source.split("\n")
    while rest and (not rest[0].strip() or rest[0].startswith("[![Open in Colab]")):
        rest.pop(0)
    notebook.cells[0].source = "\n".join([title, "", badge(path.name, address), "", *rest])
    setup = SETUP.format(address=address)
    if notebook.cells[1].id != "setup":
        notebook.cells.insert(1, nbformat.v4.new_code_cell(id="setup"))
    # Folded in JupyterLab, and a form on Colab: readers need not begin with it.
    notebook.cells[1].metadata = nbformat.from_dict({"cellView": "form", "jupyter": {"source_hidden": True}})
    if notebook.cells[1].source != setup:
        notebook.cells[1].source = setup
    nbformat.write(notebook, path)


def main() -> None:
    """Prepare all notebooks."""
    address = address_of_repository()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        prepare(path, address)
        print(path.name)


if __name__ == "__main__":
    main()
