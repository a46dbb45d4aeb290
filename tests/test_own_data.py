"""Data of the reader's own, in every format that is read, and what is said of what cannot be used."""

import gzip
import json
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore.own_data import (
    Comparison,
    Conversation,
    Question,
    read_comparisons,
    read_conversations,
    read_prompts,
)
from gptcore.own_votes import write_comparisons
from gptcore.records import BadDataError

ASKED, ANSWERED = "When do you open?", "At nine."
ONE = Conversation(((ASKED, ANSWERED),))


def written(folder, *records, name="data.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def said(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": said(ASKED, ANSWERED)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, said(1, ANSWERED)[1]]},
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]},
        {"instruction": ASKED, "input": "", "output": ANSWERED},
        {"instruction": ASKED, "output": f"  {ANSWERED}\n"},
        {"prompt": ASKED, "completion": ANSWERED},
        {"prompt": said(ASKED), "completion": said(ASKED, ANSWERED)[1:]},
        {"id": 7, "messages": said(ASKED, ANSWERED), "source": "desk"},
    ],
)
def test_a_conversation_in_every_format(tmp_path, record):
    assert read_conversations(written(tmp_path, record)).items == [ONE]


def test_a_conversation_of_several_turns_and_a_system_message(tmp_path):
    path = written(tmp_path, {"messages": [{"role": "system", "content": "Be kind."}, *said("a", "b", "c", "d")]})
    assert read_conversations(path).items == [Conversation((("Be kind.\n\na", "b"), ("c", "d")))]
    shared = {"system": "Be kind.", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert read_conversations(written(tmp_path, shared)).items == [Conversation((("Be kind.\n\na", "b"),))]


def test_alpacas_input_stands_below_the_instruction(tmp_path):
    path = written(tmp_path, {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"})
    assert read_conversations(path).items == [Conversation((("Translate.\n\nGuten Tag", "Good day"),))]


HUMAN = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"prompt": "c", "chosen": "good", "rejected": "bad"}, Question("c")),
        ({"prompt": said("a", "b", "c"), "chosen": "good", "rejected": "bad"}, Question("c", (("a", "b"),))),
        ({"prompt": said("c"), "chosen": said(1, "good")[1:], "rejected": said(1, "bad")[1:]}, Question("c")),
        ({"prompt": "c", "chosen": said("c", "good"), "rejected": said("c", "bad")}, Question("c")),
        ({"chosen": said("a", "b", "c", "good"), "rejected": said("a", "b", "c", "bad")}, Question("c", (("a", "b"),))),
        ({"chosen": f"{HUMAN} good", "rejected": f"{HUMAN} bad"}, Question("c", (("a", "b"),))),
        ({"prompt": HUMAN, "chosen": " good", "rejected": "bad"}, Question("c", (("a", "b"),))),
        ({"system": "Be kind.", "prompt": "c", "chosen": "good", "rejected": "bad"}, Question("Be kind.\n\nc")),
    ],
)
def test_a_comparison_in_every_format(tmp_path, record, question):
    assert read_comparisons(written(tmp_path, record)).items == [Comparison(question, "good", "bad")]


def test_a_comparison_says_who_voted(tmp_path):
    path = written(tmp_path, {"prompt": "c", "chosen": "good", "rejected": "bad", "voter": "ada"})
    assert read_comparisons(path).items[0].voter == "ada"


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"prompt": "c"}, Question("c")),
        ({"prompt": said("a", "b", "c")}, Question("c", (("a", "b"),))),
        ({"messages": said("a", "b", "c")}, Question("c", (("a", "b"),))),
        ({"messages": said("a", "b", "c", "its answer")}, Question("c", (("a", "b"),))),
        ({"instruction": "c", "input": "d"}, Question("c\n\nd")),
        ({"chosen": said("c", "good"), "rejected": said("c", "bad")}, Question("c")),
        ("c", Question("c")),
    ],
)
def test_a_prompt_in_every_format(tmp_path, record, question):
    assert read_prompts(written(tmp_path, record)).items == [question]


def test_prompts_may_be_the_lines_of_a_text(tmp_path):
    (tmp_path / "asked.txt").write_bytes("\ufeffWhen?\r\n\r\n 哪里？ \r\n".encode())
    assert read_prompts(tmp_path / "asked.txt").items == [Question("When?"), Question("哪里？")]


# --- Files ---------------------------------------------------------------------------------------


def one_line(record):
    return json.dumps(record, ensure_ascii=False)


