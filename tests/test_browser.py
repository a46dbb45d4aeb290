"""The views in JupyterLab, used as a person does: typing, dragging, clicking, pressing keys.

JupyterLab runs on this machine only, headless Chromium reaches nothing else. Any error on the browser's
console and any request to another host fails the test. Screenshots of every view in the light and the
dark theme, and the measured reaction times, are left in runs/screenshots.

Skipped where Chromium or playwright is missing, unless GPTCORE_BROWSER is "required".
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter

import pytest
from lab import CHROMIUM, ROOT, TOKEN, Error, expect, jupyter_lab, opened, sync_playwright, write_notebook

from gptcore.own_data import read_comparisons

SCREENSHOTS = ROOT / "runs" / "screenshots"
REQUIRED = os.environ.get("GPTCORE_BROWSER") == "required"

pytestmark = [pytest.mark.slow]
if not REQUIRED:
    missing = "playwright (pip install playwright)" if sync_playwright is None else "Chromium (apt install chromium)"
    tried = sync_playwright is not None and CHROMIUM is not None
    pytestmark.append(pytest.mark.skipif(not tried, reason=f"views not tried in a browser: there is no {missing}"))

HOSTILE = "</script><img src=x onerror=window.hacked=1> \u202eשלום 👩‍👩‍👧 $x$"

CELLS = [
    "import json\nfrom pathlib import Path\nimport torch\nfrom gptcore.machine import set_threads\n"
    "from gptcore.widgets import *\nfrom gptcore.checkpoint import SHIPPED, load_stage\nset_threads()\n"
    "sft, tokenizer = load_stage('sft', SHIPPED)",
    "PipelineMap(SHIPPED / 'report.json')",
    "AttentionExplorer(text='The capital of Peru is Lima. 秘鲁的首都是利马。')",
    "SamplingLab()",
    "MergeStepper(tokenizer=tokenizer)",
    "MaskInspector(tokenizer)",
    "from gptcore.decoder import Decoder, DecoderConfig\n"
    "from gptcore.training import Trainer, TrainingConfig, sample_windows, generator_for\n"
    "from gptcore.corpus import documents_as_tokens, pretraining_documents\n"
    "ids = documents_as_tokens(tokenizer, pretraining_documents(0), 20_000)\n"
    "small = Decoder(DecoderConfig(tokenizer.vocabulary_size, context_length=64, layers=1, width=64, heads=2))\n"
    "dashboard = TrainingDashboard(small, tokenizer, held_out_batches((ids, ids), 4, 64), 'The capital', 512)\n"
    "_ = Trainer(small, lambda i: sample_windows(ids, ids, 8, 64, generator_for(i)), TrainingConfig(150)).run([dashboard])",
    "ChatWindow()",
    "from gptcore.questions import fact_prompts\nfrom gptcore.chat_template import encode_answer, encode_prompt\n"
    "from gptcore.ballots import Ballot\n"
    "pairs = [Ballot(p, encode_prompt(tokenizer, p.question), [encode_answer(tokenizer, t) for t in (p.references[0], "
    "'Bananas.')], []) for p in fact_prompts('train', 'en', 'train')[:3]]\n"
    "voting = PreferenceLabels(pairs, tokenizer, 'votes.jsonl')\nvoting",
    "from gptcore.ppo import PPOConfig\n"
    "PPOLab('lab.json', PPOConfig(iterations=2, rollout_size=8, minibatch_size=4, value_iterations=0))",
    "head_view(sft, tokenizer, 'The capital of Peru is Lima.')",
    "model_view(sft, tokenizer, 'The capital of Peru is </script> Lima.')",
    f"AttentionExplorer(text={HOSTILE!r})",
    f"MergeStepper({HOSTILE!r})",
    f"head_view(sft, tokenizer, {HOSTILE!r})",
    *(["PPOLab()"] if (ROOT / "assets" / "ppo_lab.json").exists() else []),
]


def lab_file() -> dict:
    """Two runs for the PPO lab, made up: here only the drawing is looked at."""

    def run(kl_coefficient: float, up: float) -> dict:
        points = [(i, round(up * i / 10, 2)) for i in range(1, 17)]
        few = [(i, round(0.5 + (0.1 - up) * i / 16, 2)) for i in (0, 4, 8, 12, 16)]
        names = dict.fromkeys(("score", "kl", "length", "entropy"), points) | dict.fromkeys(("gold", "repeated"), few)
        setting = {"kl_coefficient": kl_coefficient, "clip": 0.2, "policy_rate": 5e-4, "ballots": 4000}
        return {"setting": setting, "seed": 0, "curves": names, "answers": [["<b>Lima</b>", 1.5, -0.3]]}

    return {
        "questions": ["What is the capital of Peru?"],
        "before": [["Lima", 0.7]],
        "runs": [run(0.02, 0.1), run(0.0, 0.9)],
    }


# --- JupyterLab and the page ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A folder with a notebook of all views, and the chapters."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    folder.mkdir()
    write_notebook(folder / "views.ipynb", CELLS)
    (folder / "lab.json").write_text(json.dumps(lab_file()))
    shutil.copytree(ROOT / "notebooks", folder / "course" / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (folder / "course" / "assets").mkdir()
    shutil.copy(ROOT / "assets" / "colab.svg", folder / "course" / "assets")
    return folder


@pytest.fixture(scope="module")
def problems() -> list[str]:
    """What went wrong in the browser so far."""
    return []


@pytest.fixture(scope="module")
def page(notebooks, problems):
    """The notebook, all of its cells run."""
    with jupyter_lab(notebooks) as address, opened(address, "views.ipynb", problems) as page:
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        counted = "[...document.querySelectorAll('.jp-InputPrompt')].filter((p) => /\\d/.test(p.textContent)).length"
        try:
            page.wait_for_function(f"{counted} >= {len(CELLS)}", timeout=900_000)
        except Error:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SCREENSHOTS / "failed.png")
            raise AssertionError(f"not every cell was run; the page said {problems}") from None
        yield page


@pytest.fixture(autouse=True)
def no_problem(problems, page):
    """After each test, and after everything was first drawn: a quiet console, no foreign request, no error shown."""
    yield
    page.wait_for_timeout(100)
    found = list(problems)
    problems.clear()
    assert found == []
    alerts = page.locator(".gptcore .error:visible").all_inner_texts()
    assert alerts == []


def view(page, label, number=0):
    """A view by its name, scrolled into sight."""
    found = page.locator(f'section.gptcore[aria-label="{label}"]').nth(number)
    found.scroll_into_view_if_needed()
    return found


REACTIONS = {}

_REACTION = """
([root, act, remote]) => new Promise((resolve, reject) => {
  const before = root.outerHTML;
  const start = performance.now();
  const finish = () => requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
  if (remote) {
    const observer = new MutationObserver(() => { observer.disconnect(); finish(); });
    observer.observe(root, { attributes: true, attributeFilter: ["data-drawn"] });
    setTimeout(() => reject(new Error("no reaction")), 5000);
  }
  new Function("root", act)(root);
  if (!remote) root.outerHTML === before ? reject(new Error("nothing changed")) : finish();
})
"""


def reaction(page, root, name, acts, remote=True):
    """The view reacts each time; how fast is measured and left in reactions.json.

    Measured are milliseconds from what the reader does until the changed picture has been painted.
    """
    element = root.element_handle()
    times = [page.evaluate(_REACTION, [element, act, remote]) for act in acts]
    REACTIONS[name] = {
        "median": round(statistics.median(times), 1),
        "slowest": round(max(times), 1),
        "count": len(times),
    }


def slide(root, label, value):
    """Move a slider as the keyboard or mouse does."""
    root.get_by_label(label, exact=True).evaluate(
        "(range, value) => { range.value = value; range.dispatchEvent(new Event('input', { bubbles: true })); }",
        str(value),
    )


def take_pictures(page, folder):
    """A picture of each view in the folder, by its name and number."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: Counter[str] = Counter()
    for root in [*page.locator("section.gptcore").all(), *page.locator("[id^=bertviz-]").all()]:
        name = (root.get_attribute("aria-label") or "bertviz").replace(" ", "-").lower()
        taken[name] += 1
        root.screenshot(path=folder / f"{name}-{taken[name]}.png")


