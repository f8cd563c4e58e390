"""A comparison as rows: one table with paired intervals and verdicts, sample efficiency, settling; CSV and text."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import KitError
from ..runs.run import flat, provenance, read_metrics
from ..tasks.atomic import write_text
from . import plots
from .check import LEAST_SEEDS, Check, Groups, by_seed, manipulation, not_learned, starts_of, trained_methods
from .compare import WARM_START, Result, Results, run_folder, slug
from .experiments import Experiments
from .plots import Row
from .significance import Estimate, holm, paired

WITH_HEADLINE = ("recall@5", "slate_recall", "slate_length")
"""metrics beside the chosen one in the printed table"""
PRIMARY, MARGIN, ALPHA = "ndcg@5", 0.01, 0.05
"""the metric that verdicts are about, the largest difference that does not matter, and the error rate of a family"""
CURVE = "ndcg@5"
"""the metric of learning curves"""
AREA = "ndcg@5_area"
"""area under a run's learning curve over drawn tokens, divided by these tokens: mean NDCG@5 on the way"""


def table(
    results: Results, against: str = "", starts: Sequence[int] | None = None, groups: Groups | None = None,
    primary: str = PRIMARY, margin: float = MARGIN, withheld: str | Mapping[tuple[str, str], str] = "",
) -> list[Row]:  # fmt: skip
    """One row per metric, setting and method: mean and difference to the baseline, with intervals (see `paired`).

    The baseline is the method `against`, else grpo, else the first one trained. `starts` numbers the warm start of each
    seed, `groups` holds the `Example.group` of the test queries by setting, `withheld` says why verdicts are withheld,
    all or those of some (setting, method).

    The family of tests is named beforehand: every other trained method in every setting on the metric `primary`. Only
    these m rows have a p-value, adjusted by Holm; a verdict; and simultaneous intervals, each of level 1 - 0.05 / m, so
    that all hold together with 95 % (Bonferroni). The rows of other metrics, and of methods that RL did not train, are
    descriptive. `detectable` is the difference that a test at level 0.05 / m finds with a probability of 80 %.

    Raises KitError on an unknown baseline, metric or setting, on methods that were not trained equally often, and on a
    margin that is not positive.
    """
    trained = trained_methods(results)
    baseline = against or baseline_of(trained)
    if baseline not in trained:
        raise KitError(f"{baseline!r} was not trained here: compare against one of {', '.join(trained)}.")
    if unknown := [name for name in groups or {} if name not in results]:
        raise KitError(f"groups of setting {unknown[0]!r}, but settings are {', '.join(map(repr, results))}.")
    if not margin > 0:
        raise KitError(f"margin {margin} must be above 0: the largest difference that does not matter.")
    starts = starts_of(results, starts)
    results = with_area(results, starts)
    metrics = list(next(iter(results.values()))[baseline][0].metrics)
    if primary not in metrics:
        raise KitError(f"metric {primary!r} was not measured; choose from {', '.join(metrics)}.")
    family = [(setting, method) for setting in results for method in trained if method != baseline]
    rows: list[Row] = []
    differences: dict[tuple[str, str], Estimate] = {}
    for metric in metrics:
        for setting, by_method in results.items():
            own = (groups or {}).get(setting)
            for method, runs in by_method.items():
                if metric not in runs[0].metrics:
                    continue
                values = by_seed(runs, metric, starts)
                mean = paired(values, starts, own) if len(runs) > 1 else paired(values[:1], None, own)
                diff = paired(values - by_seed(by_method[baseline], metric, starts), starts, own)
                tested = (setting, method) in family
                if tested and metric == primary:
                    differences[setting, method] = diff
                rows.append({
                    "setting": setting, "method": method, "metric": metric, "mean": mean.mean, **_bounds("", mean),
                    "diff": diff.mean, **_bounds("diff_", diff), "simultaneous_low": None, "simultaneous_high": None,
                    "p_holm": None, "verdict": "",
                    "detectable": _finite(diff.detectable(len(family))) if tested and len(starts) > 1 else None,
                    "seeds": len(runs) if method in trained else 0, "starts": max(starts) + 1, "baseline": baseline,
                    "tokens": sum(r.tokens for r in runs), "seconds": round(sum(r.seconds for r in runs), 2),
                })  # fmt: skip
    reasons = dict.fromkeys(family, withheld) if isinstance(withheld, str) else withheld
    adjusted = dict(zip(differences, holm([diff.p for diff in differences.values()]), strict=True))
    for row in rows:
        key = (row["setting"], row["method"])
        if row["metric"] == primary and key in adjusted:
            found, p = differences[key], adjusted[key]
            words = verdict(found, p, len(family), margin, len(starts), reasons.get(key, ""))
            low, high = map(_finite, found.simultaneous(len(family)))
            row |= {"simultaneous_low": low, "simultaneous_high": high, "p_holm": p, "verdict": words}
    return rows


