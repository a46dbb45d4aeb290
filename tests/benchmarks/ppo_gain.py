"""Where does PPO's gain come from? The PPO model beside the SFT model, the SFT model trained on for as
many steps, and best-of-n under the same reward model, on the same held-out prompts.

    python tests/benchmarks/ppo_gain.py [FOLDER ...]

Each FOLDER is a finished run (default: the shipped one); one line a method and folder, then means.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

from gptcore.chat_template import decode_answer, encode_prompt
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.exam import exam, wins
from gptcore.generation import SamplingConfig, generate
from gptcore.gold import gold_score
from gptcore.machine import set_threads
from gptcore.recipe import Recipe, finetuning_stream, text_batches
from gptcore.reward import rewards_of
from gptcore.tokenizer import END
from gptcore.training import Trainer, generator_for


def continued(sft, tokenizer, recipe, seed):
    """The SFT model after as many further updates on demonstrations as PPO made."""
    steps = recipe.ppo.iterations * recipe.ppo.epochs * (recipe.ppo.rollout_size // recipe.ppo.minibatch_size)
    stream = finetuning_stream(tokenizer, recipe, steps, seed + 100)
    model = copy.deepcopy(sft)
    batches = text_batches(stream, recipe, seed + 100)
    Trainer(model, batches, replace(recipe.finetuning, steps=steps)).run()
    return model


def best_of(n, sft, reward_model, tokenizer, prompts, seed):
    """Gold scores of the answer that the reward model likes best among n."""
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in prompts]
    answers = generate(sft, prompt_ids * n, SamplingConfig(), tokenizer.special[END], generator_for(seed, 7))
    rewards = rewards_of(reward_model, [a + b for a, b in zip(prompt_ids * n, answers, strict=True)])
    chosen = rewards.view(n, -1).argmax(dim=0).tolist()
    picked = [answers[which * len(prompts) + i] for i, which in enumerate(chosen)]
    return [gold_score(prompt, decode_answer(tokenizer, ids)) for prompt, ids in zip(prompts, picked, strict=True)]


def main() -> None:
    """Compare and print."""
    set_threads()
    folders = [Path(name) for name in sys.argv[1:]] or [SHIPPED]
    recipe = Recipe()
    prompts = exam("test")["mixed"]
    results: dict[str, list[tuple[float, float]]] = {}
    for seed, folder in enumerate(folders):
        models = {stage: load_stage(stage, folder)[0] for stage in ("sft", "reward", "ppo")}
        tokenizer = load_stage("sft", folder)[1]
        _, _, baseline = wins(models["ppo"], models["sft"], tokenizer, seed=seed)
        golds = {}
        _, golds["PPO"], _ = wins(models["ppo"], models["sft"], tokenizer, seed=seed)
        longer = continued(models["sft"], tokenizer, recipe, seed)
        _, golds["SFT, as many steps more"], _ = wins(longer, models["sft"], tokenizer, seed=seed)
        for n in (1, 4, 16):
            golds[f"best of {n}"] = best_of(n, models["sft"], models["reward"], tokenizer, prompts, seed)
        for name, values in golds.items():
            pairs = zip(values, baseline, strict=True)
            won = sum(0.5 if abs(a - b) < 1e-9 else a > b for a, b in pairs) / len(values)
            results.setdefault(name, []).append((sum(values) / len(values), won))
            print(f"{folder}  {name:<26} gold {results[name][-1][0]:.3f}  win rate against SFT {won:.3f}", flush=True)
    for name, values in results.items():
        gold, won = (sum(column) / len(values) for column in zip(*values, strict=True))
        print(f"mean of {len(values)}  {name:<26} gold {gold:.3f}  win rate against SFT {won:.3f}")


if __name__ == "__main__":
    main()
