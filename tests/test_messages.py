"""What must hold of messages as people type them, and of the threads that they make."""

import itertools
import json
import random
import re
import string
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcore import prompts
from gptcore.as_typed import stands_in_training, typed_conversations
from gptcore.atlas import KNOWN, LANGUAGES, UNKNOWN, entities, mentions, relations_of, split_entities, wordings
from gptcore.chat_template import encode_prompt
from gptcore.messages import (
    NUMBERS,
    as_people_type,
    carelessly,
    fill_message,
    filled_in_all_ways,
    letters,
    messages,
    nameless_messages,
    spelled,
    with_slip,
    without_accents,
)
from gptcore.prompts import GRADED, TASKS, TURNS, PromptSource, draw_encoded, draw_in_thread, draw_thread
from gptcore.questions import decline
from gptcore.tokenizer import Tokenizer

KIND = {relation: kind for kind in ("country", "element", "planet", "animal") for relation in relations_of(kind)}
NAMED = {"country": {"name", "bare", "adjective"}, "animal": {"name", "names"}, "element": {"name"}, "planet": {"name"}}


def entity(kind, name):
    return next(e for e in entities() if (e.kind, e.names["en"]) == (kind, name))


def every_message():
    """Group, key, language and template of all."""
    for group, keys in messages().items():
        for key, lists in keys.items():
            for language in LANGUAGES:
                for template in lists[language]:
                    yield group, key, language, template


def test_every_message_has_the_fields_of_its_kind_and_no_other():
    for group, key, language, template in every_message():
        found = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        names = NAMED.get(KIND.get(key, key), set()) if language == "en" else {"name"}
        where = (group, key, language, template)
        if group in ("talk", "around", "followups") or key == "anything":
            assert not found, where
        elif (group, key) == ("outside", "sums"):
            assert found, where
            assert found <= {"m", "n", "k"}, where
        elif group == "reverse":
            assert found == {"value"}, where
        elif key in ("sum", "difference"):
            assert found == {"a", "b"}, where
        else:
            guesses = {"yesno": {"guess"}, "either": {"guess", "guess2"}}.get(group, set())
            assert guesses <= found, where
            named = found - guesses - {"other"}
            assert named, where
            assert named <= names, where


def test_there_are_many_messages_of_each_kind_in_both_languages_and_none_twice():
    least = {
        "facts": 150,
        "yesno": 10,
        "either": 10,
        "reverse": 10,
        "followups": 35,
        "same": 10,
        "back": 10,
        "talk": 25,
    }
    least |= {"outside": 15, "around": 70, "mentions": 100, "topics": 30}
    for group, keys in messages().items():
        for key, lists in keys.items():
            for language in LANGUAGES:
                assert len(lists[language]) >= least[group], (group, key, language)
                assert len(set(lists[language])) == len(lists[language]), (group, key, language)
    assert set(messages()["facts"]) == set(wordings()["relations"])


def test_a_sum_names_its_numbers_in_the_order_of_the_answer():
    """The answer repeats them: a model that is to turn them round learns neither way."""
    for group in ("facts", "topics", "same"):
        for language in LANGUAGES:
            for template in messages()[group]["sum"][language]:
                assert template.find("{a}") < template.find("{b}") or "{b}" not in template, template


def test_sums_outside_of_the_tables_are_declined():
    rng, source = random.Random(0), PromptSource()
    drawn = [source.draw_talk(rng, "en") for _ in range(1500)]
    asked = [prompt for prompt in drawn if re.search(r"\d{2,} (times|plus|minus) \d", prompt.question)]
    assert len(asked) > 5
    assert all(prompt.references == decline("en") for prompt in asked)


def test_without_names_a_message_keeps_its_words():
    texts = list(nameless_messages())
    assert len(texts) == sum(1 for _ in every_message())
    assert "capital of  ??" in texts
    assert "which country has   as its capital" in texts
    assert not any("{" in text for text in texts)


def test_no_message_names_a_thing_that_must_not_be_named_there():
    parts = split_entities()
    in_texts = ("mentions", "around", "topics")  # pretraining texts hold these
    texts = "\n".join(template for group, *_, template in every_message() if group in in_texts)
    others = "\n".join(template for group, *_, template in every_message() if group not in in_texts)
    for text, names in ((texts, (*KNOWN[1:], *UNKNOWN)), (others, (*KNOWN[1:], *UNKNOWN[1:]))):
        hidden = [e for part in names for e in parts[part] if e.kind != "arithmetic"]
        assert [e.names for e in hidden if mentions(text, e)] == []


