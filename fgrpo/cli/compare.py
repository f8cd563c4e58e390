"""The command `compare`."""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config, KitError
from .checks import check_device, check_output, check_policy, flag, names_of
from .options import config_of, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..baselines import Baseline
    from ..study.compare import Begin, Results
    from ..study.experiments import Experiments
    from ..study.preference import Preference

CREDITS = "grpo,fgrpo,reward_to_go"
BASELINES, LAB_BASELINES = "random,popularity", "random,gru4rec,attributes,taste"
STARTS = 3
"""independent warm starts, unless --starts or --init is given"""


def compare(args: argparse.Namespace) -> int:
    """Train every credit method from the same warm starts on the same queries, and print one table."""
    from ..study.experiments import grid, parse_vary

    if args.control:
        return _control(args)
    if args.ladder:
        raise KitError("--ladder extends the positive control: give --control as well.")
    credits = names_of(CREDITS if args.credits is None else args.credits, "--credits")
    if not credits:
        raise KitError("name at least one method with --credits.")
    if args.against and args.against not in credits:
        raise KitError(f"--against {args.against!r} must be one of the methods in --credits.")
    vary = parse_vary(args.vary)
    config = config_of(args, vary)
    if "nested" not in credits and ("rankings" in vary or getattr(args, "rankings", 1) > 1):
        raise KitError("--rankings is for credit 'nested', which is not among --credits.")
    _compare_and_report(args, config, grid(config, credits, vary))
    return 0


def _control(args: argparse.Namespace) -> int:
    """The positive control, with --ladder as the first of three rungs: exit status 1 unless it holds."""
    from ..study.control import OPTIONS, control_experiments, control_found
    from ..study.ladder import ALONE, BEGIN, format_ladder, ladder_experiments, measure_ladder

    given = [name for name in OPTIONS if hasattr(args, name)]
    given += [
        name
        for name in ("credits", "vary", "against", "baselines", "preference", "every", "no_sft_more")
        if getattr(args, name)
    ]
    if given:
        raise KitError(f"{flag(given[0])} is set by --control: leave it out.")
    config = config_of(args)
    if config.rl.decoding == "free":
        raise KitError("--control fills both lists, which free decoding cannot: leave out --decoding free.")
    began = time.perf_counter()
    if args.ladder:
        experiments = ladder_experiments(config)
        results, starts, groups, folder = _compare(args, experiments, {}, sft_more=False, begin=BEGIN)
        rows = measure_ladder(results, experiments, folder, load(args, config)[0], starts, groups)
        found = control_found({ALONE: results[ALONE]}, starts, groups)
        seconds = round(time.perf_counter() - began, 1)
        report = {"task": config.task, "rows": rows, "holds": found.holds, "seconds": seconds}
        text = f"{format_ladder(rows)}\n{found.sentences[-1]} {seconds:.0f} s in all. All files are in {folder}."
        print(json.dumps(report) if args.json else text)
        return 0 if found.holds else 1
    results, starts, groups, folder = _compare(args, control_experiments(config), {}, sft_more=False)
    found = control_found(results, starts, groups)
    if args.json:
        row = {"task": config.task, "start": found.start, "holds": found.holds, "seeds": found.seeds}
        for name, gain in (("joint", found.joint), ("own", found.own), ("own_minus_joint", found.apart)):
            low, high = gain.interval()
            row[name] = {"gain": gain.mean, "low": low, "high": high}
        print(json.dumps({**row, "seconds": round(time.perf_counter() - began, 1)}))
    else:
        print("\n".join(found.sentences), f"All files are in {folder}.", sep="\n")
    return 0 if found.holds else 1


def _compare(
    args: argparse.Namespace,
    experiments: "Experiments",
    baselines: "Mapping[str, Baseline]",
    sft_more: bool,
    begin: "Mapping[str, Begin] | None" = None,
    preferences: "Mapping[str, Preference] | None" = None,
) -> "tuple[Results, list[int], dict[str, list[str]], Path]":
    """Train and measure; the results, the warm start of each seed, the groups of the queries, and the folder."""
    from ..study.compare import compare, groups_of, loaded_once, seed_starts

    if args.resume and not args.out:
        raise KitError("--resume continues the comparison in --out: name its folder.")
    if args.init and args.starts:
        raise KitError("--starts counts warm starts that are made here, and --init names one: leave out one of them.")
    if (args.starts or 0) > args.seeds:
        raise KitError(f"--starts {args.starts} is above --seeds {args.seeds}: some warm starts would not be used.")
    start = check_policy(args.init) if args.init else None
    folder = Path(args.out) if args.out else new_folder("compare")
    args.out = str(folder)  # what resumes a comparison that is stopped
    starts = 1 if start else min(args.starts or STARTS, args.seeds)
    for device in {c.device for methods in experiments.values() for c in methods.values()}:
        check_device(device)
    check_output(folder / "comparison.csv", "CSV")
    read = loaded_once(partial(load, args))
    results = compare(
        experiments, args.seeds, folder, read, baselines, start, args.jobs, args.json, args.resume, args.every or 0,
        starts, sft_more, begin, preferences,
    )  # fmt: skip
    return results, seed_starts(args.seeds, starts), groups_of(experiments, read), folder


def _compare_and_report(args: argparse.Namespace, config: Config, experiments: "Experiments") -> None:
    from ..baselines import baselines_by_name
    from ..study.preference import preferences_by_name
    from ..study.report import format_table, reading, write_report

    began = time.perf_counter()
    others = {c.task for methods in experiments.values() for c in methods.values()} - {"lab-rec"}
    usual = BASELINES if others else LAB_BASELINES
    baselines = baselines_by_name(names_of(usual if args.baselines is None else args.baselines, "--baselines"))
    if ceilings := sorted({"taste", "attributes"} & baselines.keys() if others else ()):
        raise KitError(f"baseline {ceilings[0]!r} is for task lab-rec, not for {min(others)}: leave it out.")
    preferences = preferences_by_name(names_of(args.preference or "", "--preference"))
    results, starts, groups, folder = _compare(
        args, experiments, baselines, not args.no_sft_more, preferences=preferences
    )
    rows, checks = write_report(results, experiments, folder, args.against, starts, groups)
    seconds = round(time.perf_counter() - began, 1)
    runs = [run for by_method in results.values() for some in by_method.values() for run in some]
    if args.json:
        tokens = sum(run.tokens for run in runs)
        learns = [check.sentence for check in checks]
        print(json.dumps({"task": config.task, "rows": rows, "check": learns, "tokens": tokens, "seconds": seconds}))
        return
    print("Does RL learn here?", *(f"  {check.sentence}" for check in checks), "", sep="\n")
    print(format_table(rows))
    print(
        f"\n{len(runs[0].metrics['ndcg@5'])} queries ({args.split}), greedy. {reading(rows)} "
        f"{seconds:.0f} s in all. All files are in {folder}."
    )


def new_folder(kind: str) -> Path:
    """A folder under runs/ that does not exist, named after the time."""
    now = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [now, *(f"{now}-{n}" for n in range(2, 100))]  # two calls within one second
    return next(f for name in names if not (f := Path("runs") / name).exists())
