"""The tokenizer against merges worked out by hand, a plain counting loop, and the `tokenizers` library."""

import json
import os
import random
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore.atlas import entities, wordings
from gptcore.bpe import learn_merges, merge, split_words
from gptcore.messages import simplified_characters
from gptcore.tokenizer import SPECIAL_TOKENS, Tokenizer, normalise

# The same examples on every machine: a failure can be repeated.
many_examples = settings(max_examples=200, deadline=None, derandomize=True)
few_examples = settings(max_examples=40, deadline=None, derandomize=True)

TRAINING_TEXT = [
    "The capital of France is Paris. The capital of Japan is Tokyo. Where is Algeria? Algeria is in Africa.",
    "What's the capital of Peru? It's Lima, I'm sure; they'll say so too, and we've been there. Don't they?",
    "法国的首都是巴黎。日本的首都是东京。阿尔及利亚在非洲。秘鲁的首都是利马。法国在欧洲,日本在亚洲。",
    "In 1998 there were 12 of them, in 2024 3072 of them.  Two  spaces,\tand\n\nlines.",
    "été, naïve, Straße, Ελλάδα, Россия 😀😀 👨‍👩‍👧 😀",
]
SAMPLES = [
    "",
    " ",
    "The capital of France is Paris.",
    "  leading, trailing and   inner spaces  ",
    "法国的首都是巴黎,你知道吗?的是在有用",
    "日本 and 中国 mixed, 混合 text的end",
    "12 + 345 = 357, 3.14159, ½, ٣, 3072",
    "😀 👨‍👩‍👧 🏳️‍🌈 é e\u0301",
    "It's, don't, WE'LL, 'tis, they've 're",
    "line\nline\r\n\n\ttab \u3000wide\u00a0hard \x85 \x1c \x00",
    *SPECIAL_TOKENS,
    "before<|end|>after <|user|> <|assistant|>x<|pad|",
]
# Any text, and text made of pieces that meet the pattern's and the merges' special cases.
texts = st.text(max_size=40) | st.lists(
    st.sampled_from([*SAMPLES, "a", " ", "  ", "\n", "'s", "'", "的", "中", " 国", "1", "é", "😀", "The", "<|", "|>"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TRAINING_TEXT, 420)


@pytest.fixture(scope="module")
def reference(tokenizer, tmp_path_factory):
    """The same tokenizer, loaded from its file by the `tokenizers` library."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    loaded = tokenizers.Tokenizer.from_file(str(path))
    # Like ours: what a user writes is never a special token, not even when it is spelled like one.
    loaded.encode_special_tokens = True
    return loaded


@pytest.fixture(scope="module")
def folding(tokenizer):
    """The same merges, and a tokenizer that reads shouted words in small letters and one character as another."""
    return Tokenizer(tokenizer.merges, {"國": "国"})


@pytest.fixture(scope="module")
def folding_reference(folding):
    loaded = tokenizers.Tokenizer.from_str(folding.to_json())
    loaded.encode_special_tokens = True
    return loaded


# --- Words ---------------------------------------------------------------------------------------


def test_words_keep_the_space_before_them_and_numbers_and_contractions_stand_alone():
    assert split_words("I'm 12, you're  not.") == ["I", "'m", " 12", ",", " you", "'re", " ", " not", "."]
    assert split_words("x=1\n\n y ") == ["x", "=", "1", "\n\n", " y", " "]


def test_common_chinese_function_words_divide_chinese_text():
    assert split_words("法国的首都是巴黎") == ["法国", "的", "首都", "是", "巴黎"]


@many_examples
@given(texts)
def test_words_joined_give_the_text_again(text):
    assert "".join(split_words(text)) == text


# --- Learning merges -----------------------------------------------------------------------------


def test_merge_replaces_pairs_from_left_to_right_without_overlap():
    assert merge([1, 1, 1, 2, 1, 1], (1, 1), 9) == [9, 1, 2, 9]
    assert merge([1, 2, 1, 2, 1], (1, 2), 9) == [9, 9, 1]
    assert merge([2, 1], (1, 2), 9) == [2, 1]
    assert merge([], (1, 2), 9) == []


def test_merges_of_a_small_text_by_hand():
    # Words: "low", then " low" twice, then " lower". Bytes: space 32, e 101, l 108, o 111, r 114, w 119.
    # 1. (l o) 4, (o w) 4, (space l) 3, (w e) 1, (e r) 1: of the two with 4 the smaller ids, (l o).
    # 2. (lo w) 4, (space lo) 3, ...: (lo w).
    # 3. (space low) 3, (low e) 1, (e r) 1: (space low).
    # 4. (" low" e) is (258 101), (e r) is (101 114), once each: the smaller ids, (e r).
    # 5. (" low" er) once, and no pair is left after it.
    merges = [(108, 111), (256, 119), (32, 257), (101, 114), (258, 259)]
    assert learn_merges(["low low low lower"], 100) == merges
    assert learn_merges(["low low", " low lower"], 3) == merges[:3]
    tokenizer = Tokenizer(merges)
    assert tokenizer.token_bytes[256:] == [b"lo", b"low", b" low", b"er", b" lower"]
    assert tokenizer.encode("low lower") == [257, 260]
    # s low; space low e; lo e r: "er" joins, "lo" stays, since nothing joins (lo er).
    assert tokenizer.encode("slow") == [115, 257]
    assert tokenizer.encode(" lowe") == [258, 101]
    assert tokenizer.encode("loer") == [256, 259]
    assert tokenizer.encode("wol") == [119, 111, 108]


def test_pieces_of_two_characters_are_never_joined_by_hand():
    # é is the bytes (195 169), è is (195 168). Words: "éè" and " éè".
    # 1. (169 195) 2, (195 168) 2, (195 169) 2, (32 195) 1. The smallest, (169 195), would join the end
    #    of one character and the start of the next: not allowed. So (195 168), which is è.
    # 2. (169 è) is the end of é and all of è: not allowed. So (195 169), which is é.
    # 3. (é è) 2, then 4. (space éè) 1.
    assert learn_merges(["éè éè"], 100) == [(195, 168), (195, 169), (257, 256), (32, 258)]


def plain_merges(texts, count):
    """Byte-pair encoding in the plainest way: count every pair again after each merge."""
    words = [list(word.encode()) for text in texts for word in split_words(text)]
    token_bytes = [bytes([byte]) for byte in range(256)]
    merges = []
    while len(merges) < count:
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        allowed = [pair for pair in counts if whole_or_piece(token_bytes[pair[0]] + token_bytes[pair[1]])]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-counts[pair], pair))
        new_id = len(token_bytes)
        token_bytes.append(token_bytes[best[0]] + token_bytes[best[1]])
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [new_id]
                i += 1
    return merges


def whole_or_piece(token):
    """Whole characters, or the beginning, middle or end of a single one, by the table of UTF-8."""
    if re.fullmatch(rb"[\x80-\xbf]{1,3}|[\xc0-\xff][\x80-\xbf]{0,2}", token):
        return True
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


training_texts = st.lists(
    st.text("ab ", max_size=30) | st.text("aé中国的😀 \n1'", max_size=30) | texts, min_size=1, max_size=4
)


@few_examples
@given(training_texts, st.integers(0, 60))
def test_merges_equal_those_of_counting_everything_anew(texts, count):
    assert learn_merges(texts, count) == plain_merges(texts, count)


def test_merges_of_a_longer_text_equal_those_of_counting_everything_anew():
    assert learn_merges(TRAINING_TEXT, 300) == plain_merges(TRAINING_TEXT, 300)


@few_examples
@given(training_texts)
def test_every_token_is_new_and_whole_characters_or_a_piece_of_a_single_one(texts):
    token_bytes = Tokenizer.train(texts, 500).token_bytes
    assert token_bytes[:256] == [bytes([byte]) for byte in range(256)]
    assert len(set(token_bytes)) == len(token_bytes)
    assert all(whole_or_piece(token) for token in token_bytes)


@few_examples
@given(training_texts)
def test_no_token_crosses_the_border_of_a_word(texts):
    words = {word.encode() for text in texts for word in split_words(text)}
    for token in Tokenizer.train(texts, 400).token_bytes[256:]:
        assert any(token in word for word in words)


LETTERS = "".join(random.Random(0).choices("ACGT", k=300_000))


def test_a_text_without_spaces_is_learned_from_and_encoded_in_time(tmp_path):
    # Looking through the whole word again for every merge would take many minutes.
    start, counted = time.perf_counter(), []
    tokenizer = Tokenizer.train([LETTERS], 4096, lambda: counted.append(0))
    ids = tokenizer.encode(LETTERS)
    assert time.perf_counter() - start < 60
    assert len(counted) == 4096 - 261
    assert tokenizer.decode(ids) == LETTERS
    tokenizer.save(tmp_path / "tokenizer.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(LETTERS).ids == ids


def test_training_gives_the_same_whatever_the_order_of_the_texts():
    forwards, backwards = Tokenizer.train(TRAINING_TEXT, 400), Tokenizer.train(TRAINING_TEXT[::-1], 400)
    assert forwards.merges == backwards.merges


def test_training_is_the_same_in_every_process():
    program = (
        f"from gptcore.tokenizer import Tokenizer; print(Tokenizer.train({ascii(TRAINING_TEXT)}, 400).fingerprint)"
    )
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert fingerprints == {Tokenizer.train(TRAINING_TEXT, 400).fingerprint}


def test_vocabulary_has_the_size_asked_for_where_the_text_allows_it():
    assert Tokenizer.train(TRAINING_TEXT, 300).vocabulary_size == 300
    # Five merges are all there are, see above: 256 bytes, 5 merges, 5 special tokens.
    assert Tokenizer.train(["low low low lower"], 300).vocabulary_size == 266
    assert Tokenizer.train([], 300).vocabulary_size == 261


def test_a_vocabulary_too_small_for_bytes_and_special_tokens_is_refused():
    assert Tokenizer.train(TRAINING_TEXT, 261).merges == []
    with pytest.raises(ValueError, match="needs at least 261 ids, got 260"):
        Tokenizer.train(TRAINING_TEXT, 260)


# --- Text to ids and back ------------------------------------------------------------------------


def test_without_merges_ids_are_the_bytes():
    assert Tokenizer([]).encode("Aé中") == [0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD]


def plain_ids(tokenizer, word):
    """Encoding in the plainest way: of all pairs that a merge knows, that of the first merge, everywhere; and again."""
    ids = list(word.encode())
    while known := set(tokenizer.merges) & set(pairwise(ids)):
        pair = min(known, key=tokenizer.merges.index)
        joined = tokenizer.token_bytes[pair[0]] + tokenizer.token_bytes[pair[1]]
        ids = merge(ids, pair, tokenizer.token_bytes.index(joined))
    return ids


@many_examples
@given(text=texts)
def test_ids_equal_those_of_looking_through_the_word_again_for_every_merge(tokenizer, text):
    words = split_words(normalise(text))
    assert tokenizer.encode(text) == [token for word in words for token in plain_ids(tokenizer, word)]


@st.composite
def merge_lists(draw):
    """Any merges of a few letters: in any order, and with several ways to one token."""
    tokens, merges = [b"a", b"b"], {}
    for _ in range(draw(st.integers(1, 10))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if len(left + right) < 9:
            merges[left, right] = None
            tokens.append(left + right)
    numbers = {bytes([byte]): byte for byte in range(256)}
    for left, right in merges:
        numbers.setdefault(left + right, len(numbers))
    return [(numbers[left], numbers[right]) for left, right in merges]


@many_examples
@given(merge_lists(), st.text("ab", max_size=60))
def test_ids_are_right_for_any_merges_too(merges, word):
    tokenizer = Tokenizer(merges)
    assert tokenizer.encode(word) == plain_ids(tokenizer, word)


@many_examples
@given(text=texts)
def test_any_text_comes_back_from_its_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normalise(text)
    assert tokenizer.decode_bytes(ids) == normalise(text).encode()


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("Bogota\u0301", "Bogot\u00e1"),  # a letter with an accent after it
        ("Ｗｈａｔ　ｉｓ １０－３＝？", "What is 10-3=？"),  # a Chinese mark stays
        ("what’s, ‘St. John’s’, Paʻanga", "what's, 'St. John's', Pa'anga"),
        ("你好！秘鲁，对吗？", "你好！秘鲁，对吗？"),
        ("ﬁ ② ™", "ﬁ ② ™"),  # compatible in Unicode, but not the same
    ],
)
def test_what_looks_the_same_is_one_text(tokenizer, typed, plain):
    assert normalise(typed) == plain
    assert tokenizer.encode(typed) == tokenizer.encode(plain)


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("WHAT IS THE CAPITAL OF PERU?", "what IS THE capital OF peru?"),  # four capitals and more
        ("USA, NaCl, DPRK, abcDEFGh", "USA, NaCl, dprk, abcdefgh"),
        ("CÔTE D'IVOIRE, TÜRKIYE, ÅLAND", "côte D'ivoire, türkiye, åland"),
        ("ＰＥＲＵ", "peru"),
        ("法国", "法国"),
        ("法國 ROME", "法国 rome"),
        ("Россия, РОССИЯ", "Россия, РОССИЯ"),  # other scripts are left alone
    ],
)
def test_folding_reads_shouted_words_and_given_characters_as_others(folding, typed, plain):
    assert folding.normalised(typed) == plain
    assert folding.encode(typed) == folding.encode(plain)
    assert folding.decode(folding.encode(typed)) == plain


def test_without_folding_capitals_and_characters_stay(tokenizer):
    assert tokenizer.normalised("ROME 法國") == "ROME 法國"


def test_what_is_folded_is_learned_folded():
    assert (
        Tokenizer.train(["ROME ROME 國國"], 300, folding={"國": "国"}).merges
        == Tokenizer.train(["rome rome 国国"], 300).merges
    )


@many_examples
@given(text=texts | st.text(alphabet="ABCXYZÀÞß abc國法", max_size=12))
def test_the_tokenizers_library_folds_alike(folding, folding_reference, text):
    assert folding_reference.encode(text).ids == folding.encode(text)
    assert folding.normalised(folding.normalised(text)) == folding.normalised(text)


def test_the_courses_folding_leaves_what_the_atlas_writes_as_it_is():
    """A character that simplified texts hold themselves must not be taken for a traditional one."""
    read = Tokenizer([], simplified_characters())
    assert read.normalised("祕魯的首都是哪裡？") == "秘鲁的首都是哪里？"
    for relation in wordings()["relations"].values():
        for template in (*relation["zh"]["questions"], *relation["zh"]["statements"]):
            assert read.normalised(template) == template
    for entity in entities():
        assert read.normalised(entity.names["zh"]) == entity.names["zh"]


@many_examples
@given(text=texts)
def test_normalising_again_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)
    assert unicodedata.is_normalized("NFC", normalise(text))


@pytest.mark.parametrize("text", SAMPLES)
def test_sample_texts_come_back_from_their_ids(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == normalise(text)


@many_examples
@given(ids=st.lists(st.integers(0, 419), max_size=20))
def test_any_ids_can_be_decoded(tokenizer, ids):
    specials = set(tokenizer.special.values())
    expected = b"".join(tokenizer.token_bytes[token] for token in ids if token not in specials)
    assert tokenizer.decode_bytes(ids) == expected
    assert tokenizer.decode(ids) == expected.decode("utf-8", errors="replace")


def test_bytes_that_are_no_utf8_become_the_replacement_sign():
    assert Tokenizer([]).decode([0x41, 0xE4, 0xB8, 0x42]) == "A\ufffdB"


@many_examples
@given(text=texts)
def test_special_tokens_never_come_out_of_what_a_user_writes(tokenizer, text):
    first_special = min(tokenizer.special.values())
    assert all(token < first_special for token in tokenizer.encode(text))


@pytest.mark.parametrize("spelling", SPECIAL_TOKENS)
def test_a_special_token_spelled_out_is_ordinary_text(tokenizer, spelling):
    ids = tokenizer.encode(f"a{spelling}b")
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == f"a{spelling}b"


def test_special_tokens_have_the_last_ids_and_no_text(tokenizer):
    assert list(tokenizer.special.items()) == [
        ("<|endoftext|>", 415),
        ("<|user|>", 416),
        ("<|assistant|>", 417),
        ("<|end|>", 418),
        ("<|pad|>", 419),
    ]
    assert tokenizer.vocabulary_size == 420
    assert tokenizer.decode([72, 418, 105, 419]) == "Hi"


def test_token_text_shows_a_token_or_the_name_of_a_special_one():
    tokenizer = Tokenizer([(72, 105)])
    assert [tokenizer.token_text(token) for token in (72, 256, 0xFF)] == ["H", "Hi", "\ufffd"]
    assert [tokenizer.token_text(token) for token in range(257, 262)] == list(SPECIAL_TOKENS)


def test_ids_handed_out_are_the_callers_own(tokenizer):
    expected = [*tokenizer.encode("capital")]
    tokenizer.encode("capital").append(7)
    assert tokenizer.encode("capital") == expected


@pytest.mark.parametrize("token", [-1, 420, 10**9])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, token):
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(ValueError, match=f"token id {token} is outside the vocabulary of 420"):
            decode([72, token])
    with pytest.raises(ValueError, match=f"token id {token} is outside"):
        tokenizer.token_text(token)


@pytest.mark.parametrize("text", ["\ud800", "good \udfff text", "中\ud83d"])
def test_a_lone_surrogate_is_refused(tokenizer, text):
    with pytest.raises(ValueError, match="the text is no valid Unicode"):
        tokenizer.encode(text)


# --- The `tokenizers` library reads our file and agrees ------------------------------------------


@pytest.mark.parametrize("text", SAMPLES)
def test_the_tokenizers_library_gives_the_same_ids_for_sample_texts(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert reference.encode(text).ids == ids
    assert reference.decode(ids) == normalise(text)


@pytest.mark.parametrize("text", SAMPLES)
def test_the_tokenizers_library_cuts_the_same_words(reference, text):
    # Their pieces are spelled byte by byte; where they begin and end counts characters.
    pieces = [text[start:end] for _, (start, end) in reference.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == split_words(text)


@many_examples
@given(text=texts)
def test_the_tokenizers_library_gives_the_same_ids_for_any_text(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert reference.encode(text).ids == ids
    assert reference.decode(ids) == normalise(text)


def test_the_tokenizers_library_knows_our_special_tokens(tokenizer, reference):
    assert reference.get_vocab_size() == 420
    assert {token: reference.token_to_id(token) for token in SPECIAL_TOKENS} == tokenizer.special
    reference.encode_special_tokens = False
    try:
        # Where a program, not a user, writes the name, the library gives the special token.
        assert reference.encode("Hi<|end|>").ids == [*tokenizer.encode("Hi"), tokenizer.special["<|end|>"]]
    finally:
        reference.encode_special_tokens = True
    assert reference.decode([*tokenizer.encode("Hi"), tokenizer.special["<|end|>"]]) == "Hi"


# --- Saving and loading --------------------------------------------------------------------------


def test_a_saved_tokenizer_loads_as_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.merges == tokenizer.merges
    assert loaded.special == tokenizer.special
    assert loaded.fingerprint == tokenizer.fingerprint
    for text in SAMPLES:
        assert loaded.encode(text) == tokenizer.encode(text)


def test_a_folding_tokenizer_is_saved_with_what_it_folds(folding, tmp_path):
    folding.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.folding == folding.folding == {"國": "国"}
    assert loaded.fingerprint == folding.fingerprint != Tokenizer(folding.merges).fingerprint
    assert Tokenizer(folding.merges, {}).fingerprint not in (folding.fingerprint, Tokenizer(folding.merges).fingerprint)


def test_fingerprints_differ_for_different_merges_and_agree_for_equal_ones(tokenizer):
    merges = tokenizer.merges
    others = [[], merges[:-1], [merges[1], merges[0], *merges[2:]], [*merges, (1, 2)], [(1, 2), *merges[1:]]]
    prints = {Tokenizer(other).fingerprint for other in others} | {tokenizer.fingerprint}
    assert len(prints) == len(others) + 1
    assert Tokenizer([list(pair) for pair in merges]).fingerprint == tokenizer.fingerprint


def changed(text, change):
    """The file after a change to its content; written as ours is, so that nothing else differs."""
    content = json.loads(text)
    change(content)
    return json.dumps(content, ensure_ascii=False)


DAMAGE = {
    "empty": lambda _: "",
    "not JSON": lambda _: "a tokenizer",
    "half a file": lambda text: text[: len(text) // 2],
    "a list": lambda _: "[]",
    "a number": lambda _: "5",
    "nothing in it": lambda _: "{}",
    "no model": lambda text: changed(text, lambda content: content.update(model=None)),
    "no merges": lambda text: changed(text, lambda content: content["model"].pop("merges")),
    "no vocabulary": lambda text: changed(text, lambda content: content["model"].update(vocab={}, merges=[])),
    "merges as text": lambda text: changed(text, lambda content: content["model"].update(merges=["a b"])),
    "merges of three": lambda text: changed(text, lambda content: content["model"].update(merges=[["a", "b", "c"]])),
    "unknown tokens": lambda text: changed(text, lambda content: content["model"]["merges"].append(["?!", "!?"])),
    "ids that are words": lambda text: changed(
        text, lambda content: content["model"]["vocab"].update(T="one", h="two")
    ),
    "swapped ids": lambda text: changed(text, lambda content: content["model"]["vocab"].update(a=98, b=97)),
    "another special token": lambda text: changed(
        text, lambda content: content["added_tokens"][0].update(content="<s>")
    ),
    "a special token less": lambda text: changed(text, lambda content: content["added_tokens"].pop()),
    "another pattern": lambda text: changed(text, lambda content: content.update(pre_tokenizer=None)),
    "another program's": lambda _: tokenizers.Tokenizer(tokenizers.models.BPE()).to_str(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_broken_or_from_elsewhere_is_refused(tokenizer, tmp_path, damage):
    text = tokenizer.to_json()
    assert Tokenizer.from_json(changed(text, lambda content: content)).merges == tokenizer.merges
    path = tmp_path / "tokenizer.json"
    path.write_text(damage(text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"this is no gptcore tokenizer|was not written by gptcore"):
        Tokenizer.load(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(ValueError, match="invalid start byte|gptcore"):
        Tokenizer.load(path)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "nowhere.json")
