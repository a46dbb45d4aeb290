"""The reward model: a grader of answers, learned from comparisons.

People find it hard to give an answer a mark and easy to say which of two is better. The
Bradley-Terry model turns such votes into rewards: the probability that answer a wins over b is
sigmoid(r(a) - r(b)). The reward model is the fine-tuned decoder with a head that gives one number,
trained to make the votes likely. It sees votes (`ballots`), never gold scores. Built step by step in
notebooks/09_reward_model.ipynb. Papers: Bradley and Terry 1952; Stiennon et al. (arXiv 2009.01325);
InstructGPT (2203.02155), equation 1.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcore.ballots import Ballot, BallotBatches, VotesAndText, answers_of, ballots_in_parts, votes_of
from gptcore.chat_template import decode_answer
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.gold import gold_score
from gptcore.loss import chosen_log_probabilities, loss_beside_text
from gptcore.machine import autocast, full_precision, in_own_dtype
from gptcore.parallel import processes, rank, sum_over_processes_, weight_of_share
from gptcore.shapes import batches_by_length, pad_right
from gptcore.tokenizer import ASSISTANT, END, SPECIAL_TOKENS, Tokenizer
from gptcore.training import Trainer, TrainingConfig

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
        # At zero every answer is worth the same. A random start, as in arXiv 1909.08593, would be a taste that no vote
        # has given.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # Set after training, so that rewards of the reference policy have mean 0 and deviation 1.
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", weight.new_zeros(()))
        self.register_buffer("deviation", weight.new_ones(()))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.trunk.device

    @in_own_dtype
    def values(self, tokens: Tensor) -> Tensor:
        """A number at each position: ids `(B, T)`, padded on the right, to `(B, T)`, float32 or the model's float64."""
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
        own = -chosen_log_probabilities(self.trunk.head, features[:, :-1], tokens, spoken)
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


class Grader(Protocol):
    """What `rewards_of` asks for rewards: a `RewardModel`, or a policy that stands for one (`dpo.ImplicitReward`)."""

    config: DecoderConfig

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Rewards `(B,)` of conversations `(B, T)` of `lengths` `(B,)`."""
        ...

    def eval(self) -> Any:
        """Switch to evaluation mode."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """None, where nothing was learned."""
        ...


# --- Training ------------------------------------------------------------------------------------


def preference_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Negative log-likelihood of the votes: mean of -log sigmoid(r_chosen - r_rejected); 0 where nobody voted.

    Args:
        chosen: `(N,)` rewards of the answers that won.
        rejected: `(N,)` rewards of those that lost.
    """
    margins = chosen - rejected
    return -F.logsigmoid(margins).mean() if len(margins) else margins.sum()  # the mean of nothing is NaN


def reward_loss(model: RewardModel, ballots: Sequence[Ballot]) -> Tensor:
    """Preference loss over all votes of some ballots; each answer is read once."""
    pairs = zip(*answers_of(ballots), strict=True)
    tokens, lengths = pad_right([prompt + answer for prompt, answer in pairs], model.config.context_length)
    rewards = model(tokens.to(model.device), lengths.to(model.device))
    winners, losers = votes_of(ballots)
    return preference_loss(rewards[winners], rewards[losers]) * weight_of_share(torch.tensor(len(winners)))


def replayed_reward_loss(model: RewardModel, batch: VotesAndText) -> Tensor:
    """Reward loss of some ballots and half the language model's loss on some text; of one of them where the other is None.

    The head judges by the model's surprise, so the model must not forget what it knows while it learns.
    """
    return loss_beside_text(partial(reward_loss, model), 0.5, model.trunk, batch)


def train_reward_model(
    sft: Decoder,
    tokenizer: Tokenizer,
    ballots: Sequence[Ballot],
    config: TrainingConfig,
    batch_size: int = 8,
    epochs: int = 1,
    replay: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    run: Callable[[Trainer], object] = Trainer.run,
    kind: type[RewardModel] = RewardModel,
) -> RewardModel:
    """A normalised reward model that has learned the votes on some ballots.

    Args:
        sft: the fine-tuned model, which is copied; the first answer on each ballot must be a sample of it.
        tokenizer: the one that it was trained with.
        ballots: what to learn from.
        config: learning rates and seed; `steps` is the least number of steps, where few ballots must be read often.
        batch_size: ballots in a batch; fewer if there are not so many.
        epochs: passes over the ballots.
        replay: makes batch number `i` of what was learned before, against forgetting; None for none.
        run: runs the trainer; to watch, or to go on with an interrupted run.
        kind: what is trained: one that sees less is compared with it in notebooks/10_rlhf_ppo.ipynb.
    """
    batches = BallotBatches(ballots, min(batch_size, max(1, len(ballots))), config.seed)
    config = replace(config, steps=max(config.steps, batches.per_epoch * epochs))
    torch.manual_seed(config.seed)
    model = kind(sft, tokenizer.special[ASSISTANT]).to(sft.device)
    run(Trainer(model, batches.beside(replay), config, replayed_reward_loss, ballots_in_parts))
    normalise(model, [ballot.prompt_ids + ballot.answers[0] for ballot in ballots[:1000]])
    return model.eval()


def normalise(model: RewardModel, sequences: Sequence[Sequence[int]]) -> None:
    """Give rewards mean 0 and deviation 1 on these conversations, samples of the reference policy.

    If all of them get the same reward, the scale stays as it was: there is nothing to measure it by.

    Raises:
        ValueError: if there are fewer than two conversations, or a reward is no finite number; nothing is changed.
    """
    if len(sequences) < 2:
        raise ValueError(f"a deviation needs the rewards of at least 2 conversations, got {len(sequences)}")
    rewards = rewards_of(model, sequences)
    if not rewards.isfinite().all():
        raise ValueError("a reward is no finite number: train the reward model again, with a lower learning rate")
    model.mean += model.deviation * rewards.mean()
    deviation = rewards.std()
    if deviation > 1e-6:  # what is less comes from rounding
        model.deviation *= deviation


# --- Use -----------------------------------------------------------------------------------------


@torch.inference_mode()
def rewards_of(model: Grader, sequences: Sequence[Sequence[int]], batch_size: int = 16) -> Tensor:
    """Rewards `(N,)` of whole conversations, in their order."""
    model.eval()
    rewards = torch.zeros(len(sequences), dtype=torch.float32, device="cpu")
    batches = batches_by_length([len(sequence) for sequence in sequences], batch_size)
    for rows in batches[rank() :: processes()]:
        tokens, lengths = pad_right([sequences[i] for i in rows], model.config.context_length)
        with autocast():
            rewards[rows] = model(tokens.to(model.device), lengths.to(model.device)).float().cpu()
    return sum_over_processes_(rewards)


def pair_accuracy(model: Grader, tokenizer: Tokenizer, ballots: Sequence[Ballot]) -> list[bool]:
    """For each pair of answers of unequal gold score: whether the model prefers the better one."""
    sequences = [ballot.prompt_ids + answer for ballot in ballots for answer in ballot.answers]
    rewards = iter(rewards_of(model, sequences).tolist())
    right = []
    for ballot in ballots:
        graded = [(gold_score(ballot.prompt, decode_answer(tokenizer, ids)), next(rewards)) for ids in ballot.answers]
        for (gold_a, reward_a), (gold_b, reward_b) in combinations(graded, 2):
            if abs(gold_a - gold_b) > 1e-9:
                right.append((reward_a > reward_b) == (gold_a > gold_b))
    return right
