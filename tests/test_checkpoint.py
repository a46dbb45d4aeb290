"""What must hold of checkpoints: they come back whole, or the error says what is wrong."""

import json
import sys
from pathlib import Path

import jinja2
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from gptcore import checkpoint
from gptcore.chat_template import decode_answer, encode_conversation, encode_prompt
from gptcore.checkpoint import (
    SHIPPED,
    STAGES,
    CheckpointError,
    find_stage,
    half,
    load_model,
    load_stage,
    load_tensors,
    save_model,
    save_tensors,
)
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.generation import GREEDY, generate
from gptcore.interchange import from_transformers
from gptcore.published import read_transformers, write_transformers
from gptcore.reward import RewardModel
from gptcore.tokenizer import END, PAD, Tokenizer
from gptcore.training import Trainer, TrainingConfig

BYTES = Tokenizer([])
OTHER = Tokenizer([(97, 98)])

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


def tiny_decoder(preset="llama"):
    config = DecoderConfig(
        BYTES.vocabulary_size, 8, layers=1, width=16, heads=4, key_value_heads=2, hidden_width=24, preset=preset
    )
    model = Decoder(config)
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- Tensors -------------------------------------------------------------------------------------


def test_tensors_and_values_come_back_as_they_were(tmp_path):
    tensors = {
        "float": torch.randn(3, 4),
        "half": torch.randn(2).half(),
        "whole": torch.arange(5),
        "yes": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(3, 4).T,  # not contiguous
        "empty": torch.zeros(0, 3),
    }
    values = {"losses": [1.5, 0.1 + 0.2], "name": "密 é", "none": None, "nested": {"a": [1, True]}}
    path = tmp_path / "new" / "folder" / "state.safetensors"
    save_tensors(path, tensors, values)
    found, found_values = load_tensors(path)
    assert found_values == values
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert files_in(tmp_path) == ["state.safetensors"]


def test_tensors_that_share_memory_are_saved_too(tmp_path):
    # As a tied head and embedding do.
    weight = torch.randn(4, 4)
    save_tensors(tmp_path / "x", {"head": weight, "embedding": weight, "part": weight[1]}, {})
    found, _ = load_tensors(tmp_path / "x")
    assert torch.equal(found["head"], weight)
    assert torch.equal(found["embedding"], weight)
    assert torch.equal(found["part"], weight[1])


def test_what_was_loaded_does_not_keep_the_file_open(tmp_path):
    # Windows would not let a run replace its own state; here the tensors would change with the file.
    path, tensors = tmp_path / "state.safetensors", {"a": torch.randn(1000), "b": torch.arange(9)}
    save_tensors(path, tensors, {})
    found, _ = load_tensors(path)
    if sys.platform == "linux":
        assert path.name not in Path("/proc/self/maps").read_text(encoding="utf-8")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(bytes(size))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="shows the mapped files of a process")
def test_no_model_or_run_keeps_the_file_that_it_was_read_from_open(tmp_path):
    tokens = torch.randint(BYTES.vocabulary_size, (2, 9))

    def trainer(steps):
        config = TrainingConfig(steps=steps)
        return Trainer(tiny_decoder(), lambda step: (tokens[:, :-1], tokens[:, 1:]), config)  # noqa: ARG005

    first, second = trainer(2), trainer(4)
    first.run()
    save_tensors(tmp_path / "state.safetensors", *first.state())
    second.load_state(*load_tensors(tmp_path / "state.safetensors"))
    save_model(tmp_path / "own.safetensors", tiny_decoder(), BYTES, {})
    own, _ = load_model(tmp_path / "own.safetensors", BYTES)
    published(LLAMA).save_pretrained(tmp_path / "theirs")
    theirs = read_transformers(tmp_path / "theirs")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    del own, theirs, second


def test_a_new_file_takes_the_place_of_an_old_one(tmp_path):
    for number in (1, 2):
        save_tensors(tmp_path / "x", {"a": torch.tensor(number)}, {"number": number})
    tensors, values = load_tensors(tmp_path / "x")
    assert (tensors["a"].item(), values["number"]) == (2, 2)


