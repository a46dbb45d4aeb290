"""The records that chapters 9 and 10 show are those of their scripts as they stand, with three seeds each."""

import json

import over_optimisation
import ppo_reuse
import pytest
import reward_comparisons
import votes_of_one

from gptcore.files import ASSETS

JUDGES = ["the course's judge", "blind to surprise", f"{over_optimisation.FEW} prompts"]


def record(script):
    """What the script has left in the assets."""
    path = ASSETS / "benchmarks" / f"{script.__name__}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("script", "sides", "curves"),
    [
        (ppo_reuse, [str(times) for times in ppo_reuse.USES], "rollouts"),
        (over_optimisation, [*JUDGES, *over_optimisation.leashed()], "curves"),
        (reward_comparisons, [str(size) for size in reward_comparisons.SIZES], "best"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_side_has_three_seeds_and_as_many_curves(script, sides, curves):
    found = record(script)
    assert list(found["runs"]) == list(found[curves]) == sides
    assert all(len(found["runs"][side]) == len(found[curves][side]) == 3 for side in sides)
    assert {"processor", "instructions", "precision"} <= set(found["machine"])


@pytest.mark.parametrize("script", [ppo_reuse, over_optimisation], ids=lambda script: script.__name__)
def test_the_settings_that_a_chapter_takes_from_a_record_are_those_of_its_script(script):
    found = record(script)
    assert found["settings"] == script.SETTINGS
    assert found["questions"] == script.QUESTIONS


def test_a_judge_that_is_over_optimised_is_right_in_most_pairs():
    found = record(over_optimisation)
    assert list(found["judges"]) == JUDGES
    for agreements in found["judges"].values():
        assert all(low > 0.5 for _, low, _ in agreements)
    for curves in found["curves"].values():
        assert all(tuple(curve["iterations"]) == over_optimisation.LOOKS for curve in curves)
    assert found["few"] == over_optimisation.FEW
    assert found["leashed"] == over_optimisation.leashed()


def test_the_best_of_one_is_the_mean_answer_whoever_picks_and_belief_never_falls_with_n():
    best = [one for found in record(reward_comparisons)["best"].values() for one in found]
    assert len({round(one["gold"][0], 6) for one in best}) == 1
    assert all(one["believed"] == sorted(one["believed"]) for one in best)


def test_one_persons_record_has_three_seeds_of_every_taste_and_size():
    found = record(votes_of_one)
    assert list(found["tastes"]) == list(votes_of_one.TASTES)
    assert tuple(found["sizes"]) == votes_of_one.SIZES
    assert list(found["runs"]) == [f"{taste}, {size}" for taste in votes_of_one.TASTES for size in votes_of_one.SIZES]
    for runs in found["runs"].values():
        assert len(runs) == 3
        assert len({one["liked, one answer"] for one in runs}) == 1, "chance is the same for all judges"
