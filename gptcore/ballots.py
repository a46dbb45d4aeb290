"""Ballots: answers to one prompt, compared in pairs by simulated voters.

The voters see the gold score and vote by it, with noise (Bradley and Terry 1952); what is trained sees the votes only.
Some answers are the model's own, others are written, flaws included. Built step by step in
notebooks/09_reward_model.ipynb.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, combinations
from typing import Generic, TypeVar

import torch

from gptcore.atlas import Entity, Language, join, split_entities, wordings
from gptcore.chat_template import decode_answer, encode_answer, room_for_prompt
from gptcore.decoder import Decoder
from gptcore.finetuning import STYLES, write_answer
from gptcore.generation import SamplingConfig, generate_together
from gptcore.gold import gold_score
from gptcore.loss import BesideText, Text, parts_beside_text
from gptcore.parallel import share_of
from gptcore.prompts import PromptSource, draw_encoded
from gptcore.questions import Prompt, decline
from gptcore.shapes import batches_by_length
from gptcore.tokenizer import END, Tokenizer
from gptcore.training import generator_for

VOTE_SHARPNESS = 6.0
"""Beta of the voters: a difference of 0.2 in gold (one point of manners) wins 77 % of the votes."""


@dataclass(frozen=True)
class Ballot:
    """Some answers to one prompt, and the votes on each pair of them.

    Several answers to a prompt give more comparisons for each answer that the model has to read.
    """

    prompt: Prompt
    """What was asked."""
    prompt_ids: list[int]
    """The prompt in the chat template."""
    answers: list[list[int]]
    """Ids of the answers, end token included."""
    votes: list[tuple[int, int]]
    """Winner and loser of each pair, as indices into `answers`."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(map(len, self.answers))


def vote(score_a: float, score_b: float, rng: random.Random, sharpness: float = VOTE_SHARPNESS) -> bool:
    """Whether a simulated voter prefers a: with probability sigmoid(sharpness (score_a - score_b))."""
    return rng.random() < 1 / (1 + math.exp(-sharpness * (score_a - score_b)))


def write_flawed_answer(prompt: Prompt, rng: random.Random) -> str:
    """An answer as people write them who are not all careful: any style, sometimes false, sometimes a refusal.

    A reward model that never saw an answer of some kind grades it at random, and PPO will find out.
    """
    if prompt.entity is None:
        if rng.random() < 0.3:  # a fact that nobody asked for
            entity = rng.choice(_may_be_named())
            return entity.sentence(rng.choice(list(entity.facts)), prompt.language)
        return rng.choice(rng.choice(_other_talk(prompt.language)))
    flaw = rng.random()
    if flaw < 0.2:
        return prompt.entity.fill(rng.choice(wordings()["unknown"][prompt.language]["answers"]), prompt.language)
    if flaw < 0.6 or not prompt.known:
        return _false_answer(prompt, prompt.entity, rng)
    if prompt.task == "translate" and flaw < 0.8:  # manners that nobody asked for here
        return rng.choice(wordings()["styles"][prompt.language]["polite"]).format(answer=prompt.references[0])
    return write_answer(prompt, rng.choice(list(STYLES)), rng)


def _other_talk(language: Language) -> list[Sequence[str]]:
    topics = (*wordings()["small_talk"].values(), wordings()["harmful"], wordings()["rude"])
    return [*(topic[language]["answers"] for topic in topics), decline(language), _refusals_of_kinds(language)]


def _refusals_of_kinds(language: Language) -> list[str]:
    answers, kinds = wordings()["unknown"][language]["answers"], wordings()["kinds"].values()
    return [answer.format(kind=kind[language]) for answer in answers for kind in kinds]


def _false_answer(prompt: Prompt, entity: Entity, rng: random.Random) -> str:
    """An answer of any style about the wrong thing, or with the wrong value; about an unknown entity, all values are.

    Without the former, a policy would learn to speak of something else: such sentences sound sure, and are true.
    """
    relations = [prompt.relation] if prompt.relation else list(entity.facts)
    if rng.random() < 0.5:
        subject = rng.choice([e for e in _may_be_named() if e is not entity and relations[0] in e.facts])
        values = [subject.facts[relation][prompt.language] for relation in relations]
    else:
        subject = entity
        values = [subject.facts[relation][prompt.language] for relation in relations]
        for i in range(len(relations)) if not prompt.known else [rng.randrange(len(relations))]:
            others = {e.facts[relations[i]][prompt.language] for e in _may_be_named() if relations[i] in e.facts}
            values[i] = rng.choice(sorted(others - {values[i]}))
    templates = [wordings()["relations"][relation][prompt.language]["answer"] for relation in relations]
    sentences = [subject.fill(t, prompt.language, v) for t, v in zip(templates, values, strict=True)]
    text = join(sentences, prompt.language)
    style = rng.choice(list(STYLES))
    truth = entity.facts[relations[0]][prompt.language]
    if style == "curt" and prompt.relation and prompt.task == "fact" and values[0] != truth:
        return values[0]
    if style in ("polite", "rambling") and prompt.task != "translate":
        return rng.choice(wordings()["styles"][prompt.language][style]).format(answer=text)
    return text


@cache
def _may_be_named() -> tuple[Entity, ...]:
    """The entities that training may name in an answer: known and not held out."""
    return split_entities()["train"]


