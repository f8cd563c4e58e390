"""Command line: `python -m fgrpo demo | train | evaluate | compare | bench | data`.

Nothing heavy is imported before it is needed.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .config import PRESETS, Config, GrammarConfig, KitError, ModelConfig, RLConfig, SFTConfig
from .options import parser_of


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after one clear line on stderr."""
    try:
        args = parser_of(COMMANDS).parse_args(argv)
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
        print("then change one line in fgrpo/credit.py and run `make demo` again, or try another slate reward:")
        print("  python -m fgrpo compare --slate-reward f1 --credits grpo,fgrpo,reward_to_go --seeds 3")


def train(args: argparse.Namespace) -> None:
    """Warm start (SFT) unless --init names one, then RL; everything goes to --out."""
    from .checkpoint import Run, policy_folder
    from .compare import warm_start
    from .policy import Policy
    from .trainer import fit

    config, out = _config(args), Path(args.out)
    splits, items = _load(args, config)
    if args.sft:
        run = Run(out, config, args.resume, args.save_every)
        policy = fit(
            Policy.tiny(items, config.model, config.seed), splits.train, config, run, sft=True, quiet=args.json
        )
        if args.policy_only:
            run.strip()
    else:
        run = Run(out, config, args.resume, args.save_every)
        start = (
            policy_folder(args.init)
            if args.init
            else warm_start(config, splits, items, out / "warm-start", args.json, args.resume)
        )
        policy = fit(Policy.load(start), splits.train, config, run, quiet=args.json)
    _report_metrics(args, policy, splits.validation, config, f"{out}, validation split")


def evaluate(args: argparse.Namespace) -> None:
    """Metrics of a checkpoint on the test (or validation) split, by greedy decoding."""
    from .checkpoint import policy_folder
    from .policy import Policy

    config = _config(args)
    splits, _ = _load(args, config)
    examples = getattr(splits, args.split)
    _report_metrics(
        args, Policy.load(policy_folder(args.checkpoint), config.device), examples, config, f"{args.split} split"
    )


def compare(args: argparse.Namespace) -> None:
    """Train every credit method from the same warm start on the same queries, and print one table."""
    folder = Path(args.out) if args.out else _new_folder("compare")
    credits = list(dict.fromkeys(filter(None, args.credits.split(","))))
    if not credits:
        raise KitError("name at least one method with --credits.")
    if args.against and args.against not in credits:
        raise KitError(f"--against {args.against!r} must be one of the methods in --credits.")
    init = Path(args.init) if args.init else None
    _compare_and_report(args, _config(args), credits, args.seeds, folder, init, args.resume)


def analyse(args: argparse.Namespace) -> None:
    """Bias and variance of each credit method against the exact gradient, and how the phases interfere."""
    import torch

    from . import plots
    from .analysis import interference, mean_of, oracle_table, separability
    from .checkpoint import policy_folder, provenance
    from .compare import SHIPPED
    from .data import write_text
    from .oracle import enumerate_outputs, small_pool
    from .policy import Policy
    from .report import format_analysis, to_csv
    from .trainer import batch_of

    config = _config(args)
    splits, _ = _load(args, config)
    policy = Policy.load(policy_folder(args.checkpoint or SHIPPED), config.device)
    methods, generator = args.credits.split(","), torch.Generator().manual_seed(config.seed)
    small, middle = (
        [enumerate_outputs(policy, small_pool(e, pool), replace(config, grammar=GrammarConfig(slate, 2)))
         for e in splits.test[: args.pools]] for pool, slate in ((4, 2), (6, 3))
    )  # fmt: skip
    rows = oracle_table(small, methods, (2, 3, 4), config, exact=True)
    rows += oracle_table(middle, methods, args.groups, config)
    apart = mean_of([separability(oracle) for oracle in middle])
    batches = [batch_of(splits.train, config.rl.queries, i, config.seed) for i in range(args.batches)]
    real = mean_of([interference(policy, batch, config, generator) for batch in batches])
    if args.out:
        made = {**provenance(), "checkpoint": args.checkpoint or "shipped", "config": config.to_dict(), **apart, **real}
        write_text(Path(args.out), to_csv(rows, made))
        plots.save(plots.oracle(rows), Path(args.out).with_suffix(".png"))
    report = {"rows": rows, "separability": apart, "interference": real}
    print(json.dumps(report) if args.json else format_analysis(rows, apart, real))


