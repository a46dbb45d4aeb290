"""Exercises of chapter 8: supervised fine-tuning."""

import torch
from torch import Tensor

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh, Wrong, by_message

# --- 8.1 -----------------------------------------------------------------------------------------

START, USER, ASSISTANT, END, IGNORED = 0, 1, 2, 3, -100


def _conversation(fresh: Fresh, turns: int, longest: int) -> list[int]:
    ids = [START]
    for _ in range(turns):
        for mark in (USER, ASSISTANT):
            ids += [mark, *(fresh.integer(10, 99) for _ in range(fresh.integer(1, longest)))]
        ids.append(END)
    return ids


def _targets(ids: list[int], fault: str = "") -> list[int]:
    targets, answering, turn = [], False, 0
    for token in ids:
        wanted = answering
        if token == ASSISTANT:
            answering, turn = True, turn + 1
            wanted = fault == "mark"
        elif token == USER:
            answering = wanted = False
        elif token == END:
            wanted = answering and fault != "end"
            answering = False
        if fault == "first" and turn > 1:
            wanted = False
        if fault == "question":
            wanted = not wanted
        if (
            fault == "forever"
            and turn >= 1
            and token != ASSISTANT
            or fault == "never off"
            and turn > (token == ASSISTANT)
        ):
            wanted = True
        if fault in ("words", "words and end"):
            wanted = token > END or (fault == "words and end" and token == END)
        targets.append(token if wanted else IGNORED)
    if fault == "shifted":
        targets = targets[1:] + [IGNORED]
    if fault == "zeros":
        targets = [0 if target == IGNORED else target for target in targets]
    if fault == "everything":
        targets = list(ids)
    last = max(i for i, token in enumerate(ids) if token == ASSISTANT)
    if fault == "last":
        targets = [IGNORED] * last + targets[last:]
    if fault == "cut" and END not in ids[last:]:
        targets = targets[:last] + [IGNORED] * (len(ids) - last)
    return targets


def check_answer_targets(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "end": "the end token of the answer is not trained: the model would never learn to stop.",
        "mark": "the assistant's mark itself is not the model's to say: the program writes it before the model's turn.",
        "first": "only the first answer is trained; the later ones are the assistant's words, too.",
        "last": "only the last answer is trained; the earlier ones are the assistant's words, too.",
        "question": "it is the other way round: the question is trained, and the answer is not.",
        "forever": "after the first answer everything is trained, the user's next question included: the end token "
        "ends an answer.",
        "never off": "after the first answer everything is trained, the user's next question included: the end token "
        "ends an answer.",
        "words": "all words are trained, the user's, too; the loss should count only what the assistant says.",
        "words and end": "all words are trained, the user's, too; the loss should count only what the assistant says.",
        "cut": "the last answer is cut off, without an end token; what there is of it is trained all the same.",
        "shifted": "the targets are shifted by one. Here each position gets its own token; shifting is left to who cuts "
        "the batches, and twice would be wrong.",
        "zeros": "a position that is not trained gets the number `IGNORED`, -100, which the loss passes over; 0 is a "
        "token like any other.",
        "everything": "every token is trained; the loss should count only what the assistant says.",
    }
    cases = [
        [START, USER, 10, ASSISTANT, 20, END],
        [START, USER, 10, 11, ASSISTANT, 20, 21, END],
        [START, USER, 10, ASSISTANT, 20, END, USER, 11, ASSISTANT, 21, END],
        [START, USER, 10, ASSISTANT, END],
        [START, USER, 10, ASSISTANT, 20],
        [START, USER, 10, ASSISTANT, 20, END, USER, 11, ASSISTANT, 21],
        _conversation(fresh, 2, 5),
        _conversation(fresh, 4, 8),
    ]
    for ids in cases:
        found = answer(ids)
        if isinstance(found, (list, tuple)) and any(isinstance(target, bool) for target in found):
            details = answer.example((ids,), expected=_targets(ids), yours=found)
            raise Wrong(f"ids are wanted, or `IGNORED`, not True and False.\n{details}")
        answer.expect((ids,), _targets(ids), by_message(mistakes, lambda fault: _targets(ids, fault)))


# --- 8.2 -----------------------------------------------------------------------------------------