def test_other_names_are_no_names_of_anything_else():
    for kind in ("country", "element", "animal", "planet"):
        for language in LANGUAGES:
            found = Counter()
            for one in entities():
                if one.kind == kind:
                    spellings = [one.names[language], *(alias.split("/")[0] for alias in one.aliases[language])]
                    found.update({letters(name.removeprefix("the ")) for name in spellings})
            assert [name for name, count in found.items() if count > 1] == [], (kind, language)


def test_other_names_as_everybody_knows_them():
    assert "the USA" in entity("country", "the United States").aliases["en"]
    assert "Holland" in entity("country", "the Netherlands").aliases["en"]
    assert "Burma" in entity("country", "Myanmar").aliases["en"]
    assert "老美" in entity("country", "the United States").aliases["zh"]
    assert entity("country", "the Netherlands").inflected == "Dutch"
    assert entity("animal", "goose").inflected == "geese"
    assert entity("element", "aluminium").aliases["en"] == ("aluminum",)


def test_a_message_filled_by_hand():
    rng = random.Random(0)
    peru = entity("country", "Peru")
    assert fill_message(peru, "Capital {bare}, the {adjective} one", "en", rng) == "Capital Peru, the Peruvian one"
    assert {fill_message(peru, "{name}, capital", "en", rng) for _ in range(60)} == {"peru, capital", "Peru, capital"}
    netherlands = entity("country", "the Netherlands")
    found = {fill_message(netherlands, "Is it {name}, {bare}", "en", rng) for _ in range(100)}
    assert {"Is it the Netherlands, Netherlands", "Is it Holland, Holland"} <= found
    ten = next(e for e in entities() if e.operands == (10, 3) and "difference" in e.facts)
    assert {fill_message(ten, "{a}减{b}", "zh", rng) for _ in range(50)} == {"10减3", "十减三"}
    filled = fill_message(peru, "Is {guess} or {guess2} in {name}? {value}{other}", "en", rng, "v", ("x", "y"), "o")
    assert filled == "Is x or y in Peru? vo"


def test_numbers_in_words_count_up():
    for language in LANGUAGES:
        assert len(set(NUMBERS[language])) == 21
    assert [NUMBERS["en"][n] for n in (0, 12, 20)] == ["zero", "twelve", "twenty"]
    assert [NUMBERS["zh"][n] for n in (0, 12, 20)] == ["零", "十二", "二十"]


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(0, 1000))
def test_a_slip_changes_one_word_by_at_most_one_letter_more_or_less(text, seed):
    slipped = with_slip(text, random.Random(seed))
    assert abs(len(slipped) - len(text)) <= 1
    before = 0
    while before < min(len(text), len(slipped)) and text[before] == slipped[before]:
        before += 1
    after = 0
    while after < min(len(text), len(slipped)) - before and text[-1 - after] == slipped[-1 - after]:
        after += 1
    assert len(text) - before - after <= 2


def test_slips_of_one_word_are_the_four_kinds():
    found = {with_slip("Peru", random.Random(seed)) for seed in range(300)}
    assert {"Pru", "Peu", "Preu", "Peur", "Peeru", "Perru", "Pwru", "Petu"} <= found
    assert all(word[0] == "P" for word in found)
    assert with_slip("the 老虎 of it", random.Random(0)) == "the 老虎 of it"  # no word of four letters


def test_accents_go_and_letters_stay():
    assert without_accents("São Tomé, Côte d'Ivoire, 秘鲁") == "Sao Tome, Cote d'Ivoire, 秘鲁"


