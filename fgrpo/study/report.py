"""What a comparison says: one table with paired intervals and Holm's correction, as rows, CSV and text."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import Config, KitError
from ..data import write_text
from ..runs.run import provenance, read_metrics
from . import plots
from .compare import WARM_START, Results, slug
from .significance import Bootstrap, holm, paired_bootstrap


def table(results: Results, against: str = "") -> list[dict[str, Any]]:
    """One row per setting, method and metric: mean over seeds and queries, its interval, the difference to the baseline.

    The baseline is `against`, else the first method whose credit is grpo, else the first one trained. Beside the plain
    95 % interval of the difference stands the one at Holm's level, and its p-value as Holm corrects it: over all
    trained methods and settings of the table, metric by metric (what is not trained by RL is a family of its own).
    `verdict` is by Holm.
    """
    methods = list(next(iter(results.values())))
    trained = methods[methods.index(WARM_START) + 1 :]
    baseline = against or baseline_of(trained)
    if baseline not in trained:
        raise KitError(f"{baseline!r} was not trained here: compare against one of {', '.join(trained)}.")
    rows = []
    for metric in next(iter(results.values()))[baseline][0].metrics:
        found: dict[tuple[str, str], tuple[Bootstrap, Bootstrap]] = {}
        for setting, by_method in results.items():
            most = max(map(len, by_method.values()))
            values = {m: torch.stack([r.metrics[metric] for r in runs]) for m, runs in by_method.items()}
            values = {m: x.expand(most, -1) if len(x) == 1 else x for m, x in values.items()}
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


def write_report(results: Results, config: Config, folder: Path, seeds: int, against: str = "") -> list[dict[str, Any]]:
    """The table as comparison.csv, and its figures; returns the rows. Learning curves and errors go by setting."""
    rows, made = table(results, against), {**provenance(), "config": config.to_dict()}
    write_text(folder / "comparison.csv", to_csv(rows, made))
    plots.save(plots.comparison(rows), folder / "comparison.png")
    if any(r.curve for by_method in results.values() for runs in by_method.values() for r in runs):
        points, reached = efficiency(results)
        write_text(folder / "efficiency.csv", to_csv(points, made))
        write_text(folder / "reached.csv", to_csv(reached, made))
        plots.save(plots.efficiency(points, reached), folder / "efficiency.png")
    settled = []
    for setting, by_method in results.items():
        trained, own = list(by_method)[list(by_method).index(WARM_START) + 1 :], folder / slug(setting)
        curves = {m: [read_metrics(own / f"{slug(m)}-seed{seed}") for seed in range(seeds)] for m in trained}
        settled += [{"setting": setting, "method": m, **settling(runs)} for m, runs in curves.items()]
        plots.save(plots.learning_curves(curves), own / "learning.png")
        plots.save(plots.error_types([r for r in rows if r["setting"] == setting]), own / "errors.png")
    write_text(folder / "settling.csv", to_csv(settled, made))
    return rows


def efficiency(results: Results) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """NDCG@5 against sampled tokens, and the tokens that each method needs to reach what the baseline ends with.

    From `compare(..., every=N)`. The first rows are the points of the mean curves, with 95 % intervals. The second ones
    say where the mean curve first crosses the baseline's last value, between measurements by a straight line. Their
    intervals are paired: in every resample of seeds and queries the level is the baseline's own. `reached` is the share
    of resamples that cross at all; the bounds of those that do not are infinite.
    """
    curves, crossings = [], []
    for setting, by_method in results.items():
        runs = {m: r for m, r in by_method.items() if r[0].curve}
        start = by_method[WARM_START][0].metrics["ndcg@5"]
        values = {
            m: torch.stack([torch.stack([start, *(v for _, v in run.curve)]) for run in r]) for m, r in runs.items()
        }
        tokens = {
            m: [0.0, *torch.tensor([[t for t, _ in run.curve] for run in r]).double().mean(0).tolist()]
            for m, r in runs.items()
        }
        points = [paired_bootstrap({m: x[:, i] for m, x in values.items()}, next(iter(values)))
                  for i in range(next(iter(values.values())).shape[1])]  # fmt: skip
        target = points[-1][baseline_of(list(runs))][0]
        for method in runs:
            means = [p[method][0] for p in points]
            for spent, mean in zip(tokens[method], means, strict=True):
                point = {"setting": setting, "method": method, "tokens": round(spent), "mean": mean.mean}
                curves.append(point | _bounds("", mean))
            resampled = torch.stack([m.resampled for m in means], dim=1)
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
    """By which step each phase's sampled reward has made 90 % of its gain: median, least and largest over seeds."""
    found: dict[str, float] = {}
    for phase in ("slate", "rank"):
        steps = torch.tensor([settling_step([row[f"reward/{phase}"] for row in run]) for run in runs]).sort().values
        for name, place in (("step", len(steps) // 2), ("least", 0), ("most", -1)):
            found[f"{phase}_{name}"] = int(steps[place])
    return found


def settling_step(values: Sequence[float], share: float = 0.9, window: int = 10) -> int:
    """First step at which a curve's running mean has made `share` of its whole gain: which phase converges first."""
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


def baseline_of(trained: Sequence[str]) -> str:
    """What differences are taken to: the first method whose credit is grpo, else the first one."""
    return next((m for m in trained if m.split(":")[0] == "grpo"), trained[0])


def _bounds(prefix: str, found: Bootstrap, alpha: float = 0.05) -> dict[str, float]:
    low, high = found.interval(alpha)
    return {f"{prefix}low": low, f"{prefix}high": high}


def verdict(difference: float, p: float) -> str:
    """In words whether a corrected p-value shows a difference."""
    if p >= 0.05:
        return "no difference shown"
    return "higher" if difference > 0 else "lower"


def to_csv(rows: list[dict[str, Any]], made: dict[str, Any]) -> str:
    """The table as CSV; a first line, behind `# `, says how it was made (JSON)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return f"# {json.dumps(made)}\n{text.getvalue()}"


def format_table(rows: list[dict[str, Any]], metric: str = "ndcg@5") -> str:
    """The comparison on one metric as text, with the other headline metrics beside it."""
    cells = {(r["setting"], r["method"], r["metric"]): r for r in rows}
    if not any(r["metric"] == metric for r in rows):
        raise KitError(f"metric {metric!r} is not in the table.")
    baseline = rows[0]["baseline"]
    head = ("setting", "method", f"{metric} [95 %]", f"difference to {baseline} [95 %]", "p (Holm)", "", "recall@5",
            "slate recall", "slate length", "tokens", "seconds")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in (r for r in rows if r["metric"] == metric):
        other = [cells[row["setting"], row["method"], m]["mean"] for m in ("recall@5", "slate_recall", "slate_length")]
        diff = (
            "" if row["method"] == baseline else f"{row['diff']:+.3f} [{row['diff_low']:+.3f}, {row['diff_high']:+.3f}]"
        )
        lines.append((
            row["setting"], row["method"], f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", diff,
            f"{row['p_holm']:.3f}" if diff else "", row["verdict"],
            f"{other[0]:.3f}", f"{other[1]:.3f}", f"{other[2]:.1f}", f"{row['tokens']:,}" if row["tokens"] else "",
            f"{row['seconds']:.0f}" if row["seconds"] else "",
        ))  # fmt: skip
    if not any(r["setting"] for r in rows):
        lines = [line[1:] for line in lines]
    return _columns(lines)


def format_analysis(rows: list[dict[str, Any]], separability: dict[str, float], interference: dict[str, float]) -> str:
    """What `analyse` found, as text."""
    head = ("method", "G", "pool", "angle", "slate", "rank", "+-", "norm", "variance", "signal", "tokens", "per 1k")
    lines: list[tuple[str, ...]] = [head]
    for r in rows:
        angles = [f"{r[k]:.1f}" for k in ("angle", "angle_slate", "angle_rank")]
        lines.append((
            r["method"], str(r["group"]), str(r["pool"]), *angles, "exact" if r["exact"] else f"{r['angle_error']:.1f}",
            f"{r['norm']:.2f}", f"{r['variance']:.3g}", f"{r['signal']:.2f}", f"{r['tokens']:.0f}", f"{r['signal_1k']:.2f}",
        ))  # fmt: skip
    step, real = separability, {name: 100 * value for name, value in interference.items()}
    return f"""{_columns(lines)}

Angles in degrees between the expected estimate and the true gradient of E[R_slate + lambda R_rank], over all tokens and
within each phase; signal: length along the true gradient over the root of the variance (per 1k: of what 1,000 sampled
tokens buy). Means over queries.

First-order separability (exact, pools of 6): what a step of one phase brings the other's expected reward, of the most
that a step of its length could: fgrpo's slate phase E[R_rank] {step["slate_on_rank"]:+.3f}, its rank phase E[R_slate]
{step["rank_on_slate"]:+.3f} (their own {step["slate_on_slate"]:+.3f} and {step["rank_on_rank"]:+.3f}).

The real task: the phases' gradients have cosine {interference["cosine"]:+.3f}; {real["slate_share"]:.0f} % of their norms
is the slate's. The joint advantage has the wrong sign for {real["flipped_slate"]:.0f} % of slates and
{real["flipped_rank"]:.0f} % of rankings; where the phase's own is zero, it is not for {real["blind_slate"]:.0f} % and
{real["blind_rank"]:.0f} %."""


def _columns(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
