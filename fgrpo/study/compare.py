"""Credit methods against each other: same warm start, same queries, same seeds, one table.

A method is a name in CREDITS, with RL options behind it where they differ: `nested:rankings=2:queries=24`. A setting
is one value of each field that `--vary` names; every method is trained under every setting.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..baselines.decoupled import decoupled
from ..baselines.rankers import BASELINES
from ..baselines.zero_shot import zero_shot
from ..config import Config, GrammarConfig, KitError, changed, pair, with_method
from ..credit import check_credit
from ..data import Example, Splits, write_text
from ..evaluate import evaluate, greedy, measure_outputs
from ..lm.pretrained import load_lm
from ..policy import Policy
from ..prompt import Output
from ..runs.policies import load_policy
from ..runs.run import Run
from ..runs.trace import Group, listed, trace_of, trace_policy, write_trace
from ..runs.warm_start import TRACED, made_by, warm_start
from ..trainer import fit, sampling_of

T = TypeVar("T")

WARM_START = "sft"


@dataclass(frozen=True)
class Result:
    """What one training run brought: metrics per test query, sampled tokens, seconds of training.

    `curve` holds (tokens sampled so far, NDCG@5 per test query) at every evaluation along the way.
    """

    metrics: dict[str, Tensor]
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, Tensor]] = field(default_factory=list)


Results = dict[str, dict[str, list[Result]]]
"""Results by setting and method, one per seed (one in all for what is not trained by RL)."""


def train_and_test(
    config: Config, splits: Splits, start: Path, folder: Path, quiet: bool, resume: bool, every: int = 0
) -> Result:
    """One RL run from the warm start, then greedy decoding of the test split; on the way too, `every` so many steps.

    The run's trace.jsonl gets these lists, and of the first few queries greedy and sampled rollouts token by token.
    """
    run = Run(folder, config, resume=resume, save_every=every or config.rl.steps)
    kept = folder / "curve.json"

    def look(policy: Policy, step: int) -> None:
        if every and step % every == 0:
            found = evaluate(policy, splits.test, config)["ndcg@5"].tolist()
            points = {**read_curve(kept), str(step): [int(run.total("tokens")), found]}
            write_text(kept, json.dumps(points))

    policy = fit(load_policy(start, lm=config.lm), splits.train, config, run, quiet=quiet, after_step=look)
    curve = [(tokens, torch.tensor(found, dtype=torch.float64)) for tokens, found in read_curve(kept).values() if every]
    outputs, step = greedy(policy, splits.test, sampling_of(config)), config.rl.steps
    groups = trace_policy(policy, splits.test[:TRACED], config, TRACED, step, config.seed)
    for example, output in list(zip(splits.test, outputs, strict=True))[TRACED:]:
        groups.append(Group(example, listed(output, len(example.candidates)), step=step))
    write_trace(run.trace, trace_of(run.name, config, groups))
    metrics = measure_outputs(outputs, splits.test, config.grammar)
    return Result(metrics, int(run.total("tokens")), run.total("seconds"), curve)


def read_curve(path: Path) -> dict[str, list]:
    """What a run measured on its way: (tokens, NDCG@5 per query) by step."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def compare(
    config: Config, methods: Sequence[str], seeds: int, folder: Path, load: Callable[[Config], tuple[Splits, list[str]]],
    vary: Sequence[str] = (), baselines: Sequence[str] = ("random", "popularity"), start: Path | None = None,
    jobs: int | None = None, quiet: bool = False, resume: bool = False, every: int = 0,
) -> Results:  # fmt: skip
    """Train every method under every setting on every seed.

    The first rows of a setting are the rankers of fgrpo.baselines and the warm start itself, also made to fill both
    lists (`sft_full`: what RL gains by length alone). `load` gives the splits and the catalogue of a run
    (fgrpo.tasks.load_task).
    """
    configs = {
        (setting, method, seed): replace(with_method(base, method), seed=seed)
        for setting, base in settings(config, vary).items() for method in methods for seed in range(seeds)
    }  # fmt: skip
    for c in configs.values():
        check_credit(c.rl)
    firsts: dict[tuple, tuple[str, Config]] = {}  # of all runs that begin alike, the first
    for (setting, _, _), c in configs.items():
        firsts.setdefault(made_by(c), (setting, c))
    loaded = {key: load(c) for key, (_, c) in firsts.items()}
    # every process would hold the pretrained model once more
    jobs = min(jobs or (1 if config.lm.model else os.cpu_count()) or 1, len(configs))
    quiet_runs = quiet or jobs > 1
    make: list[Callable[[], Path]] = [
        partial(warm_start, c, *loaded[key], folder / slug(setting) / "warm-start", quiet_runs, resume)
        for key, (setting, c) in firsts.items()
    ]
    begun = [start] * len(firsts) if start else _run_all(make, jobs, True)
    starts = dict(zip(firsts, begun, strict=True))
    results: Results = {}
    for (setting, _, _), c in configs.items():
        if setting not in results:
            splits, items = loaded[made_by(c)]
            own, policy = folder / slug(setting), load_policy(starts[made_by(c)], config.device, config.lm)
            results[setting] = {b: [measure_baseline(b, splits, items, c, own, quiet, resume)] for b in baselines}
            filled = replace(c, grammar=replace(c.grammar, full=True))
            results[setting]["sft_full"] = [Result(evaluate(policy, splits.test, filled))]
            results[setting][WARM_START] = [Result(evaluate(policy, splits.test, c))]
    calls: list[Callable[[], Result]] = [
        partial(
            train_and_test, c, loaded[made_by(c)][0], starts[made_by(c)],
            folder / slug(setting) / f"{slug(method)}-seed{seed}", quiet_runs, resume, every,
        )
        for (setting, method, seed), c in configs.items()
    ]  # fmt: skip
    for (setting, method, _), result in zip(configs, _run_all(calls, jobs, quiet), strict=True):
        results[setting].setdefault(method, []).append(result)
    return results