# --- The views -----------------------------------------------------------------------------------


def test_no_cell_failed(page):
    page.set_viewport_size({"width": 1280, "height": 2000})
    take_pictures(page, SCREENSHOTS / "first")  # before anything is touched: what the README shows
    page.set_viewport_size({"width": 1280, "height": 1000})
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0
    stderr = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
    assert stderr == []


def test_pipeline_map_tells_about_the_chosen_stage(page):
    root = view(page, "Pipeline map")
    expect(root.get_by_role("button")).to_have_count(5)
    root.get_by_role("button", name="Reward model").click()
    expect(root.get_by_role("status")).to_contain_text("Pairs of answers")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(root.get_by_role("status")).to_contain_text("Questions only")
    acts = [f"root.querySelectorAll('button')[{i % 5}].click()" for i in range(10)]
    reaction(page, root, "pipeline map: choose a stage", acts, remote=False)


def test_attention_explorer_follows_text_stage_and_pointer(page):
    root = view(page, "Attention explorer")
    expect(root.locator(".heads button")).to_have_count(18)
    expect(root.locator(".matrix .down").filter(has_text="秘鲁")).to_have_count(1)
    field = root.get_by_label("Text", exact=True)
    field.fill("What is gold?")
    expect(root.locator(".matrix .down").last).to_have_text("?")
    root.get_by_label("model", exact=True).select_option("base")
    root.get_by_label("read as", exact=True).select_option("question")
    expect(root.locator(".matrix .down").last).to_have_text("<|assistant|>")
    root.get_by_role("button", name="layer 1, head 2").click()
    expect(root.get_by_role("button", name="layer 1, head 2")).to_have_attribute("aria-pressed", "true")
    root.locator(".matrix .down").nth(3).hover()
    expect(root.get_by_role("status")).to_contain_text("looks at")
    expect(root.locator("svg .chosen")).to_have_count(1)
    weights = root.get_by_role("status").inner_text()
    root.get_by_label("show", exact=True).select_option(label="scores before softmax")
    expect(root.get_by_role("status")).not_to_have_text(weights)
    root.get_by_label("show", exact=True).select_option(label="weights, with mask")