def test_the_file_is_plain_safetensors_with_json_in_its_header(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"seed": 3})
    data = (tmp_path / "x").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["values"]) == {"seed": 3}


def test_half_turns_floating_point_to_fp16_and_leaves_the_rest():
    found = half({"a": torch.tensor([1 / 3]), "b": torch.tensor([1 / 3]).bfloat16(), "c": torch.tensor([70_000])})
    assert found["a"].dtype == found["b"].dtype == torch.float16
    assert found["a"].item() == pytest.approx(1 / 3, rel=2**-11)
    assert found["c"].dtype == torch.long
    assert found["c"].item() == 70_000


# --- A disk that is full -------------------------------------------------------------------------


def full_disk(error):
    def save(tensors, path, header):  # noqa: ARG001 (the signature of safetensors)
        with open(path, "wb") as file:
            file.write(b"half of the fi")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), checkpoint.SafetensorError("I/O error")])
def test_a_full_disk_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch, error):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.tensor([1.0])}, {"step": 1})
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", full_disk(error))
    with pytest.raises(OSError, match=r"state\.safetensors could not be written.*free some space"):
        save_tensors(path, {"a": torch.tensor([2.0])}, {"step": 2})
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["state.safetensors"]
    assert load_tensors(path)[1] == {"step": 1}


def test_a_full_disk_leaves_no_file_where_there_was_none(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", full_disk(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="could not be written"):
        save_model(tmp_path / "base.safetensors", tiny_decoder(), BYTES, {})
    assert files_in(tmp_path) == []


def test_an_interrupt_while_writing_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {}, {"step": 1})
    monkeypatch.setattr(checkpoint, "save_file", full_disk(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {}, {"step": 2})
    assert load_tensors(path)[1] == {"step": 1}
    assert files_in(tmp_path) == ["state.safetensors"]


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        save_tensors(tmp_path / "file" / "state", {}, {})


# --- Files that cannot be used -------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors.*gptcore train"):
        load_tensors(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nowhere.safetensors", BYTES)
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path)  # a folder


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.05, 0.5, 0.9999])
def test_a_truncated_file_is_damaged(tmp_path, kept):
    path = tmp_path / "base.safetensors"
    save_model(path, tiny_decoder(), BYTES, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"base\.safetensors is damaged.*train again"):
        load_model(path, BYTES)


def test_a_file_of_something_else_is_damaged_or_foreign(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_model(path, BYTES)
    for header in (None, {"format": "pt"}, {"values": "{}"}):
        save_file({"weight": torch.zeros(2)}, path, header)
        with pytest.raises(CheckpointError, match="not written by gptcore"):
            load_model(path, BYTES)


def test_a_model_of_another_vocabulary_is_refused(tmp_path):
    save_model(tmp_path / "x", tiny_decoder(), BYTES, {})
    with pytest.raises(CheckpointError, match="another vocabulary"):
        load_model(tmp_path / "x", OTHER)


def test_the_state_of_an_unfinished_run_is_no_model(tmp_path):
    save_tensors(tmp_path / "x", {"model.head": torch.zeros(1)}, {"losses": [1.0]})
    with pytest.raises(CheckpointError, match="unfinished run"):
        load_model(tmp_path / "x", BYTES)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "field", "value"])
def test_weights_that_do_not_fit_their_description_are_refused(tmp_path, change):
    save_model(tmp_path / "x", tiny_decoder(), BYTES, {})
    tensors, values = load_tensors(tmp_path / "x")
    if change == "missing":
        del tensors["head.weight"]
    elif change == "extra":
        tensors["more"] = torch.zeros(1)
    elif change == "shape":
        tensors["head.weight"] = tensors["head.weight"][:-1]
    elif change == "field":
        values["config"]["from_the_future"] = 1
    else:
        values["config"]["heads"] = 3
    save_tensors(tmp_path / "x", tensors, values)
    with pytest.raises(CheckpointError, match="does not fit its own description"):
        load_model(tmp_path / "x", BYTES)