def verdict(found: Estimate, p: float, family: int, margin: float, seeds: int, withheld: str = "") -> str:
    """A difference in words. p is adjusted for its family, of `family` differences.

    "higher" or "lower" where p < 0.05; else "no difference larger than X" where the simultaneous interval lies within
    -X and X, the margin (two one-sided tests: Schuirmann, J. Pharmacokin. Biopharm. 15:657, 1987);
    else "undecided", with the difference that would have been found with a probability of 80 %.
    """
    if seeds < LEAST_SEEDS:
        return f"no verdict: fewer than {LEAST_SEEDS} seeds"
    if withheld:
        return f"withheld: {withheld}"
    if p < ALPHA:
        return "higher" if found.mean > 0 else "lower"
    low, high = found.simultaneous(family)
    if -margin <= low and high <= margin:
        return f"no difference larger than {margin:g}"
    return f"undecided: only differences above {found.detectable(family):.2g} would have been seen"


def baseline_of(trained: Sequence[str]) -> str:
    """The method that differences are taken to unless another one is named: grpo, else the first one."""
    return "grpo" if "grpo" in trained else trained[0]


def write_report(
    results: Results, experiments: Experiments, folder: Path, against: str = "", starts: Sequence[int] | None = None,
    groups: Groups | None = None, primary: str = PRIMARY, margin: float = MARGIN, withheld: str = "",
) -> tuple[list[Row], list[Check]]:  # fmt: skip
    """Write the table as comparison.csv, the manipulation check as manipulation.csv, and figures.

    Returns the table's rows and the check. Verdicts are withheld where the check fails (`not_learned`), all of them if
    `withheld` says why. Learning curves and errors go by setting.
    """
    checks = manipulation(results, starts, groups, CURVE if primary == AREA else primary)
    reasons = withheld or not_learned(checks, against or baseline_of(trained_methods(results)))
    rows, made = table(results, against, starts, groups, primary, margin, reasons), made_of(experiments)
    write_text(folder / "comparison.csv", to_csv(rows, made))
    if checks:
        write_text(folder / "manipulation.csv", to_csv(check_rows(checks), made))
    plots.save(plots.comparison(rows, primary), folder / "comparison.png")
    if any(r.curve for by_method in results.values() for runs in by_method.values() for r in runs):
        points, reached = efficiency(results, starts, groups)
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
    return rows, checks


def check_rows(checks: Sequence[Check]) -> list[Row]:
    """The manipulation check as a table."""
    return [
        {"setting": c.setting, "method": c.method, "reference": c.reference, "diff": c.difference.mean,
         **_bounds("diff_", c.difference), "beats": c.beats, "seeds": c.seeds, "sentence": c.sentence}
        for c in checks
    ]  # fmt: skip


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


def with_area(results: Results, starts: Sequence[int]) -> Results:
    """The results with the metric AREA, where runs were measured on the way (`compare(..., every=N)`).

    Runs of one setting are measured over the same tokens, those of the shortest run; the warm start's curve is flat.
    """
    found: Results = {}
    for setting, by_method in results.items():
        found[setting] = dict(by_method)
        curved = {m: by_method[m] for m in trained_methods(results) if by_method[m][0].curve}
        horizon = min((run.curve[-1][0] for runs in curved.values() for run in runs), default=0)
        if not horizon:
            continue
        begin = by_seed(by_method[WARM_START], CURVE, starts)
        for method, runs in curved.items():
            areas = [area(first, run.curve, horizon) for first, run in zip(begin, runs, strict=True)]
            found[setting][method] = [
                replace(run, metrics={**run.metrics, AREA: x}) for run, x in zip(runs, areas, strict=True)
            ]
        found[setting][WARM_START] = [
            replace(run, metrics={**run.metrics, AREA: run.metrics[CURVE]}) for run in by_method[WARM_START]
        ]
    return found


