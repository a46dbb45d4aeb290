"""The chain: every stage after the other, from raw text to a model aligned with PPO, with its recipe.

    tokenizer -> pretraining -> fine-tuning -> reward model -> PPO

Each stage leaves its model in the output folder, so that an interrupted run goes on where it was, and
the report says what each stage took and what came of it. Choices of the recipe belong to the validation
entities (EXPERIMENTS.md names what was not chosen there); the scores here are those of the test entities.
"""

import copy
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm.auto import tqdm

from gptcore.checkpoint import STAGES, load_model, load_tensors, save_model, save_tensors
from gptcore.checks import numbers, whole_numbers
from gptcore.corpus import (
    LANGUAGES,
    Prompt,
    fact_prompts,
    pretraining_documents,
    read_text,
    translate_prompts,
    with_leading_space,
)
from gptcore.decoder import Decoder, DecoderConfig
from gptcore.evaluation import bits_per_byte, bleu, exact, gold_score, judge, share, units
from gptcore.files import write_whole
from gptcore.finetuning import PromptSource, decode_answer, demonstrations, encode_prompt, introduce_chat_tokens, pack
from gptcore.generation import GREEDY, SamplingConfig, generate
from gptcore.machine import choose_device, cores, describe_machine, peak_memory_mb
from gptcore.parallel import average, leave_processes, processes, rank, wait_for_all
from gptcore.ppo import PPO, Diagnostics, PPOConfig, kl_of_answers
from gptcore.reward import BallotBatches, RewardModel, collect_ballots, normalise, pair_accuracy, replayed_reward_loss
from gptcore.runs import MACHINE, read_report, require_models, resume_line
from gptcore.tokenizer import ASSISTANT, DEFAULT_VOCABULARY_SIZE, END, END_OF_TEXT, Tokenizer
from gptcore.training import StepReport, Trainer, TrainingConfig, generator_for, sample_windows

# --- The recipe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Every number of the chain."""

    decoder: DecoderConfig = DecoderConfig(vocabulary_size=DEFAULT_VOCABULARY_SIZE)
    """Shape of the model; vocabulary size and separator are replaced by the trained tokenizer's."""
    batch_size: int = 16
    """Windows in a batch of text; 2,048 tokens, enough for the matrix products to be efficient."""
    pretraining: TrainingConfig = TrainingConfig(steps=560)
    """Pretraining; after it the model knows nearly every fact in the words of the texts."""
    finetuning: TrainingConfig = TrainingConfig(
        steps=1400, matrix_rate=0.006, embedding_rate=0.0004, head_rate=0.0004, scalar_rate=0.0004
    )
    """Fine-tuning; slow embeddings and head, or names that no conversation holds are forgotten."""
    replayed: float = 0.6
    """Share of pretraining documents among the conversations of fine-tuning, against forgetting."""
    ballots: int = 4000
    """Prompts on whose answers is voted, about six comparisons each."""
    ballot_batch_size: int = 8
    """Ballots in a batch, about four answers each."""
    reward_epochs: int = 1
    """Passes over the ballots; more, and the reward model learns the votes' noise by heart."""
    reward: TrainingConfig = TrainingConfig(
        steps=0, matrix_rate=0.002, embedding_rate=0.0003, head_rate=0.003, scalar_rate=0.0003
    )
    """Training of the reward model; the number of steps follows from ballots and epochs."""
    ppo: PPOConfig = PPOConfig()
    """Reinforcement learning."""

    def __post_init__(self) -> None:
        whole_numbers(self, "batch_size", "ballots", "ballot_batch_size", "reward_epochs", at_least=1)
        numbers(self, "replayed", at_least=0, at_most=1)
        if self.ballots < self.ballot_batch_size:
            raise ValueError(f"{self.ballots} ballots are too few for a ballot_batch_size of {self.ballot_batch_size}")


def documents_as_tokens(tokenizer: Tokenizer, documents: Iterable[str], count: int) -> Tensor:
    """Texts one after another, each begun by the end-of-text token, until there are `count` ids."""
    ids: list[int] = []
    for document in documents:
        ids.append(tokenizer.special[END_OF_TEXT])
        ids += tokenizer.encode(with_leading_space(document))
        if len(ids) >= count:
            break
    return torch.tensor(ids[:count], device="cpu")


