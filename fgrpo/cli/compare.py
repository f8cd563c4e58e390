"""The commands that compare credit methods: `demo` and `compare`."""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config, KitError
from ..runs.fields import config_with
from .checks import check_device, check_output, check_policy, flag, names_of
from .options import PRESETS, config_of, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..baselines import Baseline
    from ..study.compare import Results
    from ..study.experiments import Experiments

CREDITS = "grpo,fgrpo,reward_to_go"
BASELINES, LAB_BASELINES = "random,popularity", "random,gru4rec,attributes,taste"
STARTS = 3
"""independent warm starts, unless --starts or --init is given"""


def demo(args: argparse.Namespace) -> None:
    """Compare credit methods on the lab task from the shipped warm start; table, figures, one example."""
    from ..study.experiments import grid

    config = config_with(task="lab-rec", **{**PRESETS["lab-rec"], "steps": args.steps})
    if not args.json:
        print(
            "Task lab-rec: a history of 8 films, a pool of 20, 2 to 4 of them relevant. From the shipped SFT policy, "
            f"each\ncredit method gets {args.steps} RL steps of 16 queries x 8 rollouts, {args.seeds} seeds.\n",
            flush=True,
        )
    folder = _new_folder("demo")
    _compare_and_report(args, config, grid(config, ["grpo", "fgrpo", "reward_to_go"]), folder)
    if not args.json:
        _show_example(config, folder)
        print(f"\nLook next: {folder}/comparison.png, {folder}/learning.png, {folder}/errors.png;")
        print(
            "in a clone of the repository `make app` opens these runs beside the shipped ones: rollouts, credit of every "
            "token;\nchange one line in fgrpo/credit.py there and run `make demo` again, or try another slate reward:"
        )
        print("  python -m fgrpo compare --slate-reward f1 --credits grpo,fgrpo,reward_to_go --seeds 3")


def compare(args: argparse.Namespace) -> None:
    """Train every credit method from the same warm starts on the same queries, and print one table."""
    from ..study.experiments import grid, parse_vary

    if args.control:
        _control(args)
        return
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


def _control(args: argparse.Namespace) -> None:
    """The positive control: exit status 1 if it fails."""
    from ..study.control import OPTIONS, control_experiments, control_found

    given = [name for name in OPTIONS if hasattr(args, name)]
    given += [name for name in ("credits", "vary", "against", "baselines", "every") if getattr(args, name)]
    if given:
        raise KitError(f"{flag(given[0])} is set by --control: leave it out.")
    config = config_of(args)
    experiments = control_experiments(config)
    began = time.perf_counter()
    results, starts, groups, folder = _compare(args, experiments, {}, sft_more=False)
    found = control_found(results, starts, groups)
    if args.json:
        row = {"task": config.task, "start": found.start, "holds": found.holds, "seeds": found.seeds}
        for name, gain in (("joint", found.joint), ("own", found.own)):
            low, high = gain.interval()
            row[name] = {"gain": gain.mean, "low": low, "high": high}
        print(json.dumps({**row, "seconds": round(time.perf_counter() - began, 1)}))
    else:
        print("\n".join(found.sentences), f"All files are in {folder}.", sep="\n")
    if not found.holds:
        raise SystemExit(1)


def _compare(
    args: argparse.Namespace, experiments: "Experiments", baselines: "Mapping[str, Baseline]", sft_more: bool
) -> "tuple[Results, list[int], dict[str, list[str]], Path]":
    """Train and measure; the results, the warm start of each seed, the groups of the queries, and the folder."""
    from ..study.compare import compare, groups_of, loaded_once, starts_of

    if args.resume and not args.out:
        raise KitError("--resume continues the comparison in --out: name its folder.")
    if args.init and args.starts:
        raise KitError("--starts counts warm starts that are made here, and --init names one: leave out one of them.")
    start = check_policy(args.init) if args.init else None
    folder = Path(args.out) if args.out else _new_folder("compare")
    args.out = str(folder)  # what resumes a comparison that is stopped
    starts = 1 if start else min(args.starts or STARTS, args.seeds)
    for device in {c.device for methods in experiments.values() for c in methods.values()}:
        check_device(device)
    check_output(folder / "comparison.csv", "CSV")
    read = loaded_once(partial(load, args))
    results = compare(
        experiments, args.seeds, folder, read, baselines, start, args.jobs, args.json, args.resume, args.every or 0,
        starts, sft_more,
    )  # fmt: skip
    return results, starts_of(args.seeds, starts), groups_of(experiments, read), folder


def _compare_and_report(args: argparse.Namespace, config: Config, experiments: "Experiments") -> None:
    from ..baselines import baselines_by_name
    from ..study.check import manipulation
    from ..study.report import format_table, reading, write_report

    began = time.perf_counter()
    usual = LAB_BASELINES if config.task == "lab-rec" else BASELINES
    baselines = baselines_by_name(names_of(usual if args.baselines is None else args.baselines, "--baselines"))
    results, starts, groups, folder = _compare(args, experiments, baselines, not args.no_sft_more)
    rows = write_report(results, experiments, folder, args.against, starts, groups)
    seconds = round(time.perf_counter() - began, 1)
    runs = [run for by_method in results.values() for some in by_method.values() for run in some]
    checks = manipulation(results, starts, groups)
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


def _show_example(config: Config, folder: Path) -> None:
    from ..policy import Sampling
    from ..rollout import rollout
    from ..runs.policies import load_policy
    from ..runs.warm_start import SHIPPED
    from ..tasks import load_task

    example = load_task(config)[0].test[0]
    print(f"\nOne viewer: {', '.join(example.history)}")
    for name, path in (("SFT", SHIPPED), ("fgrpo", folder / "fgrpo-seed0")):
        output = rollout(load_policy(path), [example], Sampling(config.grammar)).outputs[0]
        slate, rank = (
            ", ".join(example.candidates[i] + "*" * (i in example.relevant) for i in part) for part in output[:2]
        )
        print(f"{name:>6} slate: {slate}\n       rank:  {rank}")
    missed = [example.candidates[i] for i in sorted(example.relevant)]
    print(f"       (* relevant; all relevant: {', '.join(missed)})")


def _new_folder(kind: str) -> Path:
    now = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [now, *(f"{now}-{n}" for n in range(2, 100))]  # two calls within one second
    return next(f for name in names if not (f := Path("runs") / name).exists())