def _padded(rows: list[list[int]], targets: list[list[int]], end: int, fault: str = "") -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), {"padded with 0": 0, "padded with -100": IGNORED}.get(fault, end))
    wanted = torch.full((len(rows), width), end if fault == "trained" else IGNORED)
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        place = slice(width - len(row), None) if fault == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        wanted[i, place] = torch.tensor(target)
    if fault == "stub":
        wanted[ids == end] = IGNORED
    for i, row in enumerate(rows):
        ends = [t for t, token in enumerate(row) if token == end]
        if fault == "last":
            wanted[i, len(row) - 1 :] = IGNORED
        elif fault == "after the first":
            wanted[i, ends[0] + 1 :] = IGNORED
        elif fault == "first end":
            wanted[i, ends[1:]] = IGNORED
        elif fault == "last end":
            wanted[i, ends[:-1]] = IGNORED
    return ids, wanted


def check_pad_batch(answer: Answer, fresh: Fresh) -> None:
    mistakes = {
        "stub": "the real end tokens are masked together with the padding, since both have the same id. The model never "
        "learns to stop. What is padding follows from the lengths, not from the ids.",
        "trained": "the padding is trained: in short rows the model learns to say the end token again and again.",
        "left": "the padding stands on the left; here it belongs to the right.",
        "last": "the last real token of each row is masked; it is the end token that the model must learn.",
        "after the first": "a row may hold several answers: each of their end tokens is trained.",
        "first end": "a row may hold several answers: each of their end tokens is trained.",
        "last end": "a row may hold several answers: each of their end tokens is trained.",
        "padded with 0": "the padding of the ids is 0; pad them with `end`, as the docstring says.",
        "padded with -100": "the padding of the ids is -100; pad them with `end`, as the docstring says. -100 is for targets.",
    }
    cases = [
        ([[5, 3]], [[IGNORED, 3]]),
        ([[5, 6, 3], [7, 3]], [[IGNORED, 6, 3], [7, 3]]),
        ([[5, 3, 6, 3], [7, 3]], [[5, 3, 6, 3], [7, 3]]),
    ]
    for size in (3, 6):
        rows, targets = [], []
        for _ in range(size):
            ids = _conversation(fresh, fresh.integer(1, 2), 6)
            rows.append(ids)
            targets.append(_targets(ids))
        cases.append((rows, targets))
    for rows, targets in cases:
        answer.expect(
            (rows, targets, END),
            _padded(rows, targets, END),
            by_message(mistakes, lambda fault: _padded(rows, targets, END, fault)),
        )


# The solution; the stub has one line more, which is the bug.
_PAD_BATCH = '''\
import torch

IGNORED = -100


def pad_batch(rows, targets, end):
    """Lists of ids and of targets as two tensors (B, T), padded on the right with `end`; padding is not trained."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), end)
    wanted = torch.full((len(rows), width), IGNORED)
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, : len(row)] = torch.tensor(target)
    return ids, wanted'''


# --- 8.3 -----------------------------------------------------------------------------------------


def check_text_mask(answer: Answer, fresh: Fresh) -> None:
    cases = [
        ([0, 5], 0),
        ([0, 5, 0, 6], 0),
        ([9, 0, 9, 5], 9),
        ([0, 5, 6, 0, 7, 8], 0),
        ([5, 6, 0, 7], 0),
        ([0, 0, 5], 0),
    ]
    for length, separator in ((10, fresh.integer(1, 50)), (30, 0)):
        row = [separator if fresh.random.random() < 0.25 else fresh.integer(0, 50) for _ in range(length)]
        cases.append((row, separator))
    for ids, separator in cases:
        tokens, T = torch.tensor(ids), len(ids)
        begins = tokens == separator
        causal, diagonal = torch.ones(T, T, dtype=torch.bool).tril(), torch.eye(T, dtype=torch.bool)

        def of_one_text(begins: Tensor = begins, before: bool = False) -> Tensor:
            text = begins.cumsum(0) - begins.long() * before
            return text[:, None] == text

        same = of_one_text()
        right = same & causal
        answer.expect(
            (tokens, separator),
            right,
            {
                "that is the causal mask: a text still looks back into the texts before it.": causal,
                "the separator is the argument `separator`, not always 0.": of_one_text(tokens == 0) & causal,
                "within a text the future is visible: each token may look at itself and at what comes before.": same,
                "the separator begins a text; yours belongs to the one before it.": of_one_text(before=True) & causal,
                "True must stand where looking is allowed; yours is the opposite.": ~right,
                "the separators are cut off from the rest: the first token of a text is part of it.": Either(
                    right & (~begins | diagonal), right & ~begins, right & ~begins & ~begins[:, None]
                ),
                "each token may look at itself, too: the diagonal is True.": right & ~diagonal,
                "what stands before the first separator is a text, too.": right & (begins.cumsum(0) > 0)[:, None],
                "rows are queries: yours look ahead and not back.": right.T,
                "the pattern is right, but the mask must be of dtype bool, not numbers.": right.float(),
                "the pattern is right, but the mask must be of dtype bool, not whole numbers.": right.long(),
            },
        )


