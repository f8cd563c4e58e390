"""Credit methods against each other: same warm start, same queries, same seeds, one table."""

import csv
import io
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .baselines import BASELINES, measure_order
from .checkpoint import Run, policy_folder, read_config
from .config import Config, KitError
from .credit import check_credit
from .data import Splits
from .datasets import DATA
from .evaluate import Interval, evaluate, paired_bootstrap
from .policy import Policy
from .trainer import fit

SHIPPED = DATA / "checkpoints" / "lab-rec"
WARM_START = "sft"


@dataclass(frozen=True)
class Result:
    """What one training run brought: metrics per test query, sampled tokens, seconds of training."""

    metrics: dict[str, Tensor]
    tokens: int
    seconds: float


def warm_start(
    config: Config, splits: Splits, items: Sequence[str], folder: Path, quiet: bool = False, resume: bool = False
) -> Path:
    """Folder of the SFT policy to start from: the shipped one if it was made with these options, else trained here."""
    if SHIPPED.is_dir():
        shipped = read_config(SHIPPED)
        if all(
            getattr(shipped, part) == getattr(config, part)
            for part in ("task", "one_relevant", "model", "sft", "grammar")
        ):
            return policy_folder(SHIPPED)
    run = Run(folder / "warm-start", replace(config, seed=0), resume=resume, save_every=250)
    fit(Policy.tiny(items, config.model), splits.train, run.config, run, sft=True, quiet=quiet)
    latest = run.latest()
    assert latest is not None
    return latest


def train_and_test(config: Config, splits: Splits, start: Path, folder: Path, quiet: bool, resume: bool) -> Result:
    """One RL run from the warm start, then greedy decoding of the test split."""
    torch.set_num_threads(1)  # tiny tensors gain little from threads, and results must not depend on the number of jobs
    began = time.perf_counter()
    run = Run(folder, config, resume=resume, save_every=config.rl.steps)
    policy = fit(Policy.load(start), splits.train, config, run, quiet=quiet)
    seconds = time.perf_counter() - began
    return Result(evaluate(policy, splits.test, config), run.total("tokens"), seconds)


def compare(
    config: Config, splits: Splits, items: Sequence[str], credits: Sequence[str], seeds: int, folder: Path,
    start: Path | None = None, jobs: int | None = None, quiet: bool = False, resume: bool = False,
) -> dict[str, list[Result]]:  # fmt: skip
    """Train every credit method on every seed; results by method, one per seed.

    The first rows are the rankers of fgrpo.baselines and the warm start itself (one result each).
    """
    configs = [
        replace(config, seed=seed, rl=replace(config.rl, credit=credit)) for credit in credits for seed in range(seeds)
    ]
    for c in configs:
        check_credit(c.rl)
    start = start or warm_start(config, splits, items, folder, quiet, resume)
    results = {
        name: [Result(measure_order(order(splits.train, splits.test), splits.test, config.grammar), 0, 0.0)]
        for name, order in BASELINES.items()
    }
    results[WARM_START] = [Result(evaluate(Policy.load(start, config.device), splits.test, config), 0, 0.0)]
    runs = [folder / f"{c.rl.credit}-seed{c.seed}" for c in configs]
    jobs = min(jobs or os.cpu_count() or 1, len(configs))
    work = partial(train_and_test, splits=splits, start=start, quiet=quiet or jobs > 1, resume=resume)
    if jobs == 1:
        threads = torch.get_num_threads()
        trained = [work(c, folder=run) for c, run in zip(configs, runs, strict=True)]
        torch.set_num_threads(threads)
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(work, c, folder=run) for c, run in zip(configs, runs, strict=True)]
            try:
                trained = [f.result() for f in tqdm(futures, desc="runs", unit="run", disable=quiet or None)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    for c, result in zip(configs, trained, strict=True):
        results.setdefault(c.rl.credit, []).append(result)
    return results


def table(results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """One row per method and metric: mean over seeds and queries, its interval, the difference to the baseline.

    The baseline is grpo if it was trained, else the first credit method. `verdict` says "no difference shown" where
    the interval of the difference covers zero.
    """
    methods = list(results)
    trained = methods[methods.index(WARM_START) + 1 :]
    baseline = "grpo" if "grpo" in trained else trained[0]
    most = max(map(len, results.values()))
    rows = []
    for metric in results[baseline][0].metrics:
        values = {m: torch.stack([r.metrics[metric] for r in runs]) for m, runs in results.items()}
        values = {m: x.expand(most, -1) if len(x) == 1 else x for m, x in values.items()}
        for method, (mean, diff) in paired_bootstrap(values, baseline).items():
            runs = results[method]
            rows.append({
                "method": method, "metric": metric, "mean": mean.mean, "low": mean.low, "high": mean.high,
                "diff": diff.mean, "diff_low": diff.low, "diff_high": diff.high,
                "seeds": len(runs) if method in trained else 0, "baseline": baseline,
                "verdict": "" if method == baseline else verdict(diff),
                "tokens": sum(r.tokens for r in runs), "seconds": round(sum(r.seconds for r in runs), 2),
            })  # fmt: skip
    return rows


def to_csv(rows: list[dict[str, Any]], made: dict[str, Any]) -> str:
    """The table as CSV; a first line, behind `# `, says how it was made (JSON)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return f"# {json.dumps(made)}\n{text.getvalue()}"


def verdict(diff: Interval) -> str:
    """In words whether the interval of a difference leaves zero out."""
    if not diff.shown:
        return "no difference shown"
    return "higher" if diff.mean > 0 else "lower"


def format_table(rows: list[dict[str, Any]], metric: str = "ndcg@5") -> str:
    """The comparison on one metric as text, with the other headline metrics beside it."""
    cells = {(r["method"], r["metric"]): r for r in rows}
    if not any(r["metric"] == metric for r in rows):
        raise KitError(f"metric {metric!r} is not in the table.")
    baseline = rows[0]["baseline"]
    head = ("method", f"{metric} [95 %]", f"difference to {baseline} [95 %]", "", "recall@5", "slate recall",
            "slate length", "tokens", "seconds")  # fmt: skip
    lines = [head]
    for row in (r for r in rows if r["metric"] == metric):
        other = [cells[row["method"], m]["mean"] for m in ("recall@5", "slate_recall", "slate_length")]
        diff = (
            "" if row["method"] == baseline else f"{row['diff']:+.3f} [{row['diff_low']:+.3f}, {row['diff_high']:+.3f}]"
        )
        lines.append((
            row["method"], f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", diff, row["verdict"],
            f"{other[0]:.3f}", f"{other[1]:.3f}", f"{other[2]:.1f}", f"{row['tokens']:,}" if row["tokens"] else "",
            f"{row['seconds']:.0f}" if row["seconds"] else "",
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
