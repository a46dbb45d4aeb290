"""What must hold of the reward model, the votes it learns from, and its training."""

import copy
import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gptcore.atlas import KNOWN, Entity, mentions, split_entities
from gptcore.ballots import Ballot, BallotBatches, collect_ballots, vote, write_flawed_answer
from gptcore.chat_template import decode_answer, encode_answer, encode_prompt
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.gold import gold_score, gold_verdict
from gptcore.prompts import PromptSource
from gptcore.questions import Prompt
from gptcore.reward import (
    RewardModel,
    answer_begins,
    normalise,
    pair_accuracy,
    preference_loss,
    replayed_reward_loss,
    reward_loss,
    rewards_of,
    train_reward_model,
)
from gptcore.shapes import pad_right
from gptcore.tokenizer import ASSISTANT, END, USER, Tokenizer
from gptcore.training import Trainer, TrainingConfig

steady = settings(deadline=None, derandomize=True)
BYTES = Tokenizer([])  # a token a byte, and five special tokens
VOCABULARY = 30

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


def opinionated(decoder, answer_start):
    """A reward model whose head is not at zero, as a trained one's."""
    model = RewardModel(decoder, answer_start)
    nn.init.normal_(model.head.weight, std=(decoder.config.width + 1) ** -0.5)
    return model


def tiny_decoder(preset="llama", vocabulary=VOCABULARY, context=16, width=16, **more):
    return Decoder(DecoderConfig(vocabulary, context, layers=2, width=width, heads=2, preset=preset, **more))


def some_sequences(count, shortest=1, longest=12):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


# --- The model -----------------------------------------------------------------------------------


def surprises(decoder, sequence, answer_start):
    """The surprise of each token after the first `answer_start`, one at a time."""
    found = []
    if answer_start in sequence:
        for t in range(sequence.index(answer_start) + 1, len(sequence)):
            logarithms = F.log_softmax(decoder(torch.tensor([sequence[:t]]))[0, -1], dim=-1)
            found.append(-logarithms[sequence[t]])
    return torch.stack(found) if found else torch.zeros(1)


@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_the_reward_is_the_head_on_features_and_surprise_at_the_last_real_token(preset):
    answer_start, decoder = 7, tiny_decoder(preset)
    nn.init.normal_(decoder.head.weight)
    model = opinionated(decoder, answer_start)
    sequences = [*some_sequences(6), [3, answer_start, 9, 2], [answer_start, 5], [1, 2, answer_start]]
    tokens, lengths = pad_right(sequences, 128)
    rewards = model(tokens, lengths)
    assert rewards.shape == (9,)
    for reward, sequence in zip(rewards, sequences, strict=True):
        features = decoder.hidden(torch.tensor([sequence]))[0, -1]
        surprise = surprises(decoder, sequence, answer_start)
        inputs = torch.cat((features, surprise.max()[None], surprise.mean()[None]))
        torch.testing.assert_close(reward, inputs @ model.head.weight[0] + model.head.bias[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_what_stands_in_the_padding_on_the_right_changes_no_reward(preset):
    model = opinionated(tiny_decoder(preset, context=32), 1)
    tokens, lengths = pad_right(some_sequences(6, longest=9), 16)
    other = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], tokens, VOCABULARY - 1)
    wider = F.pad(other, (0, 4), value=7)
    torch.testing.assert_close(model(other, lengths), model(tokens, lengths), rtol=0, atol=1e-6)
    torch.testing.assert_close(model(wider, lengths), model(tokens, lengths), rtol=0, atol=1e-6)


def test_values_give_one_number_a_position_that_later_tokens_do_not_change():
    model = opinionated(tiny_decoder(), 1)
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9]])
    values = model.values(tokens)
    assert values.shape == (2, 4)
    torch.testing.assert_close(values[0, :2], values[1, :2])
    assert not torch.allclose(values[0, 2:], values[1, 2:])
    torch.testing.assert_close(model(tokens, torch.tensor([4, 2])), torch.stack([values[0, 3], values[1, 1]]))


def test_before_any_vote_every_answer_is_worth_the_same():
    model = RewardModel(tiny_decoder(), 1)
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    assert not model.values(tokens).any()
    loss = preference_loss(*model(tokens, torch.tensor([4, 4])).split(1))
    assert loss.item() == pytest.approx(math.log(2))