def area(begin: Tensor, curve: Sequence[tuple[int, Tensor]], horizon: int) -> Tensor:
    """Mean over the first `horizon` tokens of a curve per query (Q,), by straight lines; `begin` is its value at 0."""
    tokens, values = [0.0], [begin.double()]
    for spent, value in curve:
        if spent >= horizon:
            share = (horizon - tokens[-1]) / (spent - tokens[-1])
            values.append(values[-1] + share * (value - values[-1]))
            tokens.append(float(horizon))
            break
        tokens.append(float(spent))
        values.append(value.double())
    return torch.trapezoid(torch.stack(values), torch.tensor(tokens).double(), dim=0) / horizon


def efficiency(
    results: Results, starts: Sequence[int] | None = None, groups: Groups | None = None
) -> tuple[list[Row], list[Row]]:
    """NDCG@5 against drawn tokens, and the tokens that each method needs to reach the baseline's last value.

    From `compare(..., every=N)`. The first rows are the points of the mean curves, with 95 % intervals. The second rows
    hold where a mean curve first crosses that level, by straight lines between measurements (`reached`), and `saved`:
    how many times more tokens the baseline needs for the same level. That level is its own last value, or that of the
    method where the method ends lower, with `saved` then below 1.
    """
    points, crossings = [], []
    starts = starts_of(results, starts)
    for setting, by_method in results.items():
        own, runs = (groups or {}).get(setting), {m: by_method[m] for m in trained_methods(results)}
        begin = by_seed(by_method[WARM_START], CURVE, starts)
        curves = {m: curve_of(begin, r) for m, r in runs.items()}
        base = curves[baseline_of(list(runs))]
        for method, curve in curves.items():
            for count, value in zip(*curve, strict=True):
                mean = paired(value, starts, own)
                point = {"setting": setting, "method": method, "tokens": round(count), "mean": mean.mean}
                points.append(point | _bounds("", mean))
            row = {"setting": setting, "method": method, "target": float(base[1][-1].mean()), "seeds": len(starts)}
            crossings.append(row | dict(zip(("tokens", "low", "high"), reached(curve, base, starts, own), strict=True)))
            slower = curve[1][-1].mean() < base[1][-1].mean()
            needed = reached(base, curve, starts, own) if slower else reached(curve, base, starts, own)
            last = (curve if slower else base)[0][-1]
            saved = [x / last for x in needed] if slower else [last / x if x else math.inf for x in needed]
            names = ("saved", "saved_low", "saved_high") if slower else ("saved", "saved_high", "saved_low")
            crossings[-1] |= dict(zip(names, saved, strict=True))
    return points, crossings


Curve = tuple[list[float], Tensor]
"""Drawn tokens at each point, mean over seeds; and the metric CURVE there, (points, S, Q)."""


def curve_of(begin: Tensor, runs: Sequence[Result]) -> Curve:
    """The learning curve of the runs of all seeds, from the warm start's values `begin` (S, Q) on."""
    values = [torch.stack([x, *(v for _, v in run.curve)]) for x, run in zip(begin, runs, strict=True)]
    spent = torch.tensor([[t for t, _ in run.curve] for run in runs]).double().mean(0).tolist()
    return [0.0, *spent], torch.stack(values, dim=1)


def reached(
    curve: Curve, other: Curve, starts: Sequence[int], groups: Sequence[str] | None
) -> tuple[float, float, float]:
    """Tokens at which a mean curve first crosses the last value of another one, and the bounds of their 95 % interval.

    Between the bounds lie all amounts of tokens at which the paired interval of the curve minus that value includes 0,
    and what is between them, so they cover the true crossing with 95 % (a test, inverted); the upper one is infinite if
    the curve may not have reached the level. Between measurements all follow straight lines.
    """
    (spent, values), target = curve, other[1][-1]
    if curve is other:
        return (spent[-1],) * 3
    bounds = [paired(value - target, starts, groups).interval() for value in values]
    low = crossing(spent, [high for _, high in bounds], 0.0)
    below = crossing(spent[::-1], [-low for low, _ in bounds][::-1], 0.0)
    high = math.inf if below == spent[-1] and bounds[-1][0] < 0 else below
    return crossing(spent, values.mean((1, 2)).tolist(), float(target.mean())), low, high


