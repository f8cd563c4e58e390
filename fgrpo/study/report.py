"""A comparison as rows: one table with paired intervals and Holm's correction, sample efficiency, settling; CSV and text."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..config import KitError
from ..runs.run import flat, provenance, read_metrics
from ..tasks.atomic import write_text
from . import plots
from .compare import WARM_START, Results, run_folder, slug
from .experiments import Experiments
from .plots import Row
from .significance import Bootstrap, holm, paired_bootstrap

WITH_HEADLINE = ("recall@5", "slate_recall", "slate_length")
"""metrics beside the chosen one in the printed table"""


def table(results: Results, against: str = "") -> list[Row]:
    """One row per setting, method and metric: mean over seeds and queries, its interval, the difference to the baseline.

    The baseline is the method `against`, else grpo, else the first one trained. The difference has a plain 95 %
    interval, one at Holm's level, and a p-value corrected by Holm, metric by metric, over all trained methods and
    settings of the table (rows that RL did not train are a family of their own). `verdict` goes by that p-value.
    """
    trained = trained_methods(results)
    baseline = against or baseline_of(trained)
    if baseline not in trained:
        raise KitError(f"{baseline!r} was not trained here: compare against one of {', '.join(trained)}.")
    rows = []
    for metric in next(iter(results.values()))[baseline][0].metrics:
        found: dict[tuple[str, str], tuple[Bootstrap, Bootstrap]] = {}
        for setting, by_method in results.items():
            values = {m: torch.stack([r.metrics[metric] for r in runs]) for m, runs in by_method.items()}  # (S, Q)
            seeds = max(map(len, values.values()))
            values = {m: x.expand(seeds, -1) if len(x) == 1 else x for m, x in values.items()}
            found |= {(setting, m): pair for m, pair in paired_bootstrap(values, baseline).items()}
        corrected: dict[tuple[str, str], tuple[float, float]] = {}
        for by_rl in (True, False):
            family = [key for key in found if (key[1] in trained) == by_rl and key[1] != baseline]
            corrected |= zip(family, holm([found[key][1].p for key in family]), strict=True)
        for (setting, method), (mean, diff) in found.items():
            runs = results[setting][method]
            p, level = corrected.get((setting, method), (1.0, 0.05))
            rows.append({
                "setting": setting, "method": method, "metric": metric, "mean": mean.mean,
                **_bounds("", mean), "diff": diff.mean, **_bounds("diff_", diff), **_bounds("holm_", diff, level),
                "p_holm": p, "seeds": len(runs) if method in trained else 0, "baseline": baseline,
                "verdict": "" if method == baseline else verdict(diff.mean, p),
                "tokens": sum(r.tokens for r in runs), "seconds": round(sum(r.seconds for r in runs), 2),
            })  # fmt: skip
    return rows


def trained_methods(results: Results) -> list[str]:
    """The methods that RL trained: the rows after the warm start."""
    methods = list(next(iter(results.values())))
    return methods[methods.index(WARM_START) + 1 :]


def baseline_of(trained: Sequence[str]) -> str:
    """The method that differences are taken to unless another one is named: grpo, else the first one."""
    return "grpo" if "grpo" in trained else trained[0]


def write_report(results: Results, experiments: Experiments, folder: Path, against: str = "") -> list[Row]:
    """The table as comparison.csv, and its figures; returns the rows. Learning curves and errors go by setting."""
    rows, made = table(results, against), made_of(experiments)
    write_text(folder / "comparison.csv", to_csv(rows, made))
    plots.save(plots.comparison(rows), folder / "comparison.png")
    if any(r.curve for by_method in results.values() for runs in by_method.values() for r in runs):
        points, reached = efficiency(results)
        write_text(folder / "efficiency.csv", to_csv(points, made))
        write_text(folder / "reached.csv", to_csv(reached, made))
        plots.save(plots.efficiency(points, reached), folder / "efficiency.png")
    settled = []
    for setting, by_method in results.items():
        seeds = {m: range(len(by_method[m])) for m in trained_methods(results)}
        steps = {m: config.rl.steps for m, config in experiments[setting].items()}
        curves = {m: [logged(run_folder(folder, setting, m, s), steps[m]) for s in some] for m, some in seeds.items()}
        settled += [{"setting": setting, "method": m, **settling(runs)} for m, runs in curves.items()]
        plots.save(plots.learning_curves(curves), folder / slug(setting) / "learning.png")
        errors = plots.error_types([r for r in rows if r["setting"] == setting])
        plots.save(errors, folder / slug(setting) / "errors.png")
    write_text(folder / "settling.csv", to_csv(settled, made))
    return rows


def logged(run: Path, steps: int) -> list[Row]:
    """The metrics of a run, one row per step. Raises KitError if a step, or a field that figures need, is missing."""
    rows = read_metrics(run)
    whole = [row["step"] for row in rows] == list(range(1, steps + 1))
    if not whole or not all({"reward/slate", "reward/rank", "slate_length"} <= row.keys() for row in rows):
        raise KitError(f"{run / 'metrics.jsonl'}: steps or fields are missing; delete the run's folder, then --resume.")
    return rows


def made_of(experiments: Experiments) -> dict[str, object]:
    """How a comparison was made: command, versions and so on, the first run's config, and what the others change in it."""
    configs = [(s, m, config) for s, methods in experiments.items() for m, config in methods.items()]
    first = flat(configs[0][2].to_dict())
    changes = [
        {"setting": s, "method": m, **{k: v for k, v in flat(config.to_dict()).items() if v != first[k]}}
        for s, m, config in configs
    ]
    return {**provenance(), "config": configs[0][2].to_dict(), "changes": changes}