def test_every_refusal_is_a_value_error_that_callers_can_catch():
    assert issubclass(CheckpointError, ValueError)


# --- Models --------------------------------------------------------------------------------------


def kinds_of_model():
    for preset in ("llama", "gpt2"):
        yield tiny_decoder(preset)
        reward_model = RewardModel(tiny_decoder(preset), 1)
        nn.init.normal_(reward_model.head.weight, std=0.3)  # at zero all rewards would be equal
        reward_model.mean.fill_(0.5)
        reward_model.deviation.fill_(2.0)
        yield reward_model


def test_a_model_comes_back_in_float32_rounded_to_half_precision_with_its_note(tmp_path):
    note = {"command": "python -m gptcore train", "seed": 3, "scores": {"exact": [0.9, "高"]}}
    for model in kinds_of_model():
        save_model(tmp_path / "x", model, BYTES, note)
        loaded, found_note = load_model(tmp_path / "x", BYTES)
        assert found_note == note
        assert type(loaded) is type(model)
        assert loaded.config == model.config
        assert not loaded.training
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name].cpu(), value.half().float())
        assert all(p.requires_grad for p in loaded.parameters())


def test_a_loaded_model_computes_nearly_what_the_saved_one_did(tmp_path):
    tokens, lengths = torch.randint(BYTES.vocabulary_size, (3, 8)), torch.tensor([8, 3, 5])
    for model in kinds_of_model():
        save_model(tmp_path / "x", model, BYTES, {})
        loaded = load_model(tmp_path / "x", BYTES)[0].cpu()
        with torch.no_grad():
            if isinstance(model, RewardModel):
                expected, found = model(tokens, lengths), loaded(tokens, lengths)
            else:
                expected, found = model(tokens), loaded(tokens)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
        assert expected.std() > 0.02


def test_the_tied_head_of_gpt2_is_still_tied_when_it_comes_back(tmp_path):
    save_model(tmp_path / "x", tiny_decoder("gpt2"), BYTES, {})
    loaded, _ = load_model(tmp_path / "x", BYTES)
    assert loaded.head.weight is loaded.embedding.weight


def test_a_saved_model_takes_two_bytes_a_parameter(tmp_path):
    model = tiny_decoder()
    save_model(tmp_path / "x", model, BYTES, {})
    parameters = sum(p.numel() for p in model.parameters())
    assert 2 * parameters < (tmp_path / "x").stat().st_size < 2 * parameters + 4000


def test_saving_does_not_change_the_model(tmp_path):
    model = tiny_decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(tmp_path / "x", model, BYTES, {})
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


# --- Stages --------------------------------------------------------------------------------------


def fill(folder, stages=STAGES, mark=0):
    folder.mkdir(parents=True, exist_ok=True)
    BYTES.save(folder / "tokenizer.json")
    for stage in stages:
        model = RewardModel(tiny_decoder(), 1) if stage == "reward" else tiny_decoder()
        save_model(folder / f"{stage}.safetensors", model, BYTES, {"mark": mark})
    return folder


def test_each_stage_is_found_in_the_folder_given(tmp_path):
    fill(tmp_path)
    for stage in STAGES:
        assert find_stage(stage, tmp_path) == tmp_path / f"{stage}.safetensors"
        model, tokenizer = load_stage(stage, str(tmp_path))
        assert isinstance(model, RewardModel if stage == "reward" else Decoder)
        assert tokenizer.fingerprint == BYTES.fingerprint
        assert not model.training


@pytest.fixture
def families(tmp_path, monkeypatch):
    """A whole run of the reader's own, and the shipped models."""
    monkeypatch.setattr(checkpoint, "OWN", fill(tmp_path / "own"))
    monkeypatch.setattr(checkpoint, "SHIPPED", fill(tmp_path / "shipped"))
    return tmp_path


def test_the_readers_own_run_comes_before_the_shipped_models_and_that_is_said_once(families, capsys):
    for stage in STAGES:
        assert find_stage(stage) == families / "own" / f"{stage}.safetensors"
    assert isinstance(load_stage("sft")[0], Decoder)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("lacking", ["ppo.safetensors", "tokenizer.json"])