def settling(runs: Sequence[list[dict[str, float]]]) -> dict[str, float]:
    """Step by which each phase's sampled reward has made 90 % of its gain: median, least and largest over seeds.

    The median of an even number of seeds is the later one of the two in the middle.
    """
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


def _bounds(prefix: str, found: Estimate) -> dict[str, float | None]:
    low, high = map(_finite, found.interval())
    return {f"{prefix}low": low, f"{prefix}high": high}


def _finite(x: float) -> float | None:
    """A number for CSV and JSON: nothing where one query of one run leaves no interval."""
    return x if math.isfinite(x) else None


def to_csv(rows: list[Row], made: Mapping[str, object]) -> str:
    """The table as CSV, after a first line `# ` and how it was made (JSON)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return f"# {json.dumps(made)}\n{text.getvalue()}"


def format_table(rows: list[Row], metric: str = PRIMARY) -> str:
    """The comparison on one metric as text, with the other headline metrics beside it. `reading` explains it."""
    cells = {(r["setting"], r["method"], r["metric"]): r for r in rows}
    if not any(r["metric"] == metric for r in rows):
        raise KitError(f"metric {metric!r} is not in the table.")
    baseline = rows[0]["baseline"]
    lines: list[tuple[str, ...]] = [
        ("setting", "method", f"{metric} [95 %]", f"difference to {baseline} [95 %]", "simultaneous", "p (Holm)",
         "detectable", "verdict", "recall@5", "slate recall", "slate length", "tokens", "seconds")
    ]  # fmt: skip
    for row in (r for r in rows if r["metric"] == metric):
        recall, slate_recall, length = (cells[row["setting"], row["method"], m]["mean"] for m in WITH_HEADLINE)
        diff = f"{row['diff']:+.3f} {bracket(row, 'diff_', '+.3f')}" if row["method"] != baseline else ""
        p, detectable = row["p_holm"], row["detectable"]
        lines.append((
            row["setting"], row["method"], f"{row['mean']:.3f} {bracket(row, '', '.3f')}", diff,
            bracket(row, "simultaneous_", "+.3f"), "" if p is None else f"{p:.3f}",
            "" if detectable is None else f"{detectable:.3f}", row["verdict"], f"{recall:.3f}", f"{slate_recall:.3f}",
            f"{length:.1f}", f"{row['tokens']:,}" if row["tokens"] else "",
            f"{row['seconds']:.0f}" if row["seconds"] else "",
        ))  # fmt: skip
    empty = [not any(line[i] for line in lines[1:]) for i in range(len(lines[0]))]
    return columns([tuple(cell for cell, drop in zip(line, empty, strict=True) if not drop) for line in lines])


def reading(rows: list[Row], margin: float = MARGIN) -> str:
    """How to read the printed table: what intervals speak about, and the family that verdicts are corrected for."""
    family = [r for r in rows if r["p_holm"] is not None]
    seeds, starts = max(r["seeds"] for r in rows), rows[0]["starts"]
    varied = "queries (one seed: the spread of training is unknown)" if seeds == 1 else f"queries and {seeds} seeds"
    if starts > 1:
        varied += f" from {starts} warm starts"
    elif seeds > 1:
        varied += " from one warm start, so they speak about this start alone"
    text = f"[95 %]: intervals of one row, over {varied}."
    if starts == 2:
        text += " Two warm starts leave 1 degree of freedom, so these intervals are wide: use 1, or 3 and more."
    if family:
        text += (
            f" Verdicts: {family[0]['metric']}, corrected for {len(family)} comparison{'s' * (len(family) > 1)} (trained "
            f"methods x settings; Holm's p < 0.05). The simultaneous intervals hold together with 95 %; a difference of at "
            f"most {margin:g} is taken as none. detectable: true difference found with 80 % probability."
        )
    return text


def bracket(row: Row, prefix: str, digits: str) -> str:
    """An interval of a row as text, "" where there is none."""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "" if low is None else f"[{low:{digits}}, {high:{digits}}]"


def columns(lines: Sequence[tuple[str, ...]]) -> str:
    """Cells as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