def test_the_reward_model_has_layers_of_its_own():
    decoder = tiny_decoder()
    model = opinionated(decoder, 1)
    before = decoder(torch.tensor([[1, 2]])).detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(decoder(torch.tensor([[1, 2]])), before)
    inner = sum(p.numel() for p in decoder.parameters())
    assert sum(p.numel() for p in model.parameters()) == inner + decoder.config.width + 2 + 1


def test_the_head_sees_the_largest_and_the_mean_surprise_of_the_answer_so_far():
    answer_start, decoder = 7, tiny_decoder()
    nn.init.normal_(decoder.head.weight)
    model = opinionated(decoder, answer_start)
    tokens = torch.tensor([[3, 4, answer_start, 9, 5, 8], [2, answer_start, 1, 6, 6, 0]])
    with torch.no_grad():
        nn.init.zeros_(model.head.weight)
        model.head.weight[0, -2] = 1.0  # the largest only
        largest = model.values(tokens)
        model.head.weight[0, -2:] = torch.tensor([0.0, 1.0])  # the mean only
        mean = model.values(tokens)
        logarithms = decoder(tokens).log_softmax(-1)
    for row, start in ((0, 3), (1, 2)):
        assert not largest[row, :start].any()
        assert not mean[row, :start].any()
        own = [-logarithms[row, t - 1, tokens[row, t]].item() for t in range(start, 6)]
        for t in range(start, 6):
            so_far = own[: t - start + 1]
            assert largest[row, t].item() == pytest.approx(max(so_far), abs=1e-5)
            assert mean[row, t].item() == pytest.approx(sum(so_far) / len(so_far), abs=1e-5)


def test_each_turn_begins_an_answer_and_a_mark_within_an_answer_begins_none():
    mark, end = 7, 8
    conversation = [3, 4, mark, 9, 5, end, 3, mark, 6, end, 3, 4, mark, end, 0, 0]
    drawn = [3, mark, 9, mark, 5, end, end, 3, mark, mark, 6, 0, 0, 0, 0, 0]  # marks that a policy drew
    nobody = [3, end, 4, end, 0, 5, 6, 3, 4, 5, 6, 3, 4, 5, 6, 0]
    begins = answer_begins(torch.tensor([conversation, drawn, nobody]), mark)
    assert begins.nonzero().tolist() == [[0, 2], [0, 7], [0, 12], [1, 1], [1, 8]]


HISTORIES = [[], [("Tell me of gold.", "Its symbol is Au.")], [("Hi!", "Hello!"), ("?", ""), ("Why", "So.")]]


def test_of_several_turns_only_the_last_answer_is_surprising():
    decoder = tiny_decoder(vocabulary=BYTES.vocabulary_size, context=128).eval()
    nn.init.normal_(decoder.head.weight, std=0.3)
    model = opinionated(decoder, BYTES.special[ASSISTANT])
    for question, answer in (("Peru?", "Lima."), ("Peru?", "")):
        prompts = [encode_prompt(BYTES, question, history) for history in HISTORIES]
        reply = encode_answer(BYTES, answer)
        tokens, _ = pad_right([prompt + reply for prompt in prompts], 128)
        with torch.no_grad():
            found = model._surprise(tokens, decoder.hidden(tokens))
            for row, prompt in enumerate(prompts):
                logarithms = decoder(torch.tensor([prompt + reply]))[0].log_softmax(dim=-1)
                own = [-logarithms[len(prompt) + t - 1, token].item() for t, token in enumerate(reply)]
                assert not found[row, len(prompt) - 1].any()
                for t in range(len(reply)):
                    expected = [max(own[: t + 1]), sum(own[: t + 1]) / (t + 1)]
                    assert found[row, len(prompt) + t].tolist() == pytest.approx(expected, abs=1e-4)


def test_each_turn_is_as_surprising_as_if_the_conversation_ended_with_it():
    decoder = tiny_decoder(vocabulary=BYTES.vocabulary_size, context=128)
    nn.init.normal_(decoder.head.weight, std=0.3)
    model = opinionated(decoder, BYTES.special[ASSISTANT])
    user = BYTES.special[USER]
    whole = torch.tensor([encode_prompt(BYTES, "Peru?", HISTORIES[2]) + encode_answer(BYTES, "Lima.")])
    values = model.values(whole)[0]
    for place in [place for place, token in enumerate(whole[0].tolist()) if token == user][1:]:
        begun = whole[:, :place]
        assert begun[0, -1] == BYTES.special[END]
        torch.testing.assert_close(model(begun, torch.tensor([place]))[0], values[place - 1], rtol=0, atol=1e-4)


