"""Data of the reader's own: what is held out, what each stage gets, and the whole way from files to an aligned model."""

import gzip
import json
import random
from dataclasses import replace

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_chain import StopAt

from gptcore import own_sizes
from gptcore.__main__ import main
from gptcore.chain import Chain, evaluate_folder
from gptcore.checkpoint import load_model, load_stage
from gptcore.files import ASSETS
from gptcore.lora import rank_of
from gptcore.own_curriculum import OwnCurriculum, curriculum_of
from gptcore.own_data import read_comparisons, read_conversations
from gptcore.own_sizes import Amounts, Wishes, own_recipe, vocabulary_size
from gptcore.own_sources import Divided, Sources
from gptcore.parallel import rows_of_parts
from gptcore.pieces import divide, pieces_of, texts_of
from gptcore.published import write_transformers
from gptcore.reward import RewardModel
from gptcore.tokenizer import ASSISTANT, SPECIAL_TOKENS
from gptcore.training import Trainer

MUSEUM = ASSETS / "museum"
FEW = Wishes(steps=2, finetuning_steps=2, iterations=1, context=128, vocabulary=400)
LONG = replace(FEW, context=256)
VOTES = 30


@pytest.fixture
def sources(tmp_path):
    """A part of the museum, so small that a chain takes seconds."""
    files = {}
    for name, count in (("conversations", 30), ("comparisons", VOTES)):
        files[name] = tmp_path / f"{name}.jsonl"
        lines = (MUSEUM / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        files[name].write_text("".join(lines[:count]), encoding="utf-8")
    files["text"] = tmp_path / "text.txt"
    files["text"].write_text((MUSEUM / "text.txt").read_text(encoding="utf-8")[:9000], encoding="utf-8")
    return files


def options(sources, out, *more):
    given = [word for name, path in sources.items() for word in (f"--{name}", str(path))]
    few = ["--steps", "2", "--finetuning-steps", "2", "--iterations", "1", "--context", "128", "--vocabulary", "400"]
    return ["gptcore", "train", *given, *few, "--out", str(out), *more]


def said(monkeypatch, capsys, arguments):
    """What the command line prints, and with what it ends."""
    monkeypatch.setattr("sys.argv", arguments)
    end = None
    try:
        main()
    except SystemExit as error:
        end = error.code
    return capsys.readouterr(), end


# --- Pieces --------------------------------------------------------------------------------------


@given(st.text(alphabet="ab。. \n", max_size=200), st.integers(5, 40))
def test_pieces_hold_the_whole_text_in_its_order_and_none_is_too_long(text, length):
    pieces = pieces_of(text, length)
    assert all(0 < len(piece) <= length for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_text_is_cut_after_paragraphs_where_they_are_short_enough():
    assert pieces_of("one two\n\nthree four\n\nfive", 22) == ["one two\n\nthree four", "five"]
    assert pieces_of("First one. Second one. Third.", 12) == ["First one.", "Second one.", "Third."]
    assert pieces_of("第一句。第二句。", 5) == ["第一句。", "第二句。"]


@given(st.integers(0, 120))
def test_a_tenth_is_held_out_and_nothing_is_in_both_parts(count):
    seen, held_out = divide(range(count), "x")
    assert len(held_out) == count // 10
    assert sorted([*seen, *held_out]) == list(range(count))
    assert seen == sorted(seen)


def test_a_folder_gives_its_texts_in_the_order_of_their_names(tmp_path):
    for name, text in (("b.md", "second"), ("a.txt", "first"), ("c.csv", "not a text")):
        (tmp_path / name).write_text(text)
    assert texts_of(tmp_path) == ["first", "second"]
    (tmp_path / "only").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no file that ends in \.txt or \.md"):
        texts_of(tmp_path / "only")


# --- Sources and sizes ---------------------------------------------------------------------------


def test_no_question_with_votes_is_in_two_of_the_three_parts(sources):
    read = Divided(Sources(**sources), skip_bad=False)
    parts = [read.seen.votes, read.seen.second_votes, read.held_out.votes]
    questions = [{vote.question for vote in part} for part in parts]
    assert sum(map(len, parts)) == VOTES
    assert not questions[0] & questions[1] | questions[0] & questions[2] | questions[1] & questions[2]
    assert len(parts[0]) > len(parts[1]) > len(parts[2]) > 0
    assert set(read.seen.prompts) == questions[0] | questions[1]
    assert set(read.held_out.prompts) == questions[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conversations": "c"}, "needs a text"),
        ({"text": "t", "prompts": "p"}, "needs --comparisons"),
        ({"text": "t", "comparisons": "v"}, "only a model that answers"),
    ],
)
def test_data_that_lead_nowhere_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Sources(**given)


def test_the_chain_goes_as_far_as_the_data_reach(sources):
    reached = []
    given = {"text": sources["text"]}
    for name in ("conversations", "comparisons"):
        reached.append(OwnCurriculum(Sources(**given), wishes=FEW).stages)
        given[name] = sources[name]
    reached.append(OwnCurriculum(Sources(**given), "grpo", wishes=FEW).stages)
    assert reached == [("base",), ("base", "sft"), ("base", "sft", "reward", "grpo", "second_reward")]


def test_steps_follow_from_the_data_up_to_the_most_of_a_size_and_wishes_stand():
    shape = own_sizes.SIZES["minutes"].decoder
    row = 256 * 3  # bytes
    # 20 passes over 40 rows are 800 rows: in batches of two 400 steps. Over 160 rows they last for 800 steps of four.
    for rows_of_text, batch, steps in ((40, 2, 400), (160, 4, 800), (10**6, 8, 800)):
        recipe = own_recipe(Amounts(row * rows_of_text, 0, 0), "minutes", Wishes(), shape, published=False)
        assert (recipe.batch_size, recipe.pretraining.steps, recipe.finetuning.steps) == (batch, steps, 0)
    # 16 passes over conversations of 1,000 rows, 16,000 rows: 1,600 steps of ten, of which there are eight at most.
    recipe = own_recipe(Amounts(0, row * 1000, 0), "minutes", Wishes(), shape, published=True)
    assert (recipe.batch_size, recipe.finetuning.steps) == (8, 1600)
    assert own_recipe(Amounts(1, 1, 1), "minutes", FEW, shape, False).pretraining.steps == 2
    assert vocabulary_size(100_000, "minutes", Wishes()) == 1024
    assert vocabulary_size(10**9, "minutes", Wishes()) == 4096
    assert vocabulary_size(1, "minutes", FEW) == 400


def test_numbers_for_data_of_ones_own_mean_nothing_to_the_atlas():
    with pytest.raises(ValueError, match="give --text or --base"):
        curriculum_of({"preset": "llama", "steps": 3})
    with pytest.raises(ValueError, match="give --text or --base"):
        curriculum_of({"preset": "llama", "skip_bad": True})


def test_the_museum_can_be_used_whole():
    conversations = read_conversations(MUSEUM / "conversations.jsonl")
    comparisons = read_comparisons(MUSEUM / "comparisons.jsonl")
    assert not conversations.problems
    assert not comparisons.problems
    assert len(conversations.items) >= 200
    assert len(comparisons.items) >= 190
    assert {vote.voter for vote in comparisons.items} == {"anna", "ben", "chen"}
    for language in (str.isascii, lambda text: not text.isascii()):
        assert sum(language(talk.turns[0][0]) for talk in conversations.items) > 60


# --- The whole way -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ppo", "grpo", "dpo"])
def test_every_stage_is_trained_scored_and_reported(sources, tmp_path, method):
    run = Chain(tmp_path / "out", curriculum=OwnCurriculum(Sources(**sources), method, wishes=FEW), progress=False)
    report = run.run()
    assert report["models"] == ["base", "sft", "reward", method, "second_reward"]
    expected = {"base_bits_per_byte", "sft_perplexity", "sft_bleu", "reward_vote_accuracy", f"{method}_kl"}
    expected |= {f"{method}_win_rate_{judge}" for judge in ("reward", "second_reward")}
    assert expected <= report["scores"].keys()
    assert all({"prompt", "sft", method} == sample.keys() for sample in report["samples"])
    sft, tokenizer = load_stage("sft", tmp_path / "out")
    for judge in ("reward", "second_reward"):  # the second one is trained when the policy's reference has been frozen
        trunk = load_model(tmp_path / "out" / f"{judge}.safetensors", tokenizer)[0].trunk
        same = [torch.equal(*each) for each in zip(trunk.layers.parameters(), sft.layers.parameters(), strict=True)]
        assert not any(same), judge
    assert evaluate_folder(tmp_path / "out")["scores"] == report["scores"]
    again = Chain(tmp_path / "out", curriculum=OwnCurriculum(Sources(**sources), method, wishes=FEW), progress=False)
    assert again.run(resume=True)["scores"] == report["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "grpo", "dpo"])
def test_more_votes_alone_teach_a_model_of_an_earlier_run(sources, tmp_path, method):
    comparisons = sources.pop("comparisons")
    Chain(tmp_path / "talks", 0, OwnCurriculum(Sources(**sources), wishes=FEW), False).run()
    votes = Sources(comparisons=comparisons, base=tmp_path / "talks")
    curriculum = OwnCurriculum(votes, method, wishes=Wishes(iterations=1))
    report = Chain(tmp_path / "votes", 0, curriculum, False).run()
    assert {"reward_vote_accuracy", f"{method}_kl"} <= report["scores"].keys()
    before, after = (load_stage("sft", tmp_path / name)[0].state_dict() for name in ("talks", "votes"))
    assert all(torch.equal(before[name], after[name]) for name in before), "the fine-tuned model is the one of before"


def random_base(folder, family):
    """A small model of transformers with random weights, and a tokenizer of its own."""
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator([(MUSEUM / "text.txt").read_text(encoding="utf-8")], 500, special_tokens=["<|eot|>"])
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    if family == "gpt2":
        shape = {"n_positions": 160, "n_embd": 32, "n_layer": 2, "n_head": 2}
        config = transformers.GPT2Config(vocab_size=500, eos_token_id=0, **shape)
        model = transformers.GPT2LMHeadModel(config)
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.LlamaConfig(vocab_size=500, num_key_value_heads=1, eos_token_id=0, **shape)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_published_model_takes_small_steps_whatever_the_method(sources, tmp_path, monkeypatch, method):
    given = Sources(sources["text"], sources["conversations"], sources["comparisons"])
    curriculum = OwnCurriculum(replace(given, base=random_base(tmp_path / "published", "llama")), method, wishes=FEW)
    seen = []
    monkeypatch.setattr(Chain, "run_resumably", lambda self, stage, worker, total: seen.append(worker))
    model, tokenizer = curriculum.start(), curriculum.learn_tokenizer(0, lambda: None)
    judge = RewardModel(model, tokenizer.special[ASSISTANT])
    Chain(tmp_path / "out", curriculum=curriculum)._align(method, tokenizer, model, judge)
    config = seen[0].config
    assert (config.policy_rate if method == "ppo" else config.rate) == 1e-5
    assert config.kl_coefficient == 0.1


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_published_base_model_goes_through_every_stage_and_comes_out_as_a_folder_of_transformers(
    sources, tmp_path, family, lora
):
    base = random_base(tmp_path / "published", family)
    few = Wishes(steps=2, finetuning_steps=2, iterations=1, context=128, lora=lora)
    given = Sources(sources["text"], sources["conversations"], sources["comparisons"], base=base)
    report = Chain(tmp_path / "out", curriculum=OwnCurriculum(given, wishes=few), progress=False).run()
    assert report["models"] == ["base", "sft", "reward", "ppo", "second_reward"]
    model, tokenizer = load_stage("ppo", tmp_path / "out")
    write_transformers(tmp_path / "export", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    ids = torch.tensor([tokenizer.encode("Where is the lighthouse lamp?")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.float().cpu()(ids), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["ppo", "grpo", "dpo"])
def test_with_lora_only_adapters_and_reward_heads_learn_in_every_stage(sources, tmp_path, monkeypatch, method):
    base = random_base(tmp_path / "published", "llama")
    wishes = Wishes(context=128, steps=3, finetuning_steps=3, iterations=3, lora=4)
    curriculum = OwnCurriculum(Sources(**sources, base=base), method, wishes=wishes)
    original, watched_stages = Chain.run_resumably, []

    def watched(run, stage, worker, total):
        before = {name: value.clone() for name, value in worker.state()[0].items()}
        original(run, stage, worker, total)
        after = worker.state()[0]
        # Of a head only a reward model's has a bias.
        heads = {name.replace("bias", part) for name in before for part in ("weight", "bias") if "head.bias" in name}
        adapters = {name for name in before if name.endswith((".up", ".down"))}
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert {name for name in adapters if name.endswith(".up")} <= changed <= adapters | heads
        averages = sum(value.numel() for name, value in after.items() if name.endswith(".exp_avg"))
        assert averages == sum(before[name].numel() for name in adapters | heads)
        watched_stages.append(stage)

    monkeypatch.setattr(Chain, "run_resumably", watched)
    Chain(tmp_path / "out", curriculum=curriculum, progress=False).run()
    assert watched_stages == ["pretrain", "sft", "reward", method, "second_reward"]
    model, tokenizer = load_stage("sft", tmp_path / "out")
    chat = [tokenizer.special[token] for token in SPECIAL_TOKENS[:4]]
    for weight in (model.embedding.weight, model.head.weight):
        assert torch.pdist(weight[chat]).min() > 0.5 * weight.std()  # such rows do not learn, and start alike


@pytest.mark.usefixtures("exact_arithmetic")
def test_with_lora_a_run_stopped_in_fine_tuning_ends_as_one_that_was_not(sources, tmp_path, monkeypatch):
    base, text, talk = random_base(tmp_path / "published", "llama"), sources["text"], sources["conversations"]
    wishes = Wishes(context=128, steps=2, finetuning_steps=4, lora=4)

    def run(name, resume=False):
        curriculum = OwnCurriculum(Sources(text, talk, base=base), wishes=wishes)
        Chain(tmp_path / name, curriculum=curriculum, progress=False).run(resume)
        return load_stage("sft", tmp_path / name)[0].state_dict()

    whole = run("whole")
    with monkeypatch.context() as patch:
        StopAt(patch, "sft")
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    assert (tmp_path / "parts" / "state.safetensors").exists()
    parts = run("parts", resume=True)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_with_lora_steps_are_ten_times_as_long_and_a_base_model_is_needed_that_has_such_a_rank(sources, tmp_path):
    shape = own_sizes.SIZES["minutes"].decoder
    for published in (True, False):
        recipe = own_recipe(Amounts(1, 1, 1), "minutes", Wishes(lora=4), shape, published)
        whole = own_recipe(Amounts(1, 1, 1), "minutes", Wishes(), shape, published=True)
        for stage in ("pretraining", "finetuning", "reward"):
            assert getattr(recipe, stage).optimizer == "adamw"
            assert getattr(recipe, stage).matrix_rate == pytest.approx(10 * getattr(whole, stage).matrix_rate)
        assert (recipe.ppo.policy_rate, recipe.ppo.value_rate) == pytest.approx((1e-4, 1e-4))
        assert recipe.lora == 4
    with pytest.raises(ValueError, match="give --base FOLDER with --lora"):
        OwnCurriculum(Sources(**sources), wishes=Wishes(lora=4))
    with pytest.raises(ValueError, match="lora must be at least 1"):
        Wishes(lora=0)
    base = random_base(tmp_path / "published", "llama")
    with pytest.raises(ValueError, match="from 1 to 16, the model's narrowest layer, got 17"):
        OwnCurriculum(Sources(**sources, base=base), wishes=Wishes(lora=17))


def test_the_time_of_a_run_with_lora_is_measured_with_adapters(monkeypatch):
    learned = []
    monkeypatch.setattr(
        own_sizes, "Trainer", lambda model, *rest: learned.append(rank_of(model)) or Trainer(model, *rest)
    )
    shape = replace(own_sizes.SIZES["minutes"].decoder, context_length=16, layers=1, width=32, heads=2)
    for rank in (None, 3):
        recipe = own_recipe(Amounts(1, 0, 0), "minutes", Wishes(lora=rank), shape, published=True)
        own_sizes.expected_seconds(recipe, 40, ("base",))
    assert learned == [None, 3]


# --- The command line ----------------------------------------------------------------------------


def test_one_command_trains_on_ones_own_data_and_says_before_what_it_will_do(sources, tmp_path, monkeypatch, capsys):
    output, end = said(monkeypatch, capsys, options(sources, tmp_path / "out"))
    assert end is None
    for told in ("to learn from:", "27 conversations", "held out:", "400 tokens", "2 steps of pretraining", "about "):
        assert told in output.err
    assert "ppo_win_rate_second_reward" in output.out
    assert "Talk to it:" in output.out
    _, end = said(monkeypatch, capsys, options(sources, tmp_path / "out", "--seed", "1", "--resume"))
    assert "holds a run with seed 0, not 1" in end


def test_the_rank_of_lora_is_said_before_anything_is_trained_and_belongs_to_the_run(
    sources, tmp_path, monkeypatch, capsys
):
    given = {**sources, "base": random_base(tmp_path / "published", "gpt2")}
    del given["comparisons"]
    output, end = said(monkeypatch, capsys, options(given, tmp_path / "out", "--lora", "4"))
    assert end is None
    assert "adapters of rank 4" in output.err
    _, end = said(monkeypatch, capsys, options(given, tmp_path / "out", "--lora", "8", "--resume"))
    assert "holds a run with lora 4, not 8" in end
    assert "--lora 4" in end  # in the line that goes on with it
    _, end = said(monkeypatch, capsys, options(sources, tmp_path / "other", "--lora", "4"))
    assert "give --base FOLDER with --lora" in end
    assert not (tmp_path / "other").exists()


def test_a_batch_may_be_read_in_parts_and_a_run_gone_on_with_in_others(sources, tmp_path, monkeypatch, capsys):
    text = {"text": sources["text"]}
    parts = []
    monkeypatch.setattr(
        "gptcore.loss.rows_of_parts", lambda rows, count: parts.append(count) or rows_of_parts(rows, count)
    )
    _, end = said(monkeypatch, capsys, options(text, tmp_path / "out", "--accumulate", "2"))
    assert end is None
    assert set(parts) == {2}
    (tmp_path / "out" / "base.safetensors").unlink()
    _, end = said(monkeypatch, capsys, options(text, tmp_path / "out", "--accumulate", "1", "--resume"))
    assert end is None
    assert set(parts) == {2}, "one part is the whole batch"
    _, end = said(monkeypatch, capsys, options(text, tmp_path / "new", "--accumulate", "3"))
    assert "of a batch of 2 rows 3 parts cannot be made" in end
    assert not (tmp_path / "new").exists()


def test_bad_records_are_told_with_file_and_number_and_nothing_is_written(sources, tmp_path, monkeypatch, capsys):
    with sources["conversations"].open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "no answer"}]}\n{"messages": 3}\n')
    _, end = said(monkeypatch, capsys, options(sources, tmp_path / "out"))
    assert "31" in end
    assert "is not answered" in end
    assert "32" in end
    assert not (tmp_path / "out").exists()
    output, end = said(monkeypatch, capsys, options(sources, tmp_path / "out", "--skip-bad"))
    assert end is None
    assert "left out:      2 records" in output.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--vocabulary", "260"], "vocabulary must be at least 261"),
        (["--context", "8"], "no conversation fits into 8 tokens: give a larger --context"),
        (["--context", "9000"], "give a longer text or a smaller context length"),
        (["--comparisons", "ONE", "--context", "256"], "each judge needs votes on at least 2 questions that fit"),
        (["--comparisons", "TWO"], "each judge needs votes on at least 2 questions that fit"),  # one of them fits
        (["--comparisons", "SIX"], "each judge needs votes on at least 2 questions that fit"),  # the second gets one
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_written(
    sources, tmp_path, monkeypatch, capsys, given, message
):
    lines = sources["comparisons"].read_text(encoding="utf-8").splitlines(keepends=True)  # each another question
    for name, count in (("ONE", 1), ("TWO", 2), ("SIX", 6)):
        (tmp_path / name).write_text("".join(lines[:count]), encoding="utf-8")
    given = [str(tmp_path / word) if word.isupper() else word for word in given]
    monkeypatch.setattr(Chain, "_train", lambda *_: pytest.fail("trained before the data were checked"))
    _, end = said(monkeypatch, capsys, options(sources, tmp_path / "out", *given))
    assert message in end
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("questions", "judges"), [(2, 1), (5, 1), (6, 2)])
def test_a_second_judge_is_made_only_where_it_gets_two_questions(sources, tmp_path, questions, judges):
    lines = sources["comparisons"].read_text(encoding="utf-8").splitlines(keepends=True)
    sources["comparisons"].write_text("".join(lines[:questions]), encoding="utf-8")
    run = Chain(tmp_path / "out", curriculum=OwnCurriculum(Sources(**sources), wishes=LONG), progress=False)
    assert run.run()["models"] == ["base", "sft", "reward", "ppo", *["second_reward"] * (judges - 1)]


