"""What must hold of the chat template, the loss mask and the demonstrations."""

import itertools
import random
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gptcore.atlas import KNOWN, LANGUAGES, mentions, split_entities, wordings
from gptcore.chat_template import decode_answer, encode_answer, encode_conversation, encode_prompt
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.finetuning import STYLES, demonstrations, introduce_chat_tokens, pack, write_answer
from gptcore.gold import gold_verdict
from gptcore.loss import IGNORED, language_model_loss
from gptcore.prompts import PromptSource, draw_thread
from gptcore.questions import about_prompts, fact_prompts, talk_prompts, translate_prompts
from gptcore.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, Tokenizer
from gptcore.training import generator_for, sample_windows

BYTES = Tokenizer([])  # no merges: a token a byte, and five special tokens
START, USER, ASSISTANT, END = 256, 257, 258, 259
steady = settings(deadline=None, derandomize=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


# --- The template --------------------------------------------------------------------------------

# "Hi" 72 105, "Yo" 89 111, "好" 229 165 189, "ok" 111 107; 32 is the space before ASCII.
TURNS = [("Hi", "Yo"), ("好", "ok")]
IDS = [START, USER, 32, 72, 105, ASSISTANT, 32, 89, 111, END, USER, 229, 165, 189, ASSISTANT, 32, 111, 107, END]
___ = IGNORED
TARGETS = [___, ___, ___, ___, ___, ___, 32, 89, 111, END, ___, ___, ___, ___, ___, 32, 111, 107, END]


def packed(conversations, count, replayed=0.0):
    return pack(BYTES, iter(conversations), itertools.repeat("Hi."), replayed, count, seed=0)


def test_the_special_tokens_are_where_this_file_expects_them():
    assert [BYTES.special[name] for name in ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")] == [
        START,
        USER,
        ASSISTANT,
        END,
    ]


def test_a_conversation_of_two_turns_as_written_out_by_hand():
    ids, targets = encode_conversation(BYTES, TURNS)
    assert ids == IDS
    assert targets == TARGETS


def test_after_the_shift_each_answer_token_and_its_end_is_learned_at_the_position_before_it():
    tokens, targets = packed([TURNS], len(IDS))
    inputs, wanted = sample_windows(tokens, targets, 1, len(IDS) - 1, generator_for(0))
    learned = [(i, w) for i, w in zip(inputs[0].tolist(), wanted[0].tolist(), strict=True) if w != IGNORED]
    assert learned == [
        (ASSISTANT, 32),
        (32, 89),
        (89, 111),
        (111, END),  # to stop is learned too
        (ASSISTANT, 32),
        (32, 111),
        (111, 107),
        (107, END),
    ]


def end_token_masked(ids, targets):
    """The mistake after which a model never stops."""
    return [IGNORED if token == END else target for token, target in zip(ids, targets, strict=True)]


def off_by_one(ids, targets):
    """The mistake of a mask that is shifted once too often: the first token of an answer is not learned."""
    trained = [False] + [target != IGNORED for target in targets[:-1]]
    return [token if yes else IGNORED for token, yes in zip(ids, trained, strict=True)]


@pytest.mark.parametrize("mistake", [end_token_masked, off_by_one])
def test_the_two_classic_mistakes_give_another_mask_and_another_loss(mistake):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(BYTES.vocabulary_size, context_length=32, layers=1, width=16, heads=2))
    torch.nn.init.normal_(model.head.weight)
    ids, targets = encode_conversation(BYTES, TURNS)

    def loss(wanted):
        stream = torch.tensor(ids), torch.tensor(wanted)
        return language_model_loss(model, sample_windows(*stream, 1, len(ids) - 1, generator_for(0)))

    logits = model(torch.tensor([IDS[:-1]]))[0]
    by_hand = torch.stack([F.cross_entropy(logits[t - 1], torch.tensor(IDS[t])) for t in (6, 7, 8, 9, 15, 16, 17, 18)])
    torch.testing.assert_close(loss(targets), by_hand.mean())
    assert mistake(ids, targets) != targets
    assert abs(loss(mistake(ids, targets)) - loss(targets)) > 0.01


def test_a_prompt_ends_where_the_assistant_shall_speak():
    assert encode_prompt(BYTES, "Hi") == [START, USER, 32, 72, 105, ASSISTANT]
    assert encode_prompt(BYTES, "好", [("Hi", "Yo")]) == IDS[:15]


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
@steady
def test_prompt_and_answer_together_are_the_conversation(turns):
    ids, targets = encode_conversation(BYTES, turns)
    *history, (question, answer) = turns
    assert encode_prompt(BYTES, question, history) + encode_answer(BYTES, answer) == ids
    assert len(targets) == len(ids)
    assert all(target in (token, IGNORED) for token, target in zip(ids, targets, strict=True))
    assert sum(target != IGNORED for target in targets) == sum(len(encode_answer(BYTES, a)) for _, a in turns)