def test_a_run_that_is_not_whole_is_not_mixed_with_the_shipped_models(families, capsys, lacking):
    (families / "own" / lacking).unlink()
    for stage in STAGES:
        assert find_stage(stage) == families / "shipped" / f"{stage}.safetensors"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"lacks {lacking}" in said
    assert "--resume" in said


def test_without_a_run_of_ones_own_nothing_is_said(families, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "OWN", families / "nothing")
    assert find_stage("ppo") == families / "shipped" / "ppo.safetensors"
    assert capsys.readouterr().err == ""


def test_an_unknown_stage_is_refused_with_the_names_of_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'rlhf'.*base.*sft.*reward.*ppo"):
        load_stage("rlhf", fill(tmp_path))


def test_a_stage_that_was_not_trained_yet_is_named_with_the_places_looked_at(tmp_path, monkeypatch):
    fill(tmp_path / "here", ["base"])
    with pytest.raises(FileNotFoundError, match=r"no ppo model in .*here.*gptcore train"):
        load_stage("ppo", tmp_path / "here")
    monkeypatch.setattr(checkpoint, "OWN", tmp_path / "own")
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(FileNotFoundError, match=r"no base model in .*shipped"):
        find_stage("base")


def test_a_stage_beside_a_tokenizer_of_another_run_is_refused(tmp_path):
    fill(tmp_path)
    OTHER.save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="another vocabulary"):
        load_stage("base", tmp_path)


# --- The transformers library --------------------------------------------------------------------

PUBLISHED = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=2, n_head=4)
    ),
    "llama, grouped queries, tied head": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            max_position_embeddings=32,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=5000.0,
            tie_word_embeddings=True,
        )
    ),
    "llama 3, stretched context": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            max_position_embeddings=64,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            rope_scaling={
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 2.0,
                "original_max_position_embeddings": 16,
            },
            tie_word_embeddings=True,
        )
    ),
    "llama, heads of their own size, biases": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            max_position_embeddings=32,
            hidden_size=20,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            attention_bias=True,
            tie_word_embeddings=False,
        )
    ),
    "llama, head of its own": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=False,
        )
    ),
}


