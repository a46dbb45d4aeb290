"""The command line: `python -m gptcore train | evaluate | chat`."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gptcore.chain import Chain, evaluate_folder
from gptcore.chat import Conversation
from gptcore.checkpoint import OWN, SHIPPED, find_stage, load_stage
from gptcore.generation import SamplingConfig
from gptcore.machine import set_threads
from gptcore.own_curriculum import curriculum_of
from gptcore.own_sizes import SIZES
from gptcore.parallel import another_ended, join_processes, processes, rank
from gptcore.records import BadDataError
from gptcore.runs import DECODERS, as_table, last_decoder, program, require_models, resume_line, shell_line
from gptcore.training import generator_for


def train(arguments: argparse.Namespace) -> None:
    """Run the chain and print its report."""
    join_processes(arguments.shard)
    first = rank() == 0
    curriculum = curriculum_of(vars(arguments))
    run = Chain(arguments.out, arguments.seed, curriculum)
    asked = -float("inf")

    def stop(*_: object) -> None:
        nonlocal asked
        before, asked = asked, time.monotonic()
        if asked - before < 0.5:  # the same Ctrl-C, handed on by a program that called this one, as torchrun does
            return
        if first and run.stepping and not run.stop_requested:
            with suppress(RuntimeError, OSError):  # a progress bar may be in the middle of writing
                print("\nStopping after this step ...", file=sys.stderr)
        run.stop()

    go_on = f"go on with\n    {resume_line(arguments.out, vars(arguments), arguments.threads)}"
    lost = f"\nStopped: another process has ended. What is done, but for the last half minute, is in {arguments.out}; {go_on}"
    if rank() > 1:  # one of numbers 0 and 1 is left to say it, or torchrun says enough
        lost = 1
    handlers: dict[int, Any] = {signal.SIGINT: stop}
    if processes() > 1:  # when one has ended, torchrun asks the others to
        handlers[signal.SIGTERM] = lambda *_: sys.exit(lost)
    # Only the main thread may handle signals; a notebook may run this in another.
    heard = handlers if threading.current_thread() is threading.main_thread() else {}
    earlier = {number: signal.signal(number, handler) for number, handler in heard.items()}
    try:
        report = run.run(arguments.resume)
    except KeyboardInterrupt:
        sys.exit(f"\nStopped. What is done is in {arguments.out}; {go_on}" if first else 1)
    except RuntimeError as error:
        if not another_ended(error):
            raise
        sys.exit(lost)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if not first:
        return
    print(as_table(report))
    stage = last_decoder(arguments.out)
    line = shell_line("chat", threads=arguments.threads, out=arguments.out)
    if stage == "base":
        print("\nA text of your own has no questions and answers: the chain ends with the base model.")
        print(f"Let it continue a text: {line}")
    else:
        print(f"\nTalk to it: {line}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Score the models of a folder anew and print the scores."""
    folder = arguments.out
    if folder is None:
        folder = find_stage("ppo").parent
    report = evaluate_folder(folder, arguments.part)
    print(f"models of {folder}, asked the {arguments.part} questions")
    print(as_table(report))
    if arguments.json:
        print(json.dumps(report["scores"]))


