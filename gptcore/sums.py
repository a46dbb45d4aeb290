"""Verifiable rewards: a program checks the answer and grades it, no model that guesses what people would like.

The task is small and easy to check: the sum of two three-digit numbers, with written addition as its steps.

    348+275    8+5=13, 4+7+1=12, 3+2+1=6: 623

A verdict looks at a question and an answer; `Checker` puts it in the place of the reward model, and GRPO (`groups`)
does the rest. Built step by step in notebooks/12_beyond.ipynb. Papers: DeepSeekMath (arXiv 2402.03300); Tulu 3
(2411.15124), for the name; DeepSeek-R1 (2501.12948); pass@k (2107.03374).
"""

import math
import random
import re
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from gptcore.chat_template import Turn, decode_answer, encode_prompt
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.finetuning import pack
from gptcore.generation import SamplingConfig, generate
from gptcore.groups import GroupConfig
from gptcore.machine import choose_device
from gptcore.recipe import Recipe, text_batches
from gptcore.rollouts import repeated
from gptcore.tokenizer import ASSISTANT, END, END_OF_TEXT, Tokenizer
from gptcore.training import Trainer, TrainingConfig, generator_for

# --- The task ------------------------------------------------------------------------------------

Sum = tuple[int, int]
"""Two numbers of three digits, to be added."""


def question_of(numbers: Sum) -> str:
    """As "348+275"; a digit is a token, if the tokenizer has no merges."""
    return "{}+{}".format(*numbers)