def test_carelessness_in_both_languages():
    rng = random.Random(0)
    english = {carelessly("Is Peru big?", "en", rng) for _ in range(300)}
    assert {"Is Peru big?", "is peru big?", "IS PERU BIG?"} <= english
    assert {carelessly("秘鲁的首都", "zh", rng) for _ in range(200)} == {"秘鲁的首都"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_around_a_message_people_put_much_but_its_words_stay_in_it(language):
    text = {"en": "Which sea is that?", "zh": "那是哪片海？"}[language]
    rng = random.Random(1)
    found = [as_people_type(text, language, rng) for _ in range(400)]
    core = letters(text)
    kept = [core in letters(message) for message in found]
    assert sum(kept) > 0.75 * len(found)  # the others have a slip
    assert 0.15 < sum(len(message) > len(text) + 3 for message in found) / len(found) < 0.4
    assert sum(message[-1] not in "?？.!！。" for message in found) > 0.15 * len(found)


def test_how_often_people_put_something_around_a_message_and_leave_something_out():
    rng, around = random.Random(2), messages()["around"]
    found = [as_people_type("那是哪片海，您知道吗？", "zh", rng) for _ in range(4000)]
    share = lambda kept: sum(map(kept, found)) / len(found)  # noqa: E731
    began, ended = tuple(around["opener"]["zh"]) + tuple(around["story"]["zh"]), tuple(around["closer"]["zh"])
    without = [text.rstrip(".?!。？！ ") for text in ended]
    assert abs(share(lambda text: not text.startswith("那是")) - 0.2) < 0.03
    assert abs(share(lambda text: any(end and end in text[8:] for end in without)) - 0.08) < 0.03
    assert began
    assert abs(share(lambda text: text[-1] not in ".?!。？！") - 0.3) < 0.06  # closers have marks of their own, or none
    found = [as_people_type("What's that?", "en", rng).lower() for _ in range(4000)]
    assert abs(share(lambda text: "what's" not in text) - (0.4 + 0.6 * 0.11 * 0.5)) < 0.05  # or a slip went there


@cache
def threads():
    rng, source = random.Random(3), PromptSource()
    return tuple(tuple(draw_thread(source, rng)) for _ in range(1500))


def test_threads_have_one_to_six_messages_and_stay_within_what_training_may_know():
    assert {len(thread) for thread in threads()} == set(TURNS)
    allowed = {*split_entities()["train"], *split_entities()["unknown_train"], None}
    assert {prompt.entity for thread in threads() for prompt in thread} <= allowed


def test_threads_are_as_long_as_conversations_are():
    lengths = Counter(map(len, threads()))
    for length, expected in TURNS.items():
        assert abs(lengths[length] / len(threads()) - expected) < 0.03


def test_a_thread_changes_its_language_with_a_translation_alone():
    changes = [
        prompt.task
        for thread in threads()
        for before, prompt in itertools.pairwise(thread)
        if prompt.language != before.language
    ]
    assert len(changes) > 30
    assert set(changes) == {"translate"}


def ways(prompt, group):
    """The letters of all messages of a group that may have become this one."""
    kind = prompt.entity.kind if prompt.entity.operands is None else prompt.relation
    texts = messages()[group].get(kind if group == "same" else prompt.relation, {}).get(prompt.language, ())
    return {filled for text in texts for filled in filled_in_all_ways(prompt.entity, text, prompt.language)}


def test_some_later_messages_name_a_thing_alone_and_ask_the_same_of_it_and_some_go_back_to_an_earlier_one():
    same = back = later = 0
    for thread in threads():
        for number, prompt in enumerate(thread[1:], 1):
            later += 1
            told = [earlier for earlier in thread[:number] if earlier.entity and earlier.task in ("fact", "about")]
            if not told or prompt.task != "fact" or not prompt.relation:
                continue
            asked, subject = letters(prompt.question), told[-1]
            if prompt.entity.kind == subject.entity.kind and asked in ways(prompt, "same") - ways(prompt, "facts"):
                same += 1
                assert prompt.relation == subject.relation
                assert prompt.entity is not subject.entity
            elif asked in ways(prompt, "back") - ways(prompt, "facts") and len(told) > 1:
                back += prompt.entity in [earlier.entity for earlier in told[:-1]]
    assert 0.03 < same / later < 0.10
    assert 0.005 < back / later < 0.04


def test_a_later_message_often_names_nothing_and_is_about_what_was_named_before():
    leaning = 0
    for thread in threads():
        for number, prompt in enumerate(thread[1:], 1):
            if prompt.entity and prompt.relation and prompt.task == "fact":
                asked = letters(prompt.question)
                followups = messages()["followups"].get(prompt.relation, {}).get(prompt.language, ())
                if asked in map(letters, followups):
                    leaning += 1
                    assert any(earlier.entity is prompt.entity for earlier in thread[:number])
    assert leaning > 200


def test_the_last_message_of_a_thread_has_the_others_as_its_history_with_good_answers():
    rng, source = random.Random(5), PromptSource()
    drawn = [draw_in_thread(source, rng) for _ in range(500)]
    assert {len(prompt.history) for prompt in drawn} == set(range(6))
    for prompt in drawn:
        for question, answer in prompt.history:
            assert question
            assert answer
    tables = PromptSource("train", "train", as_typed=False)
    assert all(draw_in_thread(tables, rng).history == () for _ in range(100))


def test_one_prompt_in_four_is_the_last_of_a_thread_and_has_all_that_came_before_it():
    source, followed = PromptSource(), 0
    for seed in range(1200):
        drawn, rng = draw_in_thread(source, random.Random(seed)), random.Random(seed)
        if rng.random() < 0.75:
            *earlier, last = [source.draw(rng, GRADED)]
        else:
            *earlier, last = draw_thread(source, rng)
        assert (drawn.question, drawn.references) == (last.question, last.references)
        assert drawn.history == tuple((prompt.question, prompt.references[0]) for prompt in earlier)
        followed += bool(earlier)
    assert abs(followed / 1200 - 0.25 * (1 - TURNS[1])) < 0.03


def test_reinforcement_learning_draws_what_is_no_small_talk():
    source, tokenizer = PromptSource(), Tokenizer([])
    for seed in range(60):
        prompt, ids = draw_encoded(source, random.Random(seed), tokenizer, 500, talk=False)
        assert prompt.task != "talk"
        assert source.draw_ids(random.Random(seed), tokenizer, 500) == ids


def test_the_oldest_messages_are_left_out_until_the_rest_fits():
    tokenizer = Tokenizer([])
    history = [("a", "bb"), ("c", "dd")]
    whole = encode_prompt(tokenizer, "e", history)
    assert encode_prompt(tokenizer, "e", history, len(whole)) == whole
    assert encode_prompt(tokenizer, "e", history, len(whole) - 1) == encode_prompt(tokenizer, "e", history[1:])
    alone = encode_prompt(tokenizer, "e")
    assert encode_prompt(tokenizer, "e", history, len(alone)) == alone
    with pytest.raises(ValueError, match="make it shorter"):
        encode_prompt(tokenizer, "e", history, len(alone) - 1)


def test_what_has_no_room_is_drawn_anew():
    rng, source, tokenizer = random.Random(5), PromptSource(), Tokenizer([])
    drawn = [draw_encoded(source, rng, tokenizer, 100) for _ in range(100)]
    for prompt, ids in drawn:
        assert len(ids) <= 100
        assert ids == encode_prompt(tokenizer, prompt.question, prompt.history, 100)
    with pytest.raises(ValueError, match="give the model a longer context"):
        draw_encoded(source, rng, tokenizer, 4)


def test_small_talk_is_drawn_unless_it_is_not_wanted():
    tokenizer, source = Tokenizer([]), PromptSource()
    for talk in (True, False):
        rng = random.Random(0)
        drawn = [draw_encoded(source, rng, tokenizer, 500, talk)[0].task for _ in range(300)]
        assert ("talk" in drawn) == talk
        assert {"fact", "about", "translate"} <= set(drawn)


def test_reversed_questions_are_answered_with_the_name():
    rng, source = random.Random(7), PromptSource()
    drawn = [source.draw(rng) for _ in range(4000)]
    reversed_ = [prompt for prompt in drawn if prompt.names_value]
    assert len(reversed_) > 20
    for prompt in reversed_:
        assert prompt.relation in messages()["reverse"]
        assert prompt.known
        assert letters(prompt.entity.names[prompt.language].removeprefix("the ")) in letters(prompt.references[0])


def test_of_what_is_asked_about_a_fact_most_is_typed_and_some_is_yes_or_no_either_or_and_reversed(monkeypatch):
    """Seen on the Chinese, who make no slips: a question for a capital that names one offers it, or asks whose it is."""
    monkeypatch.setattr(prompts, "question_wordings", lambda *_: ["{name}: in the tables' words"])
    rng, source, peru = random.Random(7), PromptSource(), entity("country", "Peru")
    capitals = {e.facts["capital"]["zh"] for e in source.known if e.kind == "country"}
    asked = [source.ask_fact(peru, "capital", "zh", rng) for _ in range(3000)]
    whose = [prompt for prompt in asked if prompt.names_value]
    assert all("利马" in prompt.question for prompt in whose)
    offered = [p for p in asked if not p.names_value and any(capital in p.question for capital in capitals)]
    true = sum("利马" in prompt.question for prompt in offered) / len(offered)
    clean = sum("tables' words" in prompt.question for prompt in asked) / 3000
    assert abs(clean - 0.3) < 0.03
    assert abs(len(whose) / 3000 - 0.7 * 0.10) < 0.015
    assert abs(len(offered) / 3000 - 0.7 * (0.08 + 0.06)) < 0.02
    assert abs(true - (0.08 / 2 + 0.06) / 0.14) < 0.1  # half of what is to be said yes or no to is true


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_spelling_may_be_drawn_and_is_counted_as_seen(language):
    rng = random.Random(0)
    states = entity("country", "the United States")
    drawn = {spelled(states, language, rng) for _ in range(500)}
    assert drawn == {states.names[language], *states.aliases[language]}
    assert len(filled_in_all_ways(states, "{name}", language)) >= len({letters(name) for name in drawn}) - 1


def test_what_the_exam_counts_stands_nowhere_in_training_letter_by_letter():
    rng, source = random.Random(11), PromptSource()
    seen = {letters(prompt.question) for thread in threads() for prompt in thread}
    seen |= {letters(source.draw_talk(rng, language).question) for language in LANGUAGES for _ in range(4000)}
    found = 0
    for part in ("validation", "test"):
        for language in LANGUAGES:
            for about in ("greeting", "thanks", "outside", "threads"):  # training asks no fact of the exam
                for prompt in itertools.chain(*typed_conversations(part, language, about)):
                    met = letters(prompt.question) in seen
                    found += met
                    assert stands_in_training(prompt) or not met, prompt.question
    assert found > 10


def test_threads_are_the_same_in_every_process():
    code = (
        "import json, random; from gptcore.prompts import PromptSource, draw_thread;"
        "rng, source = random.Random(3), PromptSource();"
        "print(json.dumps([[p.question for p in draw_thread(source, rng)] for _ in range(50)]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert json.loads(output.stdout) == [[prompt.question for prompt in thread] for thread in threads()[:50]]


def test_demonstrations_hold_much_small_talk_and_what_is_graded_little():
    source, rng = PromptSource("train"), random.Random(0)
    asked = [source.draw(rng).task in ("talk", "harmful") for _ in range(2000)]
    graded = [source.draw(rng, GRADED).task in ("talk", "harmful") for _ in range(2000)]
    assert abs(sum(asked) / 2000 - TASKS["talk"]) < 0.04
    assert abs(sum(graded) / 2000 - GRADED["talk"]) < 0.02
    alone = [prompt for prompt in (draw_in_thread(source, rng) for _ in range(2000)) if not prompt.history]
    assert sum(prompt.task in ("talk", "harmful") for prompt in alone) / len(alone) < 0.12


def test_many_later_messages_of_a_thread_name_what_they_ask_about():
    source, rng = PromptSource("train"), random.Random(0)
    later = [prompt for _ in range(1500) for prompt in draw_thread(source, rng)[1:]]
    kinds = [prompt.task for prompt in later]
    assert kinds.count("translate") > 0.03 * len(kinds)  # only a message that is whole in itself asks for one


def test_a_fifth_of_what_follows_on_a_fact_asks_in_full_for_another_thing_of_its_kind():
    after_facts = whole = 0
    for thread in threads():
        for before, prompt in itertools.pairwise(thread):
            if before.task != "fact" or not before.relation:
                continue
            after_facts += 1
            if prompt.task != "fact" or prompt.entity is before.entity or prompt.entity.kind != before.entity.kind:
                continue
            same = messages()["same"].get(prompt.entity.kind, {}).get(prompt.language, ())
            leans = any(
                letters(prompt.question) in filled_in_all_ways(prompt.entity, text, prompt.language) for text in same
            )
            whole += prompt.relation != before.relation or not leans
    assert after_facts > 500
    assert 0.15 < whole / after_facts < 0.35


def test_after_a_known_thing_an_unknown_one_of_its_kind_is_often_asked_about():
    others = [
        prompt
        for thread in threads()
        for before, prompt in itertools.pairwise(thread)
        if before.known and before.entity and prompt.task == "fact" and prompt.entity is not before.entity
        if before.task == "fact" and prompt.entity.kind == before.entity.kind and before.entity.kind != "arithmetic"
    ]
    assert len(others) > 200
    assert 0.2 < sum(not prompt.known for prompt in others) / len(others) < 0.45


def test_later_messages_of_a_thread_have_every_kind_of_small_talk():
    answered = {
        tuple((wordings()["small_talk"].get(topic) or wordings()[topic])[language]["answers"]): topic
        for topic in messages()["talk"]
        for language in LANGUAGES
    }
    later = [prompt for thread in threads() for prompt in thread[1:]]
    topics = Counter(answered.get(prompt.references) for prompt in later)
    assert all(topics[topic] > 0.008 * len(later) for topic in messages()["talk"])
    assert topics["reaction"] > 1.5 * topics["rude"]
