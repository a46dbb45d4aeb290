"""The chain: every stage after the other, from raw text to a model aligned with PPO.

    tokenizer -> pretraining -> fine-tuning -> reward model -> PPO

Each stage leaves its model in the output folder, so that an interrupted run goes on where it was, and
the report says what each stage took and what came of it. What the stages learn from, and their exams, are those of a
`curriculum`: the atlas, or data of the reader's own. No chapter builds it: each builds one of its stages.
"""

import copy
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from gptcore.checkpoint import load_model, save_model
from gptcore.curriculum import AtlasCurriculum, Curriculum
from gptcore.decoder import Decoder
from gptcore.dpo import DPOConfig, dpo_trainer
from gptcore.finetuning import introduce_chat_tokens
from gptcore.groups import GroupConfig, GroupPolicyGradient
from gptcore.interruption import Interruptible, Stopwatch
from gptcore.lora import merged, tell_chat_tokens_apart, with_adapters
from gptcore.machine import choose_device, describe_machine
from gptcore.own_curriculum import curriculum_of
from gptcore.parallel import all_are_well, divided, leave_processes, processes, rank, wait_for_all
from gptcore.ppo import PPO
from gptcore.published_tokenizer import load_tokenizer
from gptcore.questions import Part
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
    curriculum: Curriculum = field(default_factory=AtlasCurriculum)
    """What the stages learn from."""
    progress: bool = True
    """Whether progress bars are shown."""
    report: dict[str, Any] = field(default_factory=dict)
    """The report so far; `report.json`."""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"the seed must fit into 64 bits, got {self.seed}")
        self.recipe = self.curriculum.recipe

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Go through all stages that are not done yet and return the report.

        Several processes (see `parallel.join_processes`) share every stage; number 0 writes, and sits the exams.

        Raises:
            FileExistsError: if the folder holds a run and `resume` is not set, or a run is going on in it.
            FileNotFoundError: if the folder has models whose report is lost.
            ValueError: if it holds a run with another seed, preset or other data, or its report is damaged.
            OSError: if the folder cannot be written to.
            Interrupted: if a stop was requested; the state is saved.
        """
        folder = self.folder  # nothing is written before the inputs are known to be good
        rows, parts = self.recipe.batch_size, self.recipe.pretraining.accumulate
        if processes() > rows:
            raise ValueError(f"a batch of {rows} cannot be shared by {processes()} processes: start fewer")
        if divided() and self.recipe.lora is not None:
            raise ValueError("adapters and --shard do not work together: leave one of them out")
        if processes() * parts > rows:
            raise ValueError(
                f"of a batch of {rows} rows {parts} parts cannot be made in each process: accumulate fewer"
            )
        try:
            return self._run(resume)
        finally:
            folder.close()

    def _run(self, resume: bool) -> dict[str, Any]:
        first = rank() == 0
        if first:
            try:
                self.folder.open(resume)
                self._tokenizer()
            except (ValueError, OSError):
                all_are_well(False)
                raise
        if not all_are_well(True):
            sys.exit(1)  # number 0 says why
        if not first:
            self.report |= json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(self.out / "tokenizer.json")
        if "scores" not in self.report:
            told = self.curriculum.told(tokenizer)
            if first and told and self.progress:
                print(told, file=sys.stderr)
        models: dict[str, Any] = {}
        for stage in self.curriculum.stages:
            models[stage] = self._stage(stage, tokenizer, models)
        leave_processes()
        if first and "scores" not in self.report:
            start = time.perf_counter()
            self.score(tokenizer, models)
            self.report["stages"]["evaluation"] = {"seconds": round(time.perf_counter() - start, 1)}
            self.report["total_seconds"] = round(sum(stage["seconds"] for stage in self.report["stages"].values()), 1)
            self.folder.write_report()
        return self.report

    @cached_property
    def folder(self) -> RunFolder:
        """The folder of the run, and what tells it from others."""
        identity = {"seed": self.seed, "preset": self.recipe.decoder.preset, **self.curriculum.identity()}
        identity["models"] = list(self.curriculum.stages)
        if divided():
            identity["shard"] = True
        identity["recipe"] = hashlib.sha256(repr(self.recipe).encode()).hexdigest()[:16]
        return RunFolder(self.out, identity, self.report)

    def _stage(self, name: str, tokenizer: Tokenizer, models: Mapping[str, Any]) -> Any:
        """A stage's model: from its file if it is there, else trained, saved and timed."""
        path = self.out / f"{name}.safetensors"
        key = "pretrain" if name == "base" else name  # the report names what is done, the file what came of it
        if key not in self.report["stages"] or not path.is_file():
            self.stopwatch = Stopwatch()
            model = merged(self._train(name, tokenizer, models))
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

    def _tokenizer(self) -> None:
        """Learn it, if it is not there yet; the data are checked with it before anything is written."""
        path = self.out / "tokenizer.json"
        if "tokenizer" in self.report["stages"] and path.is_file():
            return
        start = time.perf_counter()
        # At most so many: a short text allows fewer merges.
        with tqdm(total=DEFAULT_VOCABULARY_SIZE, desc="tokenizer", unit="token", disable=not self.progress) as bar:

            def after_merge() -> None:
                bar.update()
                self.stop_if_requested()

            tokenizer = self.curriculum.learn_tokenizer(self.seed, after_merge)
            bar.total = tokenizer.vocabulary_size  # bytes and special tokens, too; fewer for a short text
            bar.update(bar.total - bar.n)
        seconds = time.perf_counter() - start
        self.curriculum.check(tokenizer)
        tokenizer.save(path)
        self.folder.record_seconds("tokenizer", seconds)

    def _train(self, stage: str, tokenizer: Tokenizer, models: Mapping[str, Any]) -> Decoder | RewardModel:
        if stage == "base":
            return self._pretrain(tokenizer)
        if stage == "sft":
            return self._fine_tune(tokenizer, models["base"])
        if stage in ("reward", "second_reward"):
            return self._train_reward_model(stage, tokenizer, models["sft"])
        return self._align(stage, tokenizer, models["sft"], models["reward"])

    def _adapted(self, model: Decoder) -> Decoder:
        """What learns of a model: adapters on its weights where the recipe has them, else the model itself."""
        return model if self.recipe.lora is None else with_adapters(model, self.recipe.lora, self.seed)

    def _pretrain(self, tokenizer: Tokenizer) -> Decoder:
        config = replace(self.recipe.pretraining, seed=self.seed)
        torch.manual_seed(self.seed)
        separator = tokenizer.special[END_OF_TEXT]
        shape = replace(self.recipe.decoder, vocabulary_size=tokenizer.vocabulary_size, separator=separator)
        model = self.curriculum.start() or Decoder(shape).to(choose_device())
        if config.steps:
            model = self._adapted(model)
            batches = self.curriculum.pretraining_batches(tokenizer, self.seed)
            self.run_resumably("pretrain", Trainer(model, batches, config), config.steps)
        return model

    def _fine_tune(self, tokenizer: Tokenizer, base: Decoder) -> Decoder:
        config = replace(self.recipe.finetuning, seed=self.seed)
        model = copy.deepcopy(base)
        if config.steps:  # else the base model chats already
            introduce_chat_tokens(model, tokenizer)
            if self.recipe.lora is not None:
                tell_chat_tokens_apart(model, tokenizer, self.seed)
            model = self._adapted(model)
            batches = self.curriculum.finetuning_batches(tokenizer, self.seed)
            self.run_resumably("sft", Trainer(model, batches, config), config.steps)
        return model

    def _train_reward_model(self, stage: str, tokenizer: Tokenizer, sft: Decoder) -> RewardModel:
        collected = self.curriculum.ballots(stage, sft, tokenizer, self.seed)
        ballots = []
        total, hidden = self.recipe.ballots, not self.progress or rank() > 0
        for ballot in tqdm(collected, desc="comparisons", total=total, unit="prompt", disable=hidden):
            ballots.append(ballot)
            self.stop_if_requested()  # they are soon collected anew, and come out the same
        return train_reward_model(
            self._adapted(sft),
            tokenizer,
            ballots,
            replace(self.recipe.reward, seed=self.seed),
            self.recipe.ballot_batch_size,
            self.recipe.reward_epochs,
            self.curriculum.replay(tokenizer, self.seed),
            run=lambda trainer: self.run_resumably(stage, trainer, trainer.config.steps),
        )

    def _align(self, stage: str, tokenizer: Tokenizer, sft: Decoder, reward_model: RewardModel) -> Decoder:
        """The last stage: PPO, or what else the curriculum asks for; its numbers follow from those of PPO."""
        config = replace(self.recipe.ppo, seed=self.seed)
        if self.recipe.lora is None:  # a copy to be frozen: the second judge, too, begins with the fine-tuned model
            policy, reference = copy.deepcopy(sft), copy.deepcopy(sft)
        else:  # one set of weights for both: that of the reference does not learn
            policy, reference = self._adapted(sft), sft
        replay = self.curriculum.replay(tokenizer, self.seed)
        if stage == "dpo":
            ballots = list(self.curriculum.ballots("reward", sft, tokenizer, self.seed))
            training = replace(DPOConfig().training, seed=self.seed, accumulate=config.accumulate)
            numbers = DPOConfig(batch_size=self.recipe.ballot_batch_size, epochs=self.recipe.reward_epochs)
            trainer = dpo_trainer(policy, ballots, replace(numbers, training=training), replay)
            self.run_resumably(stage, trainer, trainer.config.steps)
            return policy
        parts = (policy, reference, reward_model, tokenizer, self.curriculum.prompts(tokenizer))
        if stage == "grpo":
            names = "iterations", "minibatch_size", "max_new_tokens", "seed", "accumulate"
            shared = {name: getattr(config, name) for name in names}
            shared |= {"rate": config.policy_rate, "kl_coefficient": config.kl_coefficient}  # a base model's are small
            groups = GroupConfig(rollout_prompts=max(1, config.rollout_size // GroupConfig.group_size), **shared)
            loop: PPO | GroupPolicyGradient = GroupPolicyGradient(*parts, groups, replay)
        else:
            loop = PPO(*parts, config, replay)
        self.run_resumably(stage, loop, config.iterations)
        self.report[f"{stage}_history"] = [entry._asdict() for entry in loop.history]
        return policy

    def score(self, tokenizer: Tokenizer, models: Mapping[str, Any], part: Part = "test") -> None:
        """Let the models of the stages sit the exams of a part, and put scores and intervals into the report."""
        total = self.curriculum.exams
        with tqdm(total=total, desc="evaluation", unit="exam", disable=not self.progress) as bar:

            def after_exam() -> None:
                bar.update()
                self.stop_if_requested()

            self.report |= self.curriculum.score(tokenizer, models, self.seed, part, after_exam)


def evaluate_folder(folder: Path, part: Part = "test") -> dict[str, Any]:
    """Score the models of a run anew; whether it was scored before does not matter.

    Args:
        folder: of the run.
        part: `validation` for choosing a recipe, `test` for reporting what came of it; of data of the reader's own
            there is one part only.

    Returns:
        a report as `Chain.run` gives it, with the stages of the run's own report.

    Raises:
        FileNotFoundError: if a model, the report or the run's own data are missing.
        ValueError: if one of them is damaged, or the data have changed.
    """
    report = read_report(folder)
    run = Chain(folder, report["seed"], curriculum_of(report), report=report)
    require_models(folder, *run.curriculum.stages)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    run.folder.compare()
    models = {s: load_model(folder / f"{s}.safetensors", tokenizer)[0] for s in run.curriculum.stages}
    report["parameters"] = sum(parameter.numel() for parameter in models["base"].parameters())
    run.score(tokenizer, models, part)
    return report
