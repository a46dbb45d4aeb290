"""PPO's sample efficiency and stability: short runs that use each answer once or three times.

    python tests/benchmarks/ppo_reuse.py [--repeats 3] [--out assets/benchmarks]

All start from the shipped fine-tuned model and obey the shipped reward model; a repeat is another seed:
other questions, other answers, another order. Before and after, the policy answers questions of the
validation exam at temperature 1. Chapter 10 shows the record and makes one of the runs itself.
"""

import copy
import random
import time
from collections.abc import Callable
from dataclasses import replace

from common import Measurement, alternate, arguments, report

from gptcore.chat_template import encode_answer, encode_prompt
from gptcore.checkpoint import load_stage
from gptcore.decoder import Decoder
from gptcore.exam import ask, exam
from gptcore.generation import SamplingConfig
from gptcore.gold import gold_score
from gptcore.ppo import PPO
from gptcore.prompts import PromptSource
from gptcore.questions import Prompt
from gptcore.recipe import Recipe
from gptcore.reward import RewardModel, rewards_of
from gptcore.tokenizer import Tokenizer

SETTINGS = {"iterations": 5, "rollout_size": 64, "minibatch_size": 32, "value_iterations": 1, "policy_rate": 1e-3}
"""What differs from the chain's recipe; pretraining text is not replayed."""
USES = (1, 3)
QUESTIONS = 300


def questions_of_exam(count: int) -> list[Prompt]:
    """Questions of the validation exam, the same in every run and those of chapter 10."""
    return random.Random(7).sample(exam("validation")["mixed"], count)


def judged(model: Decoder, judge: RewardModel, tokenizer: Tokenizer, exam: list[Prompt]) -> tuple[float, float]:
    """Mean grade by the judge, and mean gold score, of the model's answers at temperature 1."""
    pairs = list(zip(exam, ask(model, tokenizer, exam, SamplingConfig(), seed=8), strict=True))
    whole = [encode_prompt(tokenizer, prompt.question) + encode_answer(tokenizer, text) for prompt, text in pairs]
    return rewards_of(judge, whole).mean().item(), sum(gold_score(*pair) for pair in pairs) / len(pairs)


def main() -> None:
    """Run, print and write."""
    options = arguments(__doc__, repeats=3).parse_args()
    (sft, tokenizer), (reward_model, _) = load_stage("sft"), load_stage("reward")
    exam = questions_of_exam(QUESTIONS)
    before = judged(sft, reward_model, tokenizer, exam)
    rollouts: dict[str, list[list[float]]] = {}

    def using(times: int) -> Callable[[int], Measurement]:
        def run(seed: int) -> Measurement:
            config = replace(Recipe().ppo, **SETTINGS, epochs=times, seed=seed)
            policy = copy.deepcopy(sft)
            ppo = PPO(policy, copy.deepcopy(sft), reward_model, tokenizer, PromptSource("train"), config)
            start = time.perf_counter()
            history = ppo.run()
            seconds = time.perf_counter() - start
            rollouts.setdefault(str(times), []).append([entry.score for entry in history])
            reward, gold = judged(policy, reward_model, tokenizer, exam)
            return {"learned reward": reward - before[0], "gold score": gold - before[1], "seconds": seconds}

        return run

    runs = alternate({str(times): using(times) for times in USES}, options.repeats)
    report("ppo_reuse", runs, options.out, rollouts=rollouts, settings=SETTINGS, questions=QUESTIONS)


if __name__ == "__main__":
    main()
