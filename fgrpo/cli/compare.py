"""The commands that compare credit methods: `demo` and `compare`."""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config, KitError
from ..runs.fields import config_with
from .checks import check_device, check_output, check_policy, names_of
from .options import PRESETS, config_of, load

if TYPE_CHECKING:
    from ..study.experiments import Experiments


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
    """Train every credit method from the same warm start on the same queries, and print one table."""
    from ..study.experiments import grid, parse_vary

    credits = names_of(args.credits, "--credits")
    if not credits:
        raise KitError("name at least one method with --credits.")
    if args.against and args.against not in credits:
        raise KitError(f"--against {args.against!r} must be one of the methods in --credits.")
    if args.resume and not args.out:
        raise KitError("--resume continues the comparison in --out: name its folder.")
    vary = parse_vary(args.vary)
    config = config_of(args, vary)
    if "nested" not in credits and ("rankings" in vary or getattr(args, "rankings", 1) > 1):
        raise KitError("--rankings is for credit 'nested', which is not among --credits.")
    experiments = grid(config, credits, vary)
    start = check_policy(args.init) if args.init else None
    folder = Path(args.out) if args.out else _new_folder("compare")
    args.out = str(folder)  # what resumes a comparison that is stopped
    _compare_and_report(args, config, experiments, folder, start, args.resume)


def _compare_and_report(
    args: argparse.Namespace, config: Config, experiments: "Experiments", folder: Path, start: Path | None = None,
    resume: bool = False,
) -> None:  # fmt: skip
    from ..baselines import baselines_by_name
    from ..study.compare import compare
    from ..study.report import format_table, write_report

    began = time.perf_counter()
    baselines = baselines_by_name(names_of(args.baselines, "--baselines"))
    for device in {c.device for methods in experiments.values() for c in methods.values()}:
        check_device(device)
    check_output(folder / "comparison.csv", "CSV")
    results = compare(
        experiments, args.seeds, folder, partial(load, args), baselines, start, args.jobs, args.json, resume, args.every,
    )  # fmt: skip
    rows = write_report(results, experiments, folder, args.against)
    seconds = round(time.perf_counter() - began, 1)
    runs = [run for by_method in results.values() for some in by_method.values() for run in some]
    if args.json:
        tokens = sum(run.tokens for run in runs)
        print(json.dumps({"task": config.task, "rows": rows, "tokens": tokens, "seconds": seconds}))
        return
    print(format_table(rows))
    print(
        f"\n{len(runs[0].metrics['ndcg@5'])} queries ({args.split}), greedy; means over {args.seeds} seeds; [95 %]: paired "
        "bootstrap over queries and seeds; p and verdict: corrected by Holm over the differences of the whole table. "
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
