"""Train the runs of a comparison: the same warm starts, queries and seeds for every method; then greedy decoding.

The run of seed s starts from warm start s mod W, of W independent ones (`starts`), so that seeds vary the start too.
"""

import itertools
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
from tqdm.auto import tqdm

from ..baselines import Baseline, demonstrator
from ..baselines.rankers import popularity, random_order
from ..config import Config, KitError
from ..credit import check_credit
from ..data import Splits
from ..evaluate import evaluate, greedy, measure_outputs
from ..policy import Policy
from ..prompt import Output
from ..runs.fields import check_pools, with_fields
from ..runs.lock import lock
from ..runs.origin import Origin, digest_of, digest_of_policy
from ..runs.policies import load_policy
from ..runs.run import Run, check_folder, read_config, read_json
from ..runs.sft import Demonstrate, sft_stage, teacher
from ..runs.trace import Group, from_lists, trace_of, trace_policy, write_trace
from ..runs.warm_start import TRACED, check_warm_start, made_by, warm_start
from ..runs.workers import without_ctrl_c, workers
from ..tasks.atomic import write_text
from ..trainer import Callback, fit, sampling_of
from .experiments import Experiments
from .preference import Preference, preferring
from .sft_more import continued, queries_of, steps_of

T = TypeVar("T")
Load = Callable[[Config], tuple[Splits, list[str]]]
"""gives the splits and the catalogue of a run, as fgrpo.tasks.load_task does"""
Begin = Callable[[Path, Config], Policy]
"""(folder of the warm start, config) -> the policy that a run trains"""

WARM_START, WARM_START_FULL = "sft", "sft_full"
"""rows of the warm start itself, and of the warm start made to fill both lists: what length alone gives"""
SFT_MORE, SFT_ONCE = "sft_more", "sft_once"
"""rows of SFT that goes on on RL's queries, for RL's compute and for one pass (fgrpo.study.sft_more); lists filled"""
WARM_STARTS = "warm-start"
"""how the folders of warm starts begin"""
GO_ON = (SFT_ONCE, SFT_MORE)
SFT_ROWS = (WARM_START_FULL, SFT_ONCE, SFT_MORE, WARM_START)
TASK = ("task", "data", "one_relevant", "pool", "negatives", "has_gt", "taste", "hard")
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
"""Results by setting and method: one per seed; of rows that RL did not train one per warm start, of baselines one."""


