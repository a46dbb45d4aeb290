"""Exercises of chapter 11: chat."""

from collections.abc import Callable

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh

# --- 11.1 ----------------------------------------------------------------------------------------


def check_tokens_read(answer: Answer, fresh: Fresh) -> None:
    cases = [(1, 10, 20), (2, 10, 20), (3, 5, 5)]
    cases += [(fresh.integer(4, 60), fresh.integer(1, 40), fresh.integer(1, 60)) for _ in range(3)]
    for turns, question, reply in cases:
        anew = sum(turn * question + (turn - 1) * reply for turn in range(1, turns + 1))
        kept = turns * (question + reply) - reply
        answer.expect(
            (turns, question, reply),
            (anew, kept),
            {
                "with a cache the earlier answers are not free: they stand in the history, and each is read once before "
                "the next answer.": (anew, turns * question),
                "what the model reads of an answer while it writes it is left out; so the last answer is not counted at "
                "all.": Either((anew + turns * reply, kept + reply), (anew, kept + reply)),
                "in turn k the model reads k questions and k - 1 answers; yours has it read the answer that it is about "
                "to give.": Either((anew + turns * reply, kept), (anew + (turns - 1) * reply, kept)),
                "you let the model read everything anew for each *token* of an answer; here it does so once for each "
                "turn.": Either((reply * anew + turns * reply * (reply - 1) // 2, kept), (reply * anew, kept)),
                "without a cache *everything* is read anew in each turn; the sum grows with the square of the turns.": (
                    kept,
                    kept,
                ),
                "the answers are part of what is read: the model must know what it has said.": (
                    question * turns * (turns + 1) // 2,
                    question * turns,
                ),
                "that is what the last turn reads; all turns together are wanted.": (
                    turns * question + (turns - 1) * reply,
                    kept,
                ),
                "the two numbers have changed places.": (kept, anew),
            },
        )


# --- 11.2 ----------------------------------------------------------------------------------------


def _turns_to_read(turns: list[int], question: int, window: int, fault: str = "") -> list[int]:
    room = window if fault == "question" else window - question
    if room < 0:
        return []
    first = bool(turns) and turns[0] <= room and fault != "plain"
    if first and fault != "free":
        room -= turns[0]
    kept: list[int] = []
    for place in range(len(turns) - 1, 0 if first else -1, -1):
        if turns[place] >= room if fault == "exactly" else turns[place] > room:
            if fault == "skipping":
                continue
            break
        room -= turns[place]
        kept.append(place)
    return ([0] if first else []) + kept[::-1]


def check_turns_to_read(answer: Answer, fresh: Fresh) -> None:
    cases = [([], 5, 10), ([4], 5, 10), ([6], 5, 10), ([2, 9, 3], 4, 10), ([2, 9, 3], 4, 9), ([1, 2, 3], 4, 10)]
    cases += [([7, 1, 2], 4, 10), ([3, 1], 12, 10), ([2, 4, 9, 2], 4, 12), ([1, 1, 4], 4, 9)]
    for _ in range(4):
        turns = [fresh.integer(1, 12) for _ in range(fresh.integer(3, 8))]
        cases.append((turns, fresh.integer(1, 8), fresh.integer(12, 40)))
    for turns, question, window in cases:
        right = _turns_to_read(turns, question, window)

        def faulty(fault: str) -> Callable[[], list[int]]:
            return lambda: _turns_to_read(turns, question, window, fault)

        answer.expect(
            (turns, question, window),
            right,
            {
                "those are the last turns that fit; here the *first* turn is to stay as well, and has room before the "
                "others.": faulty("plain"),
                "the first turn needs room, too.": faulty("free"),
                "the new question needs room, too.": faulty("question"),
                "a turn that did not fit was skipped and an older one kept: behind the first turn there may be one gap "
                "only.": faulty("skipping"),
                "a turn that exactly fills the window fits.": faulty("exactly"),
                "the turns are right, but in the order of a conversation the oldest comes first.": right[::-1],
                "that is how many turns are kept; wanted is which, a list of their places.": len(right),
                "those are the lengths of the kept turns; wanted are their places.": [turns[i] for i in right],
                "places are counted from 0.": [i + 1 for i in right],
                "the first turn stands in the list twice.": [0, *right] if right[:1] == [0] else None,
            },
        )


# --- 11.3 ----------------------------------------------------------------------------------------


def _streamed(pieces: list[bytes], errors: str = "replace") -> list[str]:
    shown, rest = [], b""
    for piece in pieces:
        rest += piece
        for length in range(len(rest), -1, -1):  # the longest beginning that is whole characters
            try:
                text = rest[:length].decode()
            except UnicodeDecodeError:
                continue
            shown.append(text)
            rest = rest[length:]
            break
    if rest and shown:
        shown[-1] += rest.decode(errors=errors)
    return shown


def _waiting_for_all(pieces: list[bytes]) -> list[str]:
    shown, rest = [], b""
    for piece in pieces:
        rest += piece
        try:
            text, rest = rest.decode(), b""
        except UnicodeDecodeError:
            text = ""
        shown.append(text)
    if rest:
        shown[-1] += rest.decode(errors="replace")
    return shown


def check_stream_text(answer: Answer, fresh: Fresh) -> None:
    cases = [[b"Li", b"ma"], ["é".encode()[:1], "é".encode()[1:]], [b"a" + "中".encode()[:2], "中".encode()[2:] + b"b"]]
    cases += [["🌍".encode()[i : i + 1] for i in range(4)], [b"ok", "中".encode()[:1]]]
    for _ in range(3):
        data = "".join(fresh.random.choice("ab é中文🌍。") for _ in range(12)).encode()
        pieces = []
        while data:
            cut = fresh.integer(1, 4)
            pieces.append(data[:cut])
            data = data[cut:]
        cases.append(pieces)
    for pieces in cases:
        whole = b"".join(pieces).decode(errors="replace")
        right, waiting = _streamed(pieces), _waiting_for_all(pieces)
        finished = _streamed(pieces, "ignore")
        answer.expect(
            (pieces,),
            right,
            {
                "each piece was decoded by itself: a character whose bytes are spread over two pieces becomes garbage. "
                "Keep back what is not whole yet.": [piece.decode(errors="replace") for piece in pieces],
                "bytes that are not whole in their piece were thrown away: the character is lost.": [
                    piece.decode(errors="ignore") for piece in pieces
                ],
                "everything is shown only at the end; the user wants to see each character as soon as it is whole.": [
                    ""
                ]
                * (len(pieces) - 1)
                + [whole],
                "the text must come piece by piece: a list with one string for each piece of bytes.": whole,
                "a character that is never completed must still be shown at the end, as U+FFFD.": finished,
                "what is left at the end belongs to the last piece; more strings came out than pieces came in.": [
                    *finished,
                    whole[len("".join(finished)) :],
                ],
                "'a' was whole already and had to wait for the character behind it: show all that is whole, and keep back "
                "only the rest.": waiting,
                "fewer strings came out than pieces came in: give '' where nothing can be shown yet.": Either(
                    [text for text in right if text], [text for text in waiting if text]
                ),
            },
        )


# --- 11.4 ----------------------------------------------------------------------------------------


def check_discoveries(answer: Answer, fresh: Fresh) -> None:
    def stepped_up(values: list[float], share: float) -> list[bool]:
        ordered = sorted(values)
        limit = max((p for k, p in enumerate(ordered, 1) if p <= share * k / len(values)), default=-1.0)
        return [p <= limit for p in values]

    def stopped_early(values: list[float], share: float) -> list[bool]:
        limit = -1.0
        for k, p in enumerate(sorted(values), 1):
            if p > share * k / len(values):
                break
            limit = p
        return [p <= limit for p in values]

    cases = [
        ([0.01], 0.05),
        ([0.05], 0.05),
        ([0.04, 0.3], 0.05),
        ([0.9, 0.001], 0.05),
        ([0.03, 0.045], 0.05),
        ([0.2, 0.03, 0.04], 0.1),
    ]
    cases += [([0.02, 0.021, 0.022, 0.9], 0.05), ([0.5, 0.6], 0.05)]
    for size in (10, 60):
        values = [round(fresh.random.random() ** (3 if fresh.random.random() < 0.4 else 1), 4) for _ in range(size)]
        values = list(dict.fromkeys(values))
        if all(abs(p - 0.1 * k / len(values)) > 1e-9 for k, p in enumerate(sorted(values), 1)):
            cases.append((values, 0.1))
    for values, share in cases:
        n = len(values)
        places = {p: k for k, p in enumerate(sorted(values), 1)}
        right = stepped_up(values, share)
        answer.expect(
            (values, share),
            right,
            {
                "every value was compared with the share itself: with 0.05, of 100 comparisons with nothing behind them "
                "about 5 would pass.": [p <= share for p in values],
                "that is the correction of Bonferroni: it allows hardly any false discovery at all, and misses most of the "
                "true ones. Here the *share* of false ones among the discoveries is held.": [
                    p <= share / n for p in values
                ],
                "you stopped at the first value above its line. Look for the *largest* one that is below; all smaller ones "
                "are discoveries, too, even if they are above their own line.": stopped_early(values, share),
                "only the values below their own line were taken; all that are smaller than the largest of them count, "
                "too.": [p <= share * places[p] / n for p in values],
                "the list is in the order of the sorted values; it should be in the order of the arguments.": sorted(
                    right, reverse=True
                ),
                "a value that lies exactly on its line counts, too: *at most*, not less than.": [
                    p <= max((q for q in values if q < share * places[q] / n), default=-1.0) for p in values
                ],
                "the value at the largest place k is a discovery itself.": [
                    found and p < max(q for q in values if q <= share * places[q] / n)
                    for p, found in zip(values, right, strict=True)
                ],
                "True stands for a discovery; yours is the opposite.": [not found for found in right],
                "the places were counted from 0.": [
                    p <= max((q for k, q in enumerate(sorted(values)) if q <= share * k / n), default=-1.0)
                    for p in values
                ],
            },
        )


EXERCISES = (
    Exercise(
        number="11.1",
        title="What memory costs",
        minutes=12,
        difficulty=2,
        task="""\
A conversation of `turns` turns; each question has `question` tokens, each answer `reply`. Before each answer the
model must have read all that was said before it, and the new question. How many tokens does it read in the whole
conversation if it reads everything **anew** in each turn, and how many if a cache keeps what has been read, so that
each question, and each answer of an earlier turn, is read only **once**? Count what is read *before the first word* of
each answer; what the model reads of its own answer while it writes is left out, and so are marks and end tokens.
Predict: how many times more is the first number, for ten turns, questions of 10 and answers of 20 tokens?""",
        stub='''\
def tokens_read(turns, question, reply):
    """Tokens read over a whole conversation, without and with a cache, as a tuple."""
    ...''',
        demo="""\
print(tokens_read(2, 10, 20), "(right: 50, 40)")
print(tokens_read(10, 10, 20))""",
        checker=check_tokens_read,
        hints=(
            "In turn k the model reads k questions and k - 1 answers. Add up over k.",
            "With a cache: every question once, and every answer but the last once, before the next answer.",
        ),
        solution='''\
def tokens_read(turns, question, reply):
    """Tokens read over a whole conversation, without and with a cache, as a tuple."""
    anew = sum(turn * question + (turn - 1) * reply for turn in range(1, turns + 1))
    return anew, turns * question + (turns - 1) * reply''',
        praise="Square against straight line: that is why services keep your conversation's cache, and why long ones cost "
        "more.",
    ),
    Exercise(
        number="11.2",
        title="What to forget, and what not",
        minutes=10,
        difficulty=2,
        task="""\
The chapter's program forgets the oldest turns first. But in the first turn users often say who they are and what they
want, so another program keeps the **first** turn and as many of the **last** turns as fit beside it: one gap, behind
the first turn. The window has room for `window` tokens, the new question has `question` of them, and `turns` lists the
lengths of the earlier turns, the oldest first. Return the places of the turns that are read, counted from 0, in order.
If the first turn does not fit beside the question, only last turns are kept; if not even the question fits, none.
Predict: turns 2, 9, 3, a question of 4 and a window of 10.""",
        stub='''\
def turns_to_read(turns, question, window):
    """Places of the turns (lengths, oldest first) to read: the first, and as many of the last as fit."""
    ...''',
        demo="""\
print(turns_to_read([1, 5, 2], 4, 8), "(right: [0, 2])")
print(turns_to_read([2, 9, 3], 4, 10))""",
        checker=check_turns_to_read,
        hints=(
            "Take the room for the question and, if it fits, for the first turn away; what is left is for the last turns.",
            "From the end of the list to place 1, until a turn does not fit any more. A turn that fills the window fits.",
        ),
        solution='''\
def turns_to_read(turns, question, window):
    """Places of the turns (lengths, oldest first) to read: the first, and as many of the last as fit."""
    room = window - question
    if room < 0:
        return []
    kept = []
    if turns and turns[0] <= room:
        room -= turns[0]
        kept = [0]
    last = []
    for place in range(len(turns) - 1, len(kept) - 1, -1):
        if turns[place] > room:
            break
        room -= turns[place]
        last = [place, *last]
    return kept + last''',
        praise="Who is allergic to nuts is still known thirty messages later; what is lost now lies in the middle.",
    ),
    Exercise(
        number="11.3",
        title="Find the bug: broken characters",
        minutes=20,
        difficulty=3,
        task="""\
A chat shows an answer while it is being made. Each token brings a few bytes, and a character may be spread over
several tokens. The function below turns pieces of bytes into pieces of text; look at what becomes of the Chinese
sentence in the cell. Repair it: return a list with one string for each piece, together the whole text, and each
character shown as soon as it is whole. Where nothing can be shown yet, the string is empty. Bytes that are never
completed come with the last piece, as U+FFFD. (The chapter's `whole_characters` is not enough: it holds back whole
characters, too, while a later one is incomplete.)""",
        stub='''\
def stream_text(pieces):
    """Pieces of UTF-8 (a list of bytes) to as many pieces of text that can be shown at once."""
    return [piece.decode("utf-8", errors="replace") for piece in pieces]''',
        demo="""\
print(stream_text(["aé".encode()[:2], "aé".encode()[2:]]), "(right: ['a', 'é'])")
data = "利马是秘鲁的首都。".encode()
print(stream_text([data[i : i + 4] for i in range(0, len(data), 4)]))""",
        checker=check_stream_text,
        hints=(
            "Keep the bytes that do not make a whole character yet, and put the next piece behind them. By hand: show the "
            "longest beginning that decodes, and keep the rest.",
            'The standard library does it: `codecs.getincrementaldecoder("utf-8")(errors="replace")` is a decoder with '
            "a memory; its `decode(piece)` returns what is whole.",
            "At the end call `decode(b'', final=True)` and put what comes out behind the last piece.",
        ),
        solution='''\
import codecs


def stream_text(pieces):
    """Pieces of UTF-8 (a list of bytes) to as many pieces of text that can be shown at once."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # it remembers what is not whole yet
    shown = [decoder.decode(piece) for piece in pieces]
    shown[-1] += decoder.decode(b"", final=True)
    return shown''',
        praise="Whoever tests only with English never sees this bug, and whoever writes Chinese, or an emoji, sees it at "
        "once.",
    ),
    Exercise(
        number="11.4",
        title="Discoveries among thousands",
        minutes=30,
        difficulty=4,
        task="""\
A *p-value* is the probability that chance alone gives a gap at least as wide as the one that was found. You search for
a bias and have a p-value for each of many pairs of a group and a word. Of a thousand pairs *about* fifty have p below
0.05, if there is nothing in any. Benjamini and Hochberg (1995) keep the *share of false ones among the discoveries*,
on average, below a given one: sort the n values; find the **largest** place k, counted from 1, whose value is at most
`share * k / n`; it and all smaller values are discoveries. Return a list of True and False in the order of the
arguments. Do 0.02, 0.021, 0.022, 0.9 with a share of 0.05 by hand first: is 0.02 a discovery?""",
        stub='''\
def discoveries(p_values, share):
    """Which of the p-values are discoveries if at most this share of them may be false: a list of bools."""
    ...''',
        demo="print(discoveries([0.9, 0.021, 0.022, 0.02], 0.05))",
        checker=check_discoveries,
        hints=(
            "Draw the sorted values over their places, and the line share * k / n. Look from the right for the first "
            "value that is on or below the line.",
            "That value is the limit: everything at most as large is a discovery. The limit applies to the list as it "
            "was given.",
        ),
        solution='''\
def discoveries(p_values, share):
    """Which of the p-values are discoveries if at most this share of them may be false: a list of bools."""
    n, limit = len(p_values), -1.0
    for place, p in enumerate(sorted(p_values), 1):
        if p <= share * place / n:
            limit = p  # the largest one stays
    return [p <= limit for p in p_values]''',
        praise="Whoever looks at thousands of gaps finds wide ones. With this list you can say how many of them you would "
        "stake your name on.",
    ),
)
