"""PPO lab: what KL coefficient, clip, learning rate and the reward model do to PPO.

Many small runs are recorded (`tools/record_ppo_lab.py` makes them), so that every setting answers at
once; any of them can be run again, live, with other random numbers. What to look for: a policy that
does not move, a policy that says the same to everything, and a reward that rises while the answers get
worse.
"""

import asyncio
import copy
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from gptcore.ballots import collect_ballots
from gptcore.chat_template import encode_answer, encode_prompt
from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.decoder import Decoder
from gptcore.exam import ask, exam
from gptcore.generation import SamplingConfig
from gptcore.gold import gold_score
from gptcore.ppo import PPO, Diagnostics, PPOConfig
from gptcore.prompts import PromptSource
from gptcore.questions import Prompt
from gptcore.recipe import Recipe
from gptcore.reward import RewardModel, rewards_of, train_reward_model
from gptcore.tokenizer import Tokenizer
from gptcore.widgets._view import View, picture, script, sendable
from gptcore.widgets.palette import BLUE, VERMILION

RECORDED = SHIPPED.parent / "ppo_lab.json"
"""The recorded runs that come with the course."""


@dataclass(frozen=True)
class Setting:
    """What the reader chooses."""

    kl_coefficient: float = 0.02
    """Beta: reward lost for each nat away from the fine-tuned model."""
    clip: float = 0.2
    """Largest change of a ratio that is rewarded; 5 hardly ever clips."""
    policy_rate: float = 5e-4
    """The policy's learning rate."""
    ballots: int = 4000
    """Prompts whose answers were compared for the reward model: 4,000 for the chain's, fewer for one that is also blind to
    the answer's surprise."""


GRID: dict[str, tuple[float, ...]] = {
    "kl_coefficient": (0.0, 0.02, 0.5),
    "clip": (0.2, 5.0),
    "policy_rate": (1e-6, 5e-4, 1e-3),
    "ballots": (200, 4000),
}
"""The values that can be chosen; every combination is recorded."""

CONFIG = PPOConfig(iterations=16, rollout_size=64, minibatch_size=16, value_iterations=2)
"""A small run: large enough that each of the failures shows, small enough for about a quarter of a minute."""


def all_settings() -> list[Setting]:
    """Every combination of the grid."""
    return [Setting(beta, clip, rate, int(ballots)) for beta, clip, rate, ballots in product(*GRID.values())]


# --- One run -------------------------------------------------------------------------------------


def lab_questions(count: int = 48) -> list[Prompt]:
    """Questions on which the answers are graded by the truth, the same in every run."""
    return random.Random("ppo lab").sample(exam("validation")["mixed"], count)


class BlindRewardModel(RewardModel):
    """A reward model to which the answer's surprise is not shown: it can hardly tell a true sentence from a false one."""

    def _surprise(self, tokens: Tensor, features: Tensor) -> Tensor:
        return super()._surprise(tokens, features) * 0.0


def train_blind(sft: Decoder, tokenizer: Tokenizer, ballots: int, seed: int = 0) -> RewardModel:
    """A blind reward model that has learned from so many ballots, with the chain's numbers."""
    recipe = Recipe()
    found = list(collect_ballots(sft, tokenizer, PromptSource("train"), ballots, seed))
    config = replace(recipe.reward, seed=seed)
    return train_reward_model(sft, tokenizer, found, config, recipe.ballot_batch_size, kind=BlindRewardModel)


def commonest_share(answers: Sequence[str], languages: Sequence[str]) -> float:
    """Share of the answers that hold the commonest sentence of their language: near 1 when all say the same.

    Args:
        answers: of a policy.
        languages: of the questions, one for each answer.
    """
    holders = 0
    for language in set(languages):
        spoken = [text for text, own in zip(answers, languages, strict=True) if own == language]
        sentences = Counter(s for text in spoken for s in {part.strip() for part in re.split("[.!?。！？]", text)} if s)
        holders += sentences.most_common(1)[0][1] if sentences else len(spoken)
    return holders / len(answers)


class _Pause(Exception):
    """Stops PPO after an iteration; it goes on from there."""