GOOD = {"messages": said(ASKED, ANSWERED)}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", one_line(GOOD).encode()),
        ("a.jsonl", b"\xef\xbb\xbf" + one_line(GOOD).encode() + b"\r\n\r\n"),
        ("a.JSONL", one_line(GOOD).encode()),
        ("a.jsonl.gz", gzip.compress(one_line(GOOD).encode(), mtime=0)),
        ("a.json", one_line([GOOD]).encode()),
        ("a.json", json.dumps([GOOD], indent=2).encode()),
        ("a.json", json.dumps(GOOD, indent=2).encode()),
        ("a.json", one_line({"version": 2, "data": [GOOD]}).encode()),
        ("a.json.gz", gzip.compress(one_line([GOOD]).encode(), mtime=0)),
    ],
)
def test_a_file_of_every_kind(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert read_conversations(tmp_path / name).items == [ONE]
    assert read_conversations(tmp_path).items == [ONE]


def test_lines_in_a_file_that_is_called_json(tmp_path):
    (tmp_path / "a.json").write_text(f"{one_line(GOOD)}\n{one_line(GOOD)}\n", encoding="utf-8")
    assert read_conversations(tmp_path).items == [ONE, ONE]


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path):
    (tmp_path / "deep").mkdir()
    written(tmp_path, {"prompt": "second"}, name="b.jsonl")
    written(tmp_path, {"prompt": "first"}, name="a.jsonl")
    written(tmp_path / "deep", {"prompt": "third"}, name="a.jsonl")
    (tmp_path / "README.md").write_text("about these", encoding="utf-8")
    assert [question.text for question in read_prompts(tmp_path).items] == ["first", "second", "third"]


def test_a_line_separator_inside_a_text_ends_no_record(tmp_path):
    path = written(tmp_path, {"prompt": "one\u2028two\u0085three"})
    assert read_prompts(path).items == [Question("one\u2028two\u0085three")]


def as_parquet(path, *records, **settings):
    """Write records as rows; a field that a row lacks is null."""
    pyarrow = pytest.importorskip("pyarrow")
    columns = {name: [record.get(name) for record in records] for record in records for name in record}
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path, **settings)
    return path


@pytest.mark.parametrize(
    ("read", "records"),
    [
        (read_conversations, [GOOD, {"messages": said("a", "b", "c", "d"), "source": "desk"}]),
        (read_conversations, [{"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}]),
        (read_conversations, [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "c", "output": "d"}]),
        (read_comparisons, [{"prompt": "c", "chosen": "good", "rejected": "bad"}] * 2),
        (read_comparisons, [{"prompt": said("a", "b", "c"), "chosen": "x", "rejected": "y", "voter": "ada"}]),
        (read_comparisons, [{"chosen": said("c", "good"), "rejected": said("c", "bad"), "score": 0.5}]),
        (
            read_comparisons,
            [
                {"prompt": "c", "chosen": "good", "rejected": "bad"},
                {"prompt": "c", "chosen": "good", "rejected": "worse", "voter": "ben", "system": "Be kind."},
            ],
        ),
        (read_prompts, [{"prompt": "a"}, {"prompt": "b", "system": "Be kind."}]),
    ],
)
def test_rows_of_parquet_are_read_as_lines_of_json_are(tmp_path, read, records):
    expected = read(written(tmp_path, *records)).items
    assert len(expected) == len(records)
    assert read(as_parquet(tmp_path / "a.parquet", *records)).items == expected
    packed = as_parquet(tmp_path / "b.PARQUET", *records, compression="zstd", row_group_size=1)
    assert read(packed).items == expected


def test_parquet_and_other_files_of_a_folder_are_read_in_the_order_of_names(tmp_path):
    as_parquet(tmp_path / "b.parquet", {"prompt": "second"}, {"prompt": "third"})
    written(tmp_path, {"prompt": "first"}, name="a.jsonl")
    assert [question.text for question in read_prompts(tmp_path).items] == ["first", "second", "third"]


def test_rows_of_parquet_that_cannot_be_used_are_numbered(tmp_path):
    path = as_parquet(tmp_path / "a.parquet", GOOD, {"messages": None}, {"messages": said("a")})
    with pytest.raises(BadDataError, match=r"(?s)a\.parquet, 2: has none of .*a\.parquet, 3: .* not answered"):
        read_conversations(path)
    assert read_conversations(path, skip_bad=True).items == [ONE]


@pytest.mark.parametrize("data", [b"", b"PAR1 and nothing more PAR1"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, data):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(BadDataError, match=r"a\.parquet: cannot be read"):
        read_conversations(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadDataError, match="pip install pyarrow"):
        read_conversations(tmp_path)


# --- What cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ([1], "is list, not an object with fields"),
        ("When do you open?", "is plain text, not an object with fields"),
        ({"prompt": "a", "chosen": "b"}, r"has a prompt and no completion \(it has prompt, chosen\)"),
        ({"text": "abc"}, r"has none of the fields messages, .* \(it has text\)"),
        ({"messages": []}, "messages is no list of messages"),
        ({"messages": "hello"}, "messages is no list of messages"),
        ({"messages": ["hello"]}, "message 1 is str, not an object"),
        ({"messages": said("a")}, "ends with a message that is not answered"),
        ({"messages": said("a", "")}, "message 2 is empty"),
        ({"messages": said("a", None)}, "message 2 is missing"),
        ({"messages": said("a", 5)}, "message 2 is int, not text"),
        ({"messages": said("a", "\ud83d")}, "message 2 holds half a character"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "message 1 is by 'tool', none of system, user and assistant",
        ),
        ({"messages": [{"content": "a"}]}, "message 1 is by None"),
        ({"messages": said("a", "b")[::-1]}, "do not take turns"),
        ({"messages": [*said("a"), *said("b", "c")]}, "do not take turns"),
        ({"messages": [*said("a", "b"), {"role": "system", "content": "c"}]}, "may only come first"),
        ({"messages": [{"role": "system", "content": "c"}]}, "after the system message no user speaks"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "holds something else than text"),
        ({"instruction": " ", "output": "b"}, "instruction is empty"),
        ({"instruction": "a"}, "output is missing"),
        ({"instruction": "a", "output": ""}, "output is empty"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_said(tmp_path, record, what):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(record)}\n", encoding="utf-8")
    with pytest.raises(BadDataError, match=rf"data\.jsonl, 2: .*{what}"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"prompt": "a", "chosen": "b"}, r"has no rejected \(it has prompt, chosen\)"),
        ({"prompt": "a"}, "has no chosen and no rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": " b "}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "prompt is empty"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
        ({"prompt": said("a", "b"), "chosen": "b", "rejected": "c"}, "does not end with a message by the user"),
        ({"chosen": said("a", "b"), "rejected": said("other", "c")}, "do not answer the same"),
        ({"prompt": "a", "chosen": said("a"), "rejected": "c"}, "chosen does not end with a message by the assistant"),
        ({"prompt": "a", "chosen": 1, "rejected": "c"}, "chosen is int, not text"),
    ],
)
def test_what_is_wrong_with_a_comparison_is_said(tmp_path, record, what):
    with pytest.raises(BadDataError, match=rf"data\.jsonl, 1: .*{what}"):
        read_comparisons(written(tmp_path, record))


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.jsonl", b"{'messages': []}\n", r"a\.jsonl, 1: is no JSON"),
        ("a.jsonl", "你好".encode("gb18030"), r"a\.jsonl: is not UTF-8 \(byte 0\)"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(one_line(GOOD).encode(), mtime=0)[:-9], r"a\.jsonl\.gz: cannot be read"),
        ("a.json", b"[1, 2", r"a\.json: is no JSON"),
        ("a.json", b"[]", "nothing in it can be used"),
        ("a.jsonl", b"", "nothing in it can be used"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, what):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadDataError, match=what):
        read_conversations(tmp_path / name)


