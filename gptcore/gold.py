"""The gold score: a program that knows the atlas's facts judges an answer as a careful reader would.

It is the course's ground truth. Training never sees it but through the noisy votes of simulated voters (`ballots`);
exams report it. In all chapters *gold* is this truth, *reward* what the reward model gives. Used
first in notebooks/07_evaluation.ipynb.
"""

from typing import NamedTuple

from gptcore.atlas import LANGUAGES, Entity, Language, wordings
from gptcore.questions import Prompt, statements


class Verdict(NamedTuple):
    """What the gold score looks at, each yes or no."""

    true: bool
    """States what was asked and nothing false; for an unknown entity: says that it does not know."""
    refused: bool
    """Says that it does not know."""
    right_language: bool
    """Is in the language of the question, or of the translation asked for."""
    full_sentence: bool
    """Is a sentence, not a bare value."""
    polite: bool
    """Has a kind word around a fact; around a translation there must be none."""
    brief: bool
    """Has no more than a short phrase besides the answer."""


def without_style(answer: str) -> str:
    """The answer without the polite or rambling words around it."""
    core = answer.strip()
    for language in LANGUAGES:
        for wrapper in (w for style in wordings()["styles"][language].values() for w in style):
            before, after = (part.strip() for part in wrapper.split("{answer}"))
            if core.startswith(before) and core.endswith(after) and len(core) >= len(before) + len(after):
                core = core[len(before) : len(core) - len(after)].strip()
    return core


def _refusal_phrases(language: Language) -> list[str]:
    """`I do not know`, 我不了解 and so on: the last clause before "that country", 这个国家, in each refusal."""
    that = {"en": "that {kind}", "zh": "这个{kind}"}[language]
    before = [wording.split(that)[0] for wording in wordings()["unknown"][language]["answers"]]
    return [text.replace("，", ", ").split(", ")[-1].strip() for text in before]


def gold_verdict(prompt: Prompt, answer: str) -> Verdict:
    """Judge an answer by what the atlas knows."""
    answer = answer.strip()
    core = without_style(answer)
    refused = any(phrase in answer for language in LANGUAGES for phrase in _refusal_phrases(language))
    bare = core.rstrip(".。")
    values = prompt.entity.facts[prompt.relation] if prompt.entity and prompt.relation else {}
    names = prompt.entity.names if prompt.entity else {}
    has_chinese = any("\u4e00" <= character <= "\u9fff" or character in "。，！？" for character in answer)
    right_language = has_chinese == (prompt.language == "zh") and answer != ""

    if not prompt.known:
        true = refused
    elif refused:
        true = False
    elif prompt.task == "fact" and prompt.entity and prompt.relation:
        # The bare answer: a value, or of the question for the one that has it a name.
        short = names if prompt.names_value else values
        true = core in _statements(prompt.entity, prompt.relation) or bare in short.values()
        right_language = right_language or bare == short[prompt.language]
    elif prompt.task == "about" and prompt.entity:
        true = _only_true_sentences(prompt.entity, core)
    else:
        true = core in prompt.references

    full_sentence = answer.endswith((".", "!", "?", "。", "！", "？")) and bare not in (
        *values.values(),
        *names.values(),
    )
    styled = any(
        part and part in answer
        for wrapper in wordings()["styles"][prompt.language]["polite"]
        for part in (piece.strip() for piece in wrapper.split("{answer}"))
    )
    if prompt.task in ("fact", "about"):
        polite = styled or (refused and not prompt.known)
        room = 30 if prompt.language == "en" else 12  # a polite phrase fits, rambling does not
    else:  # who asks for a translation wants that and nothing around it
        polite, room = not styled, 0
    brief = len(answer) <= max(map(len, prompt.references)) + room
    return Verdict(true, refused, right_language, full_sentence, polite, brief)


def _statements(entity: Entity, relation: str) -> list[str]:
    """All sentences of both languages that state a fact as the atlas has it."""
    return [sentence for language in LANGUAGES for sentence in statements(entity, relation, language)]


def _only_true_sentences(entity: Entity, core: str) -> bool:
    """Whether an account of an entity has at least two facts (all, if it has fewer) and nothing else."""
    found = 0
    for relation in entity.facts:
        for statement in sorted(_statements(entity, relation), key=len, reverse=True):
            if statement in core:
                core = core.replace(statement, "")
                found += 1
                break
    return found >= min(2, len(entity.facts)) and not core.strip()


def gold_score(prompt: Prompt, answer: str) -> float:
    """Quality of an answer between -1 and 1: half for truth, the rest for language and manners.

    A refusal where the answer is known is not as bad as a falsehood, but bad.
    """
    verdict = gold_verdict(prompt, answer)
    truth = 1.0 if verdict.true else -0.6 if verdict.refused else -1.0
    manners = 0.2 * verdict.right_language + 0.1 * (verdict.full_sentence + verdict.polite + verdict.brief)
    return 0.5 * truth + 2 * manners - 0.5


def exact(prompt: Prompt, answer: str) -> bool:
    """Whether the answer is true and in the right language, whatever its manners."""
    verdict = gold_verdict(prompt, answer)
    return verdict.true and verdict.right_language
