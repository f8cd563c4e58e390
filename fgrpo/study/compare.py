"""Train the runs of a comparison: the same warm start, queries and seeds for every method; then greedy decoding."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..baselines import Baseline
from ..baselines.rankers import popularity, random_order
from ..config import Config, KitError
from ..credit import check_credit
from ..data import Splits
from ..evaluate import evaluate, greedy, measure_outputs
from ..policy import Policy
from ..prompt import Output
from ..runs.fields import check_pools
from ..runs.lock import lock
from ..runs.origin import Origin, digest_of, digest_of_policy
from ..runs.policies import load_policy
from ..runs.run import Run, check_folder, read_json
from ..runs.trace import Group, from_lists, trace_of, trace_policy, write_trace
from ..runs.warm_start import TRACED, check_warm_start, made_by, warm_start
from ..runs.workers import without_ctrl_c, workers
from ..tasks.atomic import write_text
from ..trainer import fit, sampling_of
from .experiments import Experiments

T = TypeVar("T")

WARM_START, WARM_START_FULL = "sft", "sft_full"
"""rows of the warm start itself, and of the warm start made to fill both lists"""
TASK = ("task", "data", "one_relevant", "pool")
"""fields that the methods of one setting share: they are compared query by query"""


@dataclass(frozen=True)
class Result:
    """One training run, measured: metrics per test query (Q,), sampled tokens, seconds of training.

    `curve` holds (tokens sampled so far, NDCG@5 per test query) at every evaluation along the way.
    """

    metrics: dict[str, Tensor]
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, Tensor]] = field(default_factory=list)


Results = dict[str, dict[str, list[Result]]]
"""Results by setting and method, one per seed (one in all for rows that RL did not train)."""


def compare(
    experiments: Experiments, seeds: int, folder: Path, load: Callable[[Config], tuple[Splits, list[str]]],
    baselines: Mapping[str, Baseline] | None = None, start: Path | None = None, jobs: int | None = None,
    quiet: bool = False, resume: bool = False, every: int = 0,
) -> Results:  # fmt: skip
    """Train experiments[setting][method], a whole Config each, with seeds 0 to `seeds` - 1. Methods have free names.

    The first rows of a setting are the `baselines` by name (random and popularity unless given) and the warm start,
    also made to fill both lists (`sft_full`: the part of RL's gain that is length alone). `load` gives the splits and
    the catalogue of a run (fgrpo.tasks.load_task). `start` names a policy to start from in place of a warm start;
    `jobs` runs go on at a time; `every` N steps a run is measured on the test split. Runs are written to
    folder/SETTING/METHOD-seedN, and continued from there with `resume`.

    Raises KitError on options that do not fit a method, and on names that would be mixed up.
    """
    if baselines is None:
        baselines = {"random": random_order, "popularity": popularity}
    check_experiments(experiments, baselines)
    configs = {
        (setting, method, seed): replace(config, seed=seed)
        for setting, methods in experiments.items() for method, config in methods.items() for seed in range(seeds)
    }  # fmt: skip
    first: dict[tuple[object, ...], tuple[Path, Config]] = {}  # warm start of all runs that begin alike: folder, config
    for (setting, _, _), config in configs.items():
        own = folder / slug(setting)
        beside = sum(path.parent == own for path, _ in first.values())
        first.setdefault(made_by(config), (own / f"warm-start{f'-{beside + 1}' if beside else ''}", config))
    for path, config in () if start else first.values():  # what can be refused is, before anything is loaded
        check_warm_start(path, config, resume)
    for (setting, method, seed), config in configs.items():
        check_folder(run_folder(folder, setting, method, seed), config, resume, {"stage": "rl", "every": every})
        if every > config.rl.steps:
            raise KitError(f"every {every} is above steps {config.rl.steps}: no measurement would be made on the way.")
    loaded = {key: load(config) for key, (_, config) in first.items()}
    for key, (_, config) in first.items():
        check_pools(loaded[key][0].train, config)
    init = digest_of_policy(start)
    origins = {key: _origin(splits, init, every) for key, (splits, _) in loaded.items()}
    for (setting, method, seed), config in configs.items():  # and before anything is written
        check_folder(run_folder(folder, setting, method, seed), config, resume, origins[made_by(config)])
    # every process would hold the pretrained model once more
    one_by_one = any(config.lm.model for config in configs.values())
    jobs = min(jobs or (1 if one_by_one else os.cpu_count()) or 1, len(configs))
    quiet_runs = quiet or jobs > 1

    with lock(folder):
        if start:
            starts = dict.fromkeys(first, start)
        else:
            making: list[Callable[[], Path]] = [
                partial(warm_start, config, *loaded[key], path, quiet_runs, resume)
                for key, (path, config) in first.items()
            ]  # fmt: skip
            starts = dict(zip(first, _run_all(making, jobs, True), strict=True))

        results: Results = {}
        for setting, methods in experiments.items():
            config = next(iter(methods.values()))
            splits, items = loaded[made_by(config)]
            own = folder / slug(setting) / "baselines"
            results[setting] = {}
            for name, baseline in baselines.items():
                results[setting][name] = [run_baseline(baseline, splits, items, config, own, quiet, resume)]
            policy = load_policy(starts[made_by(config)], config.device, config.lm)
            filled = replace(config, grammar=replace(config.grammar, full=True))
            results[setting][WARM_START_FULL] = [Result(evaluate(policy, splits.test, filled))]
            results[setting][WARM_START] = [Result(evaluate(policy, splits.test, config))]

        training: list[Callable[[], Result]] = [
            partial(
                train_and_test, config, loaded[made_by(config)][0], starts[made_by(config)],
                run_folder(folder, setting, method, seed), quiet_runs, resume, every, origins[made_by(config)],
            )
            for (setting, method, seed), config in configs.items()
        ]  # fmt: skip
        for (setting, method, _), result in zip(configs, _run_all(training, jobs, quiet), strict=True):
            results[setting].setdefault(method, []).append(result)
    return results


def _origin(splits: Splits, init: str, every: int) -> Origin:
    """What the runs of a comparison begin with; the test queries count where they are measured on the way."""
    test = {"test": digest_of(splits.test)} if every else {}
    return {"stage": "rl", "init": init, "train": digest_of(splits.train), "every": every, **test}


def check_experiments(experiments: Experiments, baselines: Mapping[str, Baseline]) -> None:
    """Raise KitError if names would be mixed up, methods cannot be compared, or options do not fit a method."""
    methods = list(next(iter(experiments.values()), {}))
    if not methods:
        raise KitError("name at least one method to compare.")
    for names in (list(experiments), methods):
        if len({slug(name) for name in names}) < len(names):
            raise KitError(f"of {', '.join(names)}, two give a folder of the same name: rename one.")
    if taken := [m for m in methods if not slug(m) or m in (*baselines, WARM_START, WARM_START_FULL)]:
        raise KitError(f"method {taken[0]!r} needs another name: this one is empty, or that of another row.")
    for setting, configs in experiments.items():
        if list(configs) != methods:
            raise KitError(f"setting {setting!r} must hold the methods of the first one: {', '.join(methods)}.")
        for config in configs.values():
            check_credit(config.rl)
        if len({tuple(getattr(config, name) for name in TASK) for config in configs.values()}) > 1:
            raise KitError(f"setting {setting!r}: its methods differ in {', '.join(TASK)}; make them settings.")


def train_and_test(
    config: Config, splits: Splits, start: Path, folder: Path, quiet: bool, resume: bool, every: int = 0,
    origin: Origin | None = None,
) -> Result:  # fmt: skip
    """One RL run from the warm start, then greedy decoding of the test split, also after every `every` steps.

    The run's trace.jsonl gets these lists, and for the first few queries greedy and sampled rollouts token by token.
    """
    run = Run(folder, config, resume=resume, save_every=every or config.rl.steps, origin=origin)
    measured = folder / "curve.json"

    def callback(policy: Policy, step: int) -> None:
        if every and step % every == 0:
            ndcg = evaluate(policy, splits.test, config)["ndcg@5"].tolist()
            points = {**read_curve(measured), str(step): (int(run.total("tokens")), ndcg)}
            write_text(measured, json.dumps(points))

    policy = load_policy(start, lm=config.lm)
    policy = fit(policy, splits.train, config, run, quiet=quiet, after_step=callback)
    points = read_curve(measured).values() if every else ()
    if every and len(points) != config.rl.steps // every:
        raise KitError(f"{measured}: {len(points)} of {config.rl.steps // every} points; delete the run's folder.")
    curve = [(tokens, torch.tensor(ndcg, dtype=torch.float64)) for tokens, ndcg in points]
    outputs = greedy(policy, splits.test, sampling_of(config))
    groups = trace_policy(policy, splits.test[:TRACED], config, TRACED, config.rl.steps, config.seed)
    for example, output in list(zip(splits.test, outputs, strict=True))[TRACED:]:
        groups.append(Group(example, from_lists(output, len(example.candidates)), step=config.rl.steps))
    write_trace(run.trace, trace_of(run.name, config, groups))
    metrics = measure_outputs(outputs, splits.test, config.grammar)
    return Result(metrics, int(run.total("tokens")), run.total("seconds"), curve)


def read_curve(path: Path) -> dict[str, tuple[int, list[float]]]:
    """Points that a run measured on its way: (tokens, NDCG@5 per query) by step. Raises KitError on anything else."""
    points = read_json(path, 1_000_000_000) if path.exists() else {}

    def is_point(point: object) -> bool:
        if not (isinstance(point, list) and len(point) == 2 and type(point[0]) is int and isinstance(point[1], list)):
            return False
        return all(isinstance(x, float) and 0 <= x <= 1 for x in point[1])

    if not (isinstance(points, dict) and all(map(is_point, points.values()))):
        raise KitError(f"{path}: not the points of a run by step; delete the run's folder.")
    if len({len(ndcg) for _, ndcg in points.values()}) > 1:
        raise KitError(f"{path}: its points are of different queries; delete the run's folder.")
    return points


def run_baseline(
    baseline: Baseline, splits: Splits, items: Sequence[str], config: Config, folder: Path, quiet: bool = True,
    resume: bool = False,
) -> Result:  # fmt: skip
    """Call a baseline and measure its lists on the test split. `Baseline` (fgrpo.baselines) says what it is given."""
    offered = {"items": items, "config": config, "grammar": config.grammar, "folder": folder, "quiet": quiet,
               "resume": resume}  # fmt: skip
    bound = baseline.keywords if isinstance(baseline, partial) else {}
    wanted = {name: x for name, x in offered.items() if name in signature(baseline).parameters and name not in bound}
    began = time.perf_counter()
    answers = baseline(splits, **wanted)
    n, k = config.grammar.slate_size, config.grammar.rank_size
    outputs = [a if isinstance(a, Output) else Output(tuple(a[:n]), tuple(a[:k])) for a in answers]
    return Result(measure_outputs(outputs, splits.test, config.grammar), seconds=time.perf_counter() - began)


def run_folder(folder: Path, setting: str, method: str, seed: int) -> Path:
    """Folder of one run of a comparison."""
    return folder / slug(setting) / f"{slug(method)}-seed{seed}"


def slug(name: str) -> str:
    """The name of a setting or method as that of a folder."""
    return re.sub(r"[^\w.+-]", "-", name.replace(" ", "_")).lstrip(".")


def _run_all(calls: Sequence[Callable[[], T]], jobs: int, quiet: bool) -> list[T]:
    """The results of all calls, in order, `jobs` of them at a time in processes of their own."""
    if jobs == 1:
        threads = torch.get_num_threads()
        done = [_one_thread(call) for call in calls]
        torch.set_num_threads(threads)
        return done
    with workers(jobs) as pool:
        with without_ctrl_c():
            futures = [pool.submit(_one_thread, call) for call in calls]
        return [f.result() for f in tqdm(futures, desc="runs", unit="run", disable=quiet or None)]


def _one_thread(call: Callable[[], T]) -> T:
    torch.set_num_threads(1)  # tiny tensors gain little from threads, and results must not depend on the number of jobs
    return call()