def published(name):
    """A small model as others would publish it, every weight random."""
    torch.manual_seed(0)
    model = PUBLISHED[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_gives_the_same_logits_in_our_decoder(tmp_path, name):
    theirs = published(name)
    theirs.save_pretrained(tmp_path)
    ours = read_transformers(tmp_path)
    tokens = torch.randint(61, (2, 23))  # longer than the context before it was stretched
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
    # A tied head stays tied: training must not pull it from the embedding, nor count it twice.
    assert (ours.head.weight is ours.embedding.weight) == theirs.config.tie_word_embeddings
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_model_in_several_files_and_half_precision_is_read(tmp_path):
    theirs = published("llama, grouped queries, tied head").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = read_transformers(tmp_path)
    assert ours.embedding.weight.dtype == torch.float32
    assert torch.equal(ours.embedding.weight, theirs.get_input_embeddings().weight.float())


def test_gpt2s_first_published_names_are_read():
    theirs = published("gpt2")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in theirs.transformer.state_dict().items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)  # a buffer that old files hold
    ours = from_transformers(theirs.config.to_dict(), tensors)
    tokens = torch.randint(61, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


LLAMA_3 = {"tied": True, "head_size": 24, "attention_bias": True, "rotary_scaling": (4.0, 1.0, 2.0, 16)}


@pytest.mark.parametrize(("preset", "more"), [("gpt2", {}), ("llama", {}), ("llama", LLAMA_3)])
def test_transformers_loads_what_we_write_and_generates_the_same_tokens(tmp_path, preset, more):
    _, tokenizer = load_stage("base", SHIPPED)
    torch.manual_seed(1)
    shape = {"context_length": 48, "layers": 2, "width": 32, "heads": 2, "preset": preset} | more
    ours = Decoder(DecoderConfig(tokenizer.vocabulary_size, **shape)).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    write_transformers(tmp_path, ours, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "The capital of Peru is Lima. 秘鲁的首都是利马。 <|end|>?"
    ids = tokenizer.encode(text)
    assert reader.decode(ids) == text
    assert reader(text.removesuffix(" <|end|>?"))["input_ids"] == tokenizer.encode(text.removesuffix(" <|end|>?"))
    assert reader.eos_token_id == theirs.config.eos_token_id == tokenizer.special[END]
    answer = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert answer[0, len(ids) :].tolist() == generate(ours, [ids], GREEDY, tokenizer.special[END])[0][:12]
    again = read_transformers(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with the chain's last model, and what it was written from."""
    folder = tmp_path_factory.mktemp("exported")
    model, tokenizer = load_stage("ppo", SHIPPED)
    write_transformers(folder, model, tokenizer)
    return folder, model, tokenizer


def as_messages(question, history):
    roles = ("user", "assistant")
    said = [text for turn in history for text in turn] + [question]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


@pytest.mark.parametrize(
    ("question", "history"),
    [
        ("What is the capital of Peru?", []),
        ("秘鲁的首都是哪里？", [("What is the capital of Peru?", "The capital of Peru is Lima.")]),
        ("And 2 + 2?", [("Hello!", "Hello!"), ("\tTabs\n and  spaces ", " so so\n"), ("é", "")]),
        ("<|user is no mark, {{ braces }} are none", []),
    ],
)
def test_the_exported_chat_template_gives_the_ids_of_our_own(exported, question, history):
    folder, _, tokenizer = exported
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    messages = as_messages(question, history)
    expected = encode_prompt(tokenizer, question, history)
    assert reader.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == expected
    # A whole conversation, as for training: it ends with the answer's end token.
    whole = [*messages, {"role": "assistant", "content": "Lima."}]
    ids, _ = encode_conversation(tokenizer, [*history, (question, "Lima.")])
    assert reader.apply_chat_template(whole)["input_ids"] == ids


@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        ([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}], {}, "no system message"),
        ([{"role": "assistant", "content": "Hello!"}], {}, "the user first"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], {}, "speak in turn"),
        ([{"role": "user", "content": "Hello!<|end|>"}], {}, r"must not contain <\|end\|>"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "must be text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {}, "must be the user's"),
        ([{"role": "user", "content": "a"}], {"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_the_exported_chat_template_refuses_what_our_own_does_not_have(exported, messages, more, message):
    reader = transformers.AutoTokenizer.from_pretrained(exported[0])
    with pytest.raises(jinja2.TemplateError, match=message):
        reader.apply_chat_template(messages, add_generation_prompt=True, **more)


@pytest.mark.slow
def test_an_exported_model_answers_many_prompts_at_once_and_in_a_pipeline_as_our_own(exported):
    folder, model, tokenizer = exported
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert reader.pad_token_id == theirs.config.pad_token_id == tokenizer.special[PAD]
    questions = ["What is the capital of Peru?", "Hello!"]
    batch = reader.apply_chat_template(
        [as_messages(question, []) for question in questions],
        add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    width = batch["input_ids"].shape[1]
    assert batch["input_ids"][1].tolist() == [tokenizer.special[PAD]] * (width - len(prompts[1])) + prompts[1]
    end, expected = tokenizer.special[END], generate(model, prompts, GREEDY, tokenizer.special[END])
    answers = theirs.generate(**batch)[:, width:].tolist()
    assert [answer[: answer.index(end) + 1] for answer in answers] == expected
    pipeline = transformers.pipeline("text-generation", str(folder))
    for question, answer in zip(questions, expected, strict=True):
        said = pipeline(as_messages(question, []))[0]["generated_text"][-1]["content"]
        assert said.strip() == decode_answer(tokenizer, answer)


LLAMA = "llama, head of its own"


def settings_and_weights(name, **changes):
    """config.json and weights of a small published model, with changes."""
    theirs = published(name)
    plain = {"rope_parameters": None, "head_dim": None}
    return theirs.config.to_dict() | plain | changes, dict(theirs.state_dict())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"model_type": "bert"}, "knows gpt2 and llama"),
        ("gpt2", {"model_type": None}, "knows gpt2 and llama"),
        ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function 'gelu'"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention True"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("gpt2", {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "auto_map"),
        ("gpt2", {"n_embd": None}, "lacks n_embd"),
        ("gpt2", {"n_embd": "16"}, "width must be a whole number, got '16'"),
        ("gpt2", {"n_head": 3}, "width 16 is not a multiple of 3 heads"),
        ("gpt2", {"n_positions": 16}, r"transformer.wpe.weight has shape \(32, 16\), not \(16, 16\)"),
        ("gpt2", {"n_inner": 32}, "mlp.c_fc.weight has shape"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (LLAMA, {"attention_bias": True}, "q_proj.bias is missing"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias True"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        (LLAMA, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0}}, "rope_parameters"),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA, {"head_dim": 32}, r"q_proj.weight has shape \(16, 16\), not \(64, 16\)"),
        (LLAMA, {"head_dim": 7}, "an odd number"),
        (LLAMA, {"hidden_size": 32}, "do not fit"),
        (LLAMA, {"num_hidden_layers": 2}, "layers.1.* is missing"),
        (LLAMA, {"num_hidden_layers": 0}, "layers must be at least 1"),
        (LLAMA, {"vocab_size": 60}, "embed_tokens.weight has shape"),
        (LLAMA, {"rms_norm_eps": None, "hidden_size": None}, "lacks hidden_size, rms_norm_eps"),
        (LLAMA, {"rope_theta": 0}, "rotary_base must be above 0"),
    ],
)
def test_a_published_model_that_cannot_be_read_says_why(name, change, message):
    config, tensors = settings_and_weights(name, **change)
    with pytest.raises(CheckpointError, match=message):
        from_transformers(config, tensors)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"lm_head.weight": torch.zeros(61, 16)}, "tie_word_embeddings, but lm_head.weight and .*wte.* differ"),
        ("gpt2", {"lm_head.bias": torch.zeros(61)}, "lm_head.bias has no place"),
        ("gpt2", {"transformer.h.0.attn.c_attn.weight": torch.zeros(16, 64)}, "c_attn.weight has shape"),
        ("gpt2", {"transformer.h.1.mlp.c_fc.bias": None}, "transformer.h.1.mlp.c_fc.bias is missing"),
        ("gpt2", {"transformer.h.0.attn.c_attn.lora_A": torch.zeros(2, 16)}, "lora_A has no place.*adapter.*merged"),
        ("gpt2", {"v_head.summary.weight": torch.zeros(1, 16)}, "v_head.summary.weight has no place"),
        (LLAMA, {"lm_head.weight": None}, "lm_head.weight is missing"),
        (LLAMA, {"score.weight": torch.zeros(2, 16), "lm_head.weight": None}, "lm_head.weight is missing"),
        (LLAMA, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}, "q_proj.bias has no place"),
        (LLAMA, {"model.layers.0.mlp.down_proj.bias": torch.zeros(16)}, "down_proj.bias has no place"),
        (LLAMA, {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, "q_norm.weight has no place"),
        (LLAMA, {f"model.layers.1.{i}": torch.ones(8) for i in range(3)}, "layers.1.0 and 2 more have no place"),
        (LLAMA, {"model.norm.weight": torch.ones(8)}, r"norm.weight has shape \(8,\), not \(16,\)"),
    ],
)
def test_weights_that_are_missing_or_left_over_or_of_another_shape_are_named(name, change, message):
    config, tensors = settings_and_weights(name)
    tensors = {key: tensor for key, tensor in (tensors | change).items() if tensor is not None}
    if name == "gpt2" and "lm_head.weight" not in change:
        del tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=message):
        from_transformers(config, tensors)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("kept", ["embedding", "head"])