def test_attention_numbers_of_a_row_sum_to_one(page):
    root = view(page, "Attention explorer")
    canvas = root.locator(".matrix canvas")
    canvas.focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    numbers = []
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    for _ in range(8):
        text = root.get_by_role("status").inner_text()
        if "forbids" in text:
            break
        numbers.append(float(text.rsplit(":", 1)[1]))
        page.keyboard.press("ArrowRight")
    assert len(numbers) >= 3
    assert sum(numbers) == pytest.approx(1, abs=0.005)


def test_attention_reacts_to_text_heads_and_pointer(page):
    root = view(page, "Attention explorer")
    act = "const f = root.querySelector('input'); f.value = {!r}; f.dispatchEvent(new Event('input'))"
    texts = ["The capital of Peru is Lima. " + "a b c d e f g h i j k l"[: 2 * i] for i in range(1, 12)]
    reaction(page, root, "attention: type", [act.format(text) for text in texts])
    acts = [f"root.querySelectorAll('.heads button')[{i}].click()" for i in range(12)]
    reaction(page, root, "attention: choose a head", acts, remote=False)
    hover = "root.querySelectorAll('.matrix .down')[{}].dispatchEvent(new PointerEvent('pointerenter'))"
    reaction(page, root, "attention: hover", [hover.format(i) for i in range(6)], remote=False)


