"""What the training dashboard costs: the same training with and without it, in turn, in JupyterLab with a browser.

    python tests/benchmarks/dashboard_cost.py [PAIRS [STEPS]]

The model, the batches and the dashboard are those of chapter 5. A headless browser draws on the same
cores, as a reader's would, so what it takes from the training is measured, too. The figure that stays
is drawn once, after the last step, and counted apart.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from lab import CHROMIUM, jupyter_lab, opened, sync_playwright, write_notebook

CELL = """
import json, time, torch
from dataclasses import replace
from gptcore.corpus import documents_as_tokens
from gptcore.recipe import Recipe, text_batches, train_tokenizer
from gptcore.corpus import pretraining_documents
from gptcore.decoder import Decoder
from gptcore.tokenizer import END_OF_TEXT
from gptcore.machine import set_threads
from gptcore.training import Trainer, TrainingConfig
from gptcore.widgets import TrainingDashboard, held_out_batches

set_threads()
recipe, tokenizer = Recipe(), train_tokenizer(seed=0)
start = tokenizer.special[END_OF_TEXT]
shape = replace(
    recipe.decoder, vocabulary_size=tokenizer.vocabulary_size, separator=start, layers=2, width=128, heads=4
)
ids = documents_as_tokens(tokenizer, pretraining_documents(0), 400_000)
unseen = documents_as_tokens(tokenizer, pretraining_documents(1_000_000), 40_000)
batch_at = text_batches((ids, ids), recipe, seed=0)
held_out = held_out_batches((unseen, unseen), 16, shape.context_length)


def seconds(shown, steps={steps}):
    torch.manual_seed(0)
    model = Decoder(shape)
    trainer = Trainer(model, batch_at, TrainingConfig(steps=steps))
    dashboard = TrainingDashboard(model, tokenizer, held_out, "The capital of", 1000)
    finish, figure = dashboard.finish, []

    def timed():
        begun = time.perf_counter()
        finish()
        figure.append(time.perf_counter() - begun)

    dashboard.finish = timed
    start = time.perf_counter()
    trainer.run([dashboard] if shown else [])
    return time.perf_counter() - start - sum(figure), dashboard.share, sum(figure)


seconds(False, 20)
found = []
for pair in range({pairs}):
    order = (False, True) if pair % 2 else (True, False)
    times = {{shown: seconds(shown) for shown in order}}
    found.append((times[False][0], *times[True]))
with open("found.json", "w") as file:
    json.dump(found, file)
"""


def main() -> None:
    """Measure some pairs and print the difference."""
    if CHROMIUM is None or sync_playwright is None:
        sys.exit("this needs Chromium (apt install chromium) and playwright (pip install playwright)")
    given = [int(word) for word in sys.argv[1:3]]
    pairs, steps = [*given, *(4, 480)[len(given) :]]
    with tempfile.TemporaryDirectory() as folder:
        notebooks = Path(folder) / "notebooks"
        notebooks.mkdir()
        write_notebook(notebooks / "cost.ipynb", [CELL.format(pairs=pairs, steps=steps)])
        problems: list[str] = []
        with jupyter_lab(notebooks) as address, opened(address, "cost.ipynb", problems) as page:
            page.set_default_timeout(60_000 * 5 * pairs)
            page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        found = json.loads((notebooks / "found.json").read_text())
    for without, with_view, share, figure in found:
        extra = with_view / without - 1
        print(
            f"without {without:6.2f} s   with {with_view:6.2f} s   {extra:+.1%}   own count {share:.1%}   figure {figure:.2f} s"
        )
    extra = [with_view / without - 1 for without, with_view, *_ in found]
    print(
        f"{len(found)} pairs of {steps} steps: {statistics.median(extra):+.1%} (median), {min(extra):+.1%} to {max(extra):+.1%}"
    )
    print("problems in the browser:", problems or "none")


if __name__ == "__main__":
    main()
