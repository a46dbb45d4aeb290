"""What must hold of the exam that fresh writers typed."""

import random
import re
from dataclasses import replace

import pytest
import torch

from gptcore import as_typed
from gptcore.as_typed import TALK, converse, stands_in_training, talk_is_right, typed_conversations, typed_scores
from gptcore.atlas import LANGUAGES, split_entities
from gptcore.chat_template import encode_answer, encode_prompt
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.gold import exact
from gptcore.messages import fill_message, messages
from gptcore.questions import Prompt, fact_prompt, nearly_equal, question_wordings
from gptcore.tokenizer import Tokenizer

PARTS = ("validation", "test")
BYTES = Tokenizer([])


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_enough_questions_all_different_and_about_entities_that_are_held_out(language):
    everything = []
    for part in PARTS:
        facts = [prompt for (prompt,) in typed_conversations(part, language, "facts")]
        assert {prompt.entity for prompt in facts} <= set(split_entities()[part])
        later = [prompt for thread in typed_conversations(part, language, "threads") for prompt in thread]
        assert {prompt.entity for prompt in later} <= {*split_entities()[part], None}
        everything += [prompt.question for prompt in facts]
    assert len(everything) >= 300
    assert len(set(everything)) == len(everything)
    for about in (*TALK, "outside"):
        assert all(typed_conversations(part, language, about) for part in PARTS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_hardly_any_question_is_worded_as_in_training(language):
    facts = [prompt for part in PARTS for (prompt,) in typed_conversations(part, language, "facts")]
    alike = 0
    for prompt in facts:
        templates = question_wordings(prompt.relation, language, "train")
        alike += any(nearly_equal(prompt.question, prompt.entity.fill(template, language)) for template in templates)
    assert alike / len(facts) < 0.1


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_canonical_answer_to_every_question_is_right_and_that_to_another_is_not(language):
    facts = [prompt for part in PARTS for (prompt,) in typed_conversations(part, language, "facts")]
    facts += [p for part in PARTS for thread in typed_conversations(part, language, "threads") for p in thread]
    facts = [prompt for prompt in facts if prompt.task == "fact"]
    for prompt, other in zip(facts, facts[1:] + facts[:1], strict=True):
        assert exact(prompt, prompt.references[0])
        same = prompt.entity is other.entity and prompt.relation == other.relation
        assert exact(prompt, other.references[0]) == same


def test_the_answers_before_are_read_and_a_message_that_is_too_long_is_answered_by_nothing(monkeypatch):
    model = Decoder(DecoderConfig(BYTES.vocabulary_size, context_length=96, layers=1, width=16, heads=2))
    read = []

    def answers(_, prompts, *rest):
        read.append(prompts)
        return [encode_answer(BYTES, f"{len(read)}") for _ in prompts]

    monkeypatch.setattr(as_typed, "generate", answers)
    ask = [Prompt(text, "en", "talk", ()) for text in ("a", "b", "x" * 400, "c")]
    assert converse(model, BYTES, [ask[:2], ask[2:], ask[:1]]) == [["1", "2"], ["", "2"], ["1"]]
    assert read[0] == [encode_prompt(BYTES, "a")] * 2
    assert read[1][0] == encode_prompt(BYTES, "b", [("a", "1")])


@pytest.mark.parametrize(
    ("language", "asked", "stands"),
    [
        ("en", "Hi!!", True),
        ("en", "hi, and thanks for having me in this odd place", False),
        ("zh", "谢谢", True),
    ],
)
def test_small_talk_that_anybody_types_does_not_count(language, asked, stands):
    assert stands_in_training(Prompt(asked, language, "talk", ())) == stands


def test_a_question_that_training_asks_letter_by_letter_does_not_count():
    (peru,) = (e for e in split_entities()["train"] if e.names["en"] == "Peru")
    asked = fact_prompt(peru, "capital", "en", "What is the capital of {name}?")
    assert stands_in_training(replace(asked, question="what is the capital of peru"))
    assert not stands_in_training(replace(asked, question="what might the capital of my dear peru be"))
    (states,) = (e for e in split_entities()["train"] if e.names["en"] == "the United States")
    asked = fact_prompt(states, "capital", "en", "?")
    template = messages()["facts"]["capital"]["en"][0]
    for name in ("USA", "the USA"):
        text = template.replace("{name}", name).replace("{bare}", "USA")
        assert stands_in_training(replace(asked, question=text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_whatever_training_may_ask_about_a_fact_is_known_to_stand_there(language):
    """From the atlas' own wordings and from all that writers typed, but where a value or another name is told, too."""
    rng = random.Random(0)
    for entity in rng.sample(split_entities()["train"], 40):
        relation = rng.choice(list(entity.facts))
        asked = fact_prompt(entity, relation, language, "?")
        typed, kind = messages(), relation if entity.operands else entity.kind
        lists = [typed["facts"][relation], typed["same"][kind], typed["back"].get(relation, {language: ()})]
        templates = [template for texts in lists for template in texts[language]]
        for template in [*templates, *question_wordings(relation, language, "train")]:
            if entity.inflected or not {"{names}", "{adjective}"} & set(re.findall(r"{\w+}", template)):
                text = fill_message(entity, template, language, rng, in_words=0.5)
                assert stands_in_training(replace(asked, question=text)), text
        for text in typed["followups"].get(relation, {language: ()})[language]:
            assert stands_in_training(replace(asked, question=text.upper())), text


@pytest.mark.parametrize(
    ("about", "answer", "language", "right"),
    [
        ("thanks", "You are welcome!", "en", True),
        ("thanks", "不客气！", "en", False),
        ("greeting", "Goodbye! Please come again.", "en", False),
        ("how", "I am well, thank you! What do you want to know?", "en", True),
        ("how", "You are welcome!", "en", False),
        ("outside", "I am sorry, I cannot help with that.", "en", True),
        ("outside", "I am sorry, I do not know Peru.", "en", False),  # nobody spoke of it
        ("outside", "I am sorry, I do not know that animal.", "en", True),
        ("outside", "抱歉，这个我没有学过。", "zh", True),
        ("outside", "The capital of Peru is Lima.", "en", False),
    ],
)
def test_small_talk_is_judged_by_its_kind(about, answer, language, right):
    assert talk_is_right(about, answer, language) == right


def test_every_message_that_training_does_not_hold_is_scored_once(monkeypatch):
    model = Decoder(DecoderConfig(BYTES.vocabulary_size, context_length=96, layers=1, width=16, heads=2))
    monkeypatch.setattr(as_typed, "generate", lambda _, prompts, *rest: [encode_answer(BYTES, "?") for _ in prompts])
    torch.manual_seed(0)
    scores = typed_scores(model, BYTES, "validation")
    for language in LANGUAGES:
        asked = [prompt for (prompt,) in typed_conversations("validation", language, "facts")]
        assert len(asked) == 135
        counted = [prompt for prompt in asked if not stands_in_training(prompt)]
        assert len(scores[f"facts_{language}"]) == len(counted) > 125
    assert set(scores) == {f"{name}_{language}" for name in ("facts", "talk", "followups") for language in LANGUAGES}
    assert not any(any(values) for values in scores.values())