def compare(
    experiments: Experiments, seeds: int, folder: Path, load: Load,
    baselines: Mapping[str, Baseline] | None = None, start: Path | None = None, jobs: int | None = None,
    quiet: bool = False, resume: bool = False, every: int = 0, starts: int = 1, sft_more: bool = True,
    begin: Mapping[str, Begin] | None = None, preferences: Mapping[str, Preference] | None = None,
) -> Results:  # fmt: skip
    """Train experiments[setting][method], a whole Config each, with seeds 0 to `seeds` - 1. Methods have free names.

    The first rows of a setting are the `baselines` by name (random and popularity unless given) and those of SFT_ROWS,
    with options of the setting's first method; without `sft_more`, SFT does not go on. Then the `preferences` by name,
    which train offline from each warm start (fgrpo.study.preference). `load` gives the splits and the catalogue of a run
    (fgrpo.tasks.load_task). `start` names a policy to start from in place of `starts` warm starts; `jobs` runs go on at
    a time; `every` N steps a run is measured on the test split. Runs are written to folder/SETTING/METHOD-seedN, and
    continued from there with `resume`. `begin`: of settings whose runs do not begin with the warm start as it is, what
    makes their policy of it.

    Raises KitError on options that do not fit a method, and on names that would be mixed up.
    """
    if baselines is None:
        baselines = {"random": random_order, "popularity": popularity}
    preferences = preferences or {}
    check_experiments(experiments, {**baselines, **preferences})
    if both := sorted(baselines.keys() & preferences.keys()):
        raise KitError(f"{both[0]!r} names a baseline and a preference: rename one.")
    starts = 1 if start else min(starts, seeds)
    configs = {
        (setting, method, seed): replace(config, seed=seed)
        for setting, methods in experiments.items() for method, config in methods.items() for seed in range(seeds)
    }  # fmt: skip
    first: dict[tuple[object, ...], tuple[Path, Config]] = {}  # warm starts of runs that begin alike: folder, config
    for (setting, _, _), config in configs.items():
        own = folder / slug(setting)
        beside = sum(path.parent == own for path, _ in first.values())
        first.setdefault(made_by(config), (own / f"{WARM_STARTS}{f'-{beside + 1}' if beside else ''}", config))
    making = {
        (key, w): (path.with_name(f"{path.name}{f'-seed{w}' if w else ''}"), config)
        for key, (path, config) in first.items() for w in range(starts)
    }  # fmt: skip
    for (_, w), (path, config) in {} if start else making.items():  # what can be refused is, before anything is loaded
        check_warm_start(path, config, resume, w)
    for (setting, method, seed), config in configs.items():
        check_folder(run_folder(folder, setting, method, seed), config, resume, {"stage": "rl", "every": every})
        if every > config.rl.steps:
            raise KitError(f"every {every} is above steps {config.rl.steps}: no measurement would be made on the way.")
    for setting, row, w in itertools.product(experiments, GO_ON if sft_more else (), range(starts)):
        check_sft_folder(sft_folder(folder, setting, row, w), next(iter(experiments[setting].values())), resume)
    for setting, (row, preference), w in itertools.product(experiments, preferences.items(), range(starts)):
        config = replace(next(iter(experiments[setting].values())), seed=w)
        preference.check_folder(sft_folder(folder, setting, row, w), config, resume)
    loaded = {key: load(config) for key, (_, config) in first.items()}
    for key, (_, config) in first.items():
        check_pools(loaded[key][0].train, config)
    init = digest_of_policy(start)
    origins = {key: _origin(splits, init, every) for key, (splits, _) in loaded.items()}
    for (setting, method, seed), config in configs.items():  # and before anything is written
        origin = {**origins[made_by(config)], "start": seed % starts}
        check_folder(run_folder(folder, setting, method, seed), config, resume, origin)
    # every process would hold the pretrained model once more
    one_by_one = any(config.lm.model for config in configs.values())
    jobs = min(jobs or (1 if one_by_one else os.cpu_count()) or 1, len(configs))
    quiet_runs = quiet or jobs > 1

    with lock(folder):
        demonstrates = {key: _one_thread(partial(demonstrator, loaded[key][0], c)) for key, (_, c) in first.items()}
        paths = dict.fromkeys(making, start) if start else dict(zip(making, _run_all([
            partial(warm_start, config, *loaded[key], path, quiet_runs, resume, seed=w, demonstrate=demonstrates[key])
            for (key, w), (path, config) in making.items()
        ], jobs, True), strict=True))  # fmt: skip

        calls: dict[tuple[str, str, int], Callable[[], Result]] = {}
        for setting, methods in experiments.items():
            config = next(iter(methods.values()))
            key, own = made_by(config), folder / slug(setting) / "baselines"
            splits, items = loaded[key]
            for name, baseline in baselines.items():
                calls[setting, name, 0] = partial(
                    run_baseline, baseline, splits, items, config, own, quiet_runs, resume, paths[key, 0]
                )  # fmt: skip
            rows = (*SFT_ROWS[:-1], *preferences, WARM_START)  # after the warm start come the methods of RL
            for row, w in itertools.product(rows, range(starts)):
                path, seeded, own = paths[key, w], replace(config, seed=w), sft_folder(folder, setting, row, w)
                if row in preferences:
                    calls[setting, row, w] = partial(
                        prefer, preferences[row], seeded, splits, path, own, quiet_runs, resume
                    )
                elif row not in GO_ON:
                    calls[setting, row, w] = partial(measure_sft, seeded, splits, path, row)
                elif sft_more:
                    calls[setting, row, w] = partial(
                        go_on_with_sft, seeded, splits, path, row, own, demonstrates[key], quiet_runs, resume, every
                    )  # fmt: skip
        for (setting, method, seed), config in configs.items():
            key, w = made_by(config), seed % starts
            calls[setting, method, seed] = partial(
                train_and_test, config, loaded[key][0], paths[key, w], run_folder(folder, setting, method, seed),
                quiet_runs, resume, every, {**origins[key], "start": w}, (begin or {}).get(setting),
            )  # fmt: skip
        done = _run_all(list(calls.values()), jobs, quiet)

    results: Results = {setting: {} for setting in experiments}
    for (setting, name, _), result in zip(calls, done, strict=True):
        results[setting].setdefault(name, []).append(result)
    return results


def _origin(splits: Splits, init: str, every: int) -> Origin:
    """What the runs of a comparison begin with; the test queries count where they are measured on the way."""
    test = {"test": digest_of(splits.test)} if every else {}
    return {"stage": "rl", "init": init, "train": digest_of(splits.train), "every": every, **test}


