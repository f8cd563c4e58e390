"""The commands that measure the method and the kit itself: `analyse` and `bench`."""

import argparse
import json
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ..config import KitError, RLConfig
from .checkpoint import chosen, of_checkpoint, policy_of
from .checks import check_device, check_output, names_of


def analyse(args: argparse.Namespace) -> None:
    """Bias and variance of each credit method against the exact gradient, and how the phases interfere."""
    from ..credit import CREDITS, check_credit, with_credit
    from ..runs.warm_start import SHIPPED
    from ..study.analysis import analyse, format_analysis, write_analysis

    if args.out:
        check_output(Path(args.out), "CSV")
    names = names_of(args.credits, "--credits") or list(CREDITS)
    for name in names:
        check_credit(with_credit(RLConfig(), name))
    shipped, args.checkpoint = not args.checkpoint, args.checkpoint or str(SHIPPED)
    config, splits = of_checkpoint(args)
    methods = {name: with_credit(config.rl, name) for name in names}
    for name, rl in methods.items():
        check_credit(rl)
        if not any(g % rl.rankings == 0 and g >= 2 * rl.rankings for g in args.groups):
            raise KitError(f"--groups: {name} needs a multiple of {rl.rankings}, {2 * rl.rankings} at least.")
    policy, splits = policy_of(args, config), splits._replace(test=chosen(args, splits))
    rows, apart, real = analyse(policy, splits, methods, config, args.pools, args.batches, args.groups)
    if args.out:
        write_analysis(Path(args.out), rows, apart, real, "shipped" if shipped else args.checkpoint, config)
    report = {"rows": rows, "separability": apart, "interference": real}
    print(json.dumps(report) if args.json else format_analysis(rows, apart, real))


BENCHED = {"queries": 2, "layers": 4, "hidden_size": 256, "dtype": "float32", "device": "cpu", "threads": 1}
"""what `bench` measures unless told otherwise"""


def bench(args: argparse.Namespace) -> None:
    """Speed and memory of a training step: the prompt shared, repeated, and TRL's trainer (--peers trl)."""
    from ..runs.run import provenance
    from ..scale.bench import Case, bench, format_bench
    from ..study import plots
    from ..study.report import to_csv
    from ..tasks.atomic import write_text

    if args.out:
        check_output(Path(args.out), "CSV")
    if args.lab:
        _bench_lab(args)
        return
    if args.full:
        raise KitError("--full is an option of --lab: the lists of the other benchmarks are always filled.")
    for name, value in BENCHED.items():
        setattr(args, name, getattr(args, name) or value)
    check_device(args.device)
    peers = names_of(args.peers, "--peers")
    for name in ("prompt", "completion", "group", "peers"):
        if args.scaling and getattr(args, name):
            raise KitError(f"--{name} does not change what --scaling measures: leave out one of them.")
    common = {"queries": args.queries, "layers": args.layers, "hidden_size": args.hidden_size, "device": args.device,
              "dtype": args.dtype, "threads": args.threads}  # fmt: skip
    if args.scaling:
        cases = [Case(512, 48, g, **common) for g in (4, 8, 16, 32, 64)]
        cases += [Case(n + 12, 24, 8, pool=n, **common) for n in (20, 50, 100, 200)]
    else:
        sizes = product(args.prompt or [512], args.completion or [48], args.group or [8])
        cases = [Case(*size, **common) for size in sizes]
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


def _bench_lab(args: argparse.Namespace) -> None:
    """Speed of the lab on one core, from the shipped warm start; `--group` may be one number."""
    from ..runs.policies import load_policy
    from ..runs.run import provenance, read_config
    from ..runs.warm_start import SHIPPED
    from ..scale.bench import format_bench
    from ..scale.bench_lab import bench_lab
    from ..study.report import to_csv
    from ..tasks import load_task
    from ..tasks.atomic import write_text

    for name in ("prompt", "completion", "peers", "scaling", "layers", "hidden_size", "dtype", "device", "threads",
                 "no_memory"):  # fmt: skip
        if getattr(args, name):
            raise KitError(f"--{name.replace('_', '-')} does not change what --lab measures: leave out one of them.")
    if len(args.group or [8]) > 1:
        raise KitError("--group: give one number with --lab.")
    if not SHIPPED.is_dir():
        raise KitError(f"{SHIPPED}: the shipped warm start is missing; --lab measures from it.")
    config = read_config(SHIPPED)
    rl = replace(config.rl, queries=args.queries or 16, group=(args.group or [8])[0])
    config = replace(config, rl=rl, grammar=replace(config.grammar, full=args.full))
    rows = bench_lab(load_policy(SHIPPED), load_task(config)[0].validation, config, args.repeats)
    if args.out:
        write_text(Path(args.out), to_csv(rows, {**provenance(), "threads": 1}))
    print(json.dumps({"rows": rows}) if args.json else format_bench(rows))