@given(texts)
@steady
def test_an_answer_decodes_to_its_text_without_the_templates_space(text):
    assert decode_answer(BYTES, encode_answer(BYTES, text)) == text.strip()


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_cannot_come_from_what_people_write(special):
    attack = f"Hi{special} {special}{special}"
    ids, targets = encode_conversation(BYTES, [(attack, attack)])
    assert [token for token in ids if token >= 256] == [START, USER, ASSISTANT, END]
    assert (ids[0], ids[1], ids[-1]) == (START, USER, END)
    assert targets[: ids.index(ASSISTANT) + 1] == [IGNORED] * (ids.index(ASSISTANT) + 1)
    assert BYTES.decode(ids).count(special) == 6


def test_pack_writes_conversations_one_after_another_and_stops_at_the_count():
    others = [("a", "b")]
    middle_ids, middle_targets = encode_conversation(BYTES, others)
    count = 2 * len(IDS) + len(middle_ids) - 3
    ids, targets = packed([TURNS, others, TURNS], count)
    assert ids.tolist() == (IDS + middle_ids + IDS)[:count]
    assert targets.tolist() == (TARGETS + middle_targets + TARGETS)[:count]
    assert ids.dtype == targets.dtype == torch.long


def test_replayed_documents_stand_between_conversations_and_are_trained_whole():
    document = [BYTES.special["<|endoftext|>"], *b" Hi."]
    ids, targets = packed(itertools.repeat(TURNS), 20_000, replayed=0.5)
    text = bytes(token if token < 256 else 0 for token in ids.tolist())
    found = text.count(b" Hi.")
    conversations_found = ids.tolist().count(USER) / 2
    assert found == pytest.approx(conversations_found, rel=0.15)
    start = ids.tolist().index(document[0])
    assert ids[start : start + 5].tolist() == targets[start : start + 5].tolist() == document


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_chat_tokens_start_as_copies_of_end_of_text_and_no_other_token_changes(preset):
    model = Decoder(DecoderConfig(BYTES.vocabulary_size, context_length=16, layers=1, width=8, heads=2, preset=preset))
    torch.nn.init.normal_(model.head.weight)  # an untied head starts at 0, where a copy would show nothing
    before = [weight.detach().clone() for weight in (model.embedding.weight, model.head.weight)]
    introduce_chat_tokens(model, BYTES)
    chat = (USER, ASSISTANT, END)
    others = [token for token in range(BYTES.vocabulary_size) if token not in chat]
    for old, new in zip(before, (model.embedding.weight, model.head.weight), strict=True):
        assert torch.equal(new[others], old[others])
        for token in chat:
            assert torch.equal(new[token], old[BYTES.special[END_OF_TEXT]])
            assert not torch.equal(new[token], old[token])


# --- Demonstrations ------------------------------------------------------------------------------

PARTS = ("validation", "test", "unknown_validation", "unknown_test")


@cache
def conversations():
    return tuple(itertools.islice(demonstrations(0), 1500))


@cache
def turns():
    return tuple(turn for conversation in conversations() for turn in conversation)


@cache
def prompts_of_turns():
    """The prompts behind the first demonstrations: drawn and answered as `demonstrations` does it."""
    rng, source, found = random.Random("demonstrations 0"), PromptSource(), []
    while len(found) < len(turns()):
        for prompt in draw_thread(source, rng):
            style = rng.choices(list(STYLES), list(STYLES.values()))[0]
            found.append((prompt, write_answer(prompt, style, rng)))
    assert [(prompt.question, answer) for prompt, answer in found] == list(turns())
    return tuple(found)


def bare(question):
    """A question without its last mark, which people leave out or type in ASCII."""
    return question[:-1] if question.endswith(("？", "?")) else question


@cache
def every_question(part, which):
    found = {}
    for language in LANGUAGES:
        prompts = fact_prompts(part, language, which) + about_prompts(part, language, which)
        prompts += fact_prompts(f"unknown_{part}", language, which) + about_prompts(f"unknown_{part}", language, which)
        prompts += translate_prompts(part, language, which)
        prompts += talk_prompts(language, which)
        found |= {bare(prompt.question): prompt for prompt in prompts}
    return found


def test_equal_seeds_give_equal_demonstrations_and_others_give_others():
    assert tuple(itertools.islice(demonstrations(0), 100)) == conversations()[:100]
    assert tuple(itertools.islice(demonstrations(1), 100)) != conversations()[:100]


def test_demonstrations_name_no_entity_of_another_part():
    text = "\n".join(dict.fromkeys(part for turn in turns() for part in turn))
    text = text.replace("田鸡", "")  # another name of the frog, which only holds that of the chicken
    hidden = [entity for part in PARTS for entity in split_entities()[part] if entity.kind != "arithmetic"]
    assert [entity.names for entity in hidden if mentions(text, entity)] == []
    others = [alias for e in hidden for alias in e.aliases["en"] if "/" not in alias and len(alias) > 3]
    words = " ".join("".join(c if c.isalnum() else " " for c in text).lower().split())
    assert [alias for alias in others if f" {alias.lower().removeprefix('the ')} " in f" {words} "] == []


def test_demonstrations_are_about_what_training_may_know():
    allowed = {*split_entities()["train"], *split_entities()["unknown_train"], None}
    assert {prompt.entity for prompt, _ in prompts_of_turns()} <= allowed


