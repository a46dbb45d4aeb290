"""PPO under judges that learned from few votes, with no KL: does the judge's grade rise while the truth falls?

    python tests/benchmarks/weak_judge.py [--repeats 3] [--out assets/benchmarks]

Of several weak judges the worst is taken on purpose, and PPO obeys it, and the shipped reward model with the
same settings, in several runs; a repeat is another seed. Chapter 10 shows the record and makes one of the runs itself.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

from common import Measurement, alternate, arguments, report
from ppo_reuse import judged, questions_of_exam

from gptcore.ballots import collect_ballots
from gptcore.checkpoint import load_stage
from gptcore.evaluation import share
from gptcore.ppo import PPO, Diagnostics
from gptcore.prompts import PromptSource
from gptcore.recipe import Recipe
from gptcore.reward import RewardModel, pair_accuracy
from gptcore.widgets.ppo_lab import train_grader

BALLOTS = 8
"""Prompts whose answers were compared for a weak judge."""
JUDGES = 3
SETTINGS = {
    "iterations": 12,
    "rollout_size": 64,
    "minibatch_size": 16,
    "value_iterations": 2,
    "policy_rate": 8e-4,
    "kl_coefficient": 0.0,
}
"""What differs from the chain's recipe; pretraining text is not replayed."""
QUESTIONS, EVERY = 300, 4
"""Questions that a policy answers, and iterations between two times that it does."""


def main() -> None:
    """Train the judges, run PPO, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    (sft, tokenizer), (reward_model, _) = load_stage("sft"), load_stage("reward")
    ballots = list(collect_ballots(sft, tokenizer, PromptSource("validation"), 80, seed=11))
    exam = questions_of_exam(QUESTIONS)

    def agreement(judge: RewardModel) -> list[float]:
        """How often it prefers the better answer, and the ends of the 95 % interval."""
        found = share(pair_accuracy(judge, tokenizer, ballots))
        return [found.value, found.low, found.high]

    judges = [train_grader(sft, tokenizer, BALLOTS, seed) for seed in range(JUDGES)]
    agreements = [agreement(judge) for judge in judges]
    worst = min(range(JUDGES), key=lambda seed: agreements[seed][0])
    curves: dict[str, list[dict[str, list]]] = {}

    def obeying(name: str, judge: RewardModel) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            policy = copy.deepcopy(sft)
            config = replace(Recipe().ppo, **SETTINGS, seed=seed)
            ppo = PPO(policy, copy.deepcopy(sft), judge, tokenizer, PromptSource("train"), config)
            looks = [(0, *judged(policy, judge, tokenizer, exam))]

            def look(entry: Diagnostics) -> None:
                if (entry.iteration + 1) % EVERY == 0:
                    looks.append((entry.iteration + 1, *judged(policy, judge, tokenizer, exam)))

            kl = [entry.kl for entry in ppo.run([look])]
            iterations, grades, golds = map(list, zip(*looks, strict=True))
            curves.setdefault(name, []).append({"iterations": iterations, "grade": grades, "gold": golds, "kl": kl})
            return {"its own grade": grades[-1] - grades[0], "gold score": golds[-1] - golds[0]}

        return run

    sides = {"the course's judge": reward_model, "weak judge": judges[worst]}
    runs = alternate({name: obeying(name, judge) for name, judge in sides.items()}, options.repeats)
    judges_found = {"course": agreement(reward_model), "weak": agreements, "worst": worst, "ballots": BALLOTS}
    report("weak_judge", runs, options.out, curves=curves, judges=judges_found, settings=SETTINGS, questions=QUESTIONS)


if __name__ == "__main__":
    main()