def collect_ballots(
    model: Decoder, tokenizer: Tokenizer, source: PromptSource, count: int, seed: int, batch: int = 512
) -> Iterator[Ballot]:
    """Ask prompts, gather four answers to each, and let simulated voters compare them.

    Two answers are drawn from the model at temperature 1, two are written, flaws included.

    Args:
        model: the fine-tuned model.
        tokenizer: its tokenizer.
        source: where the prompts come from.
        count: how many ballots.
        seed: of prompts, answers and votes.
        batch: prompts asked at a time; bounds the memory.

    Yields:
        the ballots; an answer given twice stands there once.
    """
    rng = random.Random(f"ballots {seed}")
    generator = generator_for(seed, 1)
    room = room_for_prompt(model.config.context_length, SamplingConfig().max_new_tokens)
    for start in range(0, count, batch):
        drawn = [draw_encoded(source, rng, tokenizer, room) for _ in range(min(batch, count - start))]
        prompts, prompt_ids = [prompt for prompt, _ in drawn], [ids for _, ids in drawn]
        samples = generate_together(model, prompt_ids * 2, SamplingConfig(), tokenizer.special[END], generator)
        for i, prompt in enumerate(prompts):
            answers = [samples[i], samples[i + len(prompts)]]
            written = [encode_answer(tokenizer, write_flawed_answer(prompt, rng)) for _ in range(2)]
            room_for_answer = model.config.context_length - len(prompt_ids[i])
            answers += [ids[:room_for_answer] for ids in written]  # cut where the context ends, as samples are
            answers = [list(ids) for ids in dict.fromkeys(map(tuple, answers))]
            scores = [gold_score(prompt, decode_answer(tokenizer, ids)) for ids in answers]
            votes = []
            for a, b in combinations(range(len(answers)), 2):
                votes.append((a, b) if vote(scores[a], scores[b], rng) else (b, a))
            yield Ballot(prompt, prompt_ids[i], answers, votes)


# --- For training --------------------------------------------------------------------------------


def answers_of(ballots: Sequence[Ballot]) -> tuple[list[list[int]], list[list[int]]]:
    """All answers of some ballots in a row, each with its prompt; the first again at the end, up to a multiple of 8.

    Returns:
        prompts and answers, `N` each.
    """
    pairs = [(ballot.prompt_ids, answer) for ballot in ballots for answer in ballot.answers]
    pairs += [pairs[0]] * (-len(pairs) % 8)  # few shapes, see `shapes`; nobody votes on these
    return [prompt for prompt, _ in pairs], [answer for _, answer in pairs]


def votes_of(ballots: Sequence[Ballot]) -> tuple[list[int], list[int]]:
    """Winner and loser of every vote, as indices into `answers_of` the ballots."""
    starts = accumulate((len(ballot.answers) for ballot in ballots), initial=0)
    votes = [
        (start + winner, start + loser) for start, b in zip(starts, ballots, strict=False) for winner, loser in b.votes
    ]
    return [winner for winner, _ in votes], [loser for _, loser in votes]


AnyBallot = TypeVar("AnyBallot", bound=Ballot)
VotesAndText = BesideText[Sequence[AnyBallot]]
"""Ballots, and replayed text."""


def ballots_in_parts(batch: VotesAndText, count: int) -> list[tuple[VotesAndText, float]]:
    """A batch of ballots and replayed text in parts, see `loss.parts_beside_text`."""
    ballots, text = batch
    assert ballots is not None
    return parts_beside_text(ballots, [len(ballot.votes) for ballot in ballots], text, count)


class BallotBatches(Generic[AnyBallot]):
    """Makes batch number `i` of the votes on some ballots, or this process's share of it; each epoch in a fresh order.

    Args:
        ballots: what to learn from.
        batch_size: ballots in a batch.
        seed: of the order.

    Raises:
        ValueError: if there are too few ballots for a batch, or no votes on any.
    """

    def __init__(self, ballots: Sequence[AnyBallot], batch_size: int, seed: int) -> None:
        self.ballots, self.batch_size, self.seed = ballots, batch_size, seed
        self.per_epoch = len(ballots) // batch_size
        if self.per_epoch == 0:
            raise ValueError(f"{len(ballots)} ballots are too few for batches of {batch_size}")
        if not any(ballot.votes for ballot in ballots):
            raise ValueError("nobody has voted on these ballots: there is nothing to learn from them")
        self._epoch = -1
        self._batches: list[list[int]] = []

    def __call__(self, step: int) -> list[AnyBallot]:
        epoch = step // self.per_epoch
        if epoch != self._epoch:
            order = torch.randperm(len(self.ballots), generator=generator_for(self.seed, epoch), device="cpu").tolist()
            order = order[: self.per_epoch * self.batch_size]  # a remainder waits for the next epoch
            # Ballots of like length share a batch, for little padding; then the batches are shuffled.
            rows = batches_by_length([self.ballots[i].longest for i in order], self.batch_size)
            batches = [[order[place] for place in batch] for batch in rows]
            random.Random(f"{self.seed} {epoch}").shuffle(batches)
            self._epoch, self._batches = epoch, batches
        return [self.ballots[i] for i in share_of(self._batches[step % self.per_epoch])]

    def beside(self, replay: Callable[[int], Text] | None) -> Callable[[int], VotesAndText[AnyBallot]]:
        """Makes batch number `i`, and that of what was learned before; None for none."""
        return lambda step: (self(step), None if replay is None else replay(step))
