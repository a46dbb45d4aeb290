"""The reward model: a grader of answers, learned from comparisons.

People find it hard to give an answer a mark and easy to say which of two is better. The
Bradley-Terry model turns such votes into marks: the probability that answer a wins over b is
sigmoid(r(a) - r(b)). The reward model is the fine-tuned decoder with a head that gives one number,
trained to make the votes likely. Papers: Bradley and Terry 1952; Stiennon et al. (arXiv 2009.01325);
InstructGPT (2203.02155), equation 1.

Here the voters are simulated: noisy votes of the gold score. The model sees votes, never scores.
"""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.corpus import Entity, Language, Prompt, join, split_entities, wordings
from gptcore.decoder import Decoder
from gptcore.evaluation import gold_score
from gptcore.finetuning import (
    STYLES,
    PromptSource,
    as_typed,
    decode_answer,
    encode_answer,
    encode_prompt,
    write_answer,
)
from gptcore.generation import SamplingConfig, generate
from gptcore.machine import autocast, own_dtype
from gptcore.tokenizer import ASSISTANT, END, SPECIAL_TOKENS, Tokenizer
from gptcore.training import few_shapes, full_precision, generator_for, language_model_loss

VOTE_SHARPNESS = 6.0
"""Beta of the voters: a difference of 0.2 in gold (one point of manners) wins 77 % of the votes."""

# --- The model -----------------------------------------------------------------------------------

_FROM_START_TO_END = SPECIAL_TOKENS.index(END) - SPECIAL_TOKENS.index(ASSISTANT)


def answer_begins(tokens: Tensor, answer_start: int) -> Tensor:
    """At which tokens an answer begins: the first mark of the assistant, and the first after each end of an answer.

    A mark within an answer begins no other: a policy may draw one, and would hide behind it what it said before.

    Args:
        tokens: `(B, T)` ids.
        answer_start: id of the assistant's mark; that of the end token has its place beside it in every vocabulary.

    Returns:
        `(B, T)` bool, True at the marks; the answers' own tokens come after them.
    """
    is_mark, is_end = tokens == answer_start, tokens == answer_start + _FROM_START_TO_END
    marks = is_mark.long().cumsum(dim=1)
    return is_mark & (marks - (marks * is_end).cummax(dim=1).values == 1)  # the first since the last end


