"""PPO under judges that are right in most pairs, without KL and with: how far do the judge's grade and the truth rise together?

    python tests/benchmarks/over_optimisation.py [--repeats 3] [--out assets/benchmarks]

Three kinds of judge: the course's; one that learned from as many votes but is not shown the answer's surprise, and
so can hardly tell a true sentence from a false one; and one of few votes. Under the second, PPO is run on two
leashes as well. A repeat is another seed: of the ballots, where the judge is not the course's, and of PPO. Chapter
10 shows the record and makes one of the runs itself.
"""

import copy
import functools
import statistics
from collections.abc import Callable
from dataclasses import replace

from common import Measurement, alternate, arguments, report
from ppo_reuse import questions_of_exam

from gptcore.ballots import Ballot, collect_ballots
from gptcore.chat_template import encode_answer, encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.decoder import Decoder
from gptcore.evaluation import share
from gptcore.exam import ask
from gptcore.generation import SamplingConfig
from gptcore.gold import gold_score, gold_verdict
from gptcore.ppo import PPO, Diagnostics
from gptcore.prompts import PromptSource
from gptcore.recipe import Recipe, replay_batches
from gptcore.reward import RewardModel, pair_accuracy, rewards_of, train_reward_model
from gptcore.rollouts import kl_of_answers
from gptcore.tokenizer import Tokenizer
from gptcore.widgets.ppo_lab import BlindRewardModel

FEW = 24
"""Prompts whose answers were compared for a judge of few votes."""
SETTINGS = {
    "iterations": 32,
    "rollout_size": 64,
    "minibatch_size": 16,
    "value_iterations": 2,
    "policy_rate": 8e-4,
    "kl_coefficient": 0.0,
}
"""What differs from the chain's recipe; pretraining text is not replayed."""
LEASHES = (0.1, 0.5)
"""Prices of the KL that the blind judges' policies pay in further runs; the chain's is 0.02."""
QUESTIONS = 300
LOOKS = (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
"""After how many iterations a policy answers all questions."""


def train_as_the_chain(sft: Decoder, tokenizer: Tokenizer, seed: int) -> RewardModel:
    """A blind judge, trained as the chain's reward model is, replay and all, on ballots of its own."""
    recipe = Recipe()
    ballots: list[Ballot] = list(collect_ballots(sft, tokenizer, PromptSource("train"), recipe.ballots, seed + 20))
    config, replay = replace(recipe.reward, seed=seed), replay_batches(tokenizer, recipe, seed)
    sizes = recipe.ballot_batch_size, recipe.reward_epochs
    return train_reward_model(sft, tokenizer, ballots, config, *sizes, replay, kind=BlindRewardModel)


def train_on_few(sft: Decoder, tokenizer: Tokenizer, seed: int) -> RewardModel:
    """A judge that has seen `FEW` ballots, again and again."""
    recipe = Recipe()
    ballots = list(collect_ballots(sft, tokenizer, PromptSource("train"), FEW, seed))
    return train_reward_model(sft, tokenizer, ballots, replace(recipe.reward, steps=24, seed=seed))


def leashed() -> dict[str, float]:
    """The runs under blind judges in which the KL has a price, and the price."""
    return {f"blind, KL at {price}": price for price in LEASHES}


def main() -> None:
    """Train the judges, run PPO under each, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    sft, tokenizer = load_stage("sft")
    reward_model, _ = load_stage("reward")
    ballots = list(collect_ballots(sft, tokenizer, PromptSource("validation"), 160, seed=11))
    exam = questions_of_exam(QUESTIONS)
    curves: dict[str, list[dict[str, list[float]]]] = {}
    agreements: dict[str, list[list[float]]] = {}

    def obeying(name: str, judge_of: Callable[[int], RewardModel], price: float = 0.0) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            judge, policy = judge_of(seed), copy.deepcopy(sft)
            if not price:  # those on a leash obey judges that were weighed before
                right = share(pair_accuracy(judge, tokenizer, ballots))
                agreements.setdefault(name, []).append([right.value, right.low, right.high])
            curve: dict[str, list[float]] = {}
            first: list[float] = []

            def look(done: int) -> None:
                texts = ask(policy, tokenizer, exam, SamplingConfig(), seed=8)
                pairs = list(zip(exam, texts, strict=True))
                prompts = [encode_prompt(tokenizer, prompt.question) for prompt in exam]
                answers = [encode_answer(tokenizer, text) for text in texts]
                golds = [gold_score(*pair) for pair in pairs]
                first.extend(golds if not first else [])
                verdicts = [gold_verdict(*pair) for pair in pairs]
                gains = [gold - before for gold, before in zip(golds, first, strict=True)]
                whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
                found = {
                    "iterations": done,
                    "grade": rewards_of(judge, whole).mean().item(),
                    "gold": statistics.fmean(golds),
                    "95 % of the gain in gold": 1.96 * statistics.stdev(gains) / len(gains) ** 0.5,
                    "kl": kl_of_answers(policy, sft, prompts, answers),
                    "true": statistics.fmean(verdict.true for verdict in verdicts),
                    "polite": statistics.fmean(verdict.polite for verdict in verdicts),
                    "brief": statistics.fmean(verdict.brief for verdict in verdicts),
                }
                for key, value in found.items():
                    curve.setdefault(key, []).append(round(value, 4))

            def after(entry: Diagnostics) -> None:
                if entry.iteration + 1 in LOOKS:
                    look(entry.iteration + 1)

            look(0)
            config = replace(Recipe().ppo, **SETTINGS | {"kl_coefficient": price}, seed=seed)
            PPO(policy, copy.deepcopy(sft), judge, tokenizer, PromptSource("train"), config).run([after])
            curves.setdefault(name, []).append(curve)
            grade, gold = curve["grade"], curve["gold"]
            gains = {"its own grade": grade[-1] - grade[0], "gold at its best": max(gold) - gold[0]}
            return gains | {"gold at the end": gold[-1] - gold[0]}

        return run

    blind = functools.cache(lambda seed: train_as_the_chain(sft, tokenizer, seed))
    judges: dict[str, Callable[[int], RewardModel]] = {
        "the course's judge": lambda _: reward_model,
        "blind to surprise": blind,
        f"{FEW} prompts": lambda seed: train_on_few(sft, tokenizer, seed),
    }
    sides = {name: obeying(name, judge_of) for name, judge_of in judges.items()}
    sides |= {name: obeying(name, blind, price) for name, price in leashed().items()}
    runs = alternate(sides, options.repeats)
    known = {"judges": agreements, "leashed": leashed(), "settings": SETTINGS, "few": FEW, "questions": QUESTIONS}
    report("over_optimisation", runs, options.out, curves=curves, **known)


if __name__ == "__main__":
    main()