# --- 8.4 -----------------------------------------------------------------------------------------


def check_merge_lora(answer: Answer, fresh: Fresh) -> None:
    cases = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[3.0]]), 4.0)]
    sizes = ((2, 3, 1, 3), (3, 2, 2, 3), (4, 4, 2, 1), (fresh.integer(5, 12), fresh.integer(5, 12), 3, 16))
    for n, m, rank, alpha in sizes:
        cases.append((fresh.normal(n, m), fresh.normal(rank, m), fresh.normal(n, rank), float(alpha)))
    for weight, down, up, alpha in cases:
        (n, rank), m = up.shape, down.shape[1]
        change = up @ down
        answer.expect(
            (weight, down, up, alpha),
            weight + alpha / rank * change,
            {
                "the factor is missing: the change is multiplied by alpha / rank.": weight + change,
                "the factor is alpha / rank: with alpha alone a higher rank would take larger steps.": weight
                + alpha * change,
                "the factor is alpha / rank; yours multiplies by the rank.": weight + alpha * rank * change,
                "the rank is the number of rows of `down`, and of columns of `up`; you divide by another length.": Either(
                    weight + alpha / m * change, weight + alpha / n * change
                ),
                "the factor is alpha / rank; `//` drops what stands behind the point.": weight + alpha // rank * change,
                "that is the change; the weight that was there before is missing.": alpha / rank * change,
                "the change is divided by alpha instead of multiplied.": weight + rank / alpha * change,
                "the change was subtracted.": weight - alpha / rank * change,
                "the change is turned: (n, rank) @ (rank, m) gives (n, m), the shape of the weight.": lambda: (
                    weight + alpha / rank * change.T
                ),
            },
        )