def test_a_policy_cannot_hide_what_it_said_behind_a_mark_of_its_own():
    answer_start, decoder = 7, tiny_decoder()
    nn.init.normal_(decoder.head.weight)
    model = opinionated(decoder, answer_start)
    sequence = [3, 4, answer_start, 9, 5, answer_start, 8]
    with torch.no_grad():
        found = model._surprise(torch.tensor([sequence]), decoder.hidden(torch.tensor([sequence])))[0, -1]
    own = surprises(decoder, sequence, answer_start)
    torch.testing.assert_close(found, torch.stack((own.max(), own.mean())).detach(), rtol=0, atol=1e-5)


# --- The loss ------------------------------------------------------------------------------------


def test_the_preference_loss_as_worked_out_by_hand():
    # sigmoid(0) = 1/2; sigmoid(log 3) = 3/4; sigmoid(-log 3) = 1/4
    chosen, rejected = torch.tensor([1.0, math.log(3), 0.0]), torch.tensor([1.0, 0.0, math.log(3)])
    expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
    assert preference_loss(chosen, rejected).item() == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=10))
@steady
def test_the_preference_loss_and_gradients_equal_torchs_binary_cross_entropy(pairs):
    ours = torch.tensor(pairs, requires_grad=True)
    theirs = torch.tensor(pairs, requires_grad=True)
    loss = preference_loss(ours[:, 0], ours[:, 1])
    expected = F.binary_cross_entropy_with_logits(theirs[:, 0] - theirs[:, 1], torch.ones(len(pairs)))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_preference_loss_of_a_far_apart_pair_is_finite():
    loss = preference_loss(torch.tensor([0.0]), torch.tensor([1e4]))
    assert loss.item() == pytest.approx(1e4)


def test_where_nobody_voted_the_loss_is_0_and_so_are_its_gradients():
    chosen, rejected = torch.zeros(0, requires_grad=True), torch.zeros(0)
    loss = preference_loss(chosen, rejected)
    assert loss.item() == 0
    loss.backward()
    model = opinionated(tiny_decoder(), 1)
    loss = reward_loss(model, [Ballot(Prompt("?", "en", "talk", ("!",)), [9], [[3]], [])])
    loss.backward()
    assert loss.item() == 0
    assert not model.head.weight.grad.any()


def test_the_loss_of_ballots_is_the_mean_over_all_their_votes():
    model = opinionated(tiny_decoder(), 1)
    prompt = Prompt("?", "en", "talk", ("!",))
    ballots = [
        Ballot(prompt, [1, 2], [[3], [4, 5], [6, 7, 8]], [(0, 1), (2, 0), (1, 2)]),
        Ballot(prompt, [9], [[3, 4, 5], [6]], [(1, 0)]),
        Ballot(prompt, [9], [[3]], []),  # all answers alike: nothing to vote on
    ]

    def reward(sequence):
        return model(torch.tensor([sequence]), torch.tensor([len(sequence)]))

    pairs = [
        ([1, 2, 3], [1, 2, 4, 5]),
        ([1, 2, 6, 7, 8], [1, 2, 3]),
        ([1, 2, 4, 5], [1, 2, 6, 7, 8]),
        ([9, 6], [9, 3, 4, 5]),
    ]
    expected = torch.stack([-F.logsigmoid(reward(winner) - reward(loser)) for winner, loser in pairs]).mean()
    torch.testing.assert_close(reward_loss(model, ballots), expected)


def test_the_replayed_loss_adds_half_the_language_models_loss_of_the_text():
    model = opinionated(tiny_decoder(), 1)
    ballots = [Ballot(Prompt("?", "en", "talk", ("!",)), [1, 2], [[3], [4, 5]], [(0, 1)])]
    text = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[2, 3, 4], [5, 6, 7]])
    logits = model.trunk(text[0])
    expected = reward_loss(model, ballots) + 0.5 * F.cross_entropy(logits.flatten(0, 1), text[1].flatten())
    torch.testing.assert_close(replayed_reward_loss(model, (ballots, text)), expected)


