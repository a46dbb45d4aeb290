"""What must hold of the exam: whom it asks about, in which words, and which model each score is of."""

import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from gptcore import exam as exam_module
from gptcore.atlas import LANGUAGES, split_entities
from gptcore.exam import exam, score_chain, wins
from gptcore.gold import gold_score
from gptcore.messages import letters
from gptcore.questions import decline, fact_prompts, question_wordings, talk_prompts, translate_prompts

PARTS = ("validation", "test")


def worded(prompt, part):
    """Whether the question about a fact stands in the wordings of a part."""
    templates = question_wordings(prompt.relation, prompt.language, part)
    return letters(prompt.question) in {letters(prompt.entity.fill(text, prompt.language)) for text in templates}


@pytest.mark.parametrize("part", PARTS)
def test_each_held_out_fact_is_asked_once_as_in_training_and_once_otherwise(part):
    for language in LANGUAGES:
        asked = exam(part)[f"known_{language}"]
        facts = {(prompt.entity, prompt.relation) for prompt in fact_prompts(part, language, part)}
        assert Counter((prompt.entity, prompt.relation) for prompt in asked) == dict.fromkeys(facts, 2)
        assert {entity for entity, _ in facts} <= set(split_entities()[part])
        for seen, unseen in zip(asked[: len(facts)], asked[len(facts) :], strict=True):
            assert worded(seen, "train")
            assert worded(unseen, part)
            assert not worded(unseen, "train")


@pytest.mark.parametrize("part", PARTS)
def test_half_of_what_must_be_unknown_is_real_and_half_is_invented(part):
    asked = exam(part)["unknown"]
    assert {prompt.entity for prompt in asked} <= set(split_entities()[f"unknown_{part}"])
    assert not any(prompt.known for prompt in asked)
    real = [bool(prompt.entity.facts[prompt.relation][prompt.language]) for prompt in asked]
    assert sum(real) * 2 == len(asked) > 300
    assert len({(prompt.entity, prompt.relation, prompt.question) for prompt in asked}) == len(asked)


@pytest.mark.parametrize("part", PARTS)
def test_held_out_sentences_are_translated_in_both_directions(part):
    asked = exam(part)["translation"]
    assert Counter(prompt.language for prompt in asked) == dict.fromkeys(LANGUAGES, len(asked) / 2)
    assert {prompt.entity for prompt in asked} <= set(split_entities()[part])
    facts = {(prompt.entity, prompt.relation) for prompt in translate_prompts(part, "en", part)}
    assert Counter((prompt.entity, prompt.relation) for prompt in asked) == dict.fromkeys(facts, 4)


@pytest.mark.parametrize("part", PARTS)
def test_answers_drawn_at_random_are_compared_on_all_tasks_and_on_unseen_small_talk_alone(part):
    asked = exam(part)["mixed"]
    held_out = {*split_entities()[part], *split_entities()[f"unknown_{part}"], None}
    assert {prompt.entity for prompt in asked} <= held_out
    assert {"fact", "about", "translate", "talk"} <= {prompt.task for prompt in asked}
    trained = {prompt.question for language in LANGUAGES for prompt in talk_prompts(language, "train")}
    talk = [prompt.question for prompt in asked if not prompt.entity]
    assert talk
    assert not trained & set(talk)


def test_no_question_is_in_both_exams():
    for name in ("known_en", "known_zh", "unknown", "translation"):
        assert not {p.question for p in exam("validation")[name]} & {p.question for p in exam("test")[name]}


def test_the_exam_is_the_same_in_every_process():
    code = (
        "import json; from gptcore.exam import exam;"
        "print(json.dumps({name: [p.question for p in asked] for name, asked in exam('test').items()}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert json.loads(output.stdout) == {name: [p.question for p in asked] for name, asked in exam("test").items()}


def test_who_has_the_higher_gold_score_wins_and_equal_ones_share(monkeypatch):
    prompts = [prompt for prompt in exam("validation")["known_en"] if prompt.known][:3]
    right, refused = [prompt.references[0] for prompt in prompts], [decline("en")[0]] * 3
    said = {"first": [right[0], right[1], refused[2]], "second": [refused[0], right[1], right[2]]}
    drawn = []

    def ask(player, _, asked, sampling, seed):
        assert asked == prompts
        assert sampling.temperature == 1
        drawn.append((player, seed))
        return said[player]

    monkeypatch.setattr(exam_module, "exam", lambda part: {"mixed": prompts} if part == "validation" else {})
    monkeypatch.setattr(exam_module, "ask", ask)
    results, first, second = wins("first", "second", "tokenizer", "validation", 5)
    assert results == [1, 0.5, 0]
    assert first == [gold_score(*pair) for pair in zip(prompts, said["first"], strict=True)]
    assert second == [gold_score(*pair) for pair in zip(prompts, said["second"], strict=True)]
    assert drawn == [("first", 10), ("second", 11)]  # with chance of their own, and that of no other run


def test_each_score_is_of_the_model_whose_name_it_bears(monkeypatch):
    """Every exam gives back what it was called with, by which it is told apart."""
    called = {}

    def note(name, result):
        def called_with(*arguments):
            called.setdefault(name, []).append(arguments)
            return result

        monkeypatch.setattr(exam_module, name, called_with)

    note("base_score", 2.5)
    note("answer_scores", {"heldout_exact_en": [True, False]})
    note("typed_scores", {"facts_zh": [True, True, False, True]})
    note("translation_scores", ([False, True, False, False], 61.234))
    note("collect_ballots", iter(["a ballot"]))
    note("pair_accuracy", [1, 0, 0, 0, 0])
    note("wins", ([1, 0.5], [0.5, 0.7], [0.1, 0.2]))
    note("heldout_kl", 1.23456)
    monkeypatch.setattr(exam_module, "PromptSource", lambda part: SimpleNamespace(part=part))
    ticks = []
    scores, intervals = score_chain("tok", "base", "sft", "judge", "ppo", 3, "validation", lambda: ticks.append(1))
    assert called == {
        "base_score": [("base", "tok", 3)],
        "answer_scores": [("sft", "tok", "validation"), ("ppo", "tok", "validation")],
        "typed_scores": [("ppo", "tok", "validation")],
        "translation_scores": [("ppo", "tok", "validation")],
        "collect_ballots": [("sft", "tok", SimpleNamespace(part="validation"), 300, 1_000_003)],
        "pair_accuracy": [("judge", "tok", ["a ballot"])],
        "wins": [("ppo", "sft", "tok", "validation", 3)],
        "heldout_kl": [("ppo", "sft", "tok", "validation", 3)],
    }
    assert scores == {
        "base_bits_per_byte": 2.5,
        "sft_heldout_exact_en": 0.5,
        "ppo_heldout_exact_en": 0.5,
        "typed_facts_zh": 0.75,
        "translation_exact": 0.25,
        "bleu_translation": 61.23,
        "reward_pair_accuracy": 0.2,
        "ppo_gold_win_rate": 0.75,
        "ppo_gold": 0.6,
        "sft_gold": 0.15,
        "ppo_kl": 1.235,
    }
    assert {name: count for name, (*_, count) in intervals.items()} == {
        "sft_heldout_exact_en": 2,
        "ppo_heldout_exact_en": 2,
        "typed_facts_zh": 4,
        "translation_exact": 4,
        "reward_pair_accuracy": 5,
        "ppo_gold_win_rate": 2,
    }
    assert len(ticks) == 7