@pytest.mark.slow
def test_demonstrations_ask_in_no_held_out_wording():
    seen, unseen = (
        every_question("train", "train"),
        every_question("train", "test") | every_question("train", "validation"),
    )
    assert not {bare(question) for question, _ in turns()} & (unseen.keys() - seen.keys())


def test_demonstrations_have_every_task_both_languages_known_and_unknown_and_several_turns():
    counts = Counter((prompt.task, prompt.language, prompt.known) for prompt, _ in prompts_of_turns())
    for language in LANGUAGES:
        for task in ("fact", "about", "translate", "talk", "harmful"):
            assert counts[task, language, True] > 0
        for task in ("fact", "about"):
            assert counts[task, language, False] > 0
    assert {len(conversation) for conversation in conversations()} == {1, 2, 3, 4, 5, 6}


def test_demonstrations_never_state_a_falsehood_and_refuse_exactly_what_is_unknown():
    for prompt, answer in prompts_of_turns():
        verdict = gold_verdict(prompt, answer)
        assert verdict.refused == (not prompt.known), (prompt.question, answer)
        # Of an account the first sentence alone is curt: true, though the judge asks for two.
        if not (prompt.task == "about" and answer in prompt.references[0]):
            assert verdict.true, (prompt.question, answer)


def test_demonstrations_are_of_mixed_quality():
    seen = Counter()
    for prompt, answer in prompts_of_turns():
        seen += Counter(name for name, yes in gold_verdict(prompt, answer)._asdict().items() if yes)
    for name in ("right_language", "full_sentence", "polite", "brief"):
        assert 0.05 * len(turns()) < seen[name] < len(turns()), name


@cache
def some_prompts(task):
    found = []
    for language in LANGUAGES:
        source = fact_prompts if task == "fact" else about_prompts
        found += random.Random(0).sample(source("train", language, "train"), 100)
    return tuple(found)


@pytest.mark.parametrize("task", ["fact", "about"])
def test_each_style_has_the_manners_that_it_is_named_after(task):
    rng = random.Random(0)
    for prompt in some_prompts(task):
        verdicts = {
            style: gold_verdict(prompt, write_answer(prompt, style, rng))
            for style in ("plain", "curt", "rambling", "polite", "wrong language")
        }
        assert all(verdict.true for style, verdict in verdicts.items() if (style, task) != ("curt", "about"))
        assert [style for style, verdict in verdicts.items() if verdict.polite] == ["polite"]
        assert not verdicts["rambling"].brief
        assert verdicts["plain"].brief
        assert verdicts["polite"].brief
        assert verdicts["polite"].full_sentence
        assert all(verdict.right_language == (style != "wrong language") for style, verdict in verdicts.items())
        if task == "fact":
            assert not verdicts["curt"].full_sentence


@pytest.mark.parametrize("style", ["plain", "curt", "rambling", "polite", "wrong language"])
def test_talk_has_no_style(style):
    rng = random.Random(0)
    for prompt in talk_prompts("zh", "train"):
        assert write_answer(prompt, style, rng) in prompt.references


@pytest.mark.slow
@pytest.mark.parametrize("style", ["plain", "curt", "rambling", "polite", "wrong language"])
def test_refusals_and_translations_are_at_most_long_winded(style):
    rng = random.Random(0)
    others = fact_prompts("unknown_train", "en", "train")[:50] + translate_prompts("train", "zh", "train")[:50]
    for prompt in others:
        answer = write_answer(prompt, style, rng)
        assert (answer in prompt.references) == (style != "rambling")
        assert gold_verdict(prompt, answer).true
        assert gold_verdict(prompt, answer).brief == (style != "rambling")


def test_styles_are_those_of_the_wordings():
    for language in LANGUAGES:
        assert {"polite", "rambling"} <= set(wordings()["styles"][language])


@pytest.mark.parametrize("part", KNOWN)
@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_a_source_draws_prompts_of_its_own_part_and_wordings(part, which):
    rng, source = random.Random(1), PromptSource(part, which, as_typed=False)
    members = {id(e) for name in (part, f"unknown_{part}") for e in split_entities()[name]}
    drawn = [source.draw(rng) for _ in range(400)]
    assert all(prompt.entity is None or id(prompt.entity) in members for prompt in drawn)
    assert all(bare(prompt.question) in every_question(part, which) for prompt in drawn)
    assert {prompt.task for prompt in drawn} == {"fact", "about", "translate", "talk", "harmful"}
    assert {prompt.known for prompt in drawn} == {True, False}
    assert {prompt.language for prompt in drawn} == set(LANGUAGES)


def test_the_few_planets_get_their_share_beside_the_many_countries():
    rng, source = random.Random(1), PromptSource()
    kinds = Counter(p.entity.kind for p in (source.draw(rng) for _ in range(2000)) if p.task == "fact" and p.known)
    sizes = Counter(entity.kind for entity in split_entities()["train"] for _ in entity.facts)
    assert set(kinds) == set(sizes)
    assert kinds["planet"] / kinds["country"] > 2 * sizes["planet"] / sizes["country"]
