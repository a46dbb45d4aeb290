"""Exercises of chapter 13: your own ChatGPT."""

from gptcore.exercises.exercise import Answer, Either, Exercise, Fresh

# --- 13.1 ----------------------------------------------------------------------------------------


def _messages(transcript: str, fault: str = "") -> list[dict[str, str]]:
    names = {"Guest:": "user", "Guide:": "assistant"}
    if fault == "turned":
        names = {"Guest:": "assistant", "Guide:": "user"}
    if fault == "names":
        names = {"Guest:": "Guest", "Guide:": "Guide"}
    found: list[dict[str, str]] = []
    for line in transcript.split("\n"):
        who = next((name for name in names if line.startswith(name)), None)
        if who:
            text = line if fault == "name stays" else line.removeprefix(who)
            found.append({"role": names[who], "content": text if fault == "space" else text.strip()})
        elif line.strip() or fault == "empty":
            if fault == "lost":
                continue
            if fault == "own":
                found.append({"role": found[-1]["role"], "content": line.strip()})
                continue
            join = {"joined": "", "one line": " "}.get(fault, "\n")
            found[-1]["content"] += join + (line if fault == "space" else line.strip())
    return found


def check_as_messages(answer: Answer, fresh: Fresh) -> None:
    words = ["When do you open?", "At nine.", "我们九点开门。", "Room 4: the horn.", "Guide me, please.", "a: b"]
    cases = [
        "Guest: When do you open?\nGuide: At nine.",
        "Guest: How old is the horn?\nGuide: It was built in 1911.\nYou find it in room 4.\nGuest: Thanks!\nGuide: With pleasure.",
        "Guest: What did the Guide: say?\nGuide: Nothing.\n",
        "Guest: Hello,\nwhere is the café?\n\nGuide: In room 1.\n\n\nGuest: And the lift?\nGuide: Beside the door.",
    ]
    for _ in range(3):
        lines = []
        for _ in range(fresh.integer(1, 4)):
            for who in ("Guest:", "Guide:"):
                said = [fresh.random.choice(words) for _ in range(fresh.integer(1, 4))]
                lines.append(f"{who} " + "\n".join(said))
        cases.append(("\n\n" if fresh.integer(0, 2) else "\n").join(lines))
    mistakes = {
        "lost": "a line that begins with no name goes on with what was said before; yours are lost.",
        "own": "a line that begins with no name is no message of its own: it belongs to the one before.",
        "joined": "lines of one message are kept apart by \\n; yours run into each other.",
        "one line": "lines of one message are kept apart by \\n; yours are joined by a space.",
        "turned": "the guest asks, so the guest is the `user`, and the guide the `assistant`.",
        "names": "the roles are called `user` and `assistant`, whatever the people are called: the chat template looks for "
        "these.",
        "name stays": "the name at the beginning of a line says who speaks; it is no part of the text.",
        "space": "take the space at both ends of each line away: it would become a token of its own.",
        "empty": "an empty line ends or begins nothing, and is no part of the text.",
    }
    for transcript in cases:
        answer.expect(
            (transcript,),
            _messages(transcript),
            {message: _messages(transcript, fault) for fault, message in mistakes.items()}
            | {
                "only the first two messages are there: go on to the end.": _messages(transcript)[:2],
                "those are pairs; each message is a dictionary with `role` and `content`.": [
                    (message["role"], message["content"]) for message in _messages(transcript)
                ],
            },
        )


# --- 13.2 ----------------------------------------------------------------------------------------

Vote = tuple[str, str, str]