def test_sampling_lab_follows_sliders_and_clicks(page):
    root = view(page, "Sampling lab")
    status = root.get_by_role("status")
    expect(status).to_contain_text("tokens can be drawn")
    slide(root, "top-k", 3)
    expect(status).to_contain_text("3 of ")
    expect(root.locator(".bars .cut")).to_have_count(17)
    slide(root, "temperature", 0.1)
    expect(root.get_by_label("temperature", exact=True)).to_have_attribute("aria-valuetext", "0.10")
    first = root.locator(".bars button").first
    label = first.locator("bdi").inner_text()
    first.click()
    expect(root.locator(".token.new")).to_have_text([label])
    root.get_by_role("button", name="Draw a token").click()
    expect(root.locator(".token.new")).to_have_count(2)
    root.get_by_role("button", name="Take back").click()
    expect(root.locator(".token.new")).to_have_count(1)
    root.get_by_role("button", name="All sliders back").click()
    expect(root.locator(".bars .cut")).to_have_count(0)
    root.locator(".bars button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(root.locator(".token.new")).to_have_count(2)


def test_sampling_reacts_to_sliders_and_clicks(page):
    root = view(page, "Sampling lab")
    act = "const r = root.querySelectorAll('input[type=range]')[0]; r.value = {}; r.dispatchEvent(new Event('input'))"
    reaction(page, root, "sampling: drag a slider", [act.format(0.2 + 0.2 * i) for i in range(12)])
    click = "root.querySelector('.bars button').click()"
    reaction(page, root, "sampling: click a token", [click] * 8)


def test_merge_stepper_steps_through_both_languages(page):
    root = view(page, "Merge stepper")
    before = root.locator(".token").count()
    on = root.get_by_role("button", name="Next merge")
    on.click()
    expect(root.get_by_role("status")).to_contain_text("Merge 1")
    assert root.locator(".token").count() < before
    assert root.locator(".token.new").count() >= 1
    root.get_by_label("merges applied").focus()
    page.keyboard.press("End")
    expect(root.get_by_role("status")).to_contain_text("No further pair")
    root.get_by_label("Text", exact=True).fill("首都 首都 banana banana")
    expect(root.get_by_role("status")).to_contain_text("no merge is applied yet")
    root.get_by_label("merges", exact=True).select_option("known")
    page.keyboard.press("Tab")
    root.get_by_label("merges applied").focus()
    page.keyboard.press("End")
    expect(root.locator(".token").filter(has_text="首都").first).to_be_visible()
    act = "const r = root.querySelector('input[type=range]'); r.value = {}; r.dispatchEvent(new Event('input'))"
    acts = [act.format(i) for i in range(6)]
    reaction(page, root, "merge stepper: step", acts, remote=False)


def test_mask_inspector_shows_inputs_above_targets(page):
    root = view(page, "Mask inspector")
    columns = root.get_by_role("listitem")
    for i in range(4):
        target = columns.nth(i).locator(".target").inner_text()
        assert target == columns.nth(i + 1).locator(".input").inner_text()
    expect(columns.nth(0)).to_have_class("column idle")
    expect(columns.last).to_have_class("column trained")
    expect(columns.last.locator(".target")).to_have_text("<|end|>")
    trained = root.locator(".trained").count()
    root.get_by_label("answer", exact=True).first.fill("Lima.")
    expect(root.locator(".trained")).not_to_have_count(trained)
    root.get_by_role("button", name="remove this turn").last.click()
    expect(root.get_by_label("question", exact=True)).to_have_count(1)
    act = "const f = root.querySelector('input'); f.value = 'What is gold? {}'; f.dispatchEvent(new Event('input'))"
    reaction(page, root, "mask: type", [act.format(i) for i in range(8)])


def test_training_dashboard_shows_the_run(page):
    root = view(page, "Training dashboard")
    expect(root).to_contain_text("step 150 of 150")
    expect(root.locator("svg.chart")).to_have_count(3)
    assert "held out" in root.locator("svg.chart").first.get_attribute("aria-label")
    expect(root).to_contain_text("The capital")


def test_chat_answers_side_by_side_and_tells_probabilities(page):
    root = view(page, "Chat")
    expect(root.locator(".message:not(.mine)")).to_have_count(3)
    root.get_by_role("textbox").fill("What is the capital of France?")
    start = time.perf_counter()
    page.keyboard.press("Enter")
    expect(root.locator(".message.mine")).to_have_count(2)
    expect(root.locator(".message[data-stage]")).to_have_count(6)
    REACTIONS["chat: three whole answers"] = {"median": round(1000 * (time.perf_counter() - start), 1), "count": 1}
    answer = root.locator(".message[data-stage=sft]").last
    expect(answer).to_contain_text("reward")
    answer.locator(".piece").nth(1).hover()
    expect(root.get_by_role("status")).to_contain_text("probability of")
    answer.locator(".piece").first.focus()
    page.keyboard.press("ArrowRight")
    expect(root.get_by_role("status")).to_contain_text("Most likely here")
    root.get_by_label("base").uncheck()
    root.get_by_label("sft").uncheck()
    root.get_by_role("textbox").fill("秘鲁的首都是哪里？")
    page.keyboard.press("Enter")
    expect(root.locator(".message[data-stage]")).to_have_count(7)


def test_chat_says_what_it_cannot_do_and_goes_on(page):
    root = view(page, "Chat")
    root.get_by_role("textbox").fill("word " * 300)
    page.keyboard.press("Enter")
    expect(root.get_by_role("alert")).to_contain_text("shorter")
    root.get_by_role("button", name="New conversation").click()
    expect(root.locator(".message")).to_have_count(0)
    expect(root.get_by_role("alert")).to_be_hidden()
    root.get_by_role("textbox").fill("<img src=x onerror=window.hacked=1> שלום")
    page.keyboard.press("Enter")
    expect(root.locator(".message.mine")).to_contain_text("onerror=window.hacked")
    assert page.evaluate("window.hacked") is None


def test_labelling_by_keyboard_and_mouse_saves_each_vote_and_shows_agreement(page, notebooks):
    root = view(page, "Preference labelling")
    cells = page.locator(".jp-CodeCell").count()
    root.get_by_role("button", name="left answer").click()
    expect(root).to_contain_text("1 of 3 compared")
    votes = notebooks / "votes.jsonl"
    assert [vote.rejected for vote in read_comparisons(votes).items] == ["Bananas."]
    root.focus()
    page.keyboard.press("2")
    expect(root).to_contain_text("2 of 3 compared")
    page.keyboard.press("u")
    expect(root).to_contain_text("1 of 3 compared")
    page.keyboard.press("ArrowLeft")
    expect(root).to_contain_text("2 of 3 compared")
    for key in ("d", "d", "x", "a", "b", "j"):  # commands of JupyterLab on cells
        page.keyboard.press(key)
    assert page.locator(".jp-CodeCell").count() == cells
    page.keyboard.press("ArrowRight")
    expect(root).to_contain_text("All compared")
    expect(root).to_contain_text("66.7 % of 3 pairs")
    assert [vote.chosen == "Bananas." for vote in read_comparisons(votes).items] == [False, False, True]
    click = "[...root.querySelectorAll('button')].find((b) => b.textContent.startsWith('{}')).click()"
    reaction(page, root, "labelling: undo and vote", [click.format(word) for word in ("Undo", "left") * 4])


def test_ppo_lab_shows_recorded_runs_at_once_and_runs_live(page):
    root = view(page, "PPO lab")
    expect(root.locator("svg.chart")).to_have_count(6)
    slide(root, "KL coefficient", 0)
    root.locator("summary").click()
    expect(root).to_contain_text("Reward hacking")
    expect(root.locator("table")).to_contain_text("<b>Lima</b>")
    slide(root, "clip", 1)
    expect(root).to_contain_text("not recorded")
    act = "const r = root.querySelectorAll('input[type=range]')[0]; r.value = %d; r.dispatchEvent(new Event('input'))"
    reaction(page, root, "PPO lab: move a slider", [act % ((i + 1) % 2) for i in range(8)], remote=False)
    root.get_by_role("button", name="Run this setting now").click()
    expect(root.get_by_role("button", name="Stop")).to_be_enabled()
    expect(root.get_by_role("button", name="Stop")).to_be_disabled(timeout=600_000)
    assert "live" in root.locator("svg.chart").first.get_attribute("aria-label")


def test_bertviz_draws_and_follows_the_pointer(page):
    heads = page.locator("[id^=bertviz-]").nth(0)
    heads.scroll_into_view_if_needed()
    assert heads.locator("svg line, svg path").count() > 10
    heads.locator("select").select_option("2")
    layer = "const s = root.querySelector('select'); s.value = {}; s.dispatchEvent(new Event('change'))"
    reaction(page, heads, "bertviz: choose a layer", [layer.format(i % 3) for i in range(6)], remote=False)
    listens = "(e.__on ?? []).some((on) => on.type === 'mouseover')"  # where D3 keeps its listeners
    hover = (
        f"[...root.querySelectorAll('svg *')].filter((e) => {listens})[{{}}].dispatchEvent(new MouseEvent('mouseover'))"
    )
    page.mouse.move(0, 0)  # where an earlier click left the pointer, it would hover over a word itself
    page.wait_for_timeout(100)
    reaction(page, heads, "bertviz: hover", [hover.format(i) for i in range(6)], remote=False)
    model = page.locator("[id^=bertviz-]").nth(1)
    model.scroll_into_view_if_needed()
    assert model.locator("svg").count() >= 1
    assert model.locator("svg line, svg path").count() > 50


def test_hostile_text_does_no_harm(page):
    explorer = view(page, "Attention explorer", 1)
    assert "\u202e" not in explorer.locator(".matrix").inner_text()
    assert view(page, "Merge stepper", 1).locator("img").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_pictures_of_every_view_in_both_themes(page):
    page.set_viewport_size({"width": 1280, "height": 2000})
    for theme in ("Light", "Dark"):
        page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        page.wait_for_timeout(1000)
        take_pictures(page, SCREENSHOTS / theme.lower())
    (SCREENSHOTS / "reactions.json").write_text(json.dumps(REACTIONS, indent=1))
    print(json.dumps(REACTIONS, indent=1))


# --- The chapters --------------------------------------------------------------------------------

# Where a chapter's view needs little from the cells above it, these are run, and then the view is there.
RUN = {
    "00_welcome": (["map-view"], "Pipeline map"),
    "01_attention": (["explore-view"], "Attention explorer"),
    "02_multi_head_attention": (["heads-view"], "Attention explorer"),
    "07_evaluation": (["sampling-view"], "Sampling lab"),
    "08_fine_tuning": (["cell-02", "cell-04", "cell-12", "mask-view"], "Mask inspector"),
    "10_rlhf_ppo": (["lab-view"], "PPO lab"),
    "11_chat": (["talk-view"], "Chat"),
}
_OPENED = """
(path) => {
  const shown = window.jupyterapp.shell.currentWidget;
  return shown?.context?.path === path && shown.sessionContext?.session?.kernel?.status === "idle";
}
"""
_RUN_CELL = """
(id) => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = notebook.widgets.findIndex((cell) => cell.model.id === id);
  return window.jupyterapp.commands.execute("notebook:run-cell");
}
"""


@pytest.mark.parametrize("chapter", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_chapter_opens_with_its_pictures_and_its_view_runs(page, chapter):
    path = f"course/notebooks/{chapter}.ipynb"
    page.evaluate("(path) => { window.jupyterapp.commands.execute('docmanager:open', { path }); }", path)
    page.wait_for_function(_OPENED, arg=path, timeout=600_000)
    opened = page.locator(".jp-NotebookPanel:visible")
    expect(opened.locator(".jp-RenderedImage img").first).to_be_visible()
    unseen = opened.locator(".jp-RenderedImage img").evaluate_all("(all) => all.filter((i) => !i.naturalWidth).length")
    assert unseen == 0
    if chapter in RUN:
        cells, label = RUN[chapter]
        errors = opened.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']")
        for cell in cells:
            page.evaluate(_RUN_CELL, cell)
            assert errors.all_inner_texts() == [], f"cell {cell}"
        root = opened.locator(f'section.gptcore[aria-label="{label}"]')
        root.scroll_into_view_if_needed()
        expect(root).to_have_attribute("data-drawn", re.compile("."))
        assert errors.count() == 0
        root.screenshot(path=SCREENSHOTS / f"{chapter}.png")
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


# --- Where no view runs --------------------------------------------------------------------------

PICTURES = [
    "import math\nfrom gptcore.checkpoint import SHIPPED, load_stage\nfrom gptcore.training import StepReport\n"
    "from gptcore.widgets import MaskInspector, PipelineMap, TrainingDashboard",
    "MaskInspector(load_stage('sft', SHIPPED)[1])",
    "dashboard = TrainingDashboard()\nfor i in range(1, 41):\n"
    "    norm = math.inf if i % 5 == 1 else math.nan if i == 20 else 1 + i / 40\n"
    "    dashboard(StepReport(i, 40, 3 / i if i % 9 else math.inf, norm, 1.0, 0.01))\nprint('done')",
    "display(PipelineMap(SHIPPED / 'report.json'))\nprint('after')",
]
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"


@pytest.fixture(scope="module")
def pictures(page, notebooks):
    """A page on a notebook of three views, all of its cells run, and its address."""
    write_notebook(notebooks / "pictures.ipynb", PICTURES)
    lab = page.url.split("/lab")[0]
    address = f"{lab}/lab/workspaces/pictures/tree/pictures.ipynb?token={TOKEN}&reset"
    other = page.context.browser.new_context(viewport={"width": 1200, "height": 2400}).new_page()
    other.goto(address)
    other.wait_for_function(_OPENED, arg="pictures.ipynb", timeout=600_000)
    other.evaluate(RUN_ALL)
    expect(other.locator("section.gptcore[data-drawn]")).to_have_count(3)
    return other, address


def test_a_running_view_hides_the_picture_that_stands_in_its_place(pictures):
    page, _ = pictures
    expect(page.get_by_text("after", exact=True)).to_be_visible()
    assert page.locator("[data-gptcore] img").count() == 3
    assert page.locator("[data-gptcore]:visible").count() == 0
    outputs = page.locator(".jp-OutputArea-child:visible")
    assert outputs.count() == 3 + 2  # the views and two printed lines: nothing empty is left of the pictures
    page.screenshot(path=SCREENSHOTS / "pictures-live.png")


def test_a_chart_leaves_gaps_where_a_number_is_not_finite(pictures):
    page, _ = pictures
    norm = page.locator('section.gptcore[aria-label="Training dashboard"] svg.chart').last
    assert norm.get_attribute("aria-label") == "gradient norm. gradient norm: from 1.05 to 2"
    drawn = norm.locator("path.line").get_attribute("d")
    assert "NaN" not in drawn
    assert drawn.count("M") == 8  # steps 2 to 5, 7 to 10, 12 to 15, 17 to 19, 22 to 25, ..., 37 to 40
    assert drawn.count("L") + drawn.count("M") == 40 - 9


def test_a_notebook_opened_again_without_its_kernel_shows_the_pictures(pictures, notebooks, page):
    other, address = pictures
    other.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    other.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    other.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    other.goto(address)
    expect(other.get_by_text("model not found")).to_have_count(3)  # JupyterLab says so, and nobody sees it
    assert other.get_by_text("model not found").locator("visible=true").count() == 0
    assert other.locator("[data-gptcore] img:visible").count() == 3
    other.screenshot(path=SCREENSHOTS / "pictures-again.png")
    other.wait_for_function(_OPENED, arg="pictures.ipynb", timeout=600_000)
    other.evaluate(RUN_ALL)
    expect(other.locator("section.gptcore[data-drawn]")).to_have_count(3)
    expect(other.locator("[data-gptcore]:visible")).to_have_count(0)


def test_pages_made_of_a_notebook_show_the_pictures_without_a_network(pictures, notebooks, page, tmp_path):
    fresh, saved = tmp_path / "fresh.ipynb", notebooks / "pictures.ipynb"
    write_notebook(fresh, PICTURES)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    convert = [sys.executable, "-m", "nbconvert", "--output-dir", str(tmp_path), "--to"]
    for form, path, *more in (("html", fresh, "--execute"), ("html", saved), ("latex", saved), ("markdown", saved)):
        subprocess.run([*convert, form, str(path), *more], env=environment, check=True, capture_output=True)
    for name in ("fresh", "pictures"):
        other = page.context.browser.new_page(viewport={"width": 1200, "height": 2400})
        other.goto((tmp_path / f"{name}.html").as_uri())
        expect(other.locator("[data-gptcore] img:visible")).to_have_count(3)
        other.screenshot(path=SCREENSHOTS / f"pictures-{name}-html.png")
        other.close()
    assert (tmp_path / "pictures.tex").read_text(encoding="utf-8").count(r"\adjustimage{") == 3
    assert (tmp_path / "pictures.md").read_text(encoding="utf-8").count('src="data:image/png') == 3