class RewardModel(nn.Module):
    """A decoder whose head gives one number at every position.

    The number at the last token of an answer is the answer's reward. The same class serves PPO as
    value model, which needs a number at every position.

    To judge whether a statement is true, a model must compare what stands there with what it would
    have said itself. But what it would have said is known only after its last layer, with no layer
    left to compare. So the head is also shown the answer's surprise: how unlikely its least likely
    token was, and the mean over its tokens, by the model's own prediction.

    Args:
        decoder: the model that is copied, its own head included.
        answer_start: id of the token after which an answer begins.
    """

    def __init__(self, decoder: Decoder, answer_start: int) -> None:
        super().__init__()
        self.config = decoder.config
        self.answer_start = answer_start
        self.trunk = copy.deepcopy(decoder)
        weight = decoder.embedding.weight
        self.head = nn.Linear(decoder.config.width + 2, 1, device=weight.device, dtype=weight.dtype)
        # N(0, 1/(C + 1)): rewards of an untrained model have variance about 1 (arXiv 1909.08593).
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(decoder.config.width + 1))
        nn.init.zeros_(self.head.bias)
        # Set after training, so that rewards of the reference policy have mean 0 and deviation 1.
        self.register_buffer("mean", weight.new_zeros(()))
        self.register_buffer("deviation", weight.new_ones(()))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.trunk.device

    def values(self, tokens: Tensor) -> Tensor:
        """A number at each position: ids `(B, T)`, padded on the right, to `(B, T)`, float32 or the model's float64."""
        with own_dtype(self.head.weight):
            features = self.trunk.hidden(tokens)  # (B, T, C)
            surprise = self._surprise(tokens, features)  # (B, T, 2)
            values = self.head(torch.cat((features, surprise.to(features.dtype)), dim=-1)).squeeze(-1)
        return (full_precision(values) - self.mean) / self.deviation

    def _surprise(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Largest and mean surprise of the latest answer's tokens so far, in nats: `(B, T, 2)`, 0 before the first.

        In a conversation of several turns earlier answers and later questions are context, and not judged.
        """
        begins = answer_begins(tokens, self.answer_start)
        latest = begins.long().cumsum(dim=1)  # which answer each token belongs to, its mark included
        said = latest - begins.long()  # the mark not included
        spoken = said[:, 1:] > 0
        answer = features[:, :-1][spoken]
        logarithms = full_precision(self.trunk.head(few_shapes(answer))[: len(answer)]).log_softmax(dim=-1)
        chosen = logarithms.gather(1, tokens[:, 1:][spoken][:, None]).squeeze(1)
        own = chosen.new_zeros(spoken.shape).masked_scatter(spoken, -chosen)
        own = F.pad(own, (1, 0))  # (B, T), the surprise of each token
        both = own.new_zeros(*own.shape, 2)
        for number in range(1, int(latest.max()) + 1):
            surprise = own.masked_fill(said != number, 0.0)
            count = (said == number).long().cumsum(dim=1).clamp(min=1)
            so_far = torch.stack((surprise.cummax(dim=1).values, surprise.cumsum(dim=1) / count), dim=-1)
            both = torch.where((latest == number)[..., None], so_far, both)
        return both

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Rewards of whole conversations, read at the last real token.

        Args:
            tokens: `(B, T)` ids, padded on the right with anything.
            lengths: `(B,)` number of real tokens.

        Returns:
            `(B,)`, float32 or the model's float64.
        """
        return self.values(tokens).gather(1, lengths[:, None] - 1).squeeze(1)


def preference_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Negative log-likelihood of the votes: mean of -log sigmoid(r_chosen - r_rejected); 0 where nobody voted.

    Args:
        chosen: `(N,)` rewards of the answers that won.
        rejected: `(N,)` rewards of those that lost.
    """
    margins = chosen - rejected
    return -F.logsigmoid(margins).mean() if len(margins) else margins.sum()  # the mean of nothing is NaN


# --- Comparisons ---------------------------------------------------------------------------------


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


def vote(score_a: float, score_b: float, chance: random.Random, sharpness: float = VOTE_SHARPNESS) -> bool:
    """Whether a simulated voter prefers a: with probability sigmoid(sharpness (score_a - score_b))."""
    return chance.random() < 1 / (1 + math.exp(-sharpness * (score_a - score_b)))


def write_flawed_answer(prompt: Prompt, chance: random.Random) -> str:
    """An answer as people write them who are not all careful: any style, sometimes false, sometimes a refusal.

    A reward model that never saw an answer of some kind grades it at random, and PPO will find out.
    """
    if prompt.entity is None:
        return chance.choice(chance.choice(_other_talk(prompt.language)))
    flaw = chance.random()
    if flaw < 0.2:
        return prompt.entity.fill(chance.choice(wordings()["unknown"][prompt.language]["answers"]), prompt.language)
    if flaw < 0.6 or not prompt.known:
        return _false_answer(prompt, chance)
    return write_answer(prompt, chance.choice(list(STYLES)), chance)


def _other_talk(language: Language) -> list[list[str]]:
    return [topic[language]["answers"] for topic in (*wordings()["small_talk"].values(), wordings()["harmful"])]


def _false_answer(prompt: Prompt, chance: random.Random) -> str:
    """An answer of any style about the wrong thing, or with the wrong value; about an unknown entity, all values are.

    To speak of something else is what a model learns that is graded by how sure its sentences sound.
    """
    relations = [prompt.relation] if prompt.relation else list(prompt.entity.facts)
    if chance.random() < 0.5:
        subject = chance.choice([e for e in _may_be_named() if e is not prompt.entity and relations[0] in e.facts])
        values = [subject.facts[relation][prompt.language] for relation in relations]
    else:
        subject = prompt.entity
        values = [subject.facts[relation][prompt.language] for relation in relations]
        for i in range(len(relations)) if not prompt.known else [chance.randrange(len(relations))]:
            others = {e.facts[relations[i]][prompt.language] for e in _may_be_named() if relations[i] in e.facts}
            values[i] = chance.choice(sorted(others - {values[i]}))
    templates = [wordings()["relations"][relation][prompt.language]["answer"] for relation in relations]
    sentences = [subject.fill(t, prompt.language, v) for t, v in zip(templates, values, strict=True)]
    text = join(sentences, prompt.language)
    style = chance.choice(list(STYLES))
    if style == "curt" and prompt.relation and prompt.task == "fact" and values[0] != _value(prompt):
        return values[0]
    if style in ("polite", "rambling") and prompt.task != "translate":
        return chance.choice(wordings()["styles"][prompt.language][style]).format(answer=text)
    return text


def _value(prompt: Prompt) -> str:
    return prompt.entity.facts[prompt.relation][prompt.language]


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
    chance = random.Random(f"ballots {seed}")
    generator = generator_for(seed, 1)
    for start in range(0, count, batch):
        prompts = [source.draw(chance) for _ in range(min(batch, count - start))]
        prompt_ids = [encode_prompt(tokenizer, as_typed(prompt.question, chance)) for prompt in prompts]
        samples = generate(model, prompt_ids * 2, SamplingConfig(), tokenizer.special[END], generator)
        for i, prompt in enumerate(prompts):
            answers = [samples[i], samples[i + len(prompts)]]
            answers += [encode_answer(tokenizer, write_flawed_answer(prompt, chance)) for _ in range(2)]
            answers = [list(ids) for ids in dict.fromkeys(map(tuple, answers))]
            scores = [gold_score(prompt, decode_answer(tokenizer, ids)) for ids in answers]
            votes = []
            for a, b in combinations(range(len(answers)), 2):
                votes.append((a, b) if vote(scores[a], scores[b], chance) else (b, a))
            yield Ballot(prompt, prompt_ids[i], answers, votes)


# --- Training ------------------------------------------------------------------------------------


def pad_right(sequences: Sequence[Sequence[int]], longest: int) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as one tensor, padded with 0.

    The width is rounded up to a multiple of 16: a CPU compiles its kernels anew for each shape.

    Args:
        sequences: token ids.
        longest: the model's context length; the width does not exceed it for rounding's sake.

    Returns:
        ids `(B, T)` and lengths `(B,)`.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], device="cpu")
    width = max(int(lengths.max()), min(-(-int(lengths.max()) // 16) * 16, longest))
    ids = torch.zeros(len(sequences), width, dtype=torch.long, device="cpu")
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, device="cpu")
    return ids, lengths


class BallotBatches:
    """Makes batch number `i` of the votes on some ballots; each epoch in a fresh order.

    Args:
        ballots: what to learn from.
        batch_size: ballots in a batch.
        seed: of the order.

    Raises:
        ValueError: if there are too few ballots for a batch, or no votes on any.
    """

    def __init__(self, ballots: Sequence[Ballot], batch_size: int, seed: int) -> None:
        self.ballots, self.batch_size, self.seed = ballots, batch_size, seed
        self.per_epoch = len(ballots) // batch_size
        if self.per_epoch == 0:
            raise ValueError(f"{len(ballots)} ballots are too few for batches of {batch_size}")
        if not any(ballot.votes for ballot in ballots):
            raise ValueError("nobody has voted on these ballots: there is nothing to learn from them")
        self._epoch, self._batches = -1, []

    def __call__(self, step: int) -> list[Ballot]:
        epoch = step // self.per_epoch
        if epoch != self._epoch:
            order = torch.randperm(len(self.ballots), generator=generator_for(self.seed, epoch), device="cpu").tolist()
            order = order[: self.per_epoch * self.batch_size]  # a remainder waits for the next epoch
            # Ballots of like length share a batch, for little padding; then the batches are shuffled.
            order.sort(key=lambda i: max(map(len, self.ballots[i].answers)) + len(self.ballots[i].prompt_ids))
            batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
            random.Random(f"{self.seed} {epoch}").shuffle(batches)
            self._epoch, self._batches = epoch, batches
        return [self.ballots[i] for i in self._batches[step % self.per_epoch]]


def reward_loss(model: RewardModel, ballots: Sequence[Ballot]) -> Tensor:
    """Preference loss over all votes of some ballots; each answer is read once."""
    sequences, winners, losers = [], [], []
    for ballot in ballots:
        for winner, loser in ballot.votes:
            winners.append(len(sequences) + winner)
            losers.append(len(sequences) + loser)
        sequences += [ballot.prompt_ids + answer for answer in ballot.answers]
    sequences += [sequences[0]] * (-len(sequences) % 8)  # few shapes, as in `pad_right`; nobody votes on these
    tokens, lengths = pad_right(sequences, model.config.context_length)
    rewards = model(tokens.to(model.device), lengths.to(model.device))
    return preference_loss(rewards[winners], rewards[losers])


def replayed_reward_loss(model: RewardModel, batch: tuple[Sequence[Ballot], tuple[Tensor, Tensor]]) -> Tensor:
    """Reward loss of some ballots and half the language model's loss on some text.

    The head judges by the model's surprise, so the model must not forget what it knows while it learns.
    """
    ballots, text = batch
    return reward_loss(model, ballots) + 0.5 * language_model_loss(model.trunk, text)


@torch.inference_mode()
def score(model: RewardModel, sequences: Sequence[Sequence[int]], batch_size: int = 64) -> Tensor:
    """Rewards `(N,)` of whole conversations, in their order."""
    model.eval()
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    rewards = torch.empty(len(sequences), dtype=torch.float32, device="cpu")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens, lengths = pad_right([sequences[i] for i in rows], model.config.context_length)
        with autocast():
            rewards[rows] = model(tokens.to(model.device), lengths.to(model.device)).float().cpu()
    return rewards


def normalise(model: RewardModel, sequences: Sequence[Sequence[int]]) -> None:
    """Give rewards mean 0 and deviation 1 on these conversations, samples of the reference policy.

    If all of them get the same reward, the scale stays as it was: there is nothing to measure it by.

    Raises:
        ValueError: if there are fewer than two conversations, or a reward is no finite number; nothing is changed.
    """
    if len(sequences) < 2:
        raise ValueError(f"a deviation needs the rewards of at least 2 conversations, got {len(sequences)}")
    rewards = score(model, sequences)
    if not rewards.isfinite().all():
        raise ValueError("a reward is no finite number: train the reward model again, with a lower learning rate")
    model.mean += model.deviation * rewards.mean()
    deviation = rewards.std()
    if deviation > 1e-6:  # what is less comes from rounding
        model.deviation *= deviation


def pair_accuracy(model: RewardModel, tokenizer: Tokenizer, ballots: Sequence[Ballot]) -> list[bool]:
    """For each pair of answers of unequal gold score: whether the model prefers the better one."""
    sequences = [ballot.prompt_ids + answer for ballot in ballots for answer in ballot.answers]
    rewards = iter(score(model, sequences).tolist())
    right = []
    for ballot in ballots:
        graded = [(gold_score(ballot.prompt, decode_answer(tokenizer, ids)), next(rewards)) for ids in ballot.answers]
        for (gold_a, reward_a), (gold_b, reward_b) in combinations(graded, 2):
            if abs(gold_a - gold_b) > 1e-9:
                right.append((reward_a > reward_b) == (gold_a > gold_b))
    return right
