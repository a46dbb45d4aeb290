"""Votes of several people: each voter's vote on a pair counts once, and what does not count is told."""

from itertools import permutations

import pytest

from gptcore.own_data import Comparison, Question
from gptcore.own_votes import prompt_of, tally

HIGH, OLD = Question("How high?"), Question("How old?")


def vote(voter: str, question: Question, chosen: str, rejected: str) -> Comparison:
    return Comparison(question, chosen, rejected, voter)


CLASS = [
    vote("anna", HIGH, "Ten.", "Tall."),
    vote("ben", HIGH, "Ten.", "Tall."),
    vote("chen", HIGH, "Tall.", "Ten."),
    vote("anna", OLD, "New.", "Old."),
    vote("ben", OLD, "New.", "Old."),
    vote("ben", OLD, "New.", "Old."),  # said before
    vote("chen", OLD, "New.", "Old."),
    vote("chen", OLD, "Old.", "New."),  # the contrary
]


def test_each_vote_counts_once_and_who_contradicts_oneself_has_none():
    found = tally(CLASS)
    assert found.votes == CLASS[:5]
    assert found.voters == {"anna": 2, "ben": 2, "chen": 1}
    assert found.doubles == {"ben": 1}
    assert found.contradictions == {"chen": 1}


def test_agreement_is_counted_over_pairs_of_voters_on_the_same_answers():
    found = tally(CLASS).agreement  # anna and ben twice; chen with neither on the height
    assert found is not None
    assert (found.value, found.count) == (pytest.approx(2 / 4), 4)
    alone = [CLASS[0], vote("ben", HIGH, "Ten.", "Low."), vote("ben", OLD, "Ten.", "Tall.")]
    assert tally(alone).agreement is None  # other answers, another question


def test_the_order_of_the_votes_does_not_matter():
    for order in permutations(CLASS[:4]):
        found = tally(order)
        assert found.agreement == tally(CLASS[:4]).agreement
        assert sorted(found.votes) == sorted(CLASS[:4])


def test_votes_without_a_name_may_be_anybodys():
    nameless = [vote("", HIGH, "Ten.", "Tall."), vote("", HIGH, "Ten.", "Tall."), vote("", HIGH, "Tall.", "Ten.")]
    found = tally(nameless)
    assert found.votes == nameless
    assert found.told() == []


def test_what_is_found_is_told():
    told = "\n".join(tally(CLASS).told())
    assert "anna 2, ben 2, chen 1" in told
    assert "50% of 4 cases" in told
    assert "given twice, which count once: ben 1" in told
    assert "either answer of a pair, which do not count: chen 1" in told
    assert tally(CLASS[:1]).told() == []


def test_an_own_question_is_in_the_language_of_its_letters():
    assert [prompt_of(Question(text)).language for text in ("How high?", "塔有多高？")] == ["en", "zh"]