def test_of_a_tied_embedding_and_head_one_suffices_and_buffers_of_old_files_do_not_matter(name, kept):
    config, tensors = settings_and_weights(name)
    theirs, old = published(name), {}
    if config["tie_word_embeddings"]:
        embedding = "transformer.wte.weight" if name == "gpt2" else "model.embed_tokens.weight"
        del tensors[embedding if kept == "head" else "lm_head.weight"]
    if name == "gpt2":
        old = {"attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool), "attn.masked_bias": torch.tensor(-1e4)}
        old = {f"transformer.h.0.{key}": tensor for key, tensor in old.items()}
    else:
        config |= {"rope_parameters": theirs.config.rope_parameters, "head_dim": theirs.config.head_dim}
        old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    ours, tokens = from_transformers(config, tensors | old), torch.randint(61, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def quantised(kind):
    """config.json and weights as the usual tools quantise them; and the sentence that refuses them."""
    config, tensors = settings_and_weights(LLAMA)
    name = "model.layers.0.self_attn.q_proj"
    weight = tensors[f"{name}.weight"]
    scale = weight.abs().amax(1)
    whole = (weight / scale[:, None] * 127).round().to(torch.int8)
    if kind == "config":
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    elif kind == "int8":
        tensors |= {f"{name}.weight": whole, f"{name}.SCB": scale}
    elif kind == "int8 without a scale":
        tensors |= {f"{name}.weight": whole}
    elif kind == "nf4":
        tensors |= {f"{name}.weight": whole.view(torch.uint8), f"{name}.weight.absmax": scale}
    elif kind == "gptq":
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.qweight": whole.int(), f"{name}.qzeros": whole.int(), f"{name}.scales": scale.half()}
    elif kind == "fp8":
        fp8 = weight.to(torch.float8_e4m3fn)
        tensors |= {f"{name}.weight": fp8, f"{name}.weight_scale": scale}
    elif kind == "fp8 as bf16":
        tensors |= {f"{name}.weight": weight.bfloat16(), f"{name}.weight_scale": scale}
    return config, tensors


@pytest.mark.parametrize("kind", ["config", "int8", "int8 without a scale", "nf4", "gptq", "fp8", "fp8 as bf16"])
def test_quantised_weights_are_refused_as_such(kind):
    with pytest.raises(CheckpointError, match="quantised"):
        from_transformers(*quantised(kind))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e5m2])
