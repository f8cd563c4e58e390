"""The commands that measure the method and the kit itself: `analyse` and `bench`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config, KitError, RLConfig
from .checkpoint import chosen, of_checkpoint, policy_of
from .checks import check_device, check_output, flag, names_of

if TYPE_CHECKING:
    from ..data import Example
    from ..policy import Policy


ANALYSED = {"split": "test", "pools": 4, "batches": 8, "groups": [2, 4, 8, 16, 32]}
"""what `analyse` measures unless told otherwise"""
OF_MAP = ("coarse", "cells", "groups_per_cell", "jobs", "resume")


def analyse(args: argparse.Namespace) -> None:
    """Bias and variance of each credit method against the exact gradient, and how the phases interfere."""
    from ..credit import CREDITS, check_credit, with_credit
    from ..runs.warm_start import SHIPPED
    from ..study.analysis import analyse, format_analysis, write_analysis

    if args.map:
        _map(args)
        return
    if args.reads:
        _reads(args)
        return
    _refuse(args, ("seed",), "is an option of --map and --reads")
    _refuse(args, OF_MAP, "is an option of --map")
    if args.out:
        check_output(Path(args.out), "CSV")
    if args.signs:
        _refuse(args, ("batches",), "does not change what --signs measures")
    usual = {**ANALYSED, **({"pools": 200, "groups": [8]} if args.signs else {})}
    for name, value in usual.items():
        setattr(args, name, getattr(args, name) or value)
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
    if args.signs:
        _signs(args, policy, splits.test[: args.pools], methods, config)
        return
    rows, apart, real = analyse(policy, splits, methods, config, args.pools, args.batches, args.groups)
    if args.out:
        write_analysis(Path(args.out), rows, apart, real, "shipped" if shipped else args.checkpoint, config)
    report = {"rows": rows, "separability": apart, "interference": real}
    print(json.dumps(report) if args.json else format_analysis(rows, apart, real))


def _refuse(args: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Raise KitError on the first of these options that was given."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value != "":  # a seed of 0 is one
            raise KitError(f"{flag(name)} {reason}: leave out one of them.")


def _signs(
    args: argparse.Namespace,
    policy: "Policy",
    examples: "Sequence[Example]",
    methods: dict[str, RLConfig],
    config: Config,
) -> None:
    """Wrong signs against the true advantage, every output listed."""
    from ..runs.run import provenance
    from ..study.report import to_csv
    from ..study.signs import exact_signs, format_signs, sign_rows
    from ..tasks.atomic import write_text

    sized: dict[tuple[str, float], RLConfig] = {
        (name, g): replace(rl, group=g) for name, rl in methods.items() for g in args.groups
        if g % rl.rankings == 0 and g >= 2 * rl.rankings
    }  # fmt: skip
    rows = sign_rows(exact_signs(policy, examples, sized, config), config.rl.lam, config.seed)
    if args.out:
        write_text(Path(args.out), to_csv(rows, {**provenance(), "config": config.to_dict()}))
    print(json.dumps({"rows": rows}) if args.json else format_signs(rows))


def _reads(args: argparse.Namespace) -> None:
    """Whether a checkpoint reads its pool and its query, by greedy decoding with full lists."""
    from ..evaluate import greedy
    from ..policy import Sampling
    from ..runs.fields import check_pools
    from ..runs.run import provenance
    from ..runs.warm_start import SHIPPED
    from ..study.reads import format_reads, reads_rows, verdict
    from ..study.report import to_csv
    from ..tasks.atomic import write_text

    _refuse(args, OF_MAP, "is an option of --map")
    _refuse(args, ("signs", "credits", "pools", "batches", "groups"), "does not change what --reads measures")
    if args.out:
        check_output(Path(args.out), "CSV")
    args.checkpoint, args.split, seed = args.checkpoint or str(SHIPPED), args.split or "test", args.seed or 0
    config, splits = of_checkpoint(args)
    examples = chosen(args, splits)
    check_pools(examples, config)
    policy, sampling = policy_of(args, config), Sampling(replace(config.grammar, full=True))
    rows = reads_rows(lambda some: greedy(policy, some, sampling), examples, splits.train, seed)
    said = verdict(rows)
    if args.out:
        made = {**provenance(), "verdict": said, "seed": seed, "config": config.to_dict()}
        write_text(Path(args.out), to_csv(rows, made))
    report = {"task": config.task, "queries": len(examples), "verdict": said, "rows": rows}
    print(json.dumps(report) if args.json else format_reads(rows))


def _map(args: argparse.Namespace) -> None:
    """Sample efficiency of each method by regime, or for the policy and regime of a run."""
    from ..study import map as study

    _refuse(args, ("signs", "reads", *ANALYSED, "limit"), "does not change what --map measures")
    alone = ("coarse", "cells", "jobs", "resume") if args.checkpoint else ()
    _refuse(args, alone, "is about several cells, and --checkpoint is one")
    if not args.checkpoint:
        _refuse(args, ("task", "data", "device", "model", "gguf_file", "trust_remote_code"), "goes with --checkpoint, and "
                "--map without one has policies of its own")  # fmt: skip
    if args.coarse and args.cells:
        raise KitError("--coarse names cells, and so does --cells: leave out one of them.")
    if args.resume and not args.out:
        raise KitError("--resume continues the map in --out: name its file.")
    names = names_of(args.credits, "--credits") or study.all_methods()
    study.map_methods(names, Config())  # refuses what is not known
    cells = names_of(args.cells, "--cells") or list(study.COARSE if args.coarse else study.CELLS)
    if unknown := [name for name in cells if name not in study.CELLS]:
        raise KitError(f"cell {unknown[0]!r} is not known; choose from {', '.join(study.CELLS)}.")
    most = args.groups_per_cell or (study.COARSE_GROUPS if args.coarse else study.GROUPS)
    if most < study.LEAST:
        raise KitError(f"--groups-per-cell {most} must be at least {study.LEAST}, for an interval.")
    out, seed = Path(args.out) if args.out else None, args.seed or 0
    if out:
        check_output(out, "CSV")
    if args.checkpoint:
        config, splits = of_checkpoint(args)
        rl = replace(config.rl, ratio="token", learn="both", rankings=1)
        config = replace(config, rl=rl, seed=seed)
        policy, name = policy_of(args, config), Path(args.checkpoint).name
        rows = study.measure_checkpoint(name, policy, splits, config, names, most, out)
    else:
        folder = (out.parent if out else Path("runs/map")) / "starts"
        rows = study.measure_map(cells, names, folder, out, most, seed, args.jobs or os.cpu_count() or 1, args.resume)
    if out:
        study.write_figure(rows, out)
    print(json.dumps({"rows": rows}) if args.json else study.format_map(rows))


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