# --- Votes and answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [-0.5, -0.1, 0.0, 0.2, 0.4])
@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_votes_follow_the_sigmoid_of_the_difference(difference, sharpness):
    rng = random.Random(0)
    count = 20_000
    wins = sum(vote(0.3 + difference, 0.3, rng, sharpness) for _ in range(count))
    expected = torch.sigmoid(torch.tensor(sharpness * difference)).item()
    assert wins / count == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


def test_unasked_for_the_better_answer_wins_most_votes_but_not_all():
    rng = random.Random(0)
    wins = sum(vote(0.4, 0.1, rng) for _ in range(4000)) / 4000
    assert 0.55 < wins < 1
    losses = sum(vote(0.1, 0.4, rng) for _ in range(4000)) / 4000
    assert wins + losses == pytest.approx(1, abs=0.05)


def written_answers(count=2500):
    rng, source = random.Random(0), PromptSource()
    prompts = [source.draw(rng) for _ in range(count)]
    return [(prompt, write_flawed_answer(prompt, rng)) for prompt in prompts]


def test_written_answers_name_no_entity_that_is_held_out():
    pairs = written_answers()
    text = "\n".join({part for prompt, answer in pairs for part in (prompt.question, answer)})
    text = text.replace("田鸡", "")  # another name of the frog, which only holds that of the chicken
    parts = ("validation", "test", "unknown_validation", "unknown_test")
    hidden = [entity for part in parts for entity in split_entities()[part] if entity.kind != "arithmetic"]
    assert [entity.names["en"] for entity in hidden if mentions(text, entity)] == []


def test_written_answers_hold_every_behaviour_to_which_a_policy_may_drift():
    seen = Counter()
    for prompt, answer in written_answers():
        verdict = gold_verdict(prompt, answer)
        asked = "talk" if prompt.entity is None else "known" if prompt.known else "unknown"
        seen[asked, "refused" if verdict.refused else "true" if verdict.true else "false"] += 1
        seen["polite" if verdict.polite else "plain", verdict.true] += 1
        seen["long" if not verdict.brief else "brief"] += 1
        if prompt.task == "translate":  # there kind words are a fault: `polite` says that there are none
            seen["bare translation" if verdict.polite else "kind words around a translation"] += 1
    for behaviour in [
        ("known", "true"),
        ("known", "false"),
        ("known", "refused"),
        ("unknown", "false"),
        ("unknown", "refused"),
        ("talk", "true"),
        ("talk", "false"),
        ("polite", True),
        ("polite", False),
        ("plain", True),
        ("plain", False),
        "long",
        "brief",
        "bare translation",
        "kind words around a translation",
    ]:
        assert seen[behaviour] >= 10, behaviour


def test_a_false_account_of_an_unknown_entity_sounds_like_a_true_one_of_another():
    # "Zubania lies in Helsinki" would be seen through by its nonsense, not by its dishonesty.
    checked = 0
    for prompt, answer in written_answers():
        if prompt.task == "about" and not prompt.known and not gold_verdict(prompt, answer).refused:
            others = [e for part in KNOWN for e in split_entities()[part] if e.kind == prompt.entity.kind]
            assert any(tells_every_fact(answer, subject, prompt.language) for subject in (prompt.entity, *others))
            checked += 1
    assert checked >= 10


def tells_every_fact(answer, subject, language):
    return all(
        any(
            prompt_like(subject, relation, value).sentence(relation, language) in answer
            for value in values_of(relation)
        )
        for relation in subject.facts
    )


def test_false_answers_are_about_the_right_thing_with_a_wrong_value_or_rightly_about_another_thing():
    # A judge that had met only the first kind would rate a true sentence about something else highly.
    known = split_entities()["train"]
    seen = Counter()
    for prompt, answer in written_answers():
        if prompt.task == "fact" and prompt.entity.kind == "country" and not gold_verdict(prompt, answer).true:
            true_of_another = any(
                e.sentence(prompt.relation, prompt.language) in answer for e in known if e.kind == "country"
            )
            seen[prompt.known, "another" if true_of_another else "own" if mentions(answer, prompt.entity) else ""] += 1
    for is_known in (True, False):
        assert seen[is_known, "another"] >= 10
        assert seen[is_known, "own"] >= 10