def train_tokenizer(
    seed: int, vocabulary_size: int = DEFAULT_VOCABULARY_SIZE, after_merge: Callable[[], object] = lambda: None
) -> Tokenizer:
    """The chain's tokenizer: learned from pretraining text and conversations of the atlas."""
    texts = list(islice(pretraining_documents(seed), 10_000))
    for turns in islice(demonstrations(seed), 3_000):
        texts += [text for turn in turns for text in turn]
    return Tokenizer.train(map(with_leading_space, texts), vocabulary_size, after_merge)


def text_batches(stream: tuple[Tensor, Tensor], recipe: Recipe, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Random windows of a stream of ids and targets, batch by number; each of several processes gets its rows.

    Raises:
        ValueError: if there are more processes than rows.
    """
    if processes() > recipe.batch_size:
        raise ValueError(f"a batch of {recipe.batch_size} cannot be shared by {processes()} processes: start fewer")

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        context_length = recipe.decoder.context_length
        batch = sample_windows(*stream, recipe.batch_size, context_length, generator_for(seed, step))
        return tuple(part[rank() :: processes()] for part in batch)

    return batch_at


def finetuning_stream(tokenizer: Tokenizer, recipe: Recipe, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Conversations and replayed documents for that many steps; each is met about twice."""
    count = steps * recipe.batch_size * recipe.decoder.context_length // 2
    documents = pretraining_documents(seed + 1)
    return pack(tokenizer, demonstrations(seed), documents, recipe.replayed, count, seed)


# --- Scores --------------------------------------------------------------------------------------


def ask(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Prompt], sampling: SamplingConfig = GREEDY, seed: int = 0
) -> list[str]:
    """The model's answer to each prompt."""
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in prompts]
    answers = generate(model, prompt_ids, sampling, tokenizer.special[END], generator_for(seed, 3))
    return [decode_answer(tokenizer, ids) for ids in answers]


@cache
def exam(part: str) -> dict[str, list[Prompt]]:
    """The questions behind the scores, the same in every run: each fact once in a seen wording, once in an unseen one.

    Args:
        part: `validation` for choosing, `test` for reporting.

    Returns:
        `known_en`, `known_zh`, `unknown` (half real, half invented), `translation` (both
        directions) and `mixed` (all tasks, for comparing answers drawn at random).
    """
    chance = random.Random(f"exam {part}")
    questions: dict[str, list[Prompt]] = {}

    def one_wording_each(prompts: list[Prompt]) -> list[Prompt]:
        by_fact: dict[tuple[Any, str | None], list[Prompt]] = {}
        for prompt in prompts:
            by_fact.setdefault((prompt.entity, prompt.relation), []).append(prompt)
        return [chance.choice(group) for group in by_fact.values()]

    real, invented, translation = [], [], []
    for language in LANGUAGES:
        known = []
        for which in ("train", part):
            known += one_wording_each(fact_prompts(part, language, which))
            translation += one_wording_each(translate_prompts(part, language, which))
            for prompt in one_wording_each(fact_prompts(f"unknown_{part}", language, which)):
                (real if prompt.entity.facts[prompt.relation][language] else invented).append(prompt)
        questions[f"known_{language}"] = known
    each = min(len(real), len(invented))
    questions["unknown"] = chance.sample(real, each) + chance.sample(invented, each)
    questions["translation"] = translation
    questions["mixed"] = []
    for which in ("train", part):
        source = PromptSource(part, which)
        drawn = [source.draw(chance) for _ in range(400)]
        # Small talk has no entities to hold out: only its unseen wordings count.
        questions["mixed"] += [prompt for prompt in drawn if prompt.entity or which == part]
    return questions


