"""What every notebook has in common: badge, set-up cell, stated cost, numbered parts."""

import subprocess
import sys
import types

import nbformat
import pytest
from check_notebooks import problems
from execute_notebooks import keep_picture, only_runs
from prepare_notebooks import (
    NOTEBOOKS,
    ROOT,
    SETUP,
    STATED,
    address_of_repository,
    badge,
    prepare,
    state_cost,
    state_sums,
)

from gptcore.costs import expected_seconds, read_costs

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
CHAPTERS = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@CHAPTERS
def test_badge_and_set_up_cell_agree_with_the_address_of_the_repository(path, tmp_path):
    address = address_of_repository()
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    prepare(copy, address)
    before, after = (nbformat.read(p, as_version=4) for p in (path, copy))
    assert before == after, "run tools/prepare_notebooks.py"
    assert badge(path.name, address) in before.cells[0].source.split("\n")
    place = address.removeprefix("https://github.com/")
    assert f"/github/{place}/blob/main/notebooks/{path.name})" in before.cells[0].source
    assert (ROOT / "assets" / "colab.svg").exists()


@CHAPTERS
def test_a_chapter_has_the_parts_that_all_have(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith(f"# {int(path.stem[:2])} · ")
    assert STATED.search(notebook.cells[0].source)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = [line for line in text.split("\n") if line.startswith("## ")]
    assert headings[-3:] == ["## What you have learned", "## Questions to think about", "## Papers"]
    questions = text[text.index("## Questions to think about") : text.index("## Papers")]
    assert questions.count("<details>") == questions.count("</details>") == 3
    assert "arXiv" in text[text.index("## Papers") :]


def test_a_new_address_is_written_once_however_often_the_command_runs(tmp_path):
    path = tmp_path / PATHS[0].name
    path.write_bytes(PATHS[0].read_bytes())
    for _ in range(2):
        prepare(path, "https://github.com/someone/course")
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.count("[![Open in Colab]") == 1
    assert "/github/someone/course/blob/main/notebooks/" in cells[0].source
    assert [cell.id for cell in cells].count("setup") == 1
    assert "https://github.com/someone/course" in cells[1].source
    assert "OWNER" not in cells[0].source


def on_colab(monkeypatch, tmp_path, address):
    """The set-up cell as Colab would run it, with a folder of the test's in place of /content."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    exec(SETUP.format(address=address).replace("/content/gptcore", str(tmp_path / "gptcore")), {})


def repository(folder):
    """A small repository with a chapter and a package, made on the spot."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "01.ipynb").write_text("{}")
    (folder / "requirements.txt").write_text("# comment\ntorch>=2.6\nnumpy>=1.26\njupyterlab>=4\nnosuchpackage>=1\n")
    run = lambda *words: subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)  # noqa: E731
    run("init", "--quiet")
    run("add", ".")
    run("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "x")
    return folder


def test_on_colab_the_course_is_fetched_and_what_is_missing_installed_but_never_torch(monkeypatch, tmp_path):
    source = repository(tmp_path / "source")
    calls, run = [], subprocess.run

    def watched(words, **settings):
        calls.append([str(word) for word in words])
        return run(words, **settings) if words[0] == "git" else None

    monkeypatch.setattr(subprocess, "run", watched)
    on_colab(monkeypatch, tmp_path, str(source))
    from pathlib import Path

    assert Path.cwd() == tmp_path / "gptcore" / "notebooks"
    assert sys.path[0] == str(tmp_path / "gptcore")
    assert (tmp_path / "gptcore" / "notebooks" / "01.ipynb").exists()
    assert [call[0] for call in calls] == ["git", sys.executable]
    assert calls[1][-1] == "nosuchpackage"
    assert not {"torch", "numpy", "jupyterlab"} & set(calls[1])
    import torch

    assert (tmp_path / "held.txt").read_text() == f"torch=={torch.__version__}\n"
    on_colab(monkeypatch, tmp_path, str(source))  # a second time nothing is fetched
    assert [call[0] for call in calls].count("git") == 1


def test_on_colab_a_course_without_an_address_says_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="Upload its folder"):
        on_colab(monkeypatch, tmp_path, "https://github.com/OWNER/gptcore")


def test_elsewhere_the_set_up_cell_does_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    exec(SETUP.format(address="https://github.com/OWNER/gptcore"), {})
    assert sys.path == before
    assert list(tmp_path.iterdir()) == []


COSTS = {
    "AMX": {"unit": 1.0, "chapters": {"a": {"seconds": 20, "gigabytes": 0.8}, "b": {"seconds": 3, "gigabytes": 0.4}}},
    "laptop": {"unit": 4.0, "chapters": {"a": {"seconds": 80, "gigabytes": 0.71}, "b": {"seconds": 6, "gigabytes": 0}}},
}


def test_the_first_cell_states_the_measured_cost_on_both_profiles():
    text = "# 1\n\n**Time on two cores:** 9 minutes. **Memory:** 9 GB. More."
    stated = state_cost(text, "a", COSTS)
    assert "1.3 minutes on a laptop (AVX2), 0.3 with AMX" in stated
    assert stated.endswith("**Memory:** 0.8 GB. More.")
    assert state_cost(stated, "a", COSTS) == stated
    assert "0.1 minutes on a laptop (AVX2), 0.1 with AMX" in state_cost(text, "b", COSTS)
    with pytest.raises(ValueError, match="needs a line"):
        state_cost("# 1", "a", COSTS)


def test_the_readme_states_the_sum_and_the_longest_of_the_chapters():
    rows = "| 0 | 0 | all chapters |\n| 0 | 0 | the longest of them |"
    assert state_sums(f"before\n{rows}\nafter", COSTS) == (
        "before\n| 86 | 23 | all chapters |\n| 80 | 20 | the longest of them |\nafter"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert state_sums(readme, read_costs()) == readme, "run tools/prepare_notebooks.py"
    with pytest.raises(ValueError, match="needs the rows"):
        state_sums("| 1 | 2 | the first thirteen chapters |", COSTS)


@pytest.mark.parametrize(("unit", "a", "b"), [(1, 20, 3), (4, 80, 6), (2, 40, 3 * 2**0.5), (16, 320, 12)])
def test_what_a_chapter_takes_elsewhere_follows_from_two_machines(unit, a, b):
    assert expected_seconds(COSTS, "chapters", unit) == pytest.approx({"a": a, "b": b})


def test_the_record_knows_every_chapter_and_every_stage_on_both_profiles():
    for costs in read_costs().values():
        assert set(costs["chapters"]) == {path.stem for path in PATHS}
        assert set(costs["chain"]) == {"tokenizer", "pretrain", "sft", "reward", "ppo", "evaluation"}
        assert costs["unit"] > 0


def test_of_a_view_only_its_picture_is_stored(tmp_path):
    bundle = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/html": "<p>", "text/plain": "a view"}
    cell = nbformat.v4.new_code_cell("view", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("display_data", data=bundle | {"image/png": "aaaa"})]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    assert len(problems(tmp_path / "a.ipynb")) == 2
    keep_picture(cell.outputs[0])
    assert set(cell.outputs[0].data) == {"image/png", "text/plain"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    assert problems(tmp_path / "a.ipynb") == []


def test_an_output_that_needs_its_kernel_is_not_stored():
    live = nbformat.v4.new_output(
        "display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "a view"}
    )
    picture = nbformat.v4.new_output("display_data", data={"image/png": "aaaa", "text/html": "<p>"})
    assert [only_runs(output) for output in (live, picture)] == [True, False]
    assert not only_runs(nbformat.v4.new_output("stream", text="a"))