def iterations_of(ppo: PPO) -> Iterator[Diagnostics]:
    """The iterations of a run one by one, so that something else can happen between them."""

    def pause(_: Diagnostics) -> None:
        raise _Pause

    while len(ppo.history) < ppo.config.iterations:
        with suppress(_Pause):
            ppo.run([pause])
        yield ppo.history[-1]


def lab_run(
    setting: Setting,
    sft: Decoder,
    grader: RewardModel,
    tokenizer: Tokenizer,
    questions: Sequence[Prompt],
    seed: int = 0,
    config: PPOConfig = CONFIG,
    every: int = 4,
) -> Iterator[dict[str, Any]]:
    """One run of PPO with these settings.

    Args:
        setting: what the reader chose.
        sft: where the policy begins; not changed.
        grader: the reward model.
        tokenizer: of both.
        questions: graded every few iterations.
        seed: of prompts and draws.
        config: everything else.
        every: iterations between two gradings.

    Yields:
        the run so far after each iteration: `curves` (points of iteration and value for learned `score`,
        `gold` score, `kl`, `length`, `entropy` and `repeated`, see `commonest_share`)
        and, after the last, `answers` to the questions with learned reward and gold score.
    """
    config = replace(
        config,
        kl_coefficient=setting.kl_coefficient,
        clip=setting.clip,
        policy_rate=setting.policy_rate,
        seed=seed,
    )
    policy = copy.deepcopy(sft)
    ppo = PPO(policy, copy.deepcopy(sft), copy.deepcopy(grader), tokenizer, PromptSource("train"), config)
    curves: dict[str, list[tuple[int, float]]] = {
        name: [] for name in ("score", "gold", "kl", "length", "entropy", "repeated")
    }

    def grade(iteration: int) -> list[str]:
        answers = ask(policy, tokenizer, questions, SamplingConfig(), seed)
        golds = [gold_score(prompt, answer) for prompt, answer in zip(questions, answers, strict=True)]
        curves["gold"].append((iteration, round(sum(golds) / len(golds), 3)))
        curves["repeated"].append(
            (iteration, round(commonest_share(answers, [prompt.language for prompt in questions]), 3))
        )
        return answers

    grade(0)
    for entry in iterations_of(ppo):
        done = entry.iteration + 1
        for name in ("score", "kl", "length", "entropy"):
            curves[name].append((done, round(getattr(entry, name), 3)))
        answers = grade(done) if done % every == 0 or done == config.iterations else []
        run: dict[str, Any] = {"setting": asdict(setting), "seed": seed, "curves": curves}
        if done == config.iterations:
            sequences = [
                encode_prompt(tokenizer, prompt.question) + encode_answer(tokenizer, answer)
                for prompt, answer in zip(questions, answers, strict=True)
            ]
            longest = grader.config.context_length
            rewards = rewards_of(grader, [ids[:longest] for ids in sequences]).tolist()
            run["answers"] = [
                [answer, round(reward, 2), round(gold_score(prompt, answer), 2)]
                for prompt, answer, reward in list(zip(questions, answers, rewards, strict=True))[:6]
            ]
        yield run


def signs(run: dict[str, Any]) -> list[str]:
    """What has happened in a run, by its curves: `frozen`, `hacking`, `collapse`, in this order, or nothing."""
    # In a record null stands for what is no finite number; such a run shows none of the signs.
    curves = {name: [math.nan if y is None else y for _, y in points] for name, points in run["curves"].items()}
    gain = sum(curves["score"][-3:]) / 3 - sum(curves["score"][:3]) / 3
    gold = curves["gold"][-1] - curves["gold"][0]
    found = []
    if curves["kl"][-1] < 0.05:
        found.append("frozen")
    if gain > 0.25 and gold < -0.1:
        found.append("hacking")
    if curves["repeated"][-1] >= 0.5 and curves["repeated"][-1] > curves["repeated"][0] + 0.25:
        found.append("collapse")
    return found


# --- The view ------------------------------------------------------------------------------------


