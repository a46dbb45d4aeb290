"""PPO: seconds of an iteration by part, and minutes to a fixed gold score.

    python tests/benchmarks/ppo_speed.py [--repeats 3]

From the shipped fine-tuned and reward models, with equal prompts and batches:

- ours: the chain's recipe, until the mean gold score of answers to validation questions reaches 0.7
  (looked at every eighth iteration, which the clock does not count);
- ours, with the answers sampled by `transformers`: ten iterations, to see what our sampling saves.
"""

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import torch
import transformers
from common import Measurement, alternate, arguments, report

from gptcore import ppo
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.exam import ask, exam
from gptcore.generation import SamplingConfig
from gptcore.gold import gold_score
from gptcore.interchange import as_transformers
from gptcore.ppo import PPO, Diagnostics
from gptcore.prompts import PromptSource
from gptcore.recipe import Recipe, replay_batches

TARGET = 0.7


class Reached(Exception):
    """The gold score is there."""


def new_ppo(seed: int, iterations: int | None = None) -> PPO:
    """A run of the chain's recipe from the shipped models."""
    sft, tokenizer = load_stage("sft", SHIPPED)
    config = replace(Recipe().ppo, seed=seed)
    if iterations is not None:
        config = replace(config, iterations=iterations, value_iterations=0)
    replay = replay_batches(tokenizer, Recipe(), seed)
    grader = load_stage("reward", SHIPPED)[0]
    return PPO(sft, copy.deepcopy(sft), grader, tokenizer, PromptSource("train"), config, replay)


def parts(history: Sequence[Diagnostics]) -> Measurement:
    """Median seconds of the parts of an iteration, without the first two."""
    names = ("sampling_seconds", "scoring_seconds", "updating_seconds")
    medians = {name.replace("_", " "): statistics.median(getattr(d, name) for d in history[2:]) for name in names}
    whole = sum(medians.values())
    return medians | {"seconds an iteration": whole, "share of sampling": medians["sampling seconds"] / whole}


def ours(seed: int) -> Measurement:
    """Train until the gold score is reached."""
    run = new_ppo(seed)
    prompts = exam("validation")["mixed"][:300]
    start, left_out, reached = time.perf_counter(), 0.0, []

    def look(done: Diagnostics) -> None:
        nonlocal left_out
        if (done.iteration + 1) % 8 == 0:
            pause = time.perf_counter()
            minutes = (pause - start - left_out) / 60
            answers = ask(run.policy, run.tokenizer, prompts, SamplingConfig(), seed)
            gold = statistics.fmean(map(gold_score, prompts, answers))
            left_out += time.perf_counter() - pause
            if gold >= TARGET:
                reached.append(minutes)
                raise Reached

    try:
        run.run([look])
    except Reached:
        return parts(run.history) | {f"minutes to gold {TARGET}": reached[0]}
    return parts(run.history)


def sampled_by_transformers(seed: int) -> Measurement:
    """Ten iterations whose answers `transformers` draws."""
    run = new_ppo(seed, iterations=10)
    config, _ = as_transformers(run.policy)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).to(run.policy.device).eval()

    def generate(model, prompts, sampling, stop_token, generator):
        other.load_state_dict(as_transformers(model)[1])
        torch.manual_seed(generator.initial_seed())
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
        seen = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device
        )
        with torch.inference_mode():
            answers = other.generate(
                ids,
                attention_mask=seen,
                max_new_tokens=min(sampling.max_new_tokens, model.config.context_length - width),
                do_sample=True,
                top_k=0,
                eos_token_id=stop_token,
                pad_token_id=stop_token,
            )[:, width:].tolist()
        return [ids[: ids.index(stop_token) + 1] if stop_token in ids else ids for ids in answers]

    with mock.patch.object(ppo, "generate", generate):
        run.run()
    return parts(run.history)


def main() -> None:
    """Compare and print."""
    options = arguments(__doc__, repeats=3).parse_args()
    sides = {"ours": ours, "ours, sampled by transformers": sampled_by_transformers}
    report("ppo_speed", alternate(sides, options.repeats), options.out)


if __name__ == "__main__":
    main()
