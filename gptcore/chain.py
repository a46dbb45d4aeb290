"""The chain: every stage after the other, from raw text to a model aligned with PPO.

    tokenizer -> pretraining -> fine-tuning -> reward model -> PPO

Each stage leaves its model in the output folder, so that an interrupted run goes on where it was, and
the report says what each stage took and what came of it. The numbers stand in `recipe`, the scores, those of the test
entities, are given by `exam`. No chapter builds it: each builds one of its stages.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from gptcore.ballots import collect_ballots
from gptcore.checkpoint import STAGES, load_model, save_model
from gptcore.corpus import documents_as_tokens, pretraining_documents, read_text
from gptcore.decoder import Decoder
from gptcore.exam import base_score, score_chain
from gptcore.finetuning import introduce_chat_tokens
from gptcore.interruption import Interruptible, Stopwatch
from gptcore.machine import choose_device, describe_machine
from gptcore.parallel import leave_processes, rank, wait_for_all
from gptcore.ppo import PPO
from gptcore.prompts import PromptSource
from gptcore.questions import Part
from gptcore.recipe import Recipe, finetuning_stream, replay_batches, text_batches, train_tokenizer
from gptcore.reward import RewardModel, train_reward_model
from gptcore.runs import RunFolder, read_report, require_models
from gptcore.tokenizer import DEFAULT_VOCABULARY_SIZE, END_OF_TEXT, Tokenizer
from gptcore.training import Trainer


@dataclass
class Chain(Interruptible):
    """One run of the chain in one folder."""

    out: Path
    """Where everything is written."""
    seed: int = 0
    """Seed of everything random."""
    text: Path | None = None
    """A UTF-8 file to pretrain on instead of the atlas; the chain then ends with the base model."""
    recipe: Recipe = Recipe()
    """Every number of the stages."""
    progress: bool = True
    """Whether progress bars are shown."""
    report: dict[str, Any] = field(default_factory=dict)
    """The report so far; `report.json`."""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"the seed must fit into 64 bits, got {self.seed}")

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
        folder = self.folder  # nothing is written before the inputs are known to be good
        try:
            return self._run(resume)
        finally:
            folder.close()

    def _run(self, resume: bool) -> dict[str, Any]:
        first = rank() == 0
        if first:
            self.folder.open(resume)
            self._tokenizer()
        wait_for_all()
        if not first:
            self.report |= json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        tokenizer = self._tokenizer()
        models = [self._stage("base", tokenizer, self._pretrain)]
        if self.text is None:
            models.append(self._stage("sft", tokenizer, self._fine_tune, models[0]))
        leave_processes()
        if not first:
            return self.report
        if self.text is None:
            models.append(self._stage("reward", tokenizer, self._train_reward_model, models[1]))
            models.append(self._stage("ppo", tokenizer, self._reinforce, *models[1:]))
        if "scores" not in self.report:
            start = time.perf_counter()
            self.score(tokenizer, models)
            self.report["stages"]["evaluation"] = {"seconds": round(time.perf_counter() - start, 1)}
            self.report["total_seconds"] = round(sum(stage["seconds"] for stage in self.report["stages"].values()), 1)
            self.folder.write_report()
        return self.report

    @cached_property
    def folder(self) -> RunFolder:
        """The folder of the run, and what tells it from others; of a text its contents, as a path may be spelled anyhow."""
        path = content = None
        if self.text is not None:
            path, content = str(self.text.absolute()), hashlib.sha256(self._own_text.encode()).hexdigest()
        identity = {"seed": self.seed, "preset": self.recipe.decoder.preset, "text": path, "text_sha256": content}
        identity["recipe"] = hashlib.sha256(repr(self.recipe).encode()).hexdigest()[:16]
        return RunFolder(self.out, identity, self.report)

    @cached_property
    def _own_text(self) -> str:
        assert self.text is not None
        return read_text(self.text)

    def _own_ids(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Ids of the reader's own text: what is trained on, and the last tenth, which is held out."""
        ids = tokenizer.encode(self._own_text)
        return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]

    def _stage(
        self, name: str, tokenizer: Tokenizer, train: Callable[..., Decoder | RewardModel], *models: nn.Module
    ) -> Any:
        """A stage's model: from its file if it is there, else trained, saved and timed."""
        path = self.out / f"{name}.safetensors"
        key = "pretrain" if name == "base" else name  # the report names what is done, the file what came of it
        if key not in self.report["stages"] or not path.is_file():
            self.stopwatch = Stopwatch()
            model = train(tokenizer, *models)
            if rank() == 0:
                note = {"seed": self.seed, "stage": name, "machine": describe_machine()}
                save_model(path, model, tokenizer, note)
            if name == "base":
                self.report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            self.folder.record_seconds(key, self.stopwatch.seconds)
            if rank() == 0:  # not before the report says that the stage is done: an interruption may come in between
                (self.out / "state.safetensors").unlink(missing_ok=True)
            wait_for_all()
        # What later stages use is what was saved, half precision and all.
        return load_model(path, tokenizer)[0]

    # The stages

    def _tokenizer(self) -> Tokenizer:
        path = self.out / "tokenizer.json"
        if "tokenizer" in self.report["stages"] and path.is_file():
            return Tokenizer.load(path)
        start = time.perf_counter()
        # At most so many: a short text allows fewer merges.
        with tqdm(total=DEFAULT_VOCABULARY_SIZE, desc="tokenizer", unit="token", disable=not self.progress) as bar:

            def after_merge() -> None:
                bar.update()
                self.stop_if_requested()

            if self.text is None:
                tokenizer = train_tokenizer(self.seed, after_merge=after_merge)
            else:
                tokenizer = Tokenizer.train([self._own_text], after_merge=after_merge)
            bar.total = tokenizer.vocabulary_size  # bytes and special tokens, too; fewer for a short text
            bar.update(bar.total - bar.n)
        tokenizer.save(path)
        self.folder.record_seconds("tokenizer", time.perf_counter() - start)
        return tokenizer

    def _pretrain(self, tokenizer: Tokenizer) -> Decoder:
        config = replace(self.recipe.pretraining, seed=self.seed)
        shape = self.recipe.decoder
        if self.text is None:
            count = config.steps * self.recipe.batch_size * shape.context_length
            tokens = documents_as_tokens(tokenizer, pretraining_documents(self.seed), count)
        else:
            tokens = torch.tensor(self._own_ids(tokenizer)[0], device="cpu")
        separator = tokenizer.special[END_OF_TEXT]
        torch.manual_seed(self.seed)
        model = Decoder(replace(shape, vocabulary_size=tokenizer.vocabulary_size, separator=separator))
        model = model.to(choose_device())
        batches = text_batches((tokens, tokens), self.recipe, self.seed, separator)
        trainer = Trainer(model, batches, config)
        self.run_resumably("pretrain", trainer, config.steps)
        return model

    def _fine_tune(self, tokenizer: Tokenizer, base: Decoder) -> Decoder:
        config = replace(self.recipe.finetuning, seed=self.seed)
        stream = finetuning_stream(tokenizer, self.recipe, config.steps, self.seed)
        model = copy.deepcopy(base)
        introduce_chat_tokens(model, tokenizer)
        batches = text_batches(stream, self.recipe, self.seed, tokenizer.special[END_OF_TEXT])
        trainer = Trainer(model, batches, config)
        self.run_resumably("sft", trainer, config.steps)
        return model

    def _train_reward_model(self, tokenizer: Tokenizer, sft: Decoder) -> RewardModel:
        count = self.recipe.ballots
        collected = collect_ballots(sft, tokenizer, PromptSource("train"), count, self.seed)
        ballots = []
        for ballot in tqdm(collected, desc="comparisons", total=count, unit="prompt", disable=not self.progress):
            ballots.append(ballot)
            self.stop_if_requested()  # they are soon collected anew, and come out the same
        return train_reward_model(
            sft,
            tokenizer,
            ballots,
            replace(self.recipe.reward, seed=self.seed),
            self.recipe.ballot_batch_size,
            self.recipe.reward_epochs,
            replay_batches(tokenizer, self.recipe, self.seed),
            run=lambda trainer: self.run_resumably("reward", trainer, trainer.config.steps),
        )

    def _reinforce(self, tokenizer: Tokenizer, sft: Decoder, reward_model: RewardModel) -> Decoder:
        policy = copy.deepcopy(sft)
        config = replace(self.recipe.ppo, seed=self.seed)
        replay = replay_batches(tokenizer, self.recipe, self.seed)
        ppo = PPO(policy, copy.deepcopy(sft), reward_model, tokenizer, PromptSource("train"), config, replay)
        self.run_resumably("ppo", ppo, config.iterations)
        self.report["ppo_history"] = [entry._asdict() for entry in ppo.history]
        return policy

    def score(self, tokenizer: Tokenizer, models: Sequence[Any], part: Part = "test") -> None:
        """Let the models of the stages sit the exams of a part, and put scores and intervals into the report."""
        if self.text is not None:
            bits = base_score(models[0], tokenizer, self.seed, self._own_ids(tokenizer)[1])
            self.report["scores"] = {"base_bits_per_byte": bits}
            return
        with tqdm(total=7, desc="evaluation", unit="exam", disable=not self.progress) as bar:

            def after_exam() -> None:
                bar.update()
                self.stop_if_requested()

            base, sft, reward_model, ppo = models
            scores = score_chain(tokenizer, base, sft, reward_model, ppo, self.seed, part, after_exam)
            self.report["scores"], self.report["intervals"] = scores


def evaluate_folder(folder: Path, part: Part = "test") -> dict[str, Any]:
    """Score the models of a run anew; whether it was scored before does not matter.

    Args:
        folder: of the run.
        part: `validation` for choosing a recipe, `test` for reporting what came of it.

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
    stages = STAGES if run.text is None else ("base",)
    require_models(folder, *stages)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if run.text is not None:
        run.folder.compare()
    models = [load_model(folder / f"{stage}.safetensors", tokenizer)[0] for stage in stages]
    report["parameters"] = sum(parameter.numel() for parameter in models[0].parameters())
    run.score(tokenizer, models, part)
    return report