def check_experiments(experiments: Experiments, beside: Mapping[str, object]) -> None:
    """Raise KitError if names would be mixed up, methods cannot be compared, or options do not fit a method.

    `beside` holds the rows that are named beside the methods.
    """
    methods = list(next(iter(experiments.values()), {}))
    if not methods:
        raise KitError("name at least one method to compare.")
    for names in (list(experiments), methods, list(beside)):
        if len({slug(name) for name in names}) < len(names):
            raise KitError(f"of {', '.join(names)}, two give a folder of the same name: rename one.")
    reserved = (SFT_MORE, WARM_STARTS)  # what begins so is a row of SFT (check.py), or the folder of a warm start
    if taken := [m for m in methods if not slug(m) or m in (*beside, *SFT_ROWS) or slug(m).startswith(reserved)]:
        raise KitError(f"method {taken[0]!r} needs another name: this one is empty, or that of another row or folder.")
    if taken := [name for name in beside if name in SFT_ROWS or name.startswith(SFT_MORE)]:
        raise KitError(f"row {taken[0]!r} needs another name: this one is that of a row of SFT.")
    for setting, configs in experiments.items():
        if list(configs) != methods:
            raise KitError(f"setting {setting!r} must hold the methods of the first one: {', '.join(methods)}.")
        for config in configs.values():
            check_credit(config.rl)
        if len({tuple(getattr(config, name) for name in TASK) for config in configs.values()}) > 1:
            raise KitError(f"setting {setting!r}: its methods differ in {', '.join(TASK)}; make them settings.")


def train_and_test(
    config: Config, splits: Splits, start: Path, folder: Path, quiet: bool, resume: bool, every: int = 0,
    origin: Origin | None = None, begin: Begin | None = None,
) -> Result:  # fmt: skip
    """One RL run from the warm start, then greedy decoding of the test split, also after every `every` steps.

    The run's trace.jsonl gets these lists, and for the first few queries greedy and sampled rollouts token by token.
    """
    run = Run(folder, config, resume=resume, save_every=every or config.rl.steps, origin=origin)
    at = range(every, config.rl.steps + 1, every) if every else ()
    policy = begin(start, config) if begin else load_policy(start, lm=config.lm)
    policy = fit(policy, splits.train, config, run, quiet=quiet, after_step=_measure_at(at, run, splits, config))
    curve = _curve(run, at)
    outputs = greedy(policy, splits.test, sampling_of(config))
    groups = trace_policy(policy, splits.test[:TRACED], config, TRACED, config.rl.steps, config.seed)
    for example, output in list(zip(splits.test, outputs, strict=True))[TRACED:]:
        groups.append(Group(example, from_lists(output, len(example.candidates)), step=config.rl.steps))
    write_trace(run.trace, trace_of(run.name, config, groups))
    metrics = measure_outputs(outputs, splits.test, config.grammar)
    return Result(metrics, int(run.total("tokens")), run.total("seconds"), curve)


def measure_sft(config: Config, splits: Splits, start: Path, row: str) -> Result:
    """The policy `start` as it is, with lists of the run's length or (WARM_START_FULL) filled."""
    config = with_fields(config, full=True) if row == WARM_START_FULL else config
    return Result(evaluate(load_policy(start, config.device, config.lm), splits.test, config))


