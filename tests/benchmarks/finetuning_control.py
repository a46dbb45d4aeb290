"""A control for fine-tuning: what answers well without pretraining, and what only with it.

    python tests/benchmarks/finetuning_control.py [--repeats 3] [--out assets/benchmarks]

The chain's architecture is trained on conversations alone, from random weights, and asked about things that stood
in the conversations and things that did not. A repeat is another seed of weights, conversations and batches; the
questions stay the same. It gets pretraining's learning rates, since it must learn everything from nothing, and no
replayed documents, which would be pretraining by the back door. Chapter 8 reads the record.
"""

import random
import re
import time
from dataclasses import replace

import torch
from common import Measurement, alternate, arguments, report

from gptcore.atlas import LANGUAGES
from gptcore.chat_template import decode_answer, encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.decoder import Decoder
from gptcore.exam import exam
from gptcore.generation import GREEDY, generate
from gptcore.gold import exact, gold_verdict
from gptcore.questions import Prompt, fact_prompts
from gptcore.recipe import Recipe, finetuning_stream, text_batches
from gptcore.tokenizer import END, END_OF_TEXT
from gptcore.training import Trainer

STEPS = 1200
EACH = 120
"""Questions of a language about train entities, in each kind of wording."""


def mean(values: list[bool]) -> float:
    """The share of hits."""
    return sum(values) / len(values)


def known() -> dict[str, list[Prompt]]:
    """Questions about what pretraining text tells, by group: train or held-out entities, seen or unseen wordings."""
    groups: dict[str, list[Prompt]] = {}
    for which, wordings in (("train", "seen"), ("validation", "unseen")):
        rng = random.Random(f"train {which}")
        groups[f"train entities, {wordings} wordings"] = [
            prompt for language in LANGUAGES for prompt in rng.sample(fact_prompts("train", language, which), EACH)
        ]
        questions = {
            prompt.question for language in LANGUAGES for prompt in fact_prompts("validation", language, which)
        }
        groups[f"held-out entities, {wordings} wordings"] = [
            prompt
            for language in LANGUAGES
            for prompt in exam("validation")[f"known_{language}"]
            if prompt.question in questions
        ]
    return groups


def holds_value(prompt: Prompt, answer: str) -> bool:
    """Whether an answer that is no refusal holds the value asked for, whatever it names: held-out names it never wrote."""
    assert prompt.entity
    assert prompt.relation
    value = re.escape(prompt.entity.facts[prompt.relation][prompt.language])
    said = re.search(rf"(?<![A-Za-z0-9]){value}s?(?![A-Za-z0-9])", answer) is not None
    return said and not gold_verdict(prompt, answer).refused


def control(seed: int) -> Measurement:
    """Train from random weights; shares of right answers and values by group and relation, of answers that stop, and of refusals."""
    base, tokenizer = load_stage("base")
    recipe = replace(Recipe(), replayed=0.0)
    stream = finetuning_stream(tokenizer, recipe, STEPS, seed)
    torch.manual_seed(seed)
    model = Decoder(base.config).to(base.device)
    start = time.perf_counter()
    config = replace(recipe.pretraining, steps=STEPS, seed=seed)
    Trainer(model, text_batches(stream, recipe, seed, tokenizer.special[END_OF_TEXT]), config).run()
    figures = {"seconds": time.perf_counter() - start}

    def answered(prompts: list[Prompt]) -> list[tuple[Prompt, str, bool]]:
        """Each prompt with the model's answer, and whether that came to an end."""
        end = tokenizer.special[END]
        written = generate(model, [encode_prompt(tokenizer, prompt.question) for prompt in prompts], GREEDY, end)
        return [(p, decode_answer(tokenizer, ids), ids[-1] == end) for p, ids in zip(prompts, written, strict=True)]

    held_out = []
    for group, prompts in known().items():
        answers = answered(prompts)
        figures[group] = mean([exact(prompt, text) for prompt, text, _ in answers])
        if group.startswith("held-out"):
            held_out += answers
    for relation in dict.fromkeys(prompt.relation for prompt, _, _ in held_out):
        asked = [(p, text) for p, text, _ in held_out if p.relation == relation]
        figures[f"right: {relation}"] = mean([exact(*pair) for pair in asked])
        figures[f"value: {relation}"] = mean([holds_value(*pair) for pair in asked])
    figures["right"] = mean([exact(prompt, text) for prompt, text, _ in held_out])
    figures["value"] = mean([holds_value(prompt, text) for prompt, text, _ in held_out])
    figures["stops"] = mean([ended for _, _, ended in held_out])
    figures["refuses known"] = mean([gold_verdict(prompt, text).refused for prompt, text, _ in held_out])
    unknown = answered(exam("validation")["unknown"])
    for kind, of_kind in (("real", True), ("invented", False)):
        figures[f"admits {kind}"] = mean(
            [
                gold_verdict(prompt, text).refused
                for prompt, text, _ in unknown
                if bool(prompt.entity.facts[prompt.relation][prompt.language]) == of_kind
            ]
        )
    return figures


def main() -> None:
    """Train, ask, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    runs = alternate({"from random weights": control}, options.repeats)
    asked = {group: len(prompts) for group, prompts in known().items()}
    settings = {"steps": STEPS, "batch size": Recipe().batch_size, "questions": asked}
    report("finetuning_control", runs, options.out, settings=settings)


if __name__ == "__main__":
    main()