def _run_all(calls: list[Callable[[], T]], jobs: int, quiet: bool) -> list[T]:
    if jobs == 1:
        threads = torch.get_num_threads()
        done = [_one_thread(call) for call in calls]
        torch.set_num_threads(threads)
        return done
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_one_thread, call) for call in calls]
        try:
            return [f.result() for f in tqdm(futures, desc="runs", unit="run", disable=quiet or None)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread(call: Callable[[], T]) -> T:
    torch.set_num_threads(1)  # tiny tensors gain little from threads, and results must not depend on the number of jobs
    return call()


def settings(config: Config, vary: Sequence[str]) -> dict[str, Config]:
    """Every combination of the values that `vary` names (`["lam=0.5,1", "pool=20,50"]`), by its own name.

    Fields that change along stand behind a value: `group=4:queries=32,8:queries=16`.
    """
    axes = [[f"{name}={value}" for value in values.split(",")] for name, values in map(pair, vary)]
    found = {}
    for some in itertools.product(*axes):
        found[" ".join(some)] = changed(config, dict(pair(text) for values in some for text in values.split(":")))
    return found


def slug(text: str) -> str:
    """A setting or method as the name of a folder."""
    return text.replace(":", "-").replace("=", "-").replace(" ", "_")


def measure_baseline(
    baseline: str, splits: Splits, items: Sequence[str], config: Config, folder: Path, quiet: bool = True,
    resume: bool = False,
) -> Result:  # fmt: skip
    """Measure a ranker, or a pipeline that writes lists of its own, its options behind its name: `dense:model=FOLDER`."""
    name, *texts = baseline.split(":")
    options: dict[str, Any] = {key: int(text) if text.isdigit() else text for key, text in map(pair, texts)}
    began = time.perf_counter()
    try:
        if name == "decoupled":
            outputs = decoupled(splits, items, config, folder / name, quiet=quiet, resume=resume, **options)
        elif name == "llm":
            outputs = ask_llm(splits.test, config.grammar, **options)
        elif name in BASELINES:
            orders = BASELINES[name](splits, **options)
            grammar = config.grammar
            outputs = [Output(tuple(o[: grammar.slate_size]), tuple(o[: grammar.rank_size])) for o in orders]
        else:
            raise KitError(
                f"baseline {name!r} is not known; choose from {', '.join([*BASELINES, 'decoupled', 'llm'])}."
            )
    except TypeError as error:
        if options and "argument" in str(error):
            raise KitError(f"baseline {baseline!r}: {str(error).split(') ')[-1]}.") from None
        raise
    return Result(measure_outputs(outputs, splits.test, config.grammar), seconds=time.perf_counter() - began)


def ask_llm(
    examples: Sequence[Example], grammar: GrammarConfig, model: str = "", gguf_file: str = "", steps: int = 1
) -> list[Output]:
    """Zero-shot outputs of a language model, by name or folder, in one step or two."""
    if not model or steps not in (1, 2):
        raise KitError("baseline llm: name a model and 1 or 2 steps, as in llm:model=FOLDER:steps=2.")
    return zero_shot(examples, *load_lm(model, gguf_file), grammar, two_steps=steps == 2)