def go_on_with_sft(
    config: Config, splits: Splits, start: Path, row: str, folder: Path, demonstrate: Demonstrate | None, quiet: bool,
    resume: bool, every: int,
) -> Result:  # fmt: skip
    """A row of GO_ON: the policy `start` after SFT went on in `folder`; SFT_MORE also on the way, as often as RL."""
    policy, queries, run = continued(config, splits, start, folder, row == SFT_ONCE, resume)
    filled = with_fields(config, full=True)
    steps, points = run.config.sft.sft_steps, config.rl.steps // every if every and row == SFT_MORE else 0
    at = sorted({-(-steps * (i + 1) // points) for i in range(points)})  # fewer, where SFT has fewer steps
    stage = sft_stage(run.config, teacher(policy, config, demonstrate))
    policy = fit(policy, queries, run.config, run, stage, quiet, after_step=_measure_at(at, run, splits, filled))
    metrics = evaluate(policy, splits.test, filled)
    return Result(metrics, int(run.total("tokens")), run.total("seconds"), _curve(run, at))


def prefer(
    preference: Preference, config: Config, splits: Splits, start: Path, folder: Path, quiet: bool, resume: bool
) -> Result:
    """A row of preferences: the policy `start` after offline training in `folder`. Its lists are filled."""
    policy, run = preferring(preference, config, splits, start, folder, resume)
    policy = fit(policy, splits.train, run.config, run, preference.stage(run.config), quiet)
    metrics = evaluate(policy, splits.test, with_fields(config, full=True))
    return Result(metrics, int(run.total("tokens")), run.total("seconds"))


def _measure_at(steps: Sequence[int], run: Run, splits: Splits, config: Config) -> Callback:
    """A callback for `fit` that measures the policy on the test split after some steps, and keeps it in curve.json."""
    measured = run.folder / "curve.json"

    def callback(policy: Policy, step: int) -> None:
        if step in steps:
            ndcg = evaluate(policy, splits.test, config)["ndcg@5"].tolist()
            points = {**read_curve(measured), str(step): (int(run.total("tokens")), ndcg)}
            write_text(measured, json.dumps(points))

    return callback


def _curve(run: Run, steps: Sequence[int]) -> list[tuple[int, Tensor]]:
    """What `_measure_at` kept."""
    points = read_curve(run.folder / "curve.json") if steps else {}
    if list(points) != [str(step) for step in steps]:
        raise KitError(f"{run.folder / 'curve.json'}: a point of {len(steps)} is missing; delete the run's folder.")
    return [(tokens, torch.tensor(ndcg, dtype=torch.float64)) for tokens, ndcg in points.values()]


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
    resume: bool = False, start: Path | None = None,
) -> Result:  # fmt: skip
    """Call a baseline and measure its lists on the test split. `Baseline` (fgrpo.baselines) says what it is given.

    `start` is the warm start of the RL runs whose compute a baseline that is given `sft_steps` may spend as well.
    """
    bound = baseline.keywords if isinstance(baseline, partial) else {}
    wanted = signature(baseline).parameters.keys() - bound.keys()
    offered: dict[str, object] = {"items": items, "config": config, "grammar": config.grammar, "folder": folder,
                                  "quiet": quiet, "resume": resume}  # fmt: skip
    if start and "sft_steps" in wanted:
        more = steps_of(load_policy(start, lm=config.lm), queries_of(splits, config), config)
        offered["sft_steps"] = config.sft.sft_steps + more
    began = time.perf_counter()
    answers = baseline(splits, **{name: x for name, x in offered.items() if name in wanted})
    n, k = config.grammar.slate_size, config.grammar.rank_size
    outputs = [a if isinstance(a, Output) else Output(tuple(a[:n]), tuple(a[:k])) for a in answers]
    return Result(measure_outputs(outputs, splits.test, config.grammar), seconds=time.perf_counter() - began)


def run_folder(folder: Path, setting: str, method: str, seed: int) -> Path:
    """Folder of one run of a comparison."""
    return folder / slug(setting) / f"{slug(method)}-seed{seed}"


def sft_folder(folder: Path, setting: str, row: str, start: int) -> Path:
    """Folder of what goes on from one warm start of a comparison: SFT (a row of GO_ON) or a preference."""
    return folder / slug(setting) / f"{slug(row)}-start{start}"


def check_sft_folder(folder: Path, config: Config, resume: bool) -> None:
    """Raise KitError unless SFT may go on in a folder beside RL with these options. Writes nothing."""
    if not resume:
        check_folder(folder, config)
    elif (folder / "metrics.jsonl").exists() and (was := read_config(folder).rl.steps) != config.rl.steps:
        raise KitError(
            f"{folder}: SFT went on here beside RL of {was} steps, not {config.rl.steps}, on which its learning rates "
            "depend: delete this folder, or leave SFT out (--no-sft-more)."
        )


def seed_starts(seeds: int, starts: int) -> list[int]:
    """The warm start of each seed."""
    return [seed % starts for seed in range(seeds)]


def loaded_once(load: Load) -> Load:
    """The same function, which reads each task once."""
    kept: dict[tuple[object, ...], tuple[Splits, list[str]]] = {}

    def call(config: Config) -> tuple[Splits, list[str]]:
        key = tuple(getattr(config, name) for name in (*TASK, "skip_bad"))
        if key not in kept:
            kept[key] = load(config)
        return kept[key]

    return call


def groups_of(experiments: Experiments, load: Load) -> dict[str, list[str]]:
    """`Example.group` of the test queries, by setting."""
    return {
        setting: [e.group for e in load(next(iter(methods.values())))[0].test]
        for setting, methods in experiments.items()
    }


def slug(name: str) -> str:
    """The name of a setting or method as that of a folder."""
    return re.sub(r"[^\w.+-]", "-", name.replace(" ", "_")).lstrip(".")


def _run_all(calls: Sequence[Callable[[], T]], jobs: int, quiet: bool) -> list[T]:
    """The results of all calls, in order, `jobs` of them at a time in processes of their own."""
    if (jobs := min(jobs, len(calls))) == 1:  # a single call is not worth a process, which imports PyTorch first
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