EXERCISES = (
    Exercise(
        number="8.1",
        title="Which tokens are trained?",
        minutes=12,
        difficulty=2,
        task="""\
A conversation in ids: 0 begins the text, 1 is the user's mark, 2 the assistant's, 3 the end token after each
answer; larger numbers are words. Give the target of each position: the id itself where the assistant speaks, its end
token included, and `IGNORED` everywhere else. (No shift: that is left to who cuts the batches.) A conversation may
have several turns, and the last answer may be cut off. Mark by hand what is trained in
`0 1 10 11 2 20 21 3` before you begin.""",
        stub='''\
IGNORED = -100


def answer_targets(ids):
    """Targets of a conversation: a list of ids to a list of as many ids or IGNORED."""
    ...''',
        demo="print(answer_targets([0, 1, 10, 11, 2, 20, 21, 3]))",
        checker=check_answer_targets,
        hints=(
            "Go through the ids and remember whether the assistant is speaking. Which tokens change that?",
            "After 2 it begins; the 2 itself is not trained. The 3 is still trained, and after it the assistant is "
            "silent.",
        ),
        solution='''\
IGNORED = -100


def answer_targets(ids):
    """Targets of a conversation: a list of ids to a list of as many ids or IGNORED."""
    targets, speaking = [], False
    for token in ids:
        targets.append(token if speaking else IGNORED)
        if token == 2:
            speaking = True
        elif token == 3:
            speaking = False
    return targets''',
        praise="These few lines decide what the model learns to say. Nearly every framework has had a bug in them at some "
        "time: the end token, most often.",
    ),
    Exercise(
        number="8.2",
        title="Find the bug: a model that never stops",
        minutes=6,
        difficulty=2,
        task="""\
Conversations of different lengths are put into one batch. For padding, the end token 3 was used; that is common,
since one then needs no token of its own. A model trained with these batches answers well, and goes on, and on. The
cell prints how many end tokens are trained: each of the two rows should train its own. Repair it.""",
        stub=_PAD_BATCH.replace(
            "    return", "    wanted[ids == end] = IGNORED  # do not train the padding\n    return"
        ),
        demo="""\
padded, wanted = pad_batch(
    [[0, 1, 10, 2, 20, 21, 3], [0, 1, 11, 2, 3]],
    [[IGNORED] * 4 + [20, 21, 3], [IGNORED] * 4 + [3]],
    end=3,
)
print(padded, wanted, sep="\\n")
print("end tokens trained:", (wanted == 3).sum().item(), "(right: 2)")""",
        checker=check_pad_batch,
        hints=(
            "Which positions does `ids == end` find? Are all of them padding?",
            "What was never written over by the loop is padding, and it is IGNORED already.",
        ),
        solution=_PAD_BATCH,
        praise="The loss of such a model looks perfectly normal. Only somebody who counts what is trained, or who talks "
        "to it, notices.",
    ),
    Exercise(
        number="8.3",
        title="Many texts in one row",
        minutes=15,
        difficulty=3,
        task="""\
To waste no room on padding, texts are packed into one row, each begun by a separator. Without further care the second
text can look back into the first, which has nothing to do with it. Write the mask `(T, T)`, bool, True where the
query (row) may look at the key: at itself and before, within its own text. The separator is the first token of the
text that it begins; what stands before the first separator is a text, too. `ids` `(T,)` are integers, and `separator`
is the id that begins a text: any id, not always 0.""",
        stub='''\
import torch


def own_text_mask(ids, separator):
    """Who may look at whom in a row of packed texts: ids (T,) to (T, T) bool."""
    ...''',
        demo="""\
print(own_text_mask(torch.tensor([0, 5, 6, 0, 7]), 0))
print(own_text_mask(torch.tensor([9, 0, 9, 5]), 9))  # here 9 begins a text, and 0 is a token like any other""",
        checker=check_text_mask,
        hints=(
            "Give each position the number of its text. How can a running sum make these numbers?",
            "`number = (ids == separator).cumsum(0)`; two positions are of one text if their numbers are equal.",
        ),
        solution='''\
import torch


def own_text_mask(ids, separator):
    """Who may look at whom in a row of packed texts: ids (T,) to (T, T) bool."""
    number = (ids == separator).cumsum(0)  # of the text
    same = number[:, None] == number
    return same & torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).tril()''',
        praise="Llama 3 was trained with such a mask, and so are the models of this course: look for `separator` in "
        "`gptcore/decoder.py`.",
    ),
    Exercise(
        number="8.4",
        title="Fine-tuning with few numbers",
        minutes=20,
        difficulty=3,
        task="""\
*LoRA* (arXiv 2106.09685) leaves a weight `(n, m)` as it is and learns a small change beside it: `down` `(rank, m)`
brings the input to few features, `up` `(n, rank)` brings them back, and the result is multiplied by `alpha / rank`.
Afterwards the change can be put into the weight, so that the model is as fast as before. Derive the merged weight:
for every x, `merged @ x` must equal `weight @ x + alpha / rank * up @ (down @ x)`. And predict: how many numbers does
a change of rank 4 to a 768 x 768 weight hold, compared with the weight?""",
        stub='''\
import torch


def merge_lora(weight, down, up, alpha):
    """The weight (n, m) with the change of down (rank, m) and up (n, rank) put into it."""
    ...''',
        demo="""\
generator = torch.Generator().manual_seed(0)
shapes = (3, 4), (2, 4), (3, 2), (4,)  # of the weight, down, up and x: n = 3, m = 4, rank = 2
some_weight, some_down, some_up, some_x = (torch.randn(shape, generator=generator) for shape in shapes)
merged = merge_lora(some_weight, some_down, some_up, 16)
if merged is not None:
    print(merged @ some_x)
    print(some_weight @ some_x + 16 / 2 * some_up @ (some_down @ some_x), "(right: twice the same)")""",
        checker=check_merge_lora,
        hints=(
            "Matrix products may be bracketed as one likes: up @ (down @ x) = (up @ down) @ x.",
            "The rank is `down.shape[0]`.",
        ),
        solution='''\
import torch


def merge_lora(weight, down, up, alpha):
    """The weight (n, m) with the change of down (rank, m) and up (n, rank) put into it."""
    rank = down.shape[0]
    return weight + alpha / rank * up @ down''',
        praise="A change of rank 4 holds about a hundredth of the numbers of the weight: one model on the disk, and "
        "dozens of small files that each turn it into another.",
    ),
)