def chat(arguments: argparse.Namespace) -> None:
    """Talk to a model; reads one message a line."""
    shaped = (arguments.temperature, arguments.top_k, arguments.top_p) != (None, None, None)
    sampling = SamplingConfig(
        temperature=1.0 if arguments.temperature is None else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        greedy=not shaped and not arguments.sample,
    )
    stage = arguments.stage or (DECODERS[-1] if arguments.out is None else last_decoder(arguments.out))
    if arguments.out is not None:
        require_models(arguments.out, stage)
    model, tokenizer = load_stage(stage, arguments.out)
    conversation = Conversation(
        model, tokenizer, sampling, plain=stage == "base", generator=generator_for(arguments.seed)
    )
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"You talk to the {stage} model. End with an empty line, Ctrl-D or Ctrl-C.")
    try:
        while True:
            if interactive:
                print("you> ", end="", flush=True)
            line = sys.stdin.readline()
            if not line or (interactive and not line.strip()):
                break
            if not line.strip():
                continue
            if interactive:
                print("gpt> ", end="", flush=True)
            try:
                for piece in conversation.say(line):
                    print(piece, end="", flush=True)
                print(flush=True)
            except ValueError as error:  # this message cannot be answered; the next one may
                print(f"error: {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print()


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    main_parser = argparse.ArgumentParser(prog=" ".join(program()), description="ChatGPT from scratch, in miniature.")
    main_parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    commands = main_parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("train", help="train the whole chain and print its report")
    command.add_argument("--out", type=Path, default=OWN, help=f"folder to write to (default: {OWN})")
    own = command.add_argument_group(
        "data of your own instead of the atlas", "The chain goes as far as they reach. A tenth of each is held out."
    )
    own.add_argument("--text", type=Path, help="UTF-8 file, or folder of .txt and .md files, to pretrain on")
    formats = "file or folder of .jsonl, .json (.gz) or .parquet"
    own.add_argument("--conversations", type=Path, help=f"what to fine-tune on: {formats}")
    own.add_argument("--comparisons", type=Path, help=f"votes for the reward model: {formats}")
    own.add_argument("--prompts", type=Path, help="what to ask in PPO (default: the questions of the comparisons)")
    own.add_argument("--base", type=Path, help="folder of a model to start from: a run, or transformers' format")
    own.add_argument("--method", choices=("ppo", "grpo", "dpo"), default="ppo", help="last stage (default: ppo)")
    own.add_argument(
        "--size", choices=tuple(SIZES), default="minutes", help="minutes or an evening on a laptop, or a GPU"
    )
    own.add_argument("--vocabulary", type=int, help="tokens of the vocabulary")
    own.add_argument("--context", type=int, help="tokens that the model reads at most")
    own.add_argument("--steps", type=int, help="steps of pretraining")
    own.add_argument("--finetuning-steps", type=int, help="steps of fine-tuning")
    own.add_argument("--iterations", type=int, help="iterations of reinforcement learning")
    own.add_argument("--accumulate", type=int, help="parts in which each batch is read, to save memory")
    own.add_argument(
        "--lora", type=int, metavar="RANK", help="train adapters of that rank beside the weights of --base"
    )
    own.add_argument(
        "--skip-bad", action="store_true", help="go on without records that cannot be used, and count them"
    )
    command.add_argument("--preset", choices=("llama", "gpt2"), default="llama", help="architecture (default: llama)")
    command.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    command.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    command.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun: while a model trains, each process keeps a share of weights, gradients and averages, not a copy",
    )
    command.set_defaults(run=train)

    command = commands.add_parser("evaluate", help="score the models of a folder on held-out questions")
    command.add_argument("--out", type=Path, help="folder of the models (default: your own run, else the shipped one)")
    command.add_argument(
        "--part", choices=("test", "validation"), default="test", help="validation, to choose by (default: test)"
    )
    command.add_argument("--json", action="store_true", help="print the scores as JSON, too")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("chat", help="talk to a model")
    command.add_argument("--stage", choices=DECODERS, help="which model (default: the last one)")
    command.add_argument("--out", type=Path, help=f"folder of the models (default: {OWN}, else {SHIPPED.name})")
    command.add_argument(
        "--sample", action="store_true", help="draw tokens instead of taking the most likely; so do the next three"
    )
    command.add_argument("--temperature", type=float, help="below 1 bolder, above 1 more varied")
    command.add_argument("--top-k", type=int, help="draw from the k most likely tokens")
    command.add_argument("--top-p", type=float, help="draw from the most likely tokens that sum to p")
    command.add_argument("--seed", type=int, default=0, help="seed of the draws")
    command.set_defaults(run=chat)
    return main_parser


def _prepare_streams() -> None:
    """Chinese passes through a pipe whatever the locale says; and a stream that is closed or a notebook's will do."""
    # In this order: a file that is opened takes the place of the first closed one.
    for name, mode, errors in (("stdin", "r", "surrogateescape"), ("stdout", "w", "replace"), ("stderr", "w", None)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)
        elif errors is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def main() -> None:
    """Parse, run, and turn expected errors into one line each."""
    _prepare_streams()
    try:
        try:
            arguments = parser().parse_args()
            set_threads(arguments.threads)
            arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head -1` has read enough; Python would write the rest once more, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    except BadDataError as error:  # a line for each record
        sys.exit(f"error: {error}")
    except (ValueError, OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
        sys.exit("error: " + (" ".join(str(error).splitlines()) or "out of memory"))


if __name__ == "__main__":
    main()