def test_a_checkpoint_of_ours_with_quantised_weights_is_refused(tmp_path, dtype):
    save_model(tmp_path / "x", tiny_decoder(), BYTES, {})
    tensors, values = load_tensors(tmp_path / "x")
    save_tensors(tmp_path / "x", tensors | {"head.weight": tensors["head.weight"].to(dtype)}, values)
    with pytest.raises(CheckpointError, match=r"quantised \(head.weight"):
        load_model(tmp_path / "x", BYTES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_in_every_plain_precision_are_read(tmp_path, dtype):
    theirs = published("gpt2").to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = read_transformers(tmp_path)
    assert torch.equal(ours.embedding.weight.cpu(), theirs.transformer.wte.weight.float())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'vocab_size': 61}", r"config\.json is damaged"),
        ("", r"config\.json is damaged"),
        ("\udcff", r"config\.json is damaged"),
        ("[1]", "must be a JSON object"),
        ("{}", "a model of type None cannot be read"),
        ('{"model_type": "gpt2"}', "lacks vocab_size, n_positions, n_embd, n_layer, n_head"),
    ],
)
def test_a_config_that_is_damaged_or_lacks_a_field_says_so(tmp_path, text, message):
    published("gpt2").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError, match=message):
        read_transformers(tmp_path)


def test_files_of_two_models_in_one_folder_and_an_adapter_are_refused(tmp_path):
    published("gpt2").save_pretrained(tmp_path)
    (tmp_path / "more.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="a second time: keep the files of one model only"):
        read_transformers(tmp_path)
    (tmp_path / "more.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        read_transformers(tmp_path)


def test_a_folder_without_a_model_says_what_it_needs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs config\.json"):
        read_transformers(tmp_path)
    published("gpt2").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="download it again"):
        read_transformers(tmp_path)
