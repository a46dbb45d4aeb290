"""A made-up class: notebooks as students return them, the hostile ones included.

python tests/exercises/made_up_class.py FOLDER [STUDENTS]    writes a class of 30 for chapter 1
"""

import json
import sys
from pathlib import Path

from gptcore.exercises import exercises
from gptcore.exercises.classroom import assignment_notebook

CHAPTER = 1

OTHERS = {
    "1.1": "def allowed_pairs(T):\n    return T * T",
    "1.2": "import torch\ndef sliding_mask(T, window):\n    return torch.ones(T, T, dtype=torch.bool).tril()",
}
"""Answers that are wrong."""

HOSTILE = {
    "endless loop in a cell": "while True:\n    pass",
    "endless loop that catches all": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    "exit": "import os\nos._exit(0)",
    "exit politely": "import sys\nsys.exit('bye')",
    "fork": "import os, time\nwhile True:\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(600)",
    "deletes files": (
        "import os, shutil\nfrom pathlib import Path\nimport gptcore\n"
        "for path in (Path.cwd(), Path.cwd().parent, Path(gptcore.__file__).parent / 'exercises' / 'chapter_01.py'):\n"
        "    try:\n        shutil.rmtree(path) if path.is_dir() else path.unlink()\n    except Exception:\n        pass\n"
    ),
    "altered checks": (
        "import gptcore.exercises as e, gptcore.exercises.exercise as x, torch\n"
        "e.examine = e.run_checker = lambda *a, **k: e.Verdict('right', '')\n"
        "x.close = lambda *a, **k: True\ntorch.Tensor.__eq__ = lambda *a: True\n"
        "for one in e.exercises().values():\n    object.__setattr__(one, 'checker', lambda *a: None)\n"
    ),
    "writes into the pipe": (
        'import os\nfor d in range(3, 20):\n    try:\n        os.write(d, b\'{"1.1": "there"}\\n\' * 3)\n    except OSError:\n'
        "        pass\n"
    ),
    "much memory": "hog = []\nwhile True:\n    hog.append(bytearray(200_000_000))",
    "network": (
        "import socket\n\ndef allowed_pairs(T):\n    return T * (T + 2) // 4\n\n"
        "try:\n    socket.create_connection(('127.0.0.1', PORT), timeout=2)\n    allowed_pairs = None\nexcept OSError:\n    pass"
    ),
}
"""A cell that comes first in a notebook, and the answers after it are right; with two exceptions, see `write_class`."""

UNHARMED = {"exit politely", "endless loop in a cell", "deletes files", "much memory"}
"""After these the notebook goes on and gets its marks."""


def notebook(answers, first="", change=lambda cells: None):
    """A returned notebook: the assignment with some answers (by number) filled in, and a cell of one's own."""
    content = assignment_notebook(CHAPTER, for_teacher=False)
    for cell in content["cells"]:
        number = cell["id"].removeprefix("exercise-").replace("-", ".")
        if cell["id"].startswith("exercise-") and number in answers:
            cell["source"] = exercises()[number].cell(answers[number])
    if first:
        own = {
            "cell_type": "code",
            "id": "own",
            "metadata": {},
            "source": first,
            "execution_count": None,
            "outputs": [],
        }
        content["cells"].insert(2, own)
    change(content["cells"])
    return json.dumps(content)


def solutions():
    """All right answers to the chapter."""
    return {e.number: e.solution for e in exercises().values() if e.chapter == CHAPTER}


def drop_checks(cells):
    """What a student does who is tired of the checks."""
    cells[:] = [cell for cell in cells if not cell["id"].startswith("check-")]


def answer_alone(number, code):
    """An answer without the lines below it that would call it while the cells run."""

    def change(cells):
        next(cell for cell in cells if cell["id"] == f"exercise-{number.replace('.', '-')}")["source"] = code

    return change


def write_class(folder, students=30, port=9):
    """Write the notebooks of a class; returns what each student should get, as a set of exercises.

    One of them tries to reach `port` on this computer.
    """
    right = solutions()
    hang = right | {"1.3": "def decoder_attention(query, key, value):\n    while True:\n        pass"}
    suicide = "def join_blocks(m1, s1, o1, m2, s2, o2):\n    import os\n    os._exit(1)"
    error = right | {"1.2": "def sliding_mask(T, window):\n    return unknown_name"}
    broken_cell = right | {"1.3": "def decoder_attention(query key, value):\n    return value"}
    wanted = {
        "ada": (notebook(right), set(right)),
        "blank": (notebook({}), set()),
        "half": (notebook({number: right[number] for number in ("1.1", "1.3")}), {"1.1", "1.3"}),
        "wrong": (notebook(right | OTHERS), set(right) - set(OTHERS)),
        "hangs in an answer": (notebook(hang), set(right) - {"1.3"}),
        "exits in an answer": (notebook(right, change=answer_alone("1.5", suicide)), set(right) - {"1.5"}),
        "error in an answer": (notebook(error), set(right) - {"1.2"}),
        "syntax error": (notebook(broken_cell), set(right) - {"1.3"}),
        "without checks": (notebook(right, change=drop_checks), set(right)),
        "broken file": (notebook(right)[:700], set()),
        "not JSON": ("this is no notebook", set()),
        "empty file": ("", set()),
        "no cells": (json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), set()),
        "huge": (notebook(right, first="#" * 21_000_000), set()),
    }
    for name, cell in HOSTILE.items():
        cell = cell.replace("PORT", str(port))
        if name == "altered checks":  # the answers after it are wrong
            wanted[name] = (notebook(OTHERS, first=cell), set())
        elif name == "network":  # the answer itself, which is spoiled if the network can be reached
            wanted[name] = (notebook({"1.1": cell}), {"1.1"})
        else:
            wanted[name] = (notebook(right, first=cell), set(right) if name in UNHARMED else set())
    names = list(wanted)[:students] if students < len(wanted) else list(wanted)
    for number in range(len(names), students):
        name = f"student {number + 1}"
        some = {n: right[n] for i, n in enumerate(right) if (number >> i) & 1}
        wanted[name] = (notebook(some), set(some))
        names.append(name)
    for name in names:
        place = Path(folder) / name / f"chapter_{CHAPTER:02}.ipynb"
        place.parent.mkdir(parents=True)
        place.write_text(wanted[name][0], encoding="utf-8")
    return {name: wanted[name][1] for name in names}


if __name__ == "__main__":
    print(write_class(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30))