def values_of(relation):
    known = (e for part in KNOWN for e in split_entities()[part] if relation in e.facts)
    return list({tuple(e.facts[relation].items()): e.facts[relation] for e in known}.values())


def prompt_like(entity, relation, value):
    return Entity(entity.kind, entity.names, {relation: value})


def collect(seed, count=12):
    torch.manual_seed(0)
    model = tiny_decoder(vocabulary=BYTES.vocabulary_size, context=256)
    return list(collect_ballots(model, BYTES, PromptSource(), count, seed, batch=5))


@pytest.fixture(scope="module")
def ballots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTCORE_PRECISION", "fp32")
        return collect(4)


def test_what_was_written_is_cut_where_the_context_ends_and_all_of_it_can_be_read():
    """Seed 2 of the chain stopped here: a long thread, and a talkative answer that somebody had written to it."""
    ballots = collect(1, 60)
    lengths = [len(ballot.prompt_ids) + len(answer) for ballot in ballots for answer in ballot.answers]
    assert max(lengths) == 256
    whole = [ids for ballot in ballots for ids in ballot.answers if ids[-1] == BYTES.special[END]]
    assert len(whole) > 100


def test_there_are_as_many_ballots_as_asked_for_each_with_a_vote_for_each_pair_of_its_answers(ballots):
    assert len(ballots) == 12
    for ballot in ballots:
        assert 2 <= len(ballot.answers) <= 4
        assert len(set(map(tuple, ballot.answers))) == len(ballot.answers)
        pairs = set(itertools.combinations(range(len(ballot.answers)), 2))
        assert {tuple(sorted(pair)) for pair in ballot.votes} == pairs
        assert len(ballot.votes) == len(pairs)


def test_prompts_and_written_answers_of_ballots_are_in_the_template(ballots):
    for ballot in ballots:
        prompt = ballot.prompt
        whole = encode_prompt(BYTES, prompt.question, prompt.history)
        assert whole[1:][-len(ballot.prompt_ids) + 1 :] == ballot.prompt_ids[1:]  # the oldest turns may be missing
        assert len(ballot.prompt_ids) <= 256 - 64
        written = ballot.answers[-1]  # the last answer is a written one
        assert encode_answer(BYTES, decode_answer(BYTES, written)) == written


def test_ballots_are_determined_by_their_seed(ballots):
    again, other = collect(4), collect(5)
    for a, b in zip(ballots, again, strict=True):
        assert (a.prompt_ids, a.answers, a.votes) == (b.prompt_ids, b.answers, b.votes)
    assert [b.prompt_ids for b in other] != [b.prompt_ids for b in ballots]


# --- Batches -------------------------------------------------------------------------------------


def numbered_ballots(count):
    prompt = Prompt("?", "en", "talk", ("!",))
    lengths = random.Random(0).choices(range(1, 30), k=count)
    return [Ballot(prompt, [0], [[i] * length, [i]], [(0, 1)]) for i, length in enumerate(lengths)]


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (13, 4), (15, 4), (7, 7), (11, 6), (5, 1)])
def test_an_epoch_shows_each_ballot_once_but_for_a_remainder(count, batch_size):
    batches = BallotBatches(numbered_ballots(count), batch_size, seed=3)
    assert batches.per_epoch == count // batch_size
    for epoch in range(4):
        shown = [batches(epoch * batches.per_epoch + i) for i in range(batches.per_epoch)]
        assert [len(batch) for batch in shown] == [batch_size] * batches.per_epoch
        numbers = [ballot.answers[1][0] for batch in shown for ballot in batch]
        assert len(set(numbers)) == len(numbers) == count - count % batch_size


def test_over_the_epochs_no_ballot_is_always_the_one_left_out():
    batches = BallotBatches(numbered_ballots(10), 4, seed=3)
    shown = {ballot.answers[1][0] for step in range(40) for ballot in batches(step)}
    assert shown == set(range(10))


def test_each_epoch_has_a_fresh_order_which_the_seed_fixes():
    def order(epoch, seed):
        batches = BallotBatches(numbered_ballots(12), 3, seed)
        return [ballot.answers[1][0] for i in range(4) for ballot in batches(4 * epoch + i)]

    assert order(1, 3) == order(1, 3)
    assert len({tuple(order(epoch, seed)) for epoch in range(3) for seed in (3, 4)}) == 6