def test_a_missing_file_and_a_folder_without_data_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nothing\.jsonl"):
        read_prompts(tmp_path / "nothing.jsonl")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds no file that ends in \.jsonl"):
        read_prompts(tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "talk.csv").write_text("question,answer\n")
    with pytest.raises(BadDataError, match=r"(?s)the data cannot be used.*talk\.csv: is of a kind that is not read"):
        read_conversations(tmp_path / "talk.csv")


def test_bad_records_are_all_counted_and_the_first_ones_shown(tmp_path):
    path = written(tmp_path, GOOD, *[{"text": str(i)} for i in range(30)])
    with pytest.raises(BadDataError, match="(?s)30 records cannot be used .*and 20 more") as raised:
        read_conversations(path)
    assert [problem.number for problem in raised.value.problems] == list(range(2, 32))
    assert len(str(raised.value).splitlines()) == 12


def test_bad_records_can_be_skipped_and_are_told_all_the_same(tmp_path):
    path = written(tmp_path, {"text": "a"}, GOOD, {"messages": said("b")})
    read = read_conversations(path, skip_bad=True)
    assert read.items == [ONE]
    assert [problem.number for problem in read.problems] == [1, 3]
    with pytest.raises(BadDataError, match="nothing in it can be used"):
        read_conversations(written(tmp_path, {"text": "a"}), skip_bad=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(record=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["messages", "role", "content", "prompt", "chosen", "rejected", "from", "value", "conversations", "instruction", "output", "input", "system", "type", "text"]), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_whatever_stands_in_a_record_it_is_read_or_said_to_be_wrong(tmp_path_factory, record):
    path = written(tmp_path_factory.mktemp("any"), record)
    for read in (read_conversations, read_comparisons, read_prompts):
        with suppress(BadDataError):
            assert len(read(path).items) == 1


TEXT = st.text(max_size=8, alphabet=st.characters(codec="utf-8")).map(lambda text: f"a{text}b")
TURNS = st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(votes=st.lists(st.tuples(TEXT, TURNS, st.lists(TEXT, min_size=2, max_size=2, unique=True), TEXT | st.just("")), min_size=1, max_size=4))  # fmt: skip
def test_votes_are_read_as_they_were_written(tmp_path_factory, votes):
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    written_votes = [Comparison(Question(text, turns), *answers, voter) for text, turns, answers, voter in votes]
    write_comparisons(path, written_votes)
    assert read_comparisons(path).items == written_votes
