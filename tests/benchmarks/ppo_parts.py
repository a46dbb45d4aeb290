"""What PPO's parts are worth on the language model: the chain's PPO, each time with one part left out or changed.

    python tests/benchmarks/ppo_parts.py [--repeats 3] [--out assets/benchmarks]

All start from the shipped fine-tuned model and obey the shipped reward model; a repeat is another seed: other questions,
other answers. Every run has equally many answers graded; best of n, which trains nothing, is judged on the same questions.
Chapter 10 shows the record.
"""

import copy
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from common import Measurement, alternate, arguments, report
from ppo_reuse import questions_of_exam

from gptcore.best_of_n import best_of_n
from gptcore.chat_template import decode_answer, encode_answer, encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.exam import ask
from gptcore.generation import SamplingConfig
from gptcore.gold import gold_score
from gptcore.ppo import PPO, Diagnostics
from gptcore.prompts import PromptSource
from gptcore.recipe import Recipe, replay_batches
from gptcore.rollouts import kl_of_answers

SETTINGS = {"iterations": 20, "rollout_size": 96, "minibatch_size": 24}
"""What differs from the chain's recipe: fewer and smaller rollouts, as many updates of each."""
LOOKS = (0, 5, 10, 15, 20)
"""After how many iterations a policy answers all questions."""
QUESTIONS = 300
BEST_OF = (2, 4, 16)

PARTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no clipping": {"clip": 1e9},
    "no value warm-up": {"value_iterations": 0},
    "no whitening": {},
    "no KL": {"kl_coefficient": 0.0},
    "no replay": {},
    "lambda 0.95": {"smoothing": 0.95},
    "two epochs": {"epochs": 2},
}
"""Name of each side, and the settings in which it differs; whitening and replay are no settings."""


def main() -> None:
    """Run, judge, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    (sft, tokenizer), (judge, _) = load_stage("sft"), load_stage("reward")
    exam, recipe = questions_of_exam(QUESTIONS), Recipe()
    prompts = [encode_prompt(tokenizer, prompt.question) for prompt in exam]
    curves: dict[str, list[dict[str, list[float]]]] = {}

    def golds_of(texts: Sequence[str]) -> list[float]:
        return [gold_score(prompt, text) for prompt, text in zip(exam, texts, strict=True)]

    before = golds_of(ask(sft, tokenizer, exam, SamplingConfig(), seed=8))

    def improving(name: str) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            policy, curve, gains = copy.deepcopy(sft), dict[str, list[float]](), [0.0]
            config = replace(recipe.ppo, **SETTINGS, **PARTS[name], seed=seed)
            replay = None if name == "no replay" else replay_batches(tokenizer, recipe, seed)

            def look(done: int) -> None:
                texts = ask(policy, tokenizer, exam, SamplingConfig(), seed=8)
                golds = golds_of(texts)
                gains[:] = [gold - start for gold, start in zip(golds, before, strict=True)]
                found = {
                    "graded": done * config.rollout_size,
                    "gold": statistics.fmean(golds),
                    "95 % of the gain in gold": 1.96 * statistics.stdev(gains) / len(gains) ** 0.5,
                    "kl": kl_of_answers(policy, sft, prompts, [encode_answer(tokenizer, text) for text in texts]),
                }
                for key, value in found.items():
                    curve.setdefault(key, []).append(round(value, 4))

            def after(entry: Diagnostics) -> None:
                if entry.iteration + 1 in LOOKS:
                    look(entry.iteration + 1)

            look(0)
            ppo = PPO(policy, copy.deepcopy(sft), judge, tokenizer, PromptSource("train"), config, replay)
            raw = patch("gptcore.ppo.whiten", lambda advantages, mask: advantages)
            with raw if name == "no whitening" else nullcontext():
                ppo.run([after])
            curves.setdefault(name, []).append(curve)
            trained = ppo.history[config.value_iterations :]
            return {
                "gain in gold": statistics.fmean(gains),
                "kl": curve["kl"][-1],
                "clip fraction": statistics.fmean(entry.clip_fraction for entry in trained),
                "explained variance": statistics.fmean(entry.explained_variance for entry in ppo.history[-4:]),
            }

        return run

    def choosing(n: int) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            answers = best_of_n(sft, judge, tokenizer, prompts, n, seed)
            golds = golds_of([decode_answer(tokenizer, answer) for answer in answers])
            return {"gain in gold": statistics.fmean(golds) - statistics.fmean(before)}

        return run

    sides = {name: improving(name) for name in PARTS} | {f"best of {n}": choosing(n) for n in BEST_OF}
    runs = alternate(sides, options.repeats)
    known = {"settings": SETTINGS, "questions": QUESTIONS, "before": round(statistics.fmean(before), 4)}
    report("ppo_parts", runs, options.out, curves=curves, **known)


if __name__ == "__main__":
    main()