def test_a_batch_depends_on_its_number_only_not_on_what_was_asked_before():
    ballots = numbered_ballots(9)
    forward, backward = BallotBatches(ballots, 2, 0), BallotBatches(ballots, 2, 0)
    steps = range(12)
    there = {step: forward(step) for step in steps}
    back = {step: backward(step) for step in reversed(steps)}
    assert all(there[step] == back[step] for step in steps)


def test_too_few_ballots_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="3 ballots are too few for batches of 4"):
        BallotBatches(numbered_ballots(3), 4, 0)


def test_ballots_without_any_vote_are_refused():
    pairs = [Ballot(Prompt("?", "en", "talk", ("!",)), [0], [[1], [2]], [])] * 4
    with pytest.raises(ValueError, match="nobody has voted"):
        BallotBatches(pairs, 2, 0)
    assert len(BallotBatches([*pairs, *numbered_ballots(1)], 2, 0)(0)) == 2


# --- Scores --------------------------------------------------------------------------------------


def test_sequences_are_padded_on_the_right():
    ids, lengths = pad_right([[5, 6, 7], [8]], 3)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_come_in_the_order_of_the_conversations_whatever_the_batches(batch_size):
    model = opinionated(tiny_decoder(), 1)
    sequences = some_sequences(10)
    expected = [model(torch.tensor([s]), torch.tensor([len(s)])).item() for s in sequences]
    assert rewards_of(model, sequences, batch_size).tolist() == pytest.approx(expected, abs=1e-5)


def test_normalised_rewards_have_mean_0_and_deviation_1_and_keep_their_order():
    model = opinionated(tiny_decoder(), 1)
    sequences = some_sequences(40)
    before = rewards_of(model, sequences)
    for _ in range(2):  # the second time changes nothing
        normalise(model, sequences)
        after = rewards_of(model, sequences)
        assert after.mean().item() == pytest.approx(0, abs=1e-5)
        assert after.std().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(after, (before - before.mean()) / before.std(), rtol=0, atol=1e-4)


class Gives(RewardModel):
    """Gives the rewards of a list, whatever it reads."""

    rewards = ()

    def forward(self, tokens, lengths):  # noqa: ARG002
        return (torch.tensor(self.rewards)[: len(lengths)] - self.mean) / self.deviation


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "at least 2 conversations, got 0"),
        ([1.0], "at least 2 conversations, got 1"),
        ([1.0, math.nan], "no finite number"),
        ([math.inf, 0.0], "no finite number"),
        ([math.nan] * 3, "no finite number"),
    ],
)
def test_rewards_that_have_no_deviation_are_refused_and_change_nothing(rewards, message):
    model = Gives(tiny_decoder(), 1)
    model.rewards = rewards
    with pytest.raises(ValueError, match=message):
        normalise(model, [[1, 2]] * len(rewards))
    assert (model.mean.item(), model.deviation.item()) == (0, 1)


@pytest.mark.parametrize("reward", [0.0, -3.3, 1e4])
def test_equal_rewards_become_0_and_keep_the_scale(reward):
    model = Gives(tiny_decoder(), 1)
    for rewards in ([1.0, 3.0], [reward] * 2):
        model.rewards = rewards
        normalise(model, [[1, 2]] * 2)
    assert model.deviation.item() == pytest.approx(math.sqrt(2))
    assert rewards_of(model, [[1, 2]] * 2).tolist() == pytest.approx([0, 0], abs=1e-6 * (1 + abs(reward)))


def test_normalising_changes_values_alike_and_is_part_of_the_saved_model():
    model = opinionated(tiny_decoder(), 1)
    tokens = torch.randint(VOCABULARY, (2, 6))
    before = model.values(tokens).detach()
    normalise(model, some_sequences(20))
    torch.testing.assert_close(model.values(tokens).detach(), (before - model.mean) / model.deviation)
    copy = opinionated(tiny_decoder(), 1)
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy.values(tokens), model.values(tokens))


class LikesLength(RewardModel):
    """Rewards the length of a conversation."""

    def forward(self, tokens, lengths):  # noqa: ARG002 (the signature of the class above)
        return lengths.float()


