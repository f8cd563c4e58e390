"""Command line: `python -m fgrpo demo | train | evaluate | trace | compare | analyse | bench | data`.

Nothing heavy is imported before it is needed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .cli_data import data_build, data_check, data_fetch, data_fetch_model, data_stats
from .cli_measure import analyse, bench
from .config import PRESETS, Config, KitError
from .options import config_of, load, parser_of
from .stopping import Stop, Stopped, how_to_resume, processes


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after one clear line on stderr."""
    try:
        args = parser_of(COMMANDS).parse_args(argv)
        if args.command != "train" and processes() > 1:
            raise KitError(f"{args.command} runs on one process; only train is made for several.")
        args.argv = argv
        args.run(args)
    except KitError as error:
        print(f"fgrpo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fgrpo: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgrpo: stopped; --resume goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def demo(args: argparse.Namespace) -> None:
    """Compare credit methods on the lab task from the shipped warm start; table, figures, one example."""
    config = Config.from_flat(task="lab-rec", steps=args.steps, **PRESETS["lab-rec"])
    _say(args, "Task lab-rec: 8 films seen, a pool of 20, 2 to 4 of them relevant. From the shipped SFT policy, each")
    _say(args, f"credit method gets {args.steps} RL steps of 16 queries x 8 rollouts, {args.seeds} seeds.\n")
    folder = _new_folder("demo")
    _compare_and_report(args, config, ["grpo", "fgrpo", "reward_to_go"], args.seeds, folder, None, False)
    if not args.json:
        _show_example(config, folder)
        print(f"\nLook next: {folder}/comparison.png, {folder}/learning.png, {folder}/errors.png;")
        print(
            "`make app` opens these runs beside the shipped ones: rollouts, credit of every token, runs side by side;"
        )
        print("then change one line in fgrpo/credit.py and run `make demo` again, or try another slate reward:")
        print("  python -m fgrpo compare --slate-reward f1 --credits grpo,fgrpo,reward_to_go --seeds 3")


def train(args: argparse.Namespace) -> None:
    """Warm start (SFT) unless --init names one, then RL; everything goes to --out."""
    config = config_of(args)
    if args.dry_run:
        from .plan import format_plan, plan

        found = plan(config, *load(args, config), not args.init, not args.sft)
        print(json.dumps(found) if args.json else format_plan(found))
        return
    if not (args.out or args.preset):
        raise KitError("name the run's folder with --out.")
    args.out = args.out or f"runs/{args.preset}"
    with Stop() as stop:
        from .distributed import launched

        team = launched(config.device)
        try:
            policy, examples = _train(args, config, team, lambda: stop.asked)
        except Stopped as stopped:
            if team.main:
                print(f"fgrpo: {stopped}; to go on: {how_to_resume(args.argv)}", file=sys.stderr)
            team.leave()
            return
    team.leave()
    if team.main:
        _report_metrics(args, policy, examples, config, f"{args.out}, validation split")


def _train(args: argparse.Namespace, config: Config, team: Any, stop: Callable[[], bool]) -> tuple[Any, list]:
    from .checkpoint import Run, policy_folder
    from .compare import tracer, warm_start
    from .policy import Policy
    from .trainer import fit

    out = Path(args.out)
    splits, items = load(args, config)
    run = Run(out, config, args.resume, args.save_every, team.main)
    quiet, stopped = args.json or not team.main, None
    if args.sft or args.init == "base":
        policy = Policy.new(items, config, config.seed)
    else:
        init, folder = args.init, out / "warm-start"
        with team.first():  # without --init, the main process makes the warm start and the others take it
            again = args.resume or not team.main
            try:
                start = policy_folder(init) if init else warm_start(config, splits, items, folder, quiet, again, stop)
            except Stopped as error:  # raised below, where no other process waits for this one
                stopped = error
        if team.any(stopped is not None):
            raise stopped or Stopped(f"{out}: stopped in the warm start")
        policy = Policy.load(start, lm=config.lm)
    look = tracer(run, splits.validation)
    policy = fit(policy, splits.train, config, run, args.sft, quiet, after_save=look, team=team, stop=stop)
    if args.policy_only and team.main:
        run.strip()
    return policy, splits.validation


def evaluate(args: argparse.Namespace) -> None:
    """Metrics of a checkpoint on the test (or validation) split, by greedy decoding."""
    config = config_of(args)
    splits, _ = load(args, config)
    policy, examples = _policy_of(args, config), _examples(args, splits)
    _report_metrics(args, policy, examples, config, "all splits" if args.split == "all" else f"{args.split} split")


def trace(args: argparse.Namespace) -> None:
    """Write what a checkpoint does on a task as JSONL: greedy lists, sampled groups, every token (fgrpo.trace)."""
    from .trace import trace_of, trace_policy, write_trace
    from .trainer import check_pools

    config, out = config_of(args), Path(args.out)
    splits, _ = load(args, config)
    examples = _examples(args, splits)[: args.limit]
    check_pools(examples, config)
    policy = _policy_of(args, config)
    groups = trace_policy(policy, examples, config, args.sampled, seed=config.seed)
    name = out.parent.name if out.name == "trace.jsonl" else ""  # a run's own is named after the run
    write_trace(out, trace_of(name or out.stem, config, groups))
    found = {"queries": len(groups), "sampled": min(args.sampled, len(groups)), "bytes": out.stat().st_size}
    print(json.dumps(found) if args.json else f"{out}: {found['queries']} queries, {found['sampled']} of them "
          f"token by token with {config.rl.group} rollouts each, {found['bytes']:,} bytes")  # fmt: skip


def _examples(args: argparse.Namespace, splits: Any) -> list:
    return [e for part in splits for e in part] if args.split == "all" else getattr(splits, args.split)


def _policy_of(args: argparse.Namespace, config: Config) -> Any:
    """The policy of --checkpoint, or with `base` the pretrained model as it comes."""
    from .checkpoint import policy_folder
    from .policy import Policy

    if args.checkpoint != "base":
        return Policy.load(policy_folder(args.checkpoint), config.device, config.lm)
    if not config.lm.model:
        raise KitError("--checkpoint base is a pretrained model as it comes: name it with --model.")
    return Policy.pretrained(config.lm, device=config.device)


def compare(args: argparse.Namespace) -> None:
    """Train every credit method from the same warm start on the same queries, and print one table."""
    folder = Path(args.out) if args.out else _new_folder("compare")
    credits = list(dict.fromkeys(filter(None, args.credits.split(","))))
    if not credits:
        raise KitError("name at least one method with --credits.")
    if args.against and args.against not in credits:
        raise KitError(f"--against {args.against!r} must be one of the methods in --credits.")
    init = Path(args.init) if args.init else None
    _compare_and_report(args, config_of(args), credits, args.seeds, folder, init, args.resume)


def _compare_and_report(
    args: argparse.Namespace, config: Config, credits: list[str], seeds: int, folder: Path, init: Path | None, resume: bool
) -> None:  # fmt: skip
    from .checkpoint import policy_folder
    from .compare import compare
    from .report import format_table, write_report

    began = time.perf_counter()
    results = compare(
        config, credits, seeds, folder, partial(load, args), args.vary, [b for b in args.baselines.split(",") if b],
        policy_folder(init) if init else None, args.jobs, args.json, resume, args.every,
    )  # fmt: skip
    rows = write_report(results, config, folder, seeds, args.against)
    seconds = round(time.perf_counter() - began, 1)
    every_run = [r for by_method in results.values() for runs in by_method.values() for r in runs]
    if args.json:
        tokens = sum(r.tokens for r in every_run)
        print(json.dumps({"task": config.task, "rows": rows, "tokens": tokens, "seconds": seconds}))
        return
    print(format_table(rows))
    print(
        f"\n{len(every_run[0].metrics['ndcg@5'])} queries ({args.split}), greedy; means over {seeds} seeds; [95 %]: paired "
        f"bootstrap over queries and seeds; p and verdict: corrected by Holm over the differences of the whole table. "
        f"{seconds:.0f} s in all. Everything is in {folder}."
    )


def _show_example(config: Config, folder: Path) -> None:
    from .checkpoint import policy_folder
    from .compare import SHIPPED
    from .datasets import load_task
    from .policy import Policy, Sampling
    from .rollout import rollout

    example = load_task(config)[0].test[0]
    print(f"\nOne viewer: {', '.join(example.history)}")
    for name, path in (("SFT", SHIPPED), ("fgrpo", folder / "fgrpo-seed0")):
        output = rollout(Policy.load(policy_folder(path)), [example], Sampling(config.grammar)).outputs[0]
        slate, rank = (
            ", ".join(example.candidates[i] + "*" * (i in example.relevant) for i in part) for part in output[:2]
        )
        print(f"{name:>6} slate: {slate}\n       rank:  {rank}")
    missed = [example.candidates[i] for i in sorted(example.relevant)]
    print(f"       (* relevant; all relevant: {', '.join(missed)})")


def _report_metrics(args: argparse.Namespace, policy: Any, examples: list, config: Config, what: str) -> None:
    from .evaluate import evaluate as measure
    from .trainer import check_pools

    check_pools(examples, config)
    metrics = {name: x.mean().item() for name, x in measure(policy, examples, config).items()}
    if args.json:
        print(json.dumps({"task": config.task, "queries": len(examples), "metrics": metrics}))
        return
    print(f"{what}: {len(examples)} queries, greedy decoding")
    for name, value in metrics.items():
        print(f"  {name:<14} {value:.4f}")


def _new_folder(kind: str) -> Path:
    now = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [now, *(f"{now}-{n}" for n in range(2, 100))]  # the clock may say the same second twice
    return next(f for name in names if not (f := Path("runs") / name).exists())


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text, flush=True)


COMMANDS = {
    "demo": demo, "train": train, "evaluate": evaluate, "trace": trace, "compare": compare, "analyse": analyse,
    "bench": bench,
    "data build": data_build, "data check": data_check, "data stats": data_stats, "data fetch": data_fetch,
    "data fetch-model": data_fetch_model,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
