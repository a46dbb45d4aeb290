"""Record the runs of the PPO lab: every combination of its settings, as one JSON file.

    python tools/record_ppo_lab.py                 all of them, into assets/ppo_lab.json; about half an hour
    python tools/record_ppo_lab.py --most 2 --out runs/lab.json

The models are the shipped ones. An interrupted recording goes on where it was.
"""

import argparse
import json
import time
from pathlib import Path

from gptcore.checkpoint import SHIPPED, load_stage
from gptcore.exam import ask
from gptcore.generation import SamplingConfig
from gptcore.gold import gold_score
from gptcore.machine import set_threads
from gptcore.widgets.ppo_lab import RECORDED, Setting, all_settings, lab_questions, lab_run, signs, train_blind

MOST_BYTES = 1_000_000


def main() -> None:
    """Run what is missing, and write the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECORDED, help="the file that is written")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    arguments = parser.parse_args()
    set_threads()
    sft, tokenizer = load_stage("sft", SHIPPED)
    judges = {Setting().ballots: load_stage("reward", SHIPPED)[0]}
    questions = lab_questions()
    path: Path = arguments.out
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    else:
        before = ask(sft, tokenizer, questions, SamplingConfig(), 0)
        graded = [[text, round(gold_score(prompt, text), 2)] for prompt, text in zip(questions, before, strict=True)]
        record = {"questions": [prompt.question for prompt in questions[:6]], "before": graded[:6], "runs": []}
    done = [Setting(**run["setting"]) for run in record["runs"]]
    for setting in [setting for setting in all_settings() if setting not in done][: arguments.most]:
        start = time.perf_counter()
        if setting.ballots not in judges:
            judges[setting.ballots] = train_blind(sft, tokenizer, setting.ballots)
        *_, run = lab_run(setting, sft, judges[setting.ballots], tokenizer, questions)
        record["runs"].append(run)
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        if len(text.encode()) > MOST_BYTES:
            raise SystemExit(f"the record would be larger than {MOST_BYTES:,} bytes: record fewer runs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        ends = {name: points[-1][1] for name, points in run["curves"].items()}
        print(f"{len(record['runs'])}: {setting} {ends} {signs(run)} {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
