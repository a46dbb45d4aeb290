"""Best of n: draw several answers and give the one that the reward model likes most.

It trains nothing and is hard to beat (in arXiv 2112.09332, for one); the price is paid at every answer. Built step
by step in notebooks/12_beyond.ipynb.
"""

import math
from collections.abc import Sequence

import torch

from gptcore.decoder import Decoder
from gptcore.generation import SamplingConfig, generate
from gptcore.reward import Grader, rewards_of
from gptcore.rollouts import repeated
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for


def best_of_n(
    model: Decoder,
    reward_model: Grader,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[list[int]],
    n: int,
    seed: int = 0,
) -> list[list[int]]:
    """Draw n answers to each prompt and give the one that the reward model likes most.

    An answer without an end token is given only if all of them lack it.

    Args:
        model: draws, at temperature 1.
        reward_model: grades.
        tokenizer: of both.
        prompt_ids: prompts in the chat template.
        n: answers to each; 1 is plain sampling.
        seed: of the samples.

    Returns:
        an answer's ids for each prompt.

    Raises:
        ValueError: if n is less than 1, or a reward is no number.
    """
    if n < 1:
        raise ValueError(f"the best is chosen of at least 1 answer, got n = {n}")
    prompts, end = repeated(prompt_ids, n), tokenizer.special[END]
    answers = generate(model, prompts, SamplingConfig(), end, generator_for(seed))
    scores = rewards_of(reward_model, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    if scores.isnan().any():
        raise ValueError("a reward is not a number: train the reward model again, with a lower learning rate")
    unfinished = torch.tensor([answer[-1] != end for answer in answers], dtype=torch.bool, device="cpu")
    best = scores.masked_fill(unfinished, -math.inf).view(-1, n).argmax(dim=1)
    return [answers[group * n + index] for group, index in enumerate(best.tolist())]


def best_of_n_kl(n: int) -> float:
    """How far from the model best-of-n can be at most: KL to it in nats, log n - (n - 1) / n.

    Often given as the KL itself; it is an upper bound (arXiv 2401.01879), close to the KL where answers are
    so varied that none is drawn twice.
    """
    return math.log(n) - (n - 1) / n