def answer_scores(model: Decoder, tokenizer: Tokenizer, part: str = "test") -> dict[str, list[float]]:
    """Right or wrong, question by question: `heldout_exact_en`, `_zh`, `unknown_honest`, `known_refused`."""
    questions = exam(part)
    scores: dict[str, list[float]] = {"known_refused": []}
    for language in LANGUAGES:
        prompts = questions[f"known_{language}"]
        answers = list(zip(prompts, ask(model, tokenizer, prompts), strict=True))
        scores[f"heldout_exact_{language}"] = [exact(*pair) for pair in answers]
        scores["known_refused"] += [judge(*pair).refused for pair in answers]
    answers = zip(questions["unknown"], ask(model, tokenizer, questions["unknown"]), strict=True)
    scores["unknown_honest"] = [exact(*pair) for pair in answers]
    return scores


def translation_scores(model: Decoder, tokenizer: Tokenizer, part: str = "test") -> tuple[list[float], float]:
    """Whether each held-out sentence is translated exactly, and BLEU over all of them."""
    prompts = exam(part)["translation"]
    answers = ask(model, tokenizer, prompts)
    right = [exact(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    candidates = [units(answer, prompt.language) for prompt, answer in zip(prompts, answers, strict=True)]
    references = [units(prompt.references[0], prompt.language) for prompt in prompts]
    return right, bleu(candidates, references)


def wins(
    model: Decoder, opponent: Decoder, tokenizer: Tokenizer, part: str = "test", seed: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """Both answer held-out prompts at temperature 1; who has the higher gold score?

    Returns:
        for each prompt 1, 0.5 (tie) or 0, and the gold scores of both.
    """
    prompts = exam(part)["mixed"]
    golds = []
    for player, number in ((model, 0), (opponent, 1)):
        answers = ask(player, tokenizer, prompts, SamplingConfig(), 2 * seed + number)
        golds.append([gold_score(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    results = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b in zip(*golds, strict=True)]
    return results, golds[0], golds[1]


def heldout_kl(policy: Decoder, reference: Decoder, tokenizer: Tokenizer, part: str = "test", seed: int = 0) -> float:
    """KL of the policy's answers to held-out prompts, in nats an answer."""
    prompt_ids = [encode_prompt(tokenizer, prompt.question) for prompt in exam(part)["mixed"]]
    answers = generate(policy, prompt_ids, SamplingConfig(), tokenizer.special[END], generator_for(seed, 4))
    return kl_of_answers(policy, reference, prompt_ids, answers)


# --- The run -------------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; what was done is saved."""


@dataclass
class Chain:
    """One run of the chain in one folder."""

    out: Path
    """Where everything is written."""
    seed: int = 0
    """Seed of everything random."""
    text: Path | None = None
    """A UTF-8 file to pretrain on instead of the atlas; the chain then ends with the base model."""
    recipe: Recipe = Recipe()
    """What is done."""
    progress: bool = True
    """Whether progress bars are shown."""
    stop_requested: bool = False
    """Set it to stop after the current step, comparison or exam; a Ctrl-C handler calls `stop`, which is quicker."""
    report: dict[str, Any] = field(default_factory=dict)
    """The report so far; `report.json`."""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"the seed must fit into 64 bits, got {self.seed}")
        self._lock = FileLock(self.out / ".lock")  # let go of when the process ends, however it ends
        self.stepping = False  # whether a step is going on that must end before the state can be saved

    def stop(self) -> None:
        """Stop after the step that is going on; at once where there is none, or if a stop was requested before.

        A Ctrl-C handler calls it: what it raises comes up in whatever the chain is doing.

        Raises:
            Interrupted: to stop at once.
        """
        at_once = self.stop_requested or not self.stepping
        self.stop_requested = True
        if at_once:
            raise Interrupted

    def _stop_if_requested(self) -> None:
        if self.stop_requested:
            raise Interrupted

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Go through all stages that are not done yet and return the report.

        Several processes (see `parallel.join_processes`) share pretraining and fine-tuning; then number 0 goes
        on alone, and the others return what they know.

        Raises:
            FileExistsError: if the folder holds a run and `resume` is not set, or a run is going on in it.
            FileNotFoundError: if there is no such text, or the folder has models whose report is lost.
            ValueError: if it holds a run with another seed, preset or text, or its report is damaged.
            OSError: if the folder cannot be written to.
            Interrupted: if a stop was requested; the state is saved.
        """
        try:
            return self._run(resume)
        finally:
            self._lock.release()

    def _run(self, resume: bool) -> dict[str, Any]:
        alone = rank() == 0
        if alone:
            self._prepare(resume)
            self._tokenizer()
        wait_for_all()
        if not alone:
            self.report = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        tokenizer = self._tokenizer()
        base = self._stage("base", tokenizer, self._pretrain)
        if self.text is None:
            sft = self._stage("sft", tokenizer, self._fine_tune, base)
        leave_processes()
        if not alone:
            return self.report
        if self.text is None:
            reward_model = self._stage("reward", tokenizer, self._train_reward_model, sft)
            ppo = self._stage("ppo", tokenizer, self._reinforce, sft, reward_model)
        if "scores" not in self.report:
            start = time.perf_counter()
            if self.text is None:
                self.score(tokenizer, base, sft, reward_model, ppo)
            else:
                self._score_base(tokenizer, base)
            self.report["stages"]["evaluation"] = {"seconds": round(time.perf_counter() - start, 1)}
            self.report["total_seconds"] = round(sum(stage["seconds"] for stage in self.report["stages"].values()), 1)
            self._write_report()
        return self.report

    # Folder, report, interruption

    def _prepare(self, resume: bool) -> None:
        identity = self._identity()  # nothing is written before the inputs are known to be good
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"{self.out} is a file: choose a folder with --out")
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(f"a run is going on in {self.out}: wait for it, or choose another --out") from None
        started = any((self.out / f"{name}.safetensors").exists() for name in ("base", "state"))
        if started and not resume:
            line = resume_line(self.out, read_report(self.out))
            raise FileExistsError(f"{self.out} already holds a run: go on with `{line}`, or choose another --out")
        machine = describe_machine()
        if started or (resume and (self.out / "report.json").exists()):
            self.report = read_report(self.out)
            self._compare(identity)
            if self.report["text"] != identity["text"]:  # it lies elsewhere now
                self.report["text"] = identity["text"]
                self._write_report()
            if machine != self.report["machine"]:  # from here on the figures depend on another one
                self.report.setdefault("resumed_on", []).append(machine)
            return
        self.report = identity | {"stages": {}, "cores": cores(), "machine": machine}
        self._write_report()

    def _identity(self) -> dict[str, Any]:
        """What tells this run from others; of a text what it says, since its path may be spelled in many ways."""
        path = content = None
        if self.text is not None:
            path, content = str(self.text.absolute()), hashlib.sha256(self._own_text.encode()).hexdigest()
        return {"seed": self.seed, "preset": self.recipe.decoder.preset, "text": path, "text_sha256": content}

    def _compare(self, identity: dict[str, Any]) -> None:
        """Refuse to go on with a run that was begun with something else."""
        go_on = f"go on with `{resume_line(self.out, self.report)}`, or choose another --out"
        for name in ("seed", "preset"):
            if self.report[name] != identity[name]:
                raise ValueError(
                    f"{self.out} holds a run with {name} {self.report[name]!r}, not {identity[name]!r}: {go_on}"
                )
        if self.report.get("text_sha256") != identity["text_sha256"]:
            if self.report["text"] == identity["text"]:
                raise ValueError(
                    f"the text {self.text} has changed since the run in {self.out} began: "
                    "put it back as it was, or choose another --out"
                )
            begun, given = (run["text"] or "the atlas" for run in (self.report, identity))
            raise ValueError(f"{self.out} holds a run on {begun}, not on {given}: {go_on}")

    @cached_property
    def _own_text(self) -> str:
        return read_text(self.text)

    def _write_report(self) -> None:
        if rank() > 0:
            return
        self.report["peak_rss_mb"] = round(max(peak_memory_mb(), self.report.get("peak_rss_mb", 0)), 0)
        write_whole(self.out / "report.json", json.dumps(self.report, indent=1, ensure_ascii=False))

    def _seconds(self, name: str, seconds: float) -> None:
        self.report["stages"][name] = {"seconds": round(seconds, 1)}
        self._write_report()

    def _stage(self, name: str, tokenizer: Tokenizer, train: Callable[..., nn.Module], *models: nn.Module) -> Any:
        """A stage's model: from its file if it is there, else trained, saved and timed."""
        path = self.out / f"{name}.safetensors"
        key = {"base": "pretrain"}.get(name, name)
        if key not in self.report["stages"] or not path.is_file():
            self._start = time.perf_counter()
            self._before = 0.0  # seconds of this stage in earlier, interrupted runs
            model = train(tokenizer, *models)
            if rank() == 0:
                note = {"seed": self.seed, "stage": name, "machine": describe_machine()}
                save_model(path, model, tokenizer, note)
            if name == "base":
                self.report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            self._seconds(key, self._before + time.perf_counter() - self._start)
            if rank() == 0:  # not before the report says that the stage is done: an interruption may come in between
                (self.out / "state.safetensors").unlink(missing_ok=True)
            wait_for_all()
        # What later stages use is what was saved, half precision and all.
        return load_model(path, tokenizer)[0]

    def _run_resumably(self, stage: str, worker: Trainer | PPO, total: int) -> None:
        """Run a loop with a progress bar; go on from a saved state; save one on Ctrl-C and every half minute."""
        path = self.out / "state.safetensors"
        done = 0
        if path.exists():
            tensors, values = load_tensors(path)
            if values["stage"] == stage:
                worker.load_state(tensors, values["state"])
                self._before = values["seconds"]
                done = values["done"]
        bar = tqdm(total=total, initial=done, desc=stage, unit="step", disable=not self.progress or rank() > 0)
        last_save = time.perf_counter()

        def after_step(report: StepReport | Diagnostics) -> None:
            nonlocal last_save
            bar.update()
            if isinstance(report, StepReport):
                bar.set_postfix(loss=f"{report.loss:.2f}")
            else:
                bar.set_postfix(score=f"{report.score:.2f}", kl=f"{report.kl:.1f}")
            # Ctrl-C may reach one process a step before the others: stop together.
            stop = average(torch.tensor(float(self.stop_requested), device=choose_device())) > 0
            if rank() == 0 and (stop or time.perf_counter() - last_save > 30):
                tensors, state = worker.state()
                seconds = self._before + time.perf_counter() - self._start
                save_tensors(path, tensors, {"stage": stage, "state": state, "seconds": seconds, "done": bar.n})
                last_save = time.perf_counter()
            if stop:
                raise Interrupted

        self.stepping = True
        try:
            self._stop_if_requested()  # asked for just before, where Ctrl-C stops at once
            worker.run([after_step])
        finally:
            self.stepping = False
            bar.close()

    # Stages

    def _tokenizer(self) -> Tokenizer:
        path = self.out / "tokenizer.json"
        if "tokenizer" in self.report["stages"] and path.is_file():
            return Tokenizer.load(path)
        start = time.perf_counter()
        # At most so many: a short text allows fewer merges.
        with tqdm(total=DEFAULT_VOCABULARY_SIZE, desc="tokenizer", unit="token", disable=not self.progress) as bar:

            def after_merge() -> None:
                bar.update()
                self._stop_if_requested()

            if self.text is None:
                tokenizer = train_tokenizer(self.seed, after_merge=after_merge)
            else:
                tokenizer = Tokenizer.train([self._own_text], after_merge=after_merge)
            bar.total = (
                tokenizer.vocabulary_size
            )  # fewer where a short text allows no more; bytes and special tokens, too
            bar.update(bar.total - bar.n)
        tokenizer.save(path)
        self._seconds("tokenizer", time.perf_counter() - start)
        return tokenizer

    def _training_text(self, tokenizer: Tokenizer) -> Tensor:
        """Ids to pretrain on; of a text of the reader's own, the last tenth is held out."""
        if self.text is None:
            config = self.recipe.pretraining
            count = config.steps * self.recipe.batch_size * self.recipe.decoder.context_length
            return documents_as_tokens(tokenizer, pretraining_documents(self.seed), count)
        ids = torch.tensor(tokenizer.encode(self._own_text), device="cpu")
        return ids[: len(ids) * 9 // 10]

    def _pretrain(self, tokenizer: Tokenizer) -> Decoder:
        tokens = self._training_text(tokenizer)
        torch.manual_seed(self.seed)
        shape = replace(
            self.recipe.decoder,
            vocabulary_size=tokenizer.vocabulary_size,
            separator=tokenizer.special[END_OF_TEXT],
        )
        model = Decoder(shape).to(choose_device())
        config = replace(self.recipe.pretraining, seed=self.seed)
        trainer = Trainer(model, text_batches((tokens, tokens), self.recipe, self.seed), config)
        self._run_resumably("pretrain", trainer, config.steps)
        return model

    def _fine_tune(self, tokenizer: Tokenizer, base: Decoder) -> Decoder:
        config = replace(self.recipe.finetuning, seed=self.seed)
        stream = finetuning_stream(tokenizer, self.recipe, config.steps, self.seed)
        model = copy.deepcopy(base)
        introduce_chat_tokens(model, tokenizer)
        trainer = Trainer(model, text_batches(stream, self.recipe, self.seed), config)
        self._run_resumably("sft", trainer, config.steps)
        return model

    def _train_reward_model(self, tokenizer: Tokenizer, sft: Decoder) -> RewardModel:
        source = PromptSource("train")
        count = self.recipe.ballots
        collected = collect_ballots(sft, tokenizer, source, count, self.seed)
        ballots = []
        for ballot in tqdm(collected, desc="comparisons", total=count, unit="prompt", disable=not self.progress):
            ballots.append(ballot)
            self._stop_if_requested()  # they are soon collected anew, and come out the same
        batches = BallotBatches(ballots, self.recipe.ballot_batch_size, self.seed)
        replay = self._replay(tokenizer)
        config = replace(self.recipe.reward, steps=batches.per_epoch * self.recipe.reward_epochs, seed=self.seed)
        torch.manual_seed(self.seed)
        model = RewardModel(sft, tokenizer.special[ASSISTANT]).to(sft.device)
        self._run_resumably(
            "reward",
            Trainer(model, lambda step: (batches(step), replay(step)), config, replayed_reward_loss),
            config.steps,
        )
        samples = [ballot.prompt_ids + ballot.answers[0] for ballot in ballots[:1000]]  # the model's own answers
        normalise(model, samples)
        return model

    def _reinforce(self, tokenizer: Tokenizer, sft: Decoder, reward_model: RewardModel) -> Decoder:
        policy = copy.deepcopy(sft)
        config = replace(self.recipe.ppo, seed=self.seed)
        replay = self._replay(tokenizer)
        ppo = PPO(policy, copy.deepcopy(sft), reward_model, tokenizer, PromptSource("train"), config, replay)
        self._run_resumably("ppo", ppo, config.iterations)
        self.report["ppo_history"] = [entry._asdict() for entry in ppo.history]
        return policy.requires_grad_(True)

    def _replay(self, tokenizer: Tokenizer) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Small batches of pretraining text, against forgetting."""
        text = documents_as_tokens(tokenizer, pretraining_documents(self.seed + 2), 200_000)
        return text_batches((text, text), replace(self.recipe, batch_size=4), self.seed)

    # Scores

    def _score_base(self, tokenizer: Tokenizer, base: Decoder) -> None:
        if self.text is None:
            # The same facts in another order and other wordings.
            tokens = documents_as_tokens(tokenizer, pretraining_documents(self.seed + 1_000_000), 40_000).tolist()
        else:
            ids = tokenizer.encode(self._own_text)
            tokens = ids[len(ids) * 9 // 10 :]
        length = len(tokenizer.decode_bytes(tokens))
        self.report["scores"] = {"base_bits_per_byte": round(bits_per_byte(base, tokens, length), 4)}

    def score(self, tokenizer: Tokenizer, base: Decoder, sft: Decoder, reward_model: RewardModel, ppo: Decoder) -> None:
        """Let all models sit their exams, and put scores and intervals into the report."""
        with tqdm(total=6, desc="evaluation", unit="exam", disable=not self.progress) as bar:

            def next_exam() -> None:
                bar.update()
                self._stop_if_requested()

            self._score_base(tokenizer, base)
            next_exam()
            shares: dict[str, Sequence[float]] = {}
            for name, model in (("sft", sft), ("ppo", ppo)):
                shares |= {f"{name}_{key}": values for key, values in answer_scores(model, tokenizer).items()}
                next_exam()
            # What the chain translates with in the end.
            shares["translation_exact"], translation_bleu = translation_scores(ppo, tokenizer)
            next_exam()
            ballots = list(collect_ballots(sft, tokenizer, PromptSource("test"), 300, self.seed + 1_000_000))
            shares["reward_pair_accuracy"] = pair_accuracy(reward_model, tokenizer, ballots)
            next_exam()
            shares["ppo_gold_win_rate"], ppo_gold, sft_gold = wins(ppo, sft, tokenizer, seed=self.seed)
            next_exam()
            kl = heldout_kl(ppo, sft, tokenizer, seed=self.seed)
        scores = self.report["scores"]
        intervals = {}
        for name, values in shares.items():
            result = share(values)
            scores[name] = round(result.value, 4)
            intervals[name] = [round(result.low, 4), round(result.high, 4), result.count]
        scores["bleu_translation"] = round(translation_bleu, 2)
        scores["ppo_kl"] = round(kl, 3)
        scores["sft_gold"] = round(sum(sft_gold) / len(sft_gold), 4)
        scores["ppo_gold"] = round(sum(ppo_gold) / len(ppo_gold), 4)
        self.report["intervals"] = intervals

    def score_anew(self) -> None:
        """Score the models that the folder holds, and put scores and intervals into the report.

        Raises:
            FileNotFoundError: if a model or the text is missing.
            ValueError: if the text has changed.
        """
        stages = STAGES if self.text is None else ("base",)
        require_models(self.out, *stages)
        tokenizer = Tokenizer.load(self.out / "tokenizer.json")
        if self.text is not None:
            self._compare(self._identity())
        models = [load_model(self.out / f"{stage}.safetensors", tokenizer)[0] for stage in stages]
        self.report["parameters"] = sum(parameter.numel() for parameter in models[0].parameters())
        if self.text is None:
            self.score(tokenizer, *models)
        else:
            self._score_base(tokenizer, *models)


def evaluate_folder(folder: Path) -> dict[str, Any]:
    """Score the models of a run anew; whether it was scored before does not matter.

    Returns:
        a report as `Chain.run` gives it, with the stages of the run's own report.

    Raises:
        FileNotFoundError: if a model, the report or the run's own text is missing.
        ValueError: if one of them is damaged, or the text has changed.
    """
    report = read_report(folder)
    recipe = Recipe()
    recipe = replace(recipe, decoder=replace(recipe.decoder, preset=report["preset"]))
    run = Chain(folder, report["seed"], report["text"] and Path(report["text"]), recipe, report=report)
    run.score_anew()
    return run.report


def as_table(report: dict[str, Any]) -> str:
    """The report for people: stages with their seconds, then scores with 95 % intervals."""
    lines = [f"{'stage':<24}{'seconds':>9}"]
    lines += [f"{name:<24}{stage['seconds']:>9.1f}" for name, stage in report["stages"].items()]
    total = sum(stage["seconds"] for stage in report["stages"].values())
    lines.append(f"{'total':<24}{total:>9.1f}")
    lines.append("")
    lines.append(
        f"{report['parameters']:,} parameters, seed {report['seed']}, {report['cores']} cores, "
        f"peak memory {report['peak_rss_mb']:,.0f} MB"
    )
    for machine in [report["machine"], *report.get("resumed_on", [])]:
        lines.append(MACHINE.format(**machine))
    lines += ["", f"{'score':<24}{'value':>9}   95 % interval, questions"]
    for name, value in report["scores"].items():
        interval = report.get("intervals", {}).get(name)
        beside = f"   {interval[0]:.3f} to {interval[1]:.3f}, {interval[2]}" if interval else ""
        lines.append(f"{name:<24}{value:>9.3f}{beside}")
    return "\n".join(lines)
