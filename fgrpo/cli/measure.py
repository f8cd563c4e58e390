"""The commands that measure the kit itself: `analyse` and `bench`."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import GrammarConfig, KitError
from ..runs.policies import load_policy
from .options import config_of, load


def analyse(args: argparse.Namespace) -> None:
    """Bias and variance of each credit method against the exact gradient, and how the phases interfere."""
    from ..data import write_text
    from ..runs.run import provenance
    from ..runs.warm_start import SHIPPED
    from ..study import plots
    from ..study.analysis import interference, mean_of, oracle_table, separability
    from ..study.oracle import enumerate_outputs, small_pool
    from ..study.report import format_analysis, to_csv
    from ..trainer import batch_of

    config = config_of(args)
    splits, _ = load(args, config)
    policy = load_policy(args.checkpoint or SHIPPED, config.device)
    methods = args.credits.split(",")
    small, middle = (
        [enumerate_outputs(policy, small_pool(e, pool), replace(config, grammar=GrammarConfig(slate, 2)))
         for e in splits.test[: args.pools]] for pool, slate in ((4, 2), (6, 3))
    )  # fmt: skip
    rows = oracle_table(small, methods, (2, 3, 4), config, exact=True)
    rows += oracle_table(middle, methods, args.groups, config)
    apart = mean_of([separability(oracle) for oracle in middle])
    batches = [batch_of(splits.train, config.rl.queries, i, config.seed) for i in range(args.batches)]
    real = mean_of([interference(policy, batch, config, number) for number, batch in enumerate(batches)])
    if args.out:
        made = {**provenance(), "checkpoint": args.checkpoint or "shipped", "config": config.to_dict(), **apart, **real}
        write_text(Path(args.out), to_csv(rows, made))
        plots.save(plots.oracle(rows), Path(args.out).with_suffix(".png"))
    report = {"rows": rows, "separability": apart, "interference": real}
    print(json.dumps(report) if args.json else format_analysis(rows, apart, real))


def bench(args: argparse.Namespace) -> None:
    """Speed and memory of a training step: the prompt shared, repeated, and TRL's trainer (--peers trl)."""
    from ..data import write_text
    from ..runs.run import provenance
    from ..scale.bench import Case, bench, format_bench
    from ..study import plots
    from ..study.report import to_csv

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
