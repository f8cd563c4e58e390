"""The command `demo`: RL learns, credit matters where it must, and what is known where it is not clear."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config
from ..runs.fields import config_with, with_fields
from ..runs.presets import PRESETS
from .compare import new_folder

if TYPE_CHECKING:
    from ..data import Splits
    from ..study.check import Check
    from ..study.compare import Results
    from ..study.control import Control
    from ..study.experiments import Experiments
    from ..study.plots import Row

QUERIES, POINTS = 1024, 4
"""test queries of the demo, and measurements on the way of each run"""
METHODS = ("grpo", "fgrpo")
CONTROL_STEPS, CONTROL_LR, CONTROL_NOISE = 70, 3.5e-4, 3.0
"""of the control, instead of its own: more noise, and fewer steps (or as few as --steps). Chosen on the validation split so
that 5 seeds from the one warm start show what it does; with its own noise of 1 and 120 steps, they do not"""


def demo(args: argparse.Namespace) -> None:
    """RL on the lab task from the shipped warm start: it learns, a control of credit, and a small comparison."""
    from ..baselines import baselines_by_name
    from ..study import plots
    from ..study.compare import compare, seed_starts
    from ..study.control import control_experiments, control_found
    from ..study.experiments import grid
    from ..study.report import write_report
    from ..tasks import load_task

    began = time.perf_counter()
    config = config_with(task="lab-rec", **{**PRESETS["lab-rec"], "steps": args.steps})
    splits, items = load_task(config)
    splits = splits._replace(test=splits.test[:QUERIES])
    folder, starts, seeds = new_folder("demo"), seed_starts(args.seeds, 1), -(-5 * args.seeds // 3)  # of the control
    steps = min(args.steps, CONTROL_STEPS)
    options: dict[str, object] = {"steps": steps, "lr": CONTROL_LR, "slate_noise": CONTROL_NOISE}
    control = {name: with_fields(c, **options) for name, c in control_experiments(config)[""].items()}
    experiments = grid(config, METHODS)

    def run(what: "Experiments", seeds: int, name: str, every: int) -> "Results":
        baselines = baselines_by_name(["attributes", "taste"] if every else [])
        return compare(
            what, seeds, folder / name, lambda config: (splits, items), baselines, None, args.jobs, args.json,
            every=every, sft_more=bool(every),
        )  # fmt: skip

    if not args.json:
        print(INTRODUCTION.format(steps=args.steps, seeds=args.seeds, queries=QUERIES), flush=True)
    results = run(experiments, args.seeds, "task", max(1, args.steps // POINTS))
    rows, checks = write_report(results, experiments, folder / "task", starts=starts)
    found = control_found(run({"": control}, seeds, "control", 0), seed_starts(seeds, 1))
    plots.save(plots.demo(rows, results[""], found, args.steps), folder / "demo.png")
    if args.json:
        report(config, rows, checks, results, found, time.perf_counter() - began)
        return
    learned(results, checks)
    title = "Where credit must matter, it does." if found.holds else "Does credit matter where it must?"
    print(
        f"\n2. {title} Rank tokens alone learn, noise of SD {CONTROL_NOISE:.0f} is added to the slate's "
        f"reward; {steps} steps, {seeds} seeds."
    )
    few = f"A verdict needs {CONTROL_STEPS} steps." if steps < CONTROL_STEPS and not found.holds else ""
    print(*(f"   {line}" for line in [*found.sentences[:-1], few or found.sentences[-1]]), sep="\n")
    print(f"\n3. The full task, both phases learning: {args.steps} steps, {args.seeds} seeds from one warm start.")
    print(known(rows))
    example(config, splits, folder)
    print(f"\n{time.perf_counter() - began:.0f} s in all. Look at {folder}/demo.png, then:")
    print(*NEXT, sep="\n")


INTRODUCTION = """\
Task lab-rec: a history of 8 films, a pool of 20, 2 to 4 of them relevant. The policy writes a slate (at most 10), then
ranks at most 5 of it. From the shipped warm start each credit method gets {steps} RL steps of 16 queries x 8 rollouts,
{seeds} seeds; NDCG@5 of greedy lists is measured on {queries} test viewers. This takes a few minutes.
"""
NEXT = (
    "  1. make lab                 the course: the two rewards, then who gets which credit (a clone of the repository)",
    "  2. make app                 rollouts token by token, with the credit of every token (a clone of the repository)",
    "  3. change one line of a method in fgrpo/credit.py, and compare from three warm starts with more steps:",
    "     python -m fgrpo compare --credits grpo,fgrpo,item --seeds 6",
)


def learned(results: "Results", checks: "Sequence[Check]") -> None:
    """Print whether RL leaves the warm start behind, with its lists filled, and SFT that went on for as long."""
    ((_, by_method),) = results.items()
    means = {m: sum(float(r.metrics["ndcg@5"].mean()) for r in runs) / len(runs) for m, runs in by_method.items()}
    print("1. RL learns." if all(c.beats for c in checks if c.reference == "sft_full") else "1. Does RL learn?")
    print(
        f"   NDCG@5: warm start {means['sft']:.3f}, with its lists filled {means['sft_full']:.3f}; after RL "
        + ", ".join(f"{m} {means[m]:.3f}" for m in METHODS)
        + f";\n   SFT that goes on on the same queries for the same compute, lists filled: {means['sft_more']:.3f}. "
        f"For comparison:\n   counting shared attributes {means['attributes']:.3f}, "
        f"knowing each viewer's taste {means['taste']:.3f}."
    )
    print(*(f"   {check.sentence}" for check in checks), sep="\n")


def known(rows: "list[Row]") -> str:
    """The comparison of credit methods in five columns."""
    from ..study.report import bracket, columns

    baseline = rows[0]["baseline"]
    lines = [("method", "NDCG@5 [95 %]", f"difference to {baseline} [95 %]", "detectable", "verdict")]
    for row in (r for r in rows if r["metric"] == "ndcg@5" and r["method"] in METHODS):
        other = row["method"] != baseline
        lines.append((
            row["method"], f"{row['mean']:.3f} {bracket(row, '', '.3f')}",
            f"{row['diff']:+.3f} {bracket(row, 'diff_', '+.3f')}" if other else "",
            f"{row['detectable']:.3f}" if other and row["detectable"] is not None else "", row["verdict"],
        ))  # fmt: skip
    return "\n".join(f"   {line}" for line in columns(lines).splitlines())


def example(config: Config, splits: "Splits", folder: Path) -> None:
    """Print one viewer's lists before and after RL, in titles: the first viewer whose full list first misses a film."""
    from ..evaluate import greedy
    from ..policy import Sampling
    from ..runs.policies import load_policy
    from ..runs.warm_start import SHIPPED

    viewers, sampling = splits.test[:64], Sampling(replace(config.grammar, full=True))
    before = greedy(load_policy(SHIPPED), viewers, sampling)
    number = next((i for i, e in enumerate(viewers) if not e.relevant <= set(before[i].rank)), 0)
    viewer = viewers[number]
    after = greedy(load_policy(folder / "task" / "fgrpo-seed0"), [viewer], sampling)[0]
    print(f"\nOne viewer liked {', '.join(viewer.history)}.")
    print(f"Would like too (*): {', '.join(viewer.candidates[i] for i in sorted(viewer.relevant))}.")
    for name, output in (("warm start", before[number]), ("fgrpo", after)):
        slate, rank = (
            ", ".join(viewer.candidates[i] + "*" * (i in viewer.relevant) for i in part) for part in output[:2]
        )
        print(f"  {name:>10} slate: {slate}\n{'rank: ':>20}{rank}")


def report(
    config: Config, rows: "list[Row]", checks: "Sequence[Check]", results: "Results", found: "Control", seconds: float
) -> None:
    """Print all of it as one JSON object."""
    runs = [run for by_method in results.values() for some in by_method.values() for run in some]
    control = {"start": found.start, "joint": found.joint.mean, "own": found.own.mean, "holds": found.holds}
    print(json.dumps({
        "task": config.task, "rows": rows, "check": [c.sentence for c in checks], "control": control,
        "tokens": sum(run.tokens for run in runs), "seconds": round(seconds, 1),
    }))  # fmt: skip