def data_build(args: argparse.Namespace) -> None:
    """Write the lab task's files: train, validation and test splits and the catalogue."""
    from .data import lab_files, write_text

    files = lab_files(args.out, one_relevant=args.one_relevant)
    for path, text in files.items():
        write_text(path, text)
        print(f"{path}  {len(text.encode()):,} bytes")


def data_check(args: argparse.Namespace) -> None:
    """Validate a JSONL file and summarise it; broken lines are listed and give status 2."""
    from .data import read_jsonl

    bad: list[str] = []
    examples = read_jsonl(args.file, bad)
    for message in bad[:20]:
        print(message, file=sys.stderr)
    pools, relevant = [len(e.candidates) for e in examples], [len(e.relevant) for e in examples]
    print(
        f"{args.file}: {len(examples)} good lines, {len(bad)} bad; pools of {min(pools)} to {max(pools)} candidates, "
        f"{min(relevant)} to {max(relevant)} relevant."
    )
    if bad:
        raise KitError(f"{args.file}: {len(bad)} bad lines.")


def bench(args: argparse.Namespace) -> None:
    """Speed and memory of a training step: the prompt shared, repeated, and TRL's trainer (--peers trl)."""
    from . import plots
    from .bench import Case, bench, format_bench
    from .checkpoint import provenance
    from .data import write_text
    from .report import to_csv

    common = {"queries": args.queries, "layers": args.layers, "hidden_size": args.hidden_size, "device": args.device,
              "dtype": args.dtype, "threads": args.threads}  # fmt: skip
    if args.scaling:
        cases = [Case(512, 48, g, **common) for g in (4, 8, 16, 32, 64)]
        cases += [Case(n + 12, 24, 8, pool=n, **common) for n in (20, 50, 100, 200)]
    else:
        cases = [Case(p, c, g, **common) for p in args.prompt for c in args.completion for g in args.group]
    peers = [] if args.scaling else [p for p in args.peers.split(",") if p]
    if set(peers) - {"trl"}:
        raise KitError(f"--peers {args.peers!r} is not known; the one peer is trl.")
    rows: list[dict[str, Any]] = []
    for case in cases:
        began = time.perf_counter()
        rows += bench(case, peers, args.repeats, not args.no_memory)
        if args.out:  # after every case, so that a stopped benchmark keeps what it has
            made = {**provenance(), "threads": args.threads, "queries": args.queries, "dtype": args.dtype}
            write_text(Path(args.out), to_csv(rows, made))
        took = time.perf_counter() - began
        print(f"P {case.prompt}, C {case.completion}, G {case.group}, pool {case.pool}: {took:.0f} s", file=sys.stderr)
    if args.out:
        figure = plots.scaling(rows) if args.scaling else plots.bench(rows)
        plots.save(figure, Path(args.out).with_suffix(".png"))
    print(json.dumps({"rows": rows}) if args.json else format_bench(rows))


def _compare_and_report(
    args: argparse.Namespace, config: Config, credits: list[str], seeds: int, folder: Path, init: Path | None, resume: bool
) -> None:  # fmt: skip
    from .checkpoint import policy_folder
    from .compare import compare
    from .report import format_table, write_report

    began = time.perf_counter()
    results = compare(
        config, credits, seeds, folder, partial(_load, args), args.vary, [b for b in args.baselines.split(",") if b],
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


def _config(args: argparse.Namespace) -> Config:
    names = [f for kind in (Config, GrammarConfig, ModelConfig, SFTConfig, RLConfig) for f in kind.__dataclass_fields__]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return Config.from_flat(**{**PRESETS.get(given.get("task", "lab-rec"), {}), **given})


def _load(args: argparse.Namespace, config: Config) -> tuple[Any, list[str]]:
    """The task's splits and catalogue; with --skip-bad, broken lines are skipped, counted and the first ones shown."""
    from .datasets import load_task

    bad: list[str] | None = [] if getattr(args, "skip_bad", False) else None
    loaded = load_task(config, bad)
    if bad:
        print("\n".join([*bad[:5], f"skipped {len(bad)} broken lines of {config.task}"]), file=sys.stderr)
    splits, items = loaded
    if args.command == "compare":
        splits = splits._replace(test=getattr(splits, args.split)[: args.limit])
    return splits, items


def _new_folder(kind: str) -> Path:
    return Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text, flush=True)


COMMANDS = {
    "demo": demo, "train": train, "evaluate": evaluate, "compare": compare, "analyse": analyse, "bench": bench,
    "data build": data_build, "data check": data_check,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