def efficiency(results: Results) -> tuple[list[Row], list[Row]]:
    """NDCG@5 against sampled tokens, and the tokens that each method needs to reach the baseline's last value.

    From `compare(..., every=N)`. The first rows are the points of the mean curves, with 95 % intervals. The second rows
    hold where a mean curve first crosses that level, by straight lines between measurements. Their intervals are
    paired: in every resample of seeds and queries the level is the baseline's own. `reached` is the share of resamples
    that cross at all; the bounds of those that do not are infinite.
    """
    curves, crossings = [], []
    for setting, by_method in results.items():
        runs = {m: r for m, r in by_method.items() if r[0].curve}
        start = by_method[WARM_START][0].metrics["ndcg@5"]
        values = {  # (S, points, Q)
            m: torch.stack([torch.stack([start, *(v for _, v in run.curve)]) for run in r]) for m, r in runs.items()
        }
        tokens = {
            m: [0.0, *torch.tensor([[t for t, _ in run.curve] for run in r]).double().mean(0).tolist()]
            for m, r in runs.items()
        }
        count = next(iter(values.values())).shape[1]
        points = [paired_bootstrap({m: x[:, i] for m, x in values.items()}, next(iter(values))) for i in range(count)]
        target = points[-1][baseline_of(list(runs))][0]
        for method in runs:
            means = [p[method][0] for p in points]
            for spent, mean in zip(tokens[method], means, strict=True):
                point = {"setting": setting, "method": method, "tokens": round(spent), "mean": mean.mean}
                curves.append(point | _bounds("", mean))
            resampled = torch.stack([m.resampled for m in means], dim=1)  # (R, points)
            levels = zip(resampled.tolist(), target.resampled.tolist(), strict=True)
            found = torch.tensor([crossing(tokens[method], row, level) for row, level in levels])
            low, high = found.sort().values[[int(0.025 * len(found)), int(0.975 * len(found))]].tolist()
            crossings.append({
                "setting": setting, "method": method, "target": target.mean,
                "tokens": crossing(tokens[method], [m.mean for m in means], target.mean), "low": low, "high": high,
                "reached": float(found.isfinite().float().mean()), "seeds": len(runs[method]),
            })  # fmt: skip
    return curves, crossings


def settling(runs: Sequence[list[dict[str, float]]]) -> dict[str, float]:
    """Step by which each phase's sampled reward has made 90 % of its gain: median, least and largest over seeds."""
    found: dict[str, float] = {}
    for phase in ("slate", "rank"):
        steps = torch.tensor([settling_step([row[f"reward/{phase}"] for row in run]) for run in runs]).sort().values
        for name, index in (("step", len(steps) // 2), ("least", 0), ("most", -1)):
            found[f"{phase}_{name}"] = int(steps[index])
    return found


def settling_step(values: Sequence[float], share: float = 0.9, window: int = 10) -> int:
    """First step at which a curve's running mean has made `share` of its whole gain."""
    x = torch.tensor(values, dtype=torch.float64).unfold(0, min(window, len(values)), 1).mean(1)
    reached = x - x[0] >= share * (x.max() - x[0])
    return int(reached.int().argmax()) + min(window, len(values))


def crossing(tokens: Sequence[float], values: Sequence[float], target: float) -> float:
    """Where a curve first reaches `target`, by straight lines between its points; infinite if it never does."""
    for i, value in enumerate(values):
        if value >= target:
            if i == 0:
                return tokens[0]
            share = (target - values[i - 1]) / (value - values[i - 1])
            return tokens[i - 1] + share * (tokens[i] - tokens[i - 1])
    return float("inf")


def _bounds(prefix: str, found: Bootstrap, alpha: float = 0.05) -> dict[str, float]:
    low, high = found.interval(alpha)
    return {f"{prefix}low": low, f"{prefix}high": high}


def verdict(difference: float, p: float) -> str:
    """A corrected p-value in words."""
    if p >= 0.05:
        return "no difference shown"
    return "higher" if difference > 0 else "lower"


def to_csv(rows: list[Row], made: Mapping[str, object]) -> str:
    """The table as CSV, after a first line `# ` and how it was made (JSON)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return f"# {json.dumps(made)}\n{text.getvalue()}"


def format_table(rows: list[Row], metric: str = "ndcg@5") -> str:
    """The comparison on one metric as text, with the other headline metrics beside it."""
    cells = {(r["setting"], r["method"], r["metric"]): r for r in rows}
    if not any(r["metric"] == metric for r in rows):
        raise KitError(f"metric {metric!r} is not in the table.")
    baseline = rows[0]["baseline"]
    lines: list[tuple[str, ...]] = [
        ("setting", "method", f"{metric} [95 %]", f"difference to {baseline} [95 %]", "p (Holm)", "", "recall@5",
         "slate recall", "slate length", "tokens", "seconds")
    ]  # fmt: skip
    for row in (r for r in rows if r["metric"] == metric):
        recall, slate_recall, length = (cells[row["setting"], row["method"], m]["mean"] for m in WITH_HEADLINE)
        diff = f"{row['diff']:+.3f} [{row['diff_low']:+.3f}, {row['diff_high']:+.3f}]"
        is_baseline = row["method"] == baseline
        lines.append((
            row["setting"], row["method"], f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
            "" if is_baseline else diff, "" if is_baseline else f"{row['p_holm']:.3f}", row["verdict"],
            f"{recall:.3f}", f"{slate_recall:.3f}", f"{length:.1f}",
            f"{row['tokens']:,}" if row["tokens"] else "", f"{row['seconds']:.0f}" if row["seconds"] else "",
        ))  # fmt: skip
    if not any(r["setting"] for r in rows):
        lines = [line[1:] for line in lines]
    return columns(lines)


def columns(lines: Sequence[tuple[str, ...]]) -> str:
    """Cells as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
