"""A pretrained model that reads, on a real task: SFT until it reads, then RL with grpo and fgrpo from the same start.

    python data/results/gpu_lm.py --task lastfm-sdpo --data DIR --model DIR --gguf-file FILE --minutes 8.5 \
        --device cuda --out runs/lm-lastfm

Not run on a GPU yet, and on a CPU at tiny sizes only. No learning rate was searched.

It times its own steps to keep within --minutes. The same command goes on where it ended, with new minutes.

1. At most 40 % of the time: SFT in rounds (`sft-0`, `sft-1`, ...), each of at most --sft-steps steps, then the reads test
   (fgrpo.study.reads) on --check validation queries. SFT is over when the policy reads its pool, loses NDCG@5 with the
   query of another and is above popularity, each with 95 % (MuSiQue has no popularity). RL waits for that, or --anyway.
2. --steps steps of each method from that policy (`grpo-seed0`, `fgrpo-seed0`, `grpo-seed1`, ...), and greedy decoding of
   the test split. Lists are filled: demonstrations hold the relevant candidates alone, after which lists of free length
   would stay short. A seed begins only if both of its runs fit the time left; one that was begun goes on.
3. `lm-TASK.csv` in --out: rows popularity, dense (if it is installed), sft_full, sft, grpo, fgrpo; intervals are clustered
   by `Example.group`. Fewer than three seeds give no verdict.

Weights: the GGUF file that `python -m fgrpo data fetch-model smollm2` makes; --model names its folder. All of them are
trained, or with --lora-rank 16 an adapter. Memory by fgrpo.scale.estimate (float32, micro 0, within a factor of 2): at most
22 GB for LastFM, 23 GB for Games, 30 GB for MuSiQue; with one H100 (80 GB) in mind. Its seconds, at the rates of an A100:
3.5, 4.3 and 10 for a step of RL, 2, 3 and 12 for one of SFT. Disk: 2.2 GB a round or run.

Packages: those of the kit (pyproject.toml; torch with CUDA) and gguf; for the row dense sentence-transformers and its
model. No network is used.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()  # loading is part of the minutes
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

from fgrpo.baselines import baselines_by_name, demonstrator  # noqa: E402
from fgrpo.config import Config, KitError  # noqa: E402
from fgrpo.credit import with_credit  # noqa: E402
from fgrpo.data import Example, Splits  # noqa: E402
from fgrpo.evaluate import evaluate, greedy  # noqa: E402
from fgrpo.policy import Policy, Sampling  # noqa: E402
from fgrpo.runs.fields import check_pools, with_fields  # noqa: E402
from fgrpo.runs.origin import digest_of, digest_of_policy  # noqa: E402
from fgrpo.runs.policies import checkpoints, load_policy, new_policy  # noqa: E402
from fgrpo.runs.presets import run_with  # noqa: E402
from fgrpo.runs.run import Run, read_config, read_json  # noqa: E402
from fgrpo.runs.sft import Demonstrate, sft_stage  # noqa: E402
from fgrpo.study.compare import WARM_START, WARM_START_FULL, Result, measure_sft, run_baseline, run_folder  # noqa: E402
from fgrpo.study.experiments import parse_vary  # noqa: E402
from fgrpo.study.plots import Row  # noqa: E402
from fgrpo.study.reads import pool_verdict, reads_rows, verdict  # noqa: E402
from fgrpo.study.report import PRIMARY, WITH_HEADLINE, format_table, made_of, reading, to_csv, write_report  # noqa: E402
from fgrpo.tasks import load_task, resolved  # noqa: E402
from fgrpo.tasks.atomic import write_text  # noqa: E402
from fgrpo.trainer import Stage, Stopped, batch_of, fit, make_optimizer, rl_stage  # noqa: E402

TASKS = {"lastfm-sdpo": 24, "games-mixed": 32, "musique": 100}
"""tokens shown of each text"""
METHODS = ("grpo", "fgrpo")
FULL, LORA = {"sft_lr": 2e-4, "lr": 1e-5}, {"sft_lr": 5e-4, "lr": 1e-4}
SFT_SHARE, CHECK_SHARE, RESERVE = 0.4, 0.2, 0.06
"""parts of the time: for SFT; of that for the reads test; for saving and the report at the end"""
LONGER = 1.5
"""how much longer a run may take than its steps: checkpoints are written, and the test split is decoded"""


def round_steps(left: float, a_step: float, most: int, check: float = 0.0) -> int:
    """Steps of a round of SFT for which `left` seconds suffice; 0 if that is less than a quarter of `most`.

    `check`: seconds that the reads test took after the round before.
    """
    steps = min(most, int((left - max(check, CHECK_SHARE * left)) / a_step))
    return steps if 4 * steps >= most else 0


def next_run(
    finished: Collection[tuple[str, int]], begun: Collection[tuple[str, int]], left: float, a_run: float
) -> tuple[str, int] | None:
    """The next (method, seed), or None if it would begin a seed whose runs of `a_run` seconds do not fit `left` seconds."""
    seed = next(s for s in itertools.count() if any((m, s) not in finished for m in METHODS))
    goes_on = left > 0 and any((m, seed) in begun for m in METHODS)
    method = next(m for m in METHODS if (m, seed) not in finished)
    return (method, seed) if goes_on or len(METHODS) * a_run <= left else None


def passes(rows: Sequence[Row]) -> bool:
    """Whether the reads test shows, with 95 %, a policy that reads pool and query and is above popularity."""
    low = {r["part"]: r["low"] for r in rows if r["measure"].endswith((", own minus another's", "minus popularity's"))}
    reads = pool_verdict(rows).startswith(("reads its pool:", "reads its pool in part:"))
    return reads and low.get("query", 0) > 0 and low.get("popularity", 1) > 0


def spread(examples: Sequence[Example], count: int | None) -> list[Example]:
    """At most `count` examples from all over a split, since neighbours may be of one group."""
    return list(examples[:: -(-len(examples) // count) if count else 1])


def seconds_of_a_step(policy: Policy, stage: Stage, examples: Sequence[Example], config: Config) -> float:
    """Mean of three steps after a first one, which compares and allocates. A learning rate of 0 keeps the weights."""
    optimizer, began = make_optimizer(policy, replace(stage, lr=lambda number: 0.0)), 0.0
    for number in range(4):
        began = time.perf_counter() if number == 1 else began
        stage.step(policy, optimizer, batch_of(examples, stage.queries, number, config.seed, "timing"), config, number)
    return (time.perf_counter() - began) / 3


def kept(path: Path, measure: Callable[[], Result]) -> Result:
    """A result that is measured once and then read from its file."""
    if not path.exists():
        found = measure()
        metrics = {name: x.tolist() for name, x in found.metrics.items()}
        write_text(path, json.dumps({"metrics": metrics, "tokens": found.tokens, "seconds": found.seconds}))
    values = read_json(path, 1_000_000_000)
    metrics = {name: torch.tensor(x, dtype=torch.float64) for name, x in values["metrics"].items()}
    return Result(metrics, values["tokens"], values["seconds"])


class Work:
    """One call: its options, its data and its clock. What earlier calls did is in the folder `out`."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, Path(args.out)
        if wrong := [text for text in args.set if "=" not in text or "," in text]:
            raise KitError(f"--set {wrong[0]!r} must be FIELD=VALUE, as in sft_batch=16.")
        changes = {name: values[0] for name, values in parse_vary(args.set).items()}
        options = {"task": args.task, "data": args.data, "model": args.model, "gguf_file": args.gguf_file,
                   "device": args.device, "passage_tokens": TASKS[args.task], "lora_rank": args.lora_rank, "micro": 0,
                   "full": True, "sft_batch": 32, "queries": 16, "group": 8, "steps": args.steps,
                   "sft_steps": args.sft_steps, **(LORA if args.lora_rank else FULL), **changes}  # fmt: skip
        self.config = resolved(run_with(options))
        self.configs = {m: replace(self.config, rl=with_credit(self.config.rl, m)) for m in METHODS}
        (train, *held), self.items = load_task(self.config)
        check_pools(train, self.config)
        self.splits = Splits(train, *(spread(part, args.limit) for part in held))
        self.test = f"test-{len(self.splits.test)}.json"  # what was measured on other queries is not taken

    @cached_property
    def demonstrate(self) -> Demonstrate | None:
        """Writes the demonstrations of `--set demonstrations=ranked`; its ranker is trained first."""
        return demonstrator(self.splits, self.config)

    def left(self, share: float = 1.0) -> float:
        """Seconds left of a share of this call's time."""
        return share * (1 - RESERVE) * 60 * self.args.minutes - (time.perf_counter() - BEGAN)

    def loaded(self, start: Path | None, config: Config) -> Policy:
        """The policy to go on from, on the device."""
        policy = load_policy(start, lm=config.lm) if start else new_policy(self.items, config)
        return policy.to(config.device)

    def train(
        self, policy: Policy, start: Path | None, config: Config, folder: Path, stage: Stage, share: float
    ) -> tuple[Run, Policy]:
        """Finish the run of a folder, from `policy`, that of `start`. Raises Stopped when its share of the time is up."""
        origin = {"stage": stage.use, "init": digest_of_policy(start or "base"), "train": digest_of(self.splits.train)}
        run = Run(folder, config, resume=True, save_every=stage.steps, origin=origin)
        return run, fit(policy, self.splits.train, config, run, stage, stop=lambda: self.left(share) < 0)

    def sft(self) -> tuple[Path | None, dict[str, Any]]:
        """The last policy of SFT, and whether it reads: `passed`, `verdict` in words. Raises Stopped."""
        start, found = None, {"passed": False, "verdict": "no round of SFT is finished", "seconds": 0.0}
        for number in itertools.count():
            folder, config = self.out / f"sft-{number}", replace(self.config, seed=number)
            if not (folder / "reads.json").exists():
                rl_began = (run_folder(self.out, "", METHODS[0], 0) / "config.json").exists()
                if found["passed"] or rl_began or self.left(SFT_SHARE) < 0:
                    return start, found
                policy = self.loaded(start, config)
                if (folder / "config.json").exists():
                    steps = read_config(folder).sft.sft_steps
                else:
                    a_step = seconds_of_a_step(policy, sft_stage(config, self.demonstrate), self.splits.train, config)
                    steps = round_steps(self.left(SFT_SHARE), a_step, config.sft.sft_steps, found["seconds"])
                    print(f"SFT {number}: {a_step:.2f} s a step, {self.left(SFT_SHARE):.0f} s left, {steps} steps")
                if not steps:
                    return start, found
                config = with_fields(config, sft_steps=steps)
                _, policy = self.train(policy, start, config, folder, sft_stage(config, self.demonstrate), SFT_SHARE)
                self.check(policy, folder)
            start, found = checkpoints(folder)[-1], read_json(folder / "reads.json")
        raise AssertionError

    def check(self, policy: Policy, folder: Path) -> None:
        """The reads test, on validation queries, kept beside a round of SFT."""
        began = time.perf_counter()
        examples, filled = spread(self.splits.validation, self.args.check), replace(self.config.grammar, full=True)
        rows = reads_rows(lambda pools: greedy(policy, pools, Sampling(filled)), examples, self.splits.train)
        found = {"passed": passes(rows), "verdict": verdict(rows), "queries": len(examples),
                 "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip
        write_text(folder / "reads.json", json.dumps(found))
        print(f"{folder.name}: {found['verdict']}")

    def rl(self, start: Path) -> dict[str, list[Result]]:
        """Results of the finished seeds by method, after as many more as the time allows."""
        done: dict[tuple[str, int], Result] = {}
        policy, stage = self.loaded(start, self.config), rl_stage(self.config)
        a_step = LONGER * seconds_of_a_step(policy, stage, self.splits.train, self.config)
        a_run = a_step * stage.steps
        print(f"RL: the time left is enough for one seed of {int(self.left() / a_step / len(METHODS))} steps")
        folders = {(m, s): run_folder(self.out, "", m, s) for s in range(1000) for m in METHODS}
        while True:
            begun = {key for key, folder in folders.items() if (folder / "config.json").exists()}
            measured = {key for key in begun - done.keys() if (folders[key] / self.test).exists()}
            done |= {key: kept(folders[key] / self.test, lambda: Result({})) for key in measured}
            key = next_run(done, begun, self.left(), a_run)
            print(f"RL: {a_run:.0f} s a run, {self.left():.0f} s left: {key or 'no further seed'}")
            if not key:
                break
            config, began = replace(self.configs[key[0]], seed=key[1]), time.perf_counter()
            try:
                policy = self.loaded(start, config)
                run, policy = self.train(policy, start, config, folders[key], rl_stage(config), 1.0)
            except Stopped as stopped:
                print(stopped)
                break
            found = Result(evaluate(policy, self.splits.test, config), int(run.total("tokens")), run.total("seconds"))
            kept(folders[key] / self.test, lambda found=found: found)
            a_run = time.perf_counter() - began if key not in begun else a_run  # a part of a run says less
        seeds = min(sum(m == method for m, _ in done) for method in METHODS)
        return {method: [done[method, seed] for seed in range(seeds)] for method in METHODS}

    def report(self, start: Path, found: dict[str, Any]) -> None:
        """Measure what RL is compared with, train, and write the tables."""
        results: dict[str, list[Result]] = {}
        for name, baseline in baselines_by_name(["popularity", "dense"]).items():
            call = lambda b=baseline: run_baseline(b, self.splits, self.items, self.config, self.out)  # noqa: E731
            try:
                results[name] = [kept(self.out / f"{name}-{self.test}", call)]
            except KitError as error:
                print(f"no row {name}: {error}")
        for row in (WARM_START_FULL, WARM_START):  # of filled lists both are the same
            name = WARM_START_FULL if self.config.grammar.full else row
            call = lambda name=name: measure_sft(self.config, self.splits, start, name)  # noqa: E731
            results[row] = [kept(start.parents[1] / f"{name}-{self.test}", call)]  # a later round is another policy
        results |= self.rl(start)
        if not results[METHODS[0]]:
            raise KitError("no seed is finished: the same command goes on, or give more --minutes or fewer --steps.")
        groups, experiments = {"": [e.group for e in self.splits.test]}, {"": self.configs}
        rows, checks = write_report({"": results}, experiments, self.out, groups=groups)
        some = [r for r in rows if r["metric"] in (PRIMARY, *WITH_HEADLINE)]
        shown = [{**r, "minutes": round(r["seconds"] / 60, 2)} for r in some]
        made = {**made_of(experiments), "reads": found}
        if self.config.device.startswith("cuda"):
            made["hardware"] = torch.cuda.get_device_name()
        write_text(self.out / f"lm-{self.args.task}.csv", to_csv(shown, made))
        print(format_table(rows), reading(rows), *(c.sentence for c in checks), sep="\n")


def main() -> None:
    """Read the options, and do what the minutes allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    for name in ("--data", "--model", "--out"):
        parser.add_argument(name, required=True)
    for name, usual in {"--gguf-file": "", "--minutes": 8.5, "--device": "cuda", "--lora-rank": 0, "--steps": 200,
                        "--sft-steps": 250, "--check": 200}.items():  # fmt: skip
        parser.add_argument(name, type=type(usual), default=usual)
    parser.add_argument("--limit", type=int, help="validation and test queries (default: all)")
    parser.add_argument("--anyway", action="store_true", help="RL also from a policy that does not read")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another field of the run")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    try:
        work = Work(args)
        start, found = work.sft()
        if not start or not (found["passed"] or args.anyway):
            raise KitError(f"RL is not begun ({found['verdict']}): the same command goes on with SFT.")
        work.report(start, found)
    except (KitError, Stopped) as error:
        sys.exit(f"gpu_lm.py: {error}")


if __name__ == "__main__":
    main()