def work_out(numbers: Sum, steps: bool = True, remembers: Callable[[], bool] = lambda: True) -> str:
    """The answer, by written addition: the units first, each step with the carry of the one before.

    Args:
        numbers: to be added.
        steps: whether they are shown, or only the result.
        remembers: asked at each carry; where it says False the carry is forgotten.
    """
    shown, digits, carry = [], "", 0
    for place in (1, 10, 100):
        terms = [number // place % 10 for number in numbers] + [1] * carry
        total = sum(terms)
        shown.append("+".join(map(str, terms)) + f"={total}")
        carry = int(total > 9 and remembers())
        digits = str(total if place == 100 else total % 10) + digits
    return ", ".join(shown) + ": " + digits if steps else digits


def _draw(rng: random.Random) -> Sum:
    return rng.randint(100, 999), rng.randint(100, 999)


HELD_OUT = 200
"""Sums for evaluation."""


@cache
def held_out_sums() -> tuple[Sum, ...]:
    """No demonstration and no prompt of training is one of them, in either order."""
    rng = random.Random("sums, held out")
    return tuple(_draw(rng) for _ in range(HELD_OUT))


@cache
def _withheld() -> frozenset[Sum]:
    return frozenset(numbers for a, b in held_out_sums() for numbers in ((a, b), (b, a)))


def draw_sum(rng: random.Random) -> Sum:
    """One for training."""
    while (numbers := _draw(rng)) in _withheld():
        pass
    return numbers


class SumSource:
    """Asks for sums, in the form of `policy_training.Prompts`."""

    def draw_ids(self, rng: random.Random, tokenizer: Tokenizer, room: int) -> list[int]:
        """One question in the chat template."""
        return encode_prompt(tokenizer, question_of(draw_sum(rng)), room=room)


# --- Demonstrations ------------------------------------------------------------------------------

DEMONSTRATIONS = 500
"""How many there are: as many as a person could write in a day."""

FORGETS = 0.6
"""How often the writers forget a carry: they are learning themselves. About half of their sums are wrong."""


def demonstrations_of_sums(
    seed: int, steps: bool = True, keeps: Callable[[str, str], float] = lambda _question, _answer: 1.0
) -> Iterator[list[Turn]]:
    """Endless conversations of one question and its answer; the same few are drawn again and again.

    Args:
        seed: equal seeds, equal sums and slips, with steps or without.
        steps: whether the writers show them.
        keeps: a verdict; only what gets a grade above 0 is kept.
    """
    rng = random.Random(f"demonstrations of sums {seed}")
    written = []
    for _ in range(DEMONSTRATIONS):
        numbers = draw_sum(rng)
        written.append((question_of(numbers), work_out(numbers, steps, lambda: rng.random() >= FORGETS)))
    kept = [turn for turn in written if keeps(*turn) > 0]
    while True:
        yield [rng.choice(kept)]


def trainer_of_sums(tokenizer: Tokenizer, conversations: Iterator[list[Turn]], steps: int, seed: int) -> Trainer:
    """What trains a small decoder, from random weights, on conversations; `Trainer.model` is the decoder.

    Args:
        tokenizer: without merges each digit is a token of its own, which makes sums much easier.
        conversations: an endless source.
        steps: updates.
        seed: of the weights and the batches.
    """
    separator = tokenizer.special[END_OF_TEXT]
    shape = DecoderConfig(tokenizer.vocabulary_size, 128, layers=2, width=96, heads=3, separator=separator)
    recipe = Recipe(decoder=shape)
    count = steps * recipe.batch_size * shape.context_length
    stream = pack(tokenizer, conversations, iter(()), 0.0, count, seed)
    torch.manual_seed(seed)
    model = Decoder(shape).to(choose_device())
    return Trainer(model, text_batches(stream, recipe, seed, separator), TrainingConfig(steps=steps, seed=seed))


# --- Verdicts ------------------------------------------------------------------------------------

Verdict = Callable[[str, str], float]
"""What a program thinks of an answer: it takes question and answer, and returns a grade."""


def is_right(question: str, answer: str) -> float:
    """1 if what stands after the last colon, or the whole answer if there is none, is the sum; else 0.

    How the steps look does not matter.
    """
    return float(answer.rpartition(":")[2].strip() == str(sum(map(int, question.split("+")))))


FULL = 20
"""Numbers in the steps for which `shows_working` gives full marks: twice as many as a sum needs."""


def shows_working(_question: str, answer: str) -> float:
    """The form alone: how many numbers stand in the steps, up to `FULL`, divided by it, if a number ends the answer.

    It looks sensible, for who shows the working is right more often; but nothing needs to be true.
    """
    steps, colon, result = answer.rpartition(":")
    return min(1.0, len(re.findall(r"\d+", steps)) / FULL) if colon and result.strip().isdecimal() else 0.0


class Checker(nn.Module):
    """A verdict in the form of a reward model (`reward.Grader`): it reads tokens, but has no weights and learns nothing.

    Args:
        verdict: grades an answer.
        tokenizer: turns tokens into text.
        config: of the policy; says how long a conversation may be.
    """

    def __init__(self, verdict: Verdict, tokenizer: Tokenizer, config: DecoderConfig) -> None:
        super().__init__()
        self.verdict, self.tokenizer, self.config = verdict, tokenizer, config

    @property
    def device(self) -> torch.device:
        """Where the tokens are read."""
        return torch.device("cpu")

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Grades `(B,)` of conversations `(B, T)` of one question and `lengths` `(B,)`, padded on the right."""
        grades = []
        for ids, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
            start = ids.index(self.tokenizer.special[ASSISTANT])
            question, answer = (decode_answer(self.tokenizer, part) for part in (ids[:start], ids[start:length]))
            grades.append(self.verdict(question, answer))
        return torch.tensor(grades, device="cpu")


REINFORCEMENT = GroupConfig(
    iterations=40,
    rollout_prompts=32,
    group_size=8,
    minibatch_size=128,
    rate=3e-4,  # with 1e-3 the policy forgets how to add before it has got better at it
    kl_coefficient=0.0,  # a leash is for a judge that may be wrong
    unfinished_score=0.0,
)
"""GRPO on sums; 256 answers an iteration, in groups that are large enough to hold a right one where few are right."""

# --- Evaluation ----------------------------------------------------------------------------------


def pass_at_k(right: Tensor, k: int) -> float:
    """The probability that at least one of k answers to a question is right, mean over the questions.

    Of n answers to a question c are right. Of all C(n, k) ways to take k of them, C(n - c, k) take wrong ones only:
    the unbiased estimate is 1 - C(n - c, k) / C(n, k), section 2.1 of arXiv 2107.03374. The obvious one,
    1 - (1 - c/n)^k, is too low on average.

    Args:
        right: `(P, n)` bool, or 0 and 1.
        k: from 1, which gives the share of right answers, to n.

    Raises:
        ValueError: if k is not from 1 to n.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}, the answers to a question, got {k}")
    return sum(1 - math.comb(n - c, k) / math.comb(n, k) for c in right.sum(dim=1).int().tolist()) / len(right)


def held_out_answers(
    model: Decoder, tokenizer: Tokenizer, each: int, seed: int = 0, greedy: bool = False
) -> list[list[str]]:
    """Answers to the held-out sums, so many to each, at temperature 1 or greedy; "" for one that does not end."""
    prompts = repeated([encode_prompt(tokenizer, question_of(numbers)) for numbers in held_out_sums()], each)
    end = tokenizer.special[END]
    drawn = generate(model, prompts, SamplingConfig(greedy=greedy), end, generator_for(seed))
    texts = [decode_answer(tokenizer, ids) if ids[-1] == end else "" for ids in drawn]
    return [texts[start : start + each] for start in range(0, len(texts), each)]


def graded(verdict: Verdict, answers: list[list[str]]) -> Tensor:
    """A verdict's grades `(P, n)` of answers to the held-out sums."""
    questions = map(question_of, held_out_sums())
    return torch.tensor(
        [[verdict(question, answer) for answer in group] for question, group in zip(questions, answers, strict=True)],
        device="cpu",
    )