def _hold_out(votes: list[Vote], every: int, fault: str = "") -> tuple[list[Vote], list[Vote]]:
    questions = sorted({vote[0] for vote in votes}) if fault == "sorted" else list(dict.fromkeys(v[0] for v in votes))
    start = every - 1 if fault == "last" else 0
    chosen = set(questions[start::every])
    if fault == "votes":
        held = [vote for number, vote in enumerate(votes) if number % every == 0]
        return [vote for number, vote in enumerate(votes) if number % every], held
    if fault == "share":
        chosen = set(questions[: len(questions) // every])
    held = [vote for vote in votes if vote[0] in chosen]
    if fault == "once":
        held = [next(vote for vote in votes if vote[0] == question) for question in questions if question in chosen]
    kept = votes if fault == "kept" else [vote for vote in votes if vote[0] not in chosen]
    return (held, kept) if fault == "turned" else (kept, held)


def check_hold_out(answer: Answer, fresh: Fresh) -> None:
    first = [("How old?", "New.", "Old."), ("How old?", "1911.", "Old."), ("How high?", "Ten.", "Tall.")]
    cases = [(first, 2), ([*first, ("Where?", "Here.", "There."), ("How old?", "1911.", "New.")], 2)]
    for _ in range(3):
        questions = [f"Question {fresh.integer(0, 9)}?" for _ in range(fresh.integer(8, 20))]
        votes = [(question, f"Good {number}.", f"Bad {number}.") for number, question in enumerate(questions)]
        cases.append((votes, fresh.integer(2, 5)))
    mistakes = {
        "votes": "a question has votes on both sides: what was learned about its answers would be asked again, and the score "
        "would be too good.",
        "turned": "what is held out comes second.",
        "kept": "what is held out must not be among what is learned from.",
        "once": "a question that is held out is held out with all its votes.",
        "sorted": "the questions are counted in the order in which they first occur; yours are sorted.",
        "last": "the first question is held out, then every so-many-th after it.",
        "share": "every so-many-th question is wanted, not a run of them at the beginning: a file is often in some order.",
    }
    for votes, every in cases:
        right = _hold_out(votes, every)
        wrong = {message: _hold_out(votes, every, fault) for fault, message in mistakes.items()}
        answer.expect(
            (votes, every),
            right,
            {message: found for message, found in wrong.items() if found != right}
            | {
                "what is returned must be a tuple of two lists of votes, all as they were.": Either(
                    *([[v[0] for v in part] for part in right], [set(part) for part in right])
                )
            },
        )


# --- 13.3 ----------------------------------------------------------------------------------------


def _kappa(mine: list[int], yours: list[int], fault: str = "") -> float:
    n = len(mine)
    same = sum(a == b for a, b in zip(mine, yours, strict=True)) / n
    p, q = sum(mine) / n, sum(yours) / n
    by_chance = p * q + (1 - p) * (1 - q)
    if fault == "half":
        by_chance = 0.5
    if fault == "one side":
        by_chance = p * q
    if fault == "same habits":
        both = (p + q) / 2
        by_chance = both**2 + (1 - both) ** 2
    if fault == "share":
        return same
    if fault == "not divided":
        return same - by_chance
    if fault == "upside down":
        return (same - by_chance) / by_chance if by_chance else 0.0
    if by_chance == 1:
        return 1.0 if fault == "certain" else 0.0
    return (same - by_chance) / (1 - by_chance)


def check_kappa(answer: Answer, fresh: Fresh) -> None:
    cases = [([1, 1, 0, 0], [1, 0, 0, 0]), ([1, 1, 1, 1], [1, 1, 1, 1]), ([0, 0, 0], [0, 0, 0]), ([1, 0, 1], [0, 1, 0])]
    for share in (0.5, 0.85):
        mine = [int(fresh.random.random() < share) for _ in range(fresh.integer(20, 60))]
        cases.append((mine, [a if fresh.random.random() < 0.7 else 1 - a for a in mine]))
    mistakes = {
        "share": "that is the share of equal votes. Two people who nearly always take the left answer agree often, without "
        "ever looking.",
        "half": "chance is a half only if both take left and right equally often: compute it from their own habits.",
        "one side": "two votes are equal if both are 1 *or* both are 0; the second is missing in your chance.",
        "same habits": "each voter has habits of their own: p q + (1 - p) (1 - q).",
        "not divided": "divide by 1 - chance: then full agreement is 1.",
        "upside down": "divide by 1 - chance, by what there was left to agree on.",
        "certain": "where both always give the same vote, chance explains all of it, and nothing can be said: return 0.",
    }
    for mine, yours in cases:
        right = _kappa(mine, yours)
        wrong = {message: _kappa(mine, yours, fault) for fault, message in mistakes.items()}
        answer.expect((mine, yours), right, {message: found for message, found in wrong.items() if found != right})


# --- 13.4 ----------------------------------------------------------------------------------------


def check_ppo_bytes(answer: Answer, fresh: Fresh) -> None:
    cases = [(1000, None), (1000, 10), (7_000_000_000, None), (7_000_000_000, 40_000_000)]
    cases.append((fresh.integer(10, 500) * 1_000_000, fresh.integer(1, 900) * 1000))
    for parameters, adapters in cases:
        learned = parameters if adapters is None else adapters
        extra = 0 if adapters is None else adapters
        right = 4 * (4 * parameters + 2 * (extra + 3 * learned))
        answer.expect(
            (parameters, adapters),
            right,
            {
                "PPO has four models: two learn, and two only read.": Either(
                    4 * (parameters + extra + 3 * learned), 4 * 2 * (parameters + extra + 3 * learned)
                ),
                "reference and reward model never learn: they have neither gradients nor moments.": 4
                * 4
                * (parameters + extra + 3 * learned),
                "policy and value model both learn, each with gradients and moments of its own.": 4
                * (4 * parameters + extra + 3 * learned),
                "AdamW keeps two moments for each learned number, beside its gradient.": 4
                * (4 * parameters + 2 * (extra + 2 * learned)),
                "the gradients are missing.": 4 * (4 * parameters + 2 * (extra + 2 * learned)),
                "a number in fp32 has four bytes.": 4 * parameters + 2 * (extra + 3 * learned),
                "the weights stay whole in memory, although only the adapters learn.": 4
                * (2 * parameters + 2 * 4 * learned),
                "the adapters are weights, too: they come on top of the model's.": 4
                * (4 * parameters + 2 * 3 * learned),
                "with adapters only *they* have gradients and moments.": 4
                * (4 * parameters + 2 * (extra + 3 * parameters)),
            },
        )


EXERCISES = (
    Exercise(
        number="13.1",
        title="From a transcript to messages",
        minutes=12,
        difficulty=2,
        task="""\
Conversations seldom lie about as JSON. Here is how a museum noted them:

    Guest: How old is the horn?
    Guide: It was built in 1911.
    You find it in room 4.

A line that begins with `Guest:` or `Guide:` begins a message; any other line goes on with the message before, on a new
line (`\\n`). Empty lines mean nothing. Turn a transcript into the list of messages that `train --conversations` reads:
dictionaries with `role` (`user` for the guest, `assistant` for the guide) and `content`, without the name, each line
without space at its ends.""",
        stub='''\
def as_messages(transcript):
    """The messages of a transcript: a list of dictionaries with role and content."""
    ...''',
        demo="""\
print(as_messages("Guest: How old is the horn?\\nGuide: It was built in 1911.\\nYou find it in room 4."))""",
        checker=check_as_messages,
        hints=(
            "Go through `transcript.split('\\n')`; for each line ask whether it begins with one of the two names.",
            "`line.removeprefix('Guest:').strip()` is the text. A line without a name is added to `messages[-1]['content']`.",
        ),
        solution='''\
def as_messages(transcript):
    """The messages of a transcript: a list of dictionaries with role and content."""
    roles = {"Guest:": "user", "Guide:": "assistant"}
    messages = []
    for line in transcript.split("\\n"):
        name = line[:6]
        if name in roles:
            messages.append({"role": roles[name], "content": line[6:].strip()})
        elif line.strip():
            messages[-1]["content"] += "\\n" + line.strip()
    return messages''',
        praise="One such function for each source is most of the work with data of one's own; all that comes after it stays "
        "the same.",
    ),
    Exercise(
        number="13.2",
        title="Repair: held out, and yet known",
        minutes=10,
        difficulty=2,
        task="""\
Votes are tuples (question, chosen, rejected), and many questions have several. The function below holds out every
so-many-th *vote*, and the reward model's score on them looks wonderful. Why is it too good? Hold out questions instead:
the first, and then every `every`-th in the order in which they first occur, each with all its votes. Return the votes to
learn from and those held out, each in their old order.""",
        stub='''\
def hold_out(votes, every):
    """Votes to learn from and votes held out, from a list of (question, chosen, rejected): a tuple of two lists."""
    held_out = votes[::every]
    return [vote for vote in votes if vote not in held_out], held_out''',
        demo="""\
some_votes = [("How old?", "1911.", "Old."), ("How old?", "1911.", "New."), ("How high?", "Ten.", "Tall.")]
print(hold_out(some_votes, 2))""",
        checker=check_hold_out,
        hints=(
            "Which answers to a question are good is learned from one vote and asked again by the next.",
            "`list(dict.fromkeys(...))` gives each question once, in order of first occurrence.",
        ),
        solution='''\
def hold_out(votes, every):
    """Votes to learn from and votes held out, from a list of (question, chosen, rejected): a tuple of two lists."""
    questions = list(dict.fromkeys(vote[0] for vote in votes))
    chosen = set(questions[::every])
    return [v for v in votes if v[0] not in chosen], [v for v in votes if v[0] in chosen]''',
        praise="Whatever repeats (a question, a person, a document) is held out whole, or the exam asks what was told.",
    ),
    Exercise(
        number="13.3",
        title="Do they agree, or are they alike?",
        minutes=10,
        difficulty=2,
        task="""\
Two people vote on the same pairs; 1 means the left answer. Somebody who always clicks on the left agrees with anybody
who often does, and has read nothing. *Cohen's kappa* takes that away: with the share of equal votes s and the share c that
chance would give,

    kappa = (s - c) / (1 - c)

Chance knows the habits of each: if the one takes left with the share p of the pairs and the other with q, independently,
what is c? Compute kappa from two lists of 0 and 1; where c is 1 nothing can be said: return 0.""",
        stub='''\
def kappa(mine, yours):
    """Agreement of two lists of votes, 0 or 1, beyond chance: 1 for full agreement, 0 for chance."""
    ...''',
        demo="""\
print(kappa([1, 1, 0, 0], [1, 0, 0, 0]), "(right: 0.5)")
print(kappa([1] * 9 + [0], [1] * 8 + [0, 1]), "for two people who love the left answer; equal votes: 8 of 10")""",
        checker=check_kappa,
        hints=(
            "Two independent votes are equal if both are 1, with p q, or both are 0.",
            "c = p q + (1 - p) (1 - q).",
        ),
        solution='''\
def kappa(mine, yours):
    """Agreement of two lists of votes, 0 or 1, beyond chance: 1 for full agreement, 0 for chance."""
    n = len(mine)
    s = sum(a == b for a, b in zip(mine, yours)) / n
    p, q = sum(mine) / n, sum(yours) / n
    c = p * q + (1 - p) * (1 - q)
    return 0.0 if c == 1 else (s - c) / (1 - c)''',
        praise="This is why the labelling view puts the answers left and right in turn: habits then meet chance, and only "
        "judgement is left.",
    ),
    Exercise(
        number="13.4",
        title="What PPO keeps in memory",
        minutes=12,
        difficulty=3,
        task="""\
PPO holds four models of `parameters` numbers each: policy and value model learn, reference and reward model only read.
In fp32 a number has four bytes. A model that learns keeps, for each *learned* number, its gradient and AdamW's two
moments beside it. How many bytes is that in all (activations left out)?

With *LoRA* (`adapters` is a number) the weights stay as they are, and each of the two learning models gets that many
numbers on top of them, the only ones that learn. Predict the answer for 7,000,000,000 parameters in both cases: does it
fit into a GPU of 80 GB?""",
        stub='''\
def ppo_bytes(parameters, adapters=None):
    """Bytes of PPO's four models in fp32 with what AdamW keeps; adapters: learned numbers of each model, None for all."""
    ...''',
        demo="""\
for count in (None, 40_000_000):
    needed = ppo_bytes(7_000_000_000, count)
    if needed is not None:
        print(f"{needed / 1e9:,.0f} GB")""",
        checker=check_ppo_bytes,
        hints=(
            "Weights: four models. Gradients and moments: three numbers for each learned one, in two models.",
            "With adapters the two learning models have `parameters + adapters` weights, and `adapters` learned numbers.",
        ),
        solution='''\
def ppo_bytes(parameters, adapters=None):
    """Bytes of PPO's four models in fp32 with what AdamW keeps; adapters: learned numbers of each model, None for all."""
    learned = parameters if adapters is None else adapters
    weights = 4 * parameters + (0 if adapters is None else 2 * adapters)
    return 4 * (weights + 2 * 3 * learned)''',
        praise="Ten numbers for each parameter without adapters, and four with them. The four are the same model four times; "
        "what learns is so little that reference and policy can share one set of weights.",
    ),
)