class PPOLab(View):
    """Settings of PPO and what came of them, recorded or run now.

    Args:
        recorded: the file of the recorded runs; without it only live runs are offered.
        config: of live runs.
    """

    _esm = script("ppo_lab")
    title = "PPO lab"
    live = traitlets.Dict().tag(sync=True)
    """The live run: `going`, `progress`, and the run so far under `run`."""

    @traitlets.validate("live")
    def _only_what_json_can_say_of_it(self, proposal: dict[str, Any]) -> dict[str, Any]:
        return sendable(proposal["value"])

    def __init__(self, recorded: str | Path = RECORDED, config: PPOConfig = CONFIG) -> None:
        self.config = config
        path = Path(recorded)
        record = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.exists()
            else {"runs": [], "questions": [], "before": []}
        )
        self._graders: dict[int, RewardModel] = {}
        self._seed = 0
        self._stopped = False
        self._task: asyncio.Task[None] | None = None
        super().__init__()
        runs = [run | {"signs": signs(run)} for run in record["runs"]]
        self.data = {
            "grid": {name: list(values) for name, values in GRID.items()},
            "standard": asdict(Setting()),
            "questions": record["questions"],
            "before": record["before"],
            "runs": runs,
        }
        self.live = {"going": False}

    @cached_property
    def _chain(self) -> tuple[Decoder, Tokenizer]:
        return load_stage("sft")

    def _grader(self, ballots: int) -> RewardModel:
        if ballots not in self._graders:
            whole = ballots >= Recipe().ballots
            if whole:
                self._graders[ballots], known = load_stage("reward")
                if known.fingerprint != self._chain[1].fingerprint:
                    raise ValueError(
                        "your fine-tuned model and the reward model have different tokenizers: train the whole chain, "
                        "or remove the folder runs/chain to use the models that come with the course"
                    )
            else:
                self._graders[ballots] = train_blind(*self._chain, ballots)
        return self._graders[ballots]

    def do_run(self, kl_coefficient: float, clip: float, policy_rate: float, ballots: float) -> None:
        """Run a setting now, with other random numbers than the recorded run; the notebook stays usable.

        Raises:
            ValueError: if a run is going on.
        """
        if self.live["going"]:
            raise ValueError("a run is going on: stop it first")
        self._seed += 1
        self._stopped = False
        chosen = Setting(kl_coefficient, clip, policy_rate, int(ballots))
        self.live = {"going": True, "progress": 0.0, "run": None}
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # not in a notebook
            asyncio.run(self._run(chosen))
        else:
            self._task = loop.create_task(self._run(chosen))
            # The view keeps the task, so nobody else would ever tell of its exception.
            self._task.add_done_callback(lambda task: task.cancelled() or task.result())

    def do_stop(self) -> None:
        """Stop the live run after its current iteration."""
        self._stopped = True

    async def _run(self, setting: Setting) -> None:
        try:
            await asyncio.sleep(0.05)  # between the iterations the reader's other messages are heard
            grader = self._grader(setting.ballots)
            for run in lab_run(
                setting, *self._chain[:1], grader, self._chain[1], lab_questions(), self._seed, self.config
            ):
                share = len(run["curves"]["kl"]) / self.config.iterations
                self.live = {"going": share < 1, "progress": share, "run": copy.deepcopy(run)}
                await asyncio.sleep(0.05)
                if self._stopped:
                    break
        except Exception as error:
            self.show_mistake(error)
            raise
        finally:
            self.live = self.live | {"going": False}

    def static_picture(self) -> bytes:
        """Learned reward against gold score: a point for each recorded run."""
        runs = self.data["runs"]

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            for few, colour, marker in ((True, VERMILION, "s"), (False, BLUE, "o")):
                chosen = [run for run in runs if (run["setting"]["ballots"] < Recipe().ballots) == few]
                points = [(run["curves"]["score"][-1][1], run["curves"]["gold"][-1][1]) for run in chosen]
                points = [point for point in points if None not in point]
                name = "a blind reward model" if few else "the chain's reward model"
                if points:
                    axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, label=name)
            axes.set(xlabel="learned reward at the end (deviations)", ylabel="gold score at the end")
            if axes.collections:
                axes.legend(fontsize=8)
            axes.set_title(f"{len(runs)} runs of PPO: what the judge sees, and what is true", fontsize=9)

        return picture(draw, 7, 3.6)
