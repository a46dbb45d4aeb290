"""The loss mask: fine-tuning on the assistant's tokens alone beside fine-tuning on all tokens of a conversation.

    python tests/benchmarks/loss_mask.py [--repeats 3] [--out assets/benchmarks]

Both are chapter 8's run, from the shipped base model and on the same rows in the same order, replay included;
they differ only in whether what the user says counts. A repeat is another seed of conversations and order; the
questions stay the same. Chapter 8 reads the record.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from common import Measurement, alternate, arguments, report
from torch import Tensor

from gptcore.chat_template import decode_answer, encode_prompt
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.evaluation import mean_loss
from gptcore.exam import exam
from gptcore.finetuning import introduce_chat_tokens
from gptcore.generation import GREEDY, generate
from gptcore.gold import exact, gold_verdict
from gptcore.loss import IGNORED
from gptcore.questions import Prompt
from gptcore.recipe import Recipe, finetuning_stream, text_batches
from gptcore.tokenizer import END, END_OF_TEXT
from gptcore.training import Trainer

STEPS, BATCH = 480, 4
FRESH = 1_000
"""Seed of the conversations on which the loss is measured; no run learns from them."""


@cache
def questions() -> list[Prompt]:
    """About held-out things, in both languages."""
    return exam("validation")["known_en"] + exam("validation")["known_zh"]


def losses(model, tokenizer, recipe: Recipe) -> Measurement:
    """Nats a token on fresh conversations: what the assistant says, and what the user says."""
    ids, targets = finetuning_stream(tokenizer, replace(recipe, replayed=0.0), 40, FRESH)
    found = {}
    for who, those in (("assistant", targets != IGNORED), ("user", targets == IGNORED)):
        batch_at = text_batches((ids, ids.masked_fill(~those, IGNORED)), recipe, FRESH, tokenizer.special[END_OF_TEXT])
        found[f"loss, {who}"] = mean_loss(model, map(batch_at, range(30)))[0]
    return found


def trained_on(targets_of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], Measurement]:
    """A run whose targets are made of the stream's ids and targets."""

    def run(seed: int) -> Measurement:
        base, tokenizer = load_stage("base", SHIPPED)
        recipe = replace(Recipe(), batch_size=BATCH)
        ids, targets = finetuning_stream(tokenizer, recipe, STEPS, seed)
        model = copy.deepcopy(base)
        introduce_chat_tokens(model, tokenizer)
        batch_at = text_batches((ids, targets_of(ids, targets)), recipe, seed, tokenizer.special[END_OF_TEXT])
        start = time.perf_counter()
        Trainer(model, batch_at, replace(recipe.finetuning, steps=STEPS, seed=seed)).run()
        figures = {"seconds": time.perf_counter() - start}
        model.eval()
        end = tokenizer.special[END]
        for group, prompts in (("known", questions()), ("unknown", exam("validation")["unknown"])):
            written = generate(model, [encode_prompt(tokenizer, p.question) for p in prompts], GREEDY, end)
            texts = [decode_answer(tokenizer, ids) for ids in written]
            pairs = list(zip(prompts, texts, strict=True))
            figures[f"refused, {group}"] = sum(gold_verdict(*pair).refused for pair in pairs) / len(pairs)
            if group == "known":
                figures["right"] = sum(exact(*pair) for pair in pairs) / len(pairs)
                figures["stops"] = sum(ids[-1] == end for ids in written) / len(pairs)
        return figures | losses(model, tokenizer, recipe)

    return run


def main() -> None:
    """Train both, ask, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    sides = {
        "the assistant's tokens": trained_on(lambda ids, targets: targets),
        "all tokens": trained_on(lambda ids, targets: ids),
    }
    runs = alternate(sides, options.repeats)
    settings = {"steps": STEPS, "batch size": BATCH, "questions": len(questions())}
    report("loss_mask", runs, options.out, settings=settings)


if __name__ == "__main__":
    main()