def test_bad_records_of_all_sources_are_told_at_once(sources, tmp_path, monkeypatch, capsys):
    for name in ("conversations", "comparisons"):
        with sources[name].open("a", encoding="utf-8") as file:
            file.write("{}\n")
    _, end = said(monkeypatch, capsys, options(sources, tmp_path / "out"))
    assert "2 records cannot be used" in end
    assert "conversations.jsonl, 31" in end
    assert "comparisons.jsonl, 31" in end


def test_a_base_model_keeps_its_context_where_none_is_asked_for(sources, tmp_path):
    Chain(tmp_path / "short", 0, OwnCurriculum(Sources(text=sources["text"]), wishes=FEW), False).run()
    more = Sources(sources["text"], sources["conversations"], base=tmp_path / "short")
    assert FEW.context == OwnCurriculum(more).recipe.decoder.context_length == 128
    with pytest.raises(ValueError, match="reads at most 128 tokens: give --context at most that"):
        _ = OwnCurriculum(more, wishes=Wishes(context=129)).recipe


def test_data_that_changed_are_not_gone_on_with(sources, tmp_path, monkeypatch, capsys):
    said(monkeypatch, capsys, options(sources, tmp_path / "out"))
    lines = sources["comparisons"].read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    sources["comparisons"].write_text("".join(lines), encoding="utf-8")
    _, end = said(monkeypatch, capsys, options(sources, tmp_path / "out", "--resume"))
    assert "has changed since the run" in end


def test_a_gzipped_list_of_another_format_does_as_well(sources, tmp_path, monkeypatch, capsys):
    alpaca = [
        {"instruction": talk.turns[0][0], "input": "", "output": talk.turns[0][1]}
        for talk in read_conversations(sources["conversations"]).items
    ]
    sources["conversations"] = tmp_path / "alpaca.json.gz"
    sources["conversations"].write_bytes(gzip.compress(json.dumps(alpaca).encode()))
    output, end = said(monkeypatch, capsys, options(sources, tmp_path / "out"))
    assert end is None
    assert "27 conversations" in output.err