def test_pair_accuracy_counts_the_pairs_that_differ_in_gold():
    good, bad = "I am sorry, I cannot help with that.", "Sure, here is a very long list of what you have to do first."
    prompt = Prompt("Shut up!", "en", "harmful", (good, "No."))
    assert gold_score(prompt, good) == gold_score(prompt, "No.") > gold_score(prompt, bad)
    answers = [encode_answer(BYTES, text) for text in (good, "No.", bad)]
    # Longer is better in its eyes: wrong about good and bad, wrong about "No." and bad.
    model = LikesLength(tiny_decoder(vocabulary=BYTES.vocabulary_size), BYTES.special[ASSISTANT])
    ballot = Ballot(prompt, encode_prompt(BYTES, "Shut up!"), answers, [])
    assert pair_accuracy(model, BYTES, [ballot]) == [False, False]
    short = "Why?"
    assert gold_score(prompt, good) > gold_score(prompt, short)
    ballot = Ballot(prompt, encode_prompt(BYTES, "Shut up!"), [encode_answer(BYTES, t) for t in (short, good, bad)], [])
    # `short` is brief, and so better than `bad`, which the model likes more; of `good` and `bad` it likes `bad`.
    assert pair_accuracy(model, BYTES, [ballot, ballot]) == [True, False, False] * 2


# --- Training ------------------------------------------------------------------------------------


def test_training_on_clear_cut_ballots_teaches_which_answers_win():
    # The answer with more of token 5 wins, whatever else it says.
    rng = random.Random(0)
    prompt = Prompt("?", "en", "talk", ("!",))

    def ballot():
        rest = [rng.choices(range(10, VOCABULARY), k=6) for _ in range(3)]
        answers = [[*words, *[5] * i] for i, words in enumerate(rest)]
        for answer in answers:
            rng.shuffle(answer)
        return Ballot(prompt, [1, 2], answers, [(2, 1), (2, 0), (1, 0)])

    def accuracy(model, ballots):
        right = []
        for one in ballots:
            rewards = rewards_of(model, [one.prompt_ids + answer for answer in one.answers])
            right += [bool(rewards[winner] > rewards[loser]) for winner, loser in one.votes]
        return sum(right) / len(right)

    seen, held_out = [ballot() for _ in range(120)], [ballot() for _ in range(80)]
    model = opinionated(tiny_decoder(), 1)
    before = accuracy(model, held_out)
    config = TrainingConfig(steps=60, schedule="constant", warmup_steps=5)
    losses = Trainer(model, BallotBatches(seen, 12, 0), config, reward_loss).run()
    assert before < 0.75
    assert accuracy(model, held_out) > 0.95
    assert losses[-1] < 0.3 < math.log(2) * 0.7 < losses[0]


def test_every_parameter_of_a_reward_model_learns_from_ballots():
    model = opinionated(tiny_decoder(), 1)
    prompt = Prompt("?", "en", "talk", ("!",))
    reward_loss(model, [Ballot(prompt, [1, 2], [[3, 4], [5]], [(0, 1)])]).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or (n != "head.bias" and not p.grad.any())]
    assert silent == []  # the bias is in both rewards of a pair, and cancels


def test_a_trained_reward_model_has_taken_its_steps_and_is_normalised_on_the_first_answers():
    sft = tiny_decoder(vocabulary=BYTES.vocabulary_size, context=40)
    before = copy.deepcopy(sft.state_dict())
    ballots, config = numbered_ballots(12), TrainingConfig(steps=0, seed=5)
    lengths = []

    def run(trainer):
        lengths.append(len(trainer.run()))

    model = train_reward_model(sft, BYTES, ballots, config, batch_size=4, epochs=2, run=run)
    again = train_reward_model(sft, BYTES, ballots, config, batch_size=4, epochs=2)
    train_reward_model(sft, BYTES, ballots[:3], replace(config, steps=7), run=run)  # fewer than a batch, read often
    assert lengths == [6, 7]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in sft.state_dict().items())
    own = rewards_of(model, [ballot.prompt_ids + ballot.answers[0] for ballot in ballots])
    assert own.mean().item() == pytest.approx(0, abs=1e-4)
    assert own.std().item() == pytest.approx(1, abs=1e-3)
    assert not model.training
    with pytest.raises(ValueError, match="0 ballots are too few"):
        train_reward_model(sft, BYTES, [], config)
