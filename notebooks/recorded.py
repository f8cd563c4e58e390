"""Tables of data/results, read for the notebooks, and figures of whole experiments and of the oracle.

Every figure is a matplotlib Figure; fgrpo.study.plots.save writes it as PNG.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fgrpo.config import KitError
from fgrpo.evaluate import FATES
from fgrpo.study.check import LEAST_SEEDS
from fgrpo.study.plots import STYLES, interval, name_of, spread_of, style_of, tidy
from fgrpo.tasks import DATA

Rows = list[dict[str, Any]]
AXES = {"lam": "lambda (weight of the rank reward)", "lr": "learning rate of the first step"}


def read_table(name: str) -> tuple[dict[str, Any], Rows]:
    """How a table of data/results was made, and its rows with numbers parsed. Raises KitError, naming the file."""
    try:
        first, *lines = (DATA / "results" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        rows = [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(lines)]
        return json.loads(first.removeprefix("# ")), rows
    except FileNotFoundError:
        raise KitError(f"data/results/{name}.csv is missing: make it with data/results/make.py.") from None
    except ValueError as error:
        raise KitError(f"data/results/{name}.csv cannot be read ({error}).") from None


def _value(text: str) -> Any:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def pick(rows: Rows, **wanted: Any) -> Rows:
    """The rows with these values: `pick(rows, method="fgrpo", metric="ndcg@5")`."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def rates_of(made: Mapping[str, Any]) -> dict[str, float]:
    """The learning rate of each method of a table with one setting."""
    return {c["method"]: c.get("rl.lr", made["config"]["rl"]["lr"]) for c in made["changes"]}


def differences(rows: Rows, digits: int = 3) -> str:
    """Rows of one metric as a Markdown table: mean, difference to the baseline, p-value, detectable difference, verdict.

    Brackets behind a difference are simultaneous intervals where the row has a p-value, else 95 % intervals of one row.
    """
    metric, baseline, wide = rows[0]["metric"], rows[0]["baseline"], any(r["setting"] for r in rows)
    heads = [*["setting"] * wide, "method", metric, f"difference to {baseline}", "p (Holm)", "detectable", "verdict"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in rows:
        low, high = (f"{x:+.{digits}f}" for x in bracket(r))
        apart = f"{r['diff']:+.{digits}f} [{low}, {high}]" if r["method"] != baseline else ""
        p, least = (f"{r[k]:.3f}" if isinstance(r[k], (int, float)) else "" for k in ("p_holm", "detectable"))
        cells = [*[r["setting"]] * wide, name_of(r["method"]), f"{r['mean']:.{digits}f}", apart, p, least, r["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bracket(row: Mapping[str, Any]) -> tuple[float, float]:
    """Interval of a row's difference: the simultaneous one if there is one."""
    for kind in ("simultaneous", "diff"):
        low, high = row.get(f"{kind}_low"), row.get(f"{kind}_high")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            return low, high
    return float("-inf"), float("inf")


def value_of(setting: str) -> float:
    """The number of a setting: 4 for `lam=4.0`."""
    return float(setting.partition("=")[2])


def by_length(rows: Rows) -> str:
    """Which share of each method's gain over the warm start `sft_full` also has. rows: one metric, one setting."""
    mean = {r["method"]: r["mean"] for r in rows}
    begin, full = mean["sft"], mean["sft_full"]
    lines = [
        f"| method | {rows[0]['metric']} | gain over the warm start | share due to length alone |",
        "|---" * 4 + "|",
    ]
    lines.append(f"| warm start | {begin:.3f} | | |\n| sft_full | {full:.3f} | {full - begin:+.3f} | all |")
    for r in (r for r in rows if r["seeds"]):
        gain = r["mean"] - begin
        share = f"{(full - begin) / gain:.0%}" if gain > 0 else "no gain"
        lines.append(f"| {name_of(r['method'])} | {r['mean']:.3f} | {gain:+.3f} | {share} |")
    return "\n".join(lines)


def learned(checks: Rows) -> str:
    """The manipulation check (a table `*-check.csv`) as Markdown: a line for each trained method, with its references."""
    references, wide = list(dict.fromkeys(r["reference"] for r in checks)), any(r["setting"] for r in checks)
    heads = [*["setting"] * wide, "method", *(f"beats {name}?" for name in references)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for setting, method in dict.fromkeys((r["setting"], r["method"]) for r in checks):
        cells = [*[setting] * wide, name_of(method)]
        for name in references:
            (r,) = pick(checks, setting=setting, method=method, reference=name)
            word = "yes" if r["beats"] == "True" else "worse" if r["diff_high"] < 0 else "not shown"
            word = word if r["seeds"] >= LEAST_SEEDS else f"no verdict ({r['seeds']} seeds)"
            cells.append(f"{word}: {r['diff']:+.3f} [{r['diff_low']:+.3f}, {r['diff_high']:+.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def small_multiples(tables: Mapping[str, Rows]) -> Figure:
    """One column per varied field: NDCG@5 of each method, and below it the difference to the baseline."""
    figure = Figure(figsize=(4.4 * len(tables), 6), layout="constrained")
    every = figure.subplots(2, len(tables), squeeze=False)
    for column, (field, rows) in zip(every.T, tables.items(), strict=True):
        own = pick(rows, metric="ndcg@5")
        for axes, key in zip(column, ("mean", "diff"), strict=True):
            _lines(axes, own, key)
        column[0].set(ylabel="NDCG@5")
        column[1].set(xlabel=AXES.get(field, field), ylabel=f"NDCG@5, minus {own[0]['baseline']}")
        column[1].axhline(0, color="0.4", linewidth=1)
    most = max((axes.get_legend_handles_labels() for axes in every[0]), key=lambda found: len(found[1]))
    figure.legend(*most, frameon=False, loc="outside upper center", ncols=len(most[1]))
    return figure


def _lines(axes: Axes, rows: Rows, key: str) -> None:
    values = sorted({value_of(r["setting"]) for r in rows})
    names = ["sft_full", *(r["method"] for r in rows if r["seeds"])] if key == "mean" else [
        r["method"] for r in rows if r["seeds"] and r["method"] != r["baseline"]]  # fmt: skip
    for number, method in enumerate(names := list(dict.fromkeys(names))):
        own = sorted(pick(rows, method=method), key=lambda r: value_of(r["setting"]))
        own = [r for r in own if key == "mean" or method != r["baseline"]]
        x = [values.index(value_of(r["setting"])) + 0.1 * (number - (len(names) - 1) / 2) for r in own]
        ends = [(r["low"], r["high"]) if key == "mean" else bracket(r) for r in own]
        spread = [spread_of(r[key], *end) for r, end in zip(own, ends, strict=True)]
        axes.errorbar(x, [r[key] for r in own], yerr=np.transpose(spread), capsize=2, markersize=5, **style_of(method, 1),
                      label="warm start, full lists" if method == "sft_full" else name_of(method))  # fmt: skip
    axes.set_xticks(range(len(values)), [f"{v:g}" for v in values])
    tidy(axes)


def demonstrations(rows: Rows) -> Figure:
    """What a warm start knows, and how much its samples vary, against SFT steps: one line per kind of demonstration."""
    panels = (("free", "NDCG@5, lists of free length"), ("filled", "NDCG@5, full lists"),
              ("entropy", "entropy of the first choice (nats)"))  # fmt: skip
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    kinds = list(dict.fromkeys(r["demonstrations"] for r in rows))
    for axes, (key, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for kind, (color, marker, line) in zip(kinds, STYLES.values(), strict=False):
            own = sorted(pick(rows, demonstrations=kind), key=lambda r: r["steps"])
            axes.plot(
                [r["steps"] for r in own], [r[key] for r in own], color=color, marker=marker, linestyle=line, label=kind
            )
        axes.set(xlabel="SFT steps", ylabel=label)
        tidy(axes)
    figure.axes[0].legend(frameon=False)
    return figure


def miss_and_drop(fates: Mapping[str, Tensor]) -> Figure:
    """Number of queries by slate misses and rank drops, one panel per policy. fates: indices into FATES, (Q, N) each."""
    figure = Figure(figsize=(4.9 * len(fates), 4.9), layout="constrained")
    most = int(max((f >= 0).sum(1).max() for f in fates.values()))
    for axes, (title, fate) in zip(figure.subplots(1, len(fates), squeeze=False)[0], fates.items(), strict=True):
        miss, drop = ((fate == FATES.index(name)).sum(1) for name in ("slate_miss", "rank_drop"))
        count = torch.zeros(most + 1, most + 1).index_put_((drop, miss), torch.ones(len(fate)), accumulate=True)
        axes.imshow(count.sqrt(), origin="lower", cmap="Blues", vmax=1.4 * float(count.max()) ** 0.5)
        for (y, x), n in np.ndenumerate(count.int().numpy()):
            axes.text(x, y, str(n) if n else "", ha="center", va="center")
        axes.plot([0.5, 0.5, np.nan, -0.5, most + 0.5], [-0.5, most + 0.5, np.nan, 0.5, 0.5], "black", linewidth=2)
        for name, missed, dropped in (("neither", 0, 0), ("slate only", 1, 0), ("ranking only", 0, 1), ("both", 1, 1)):
            share = float((((miss > 0) == missed) & ((drop > 0) == dropped)).double().mean())
            x, y = missed * (most + 1) - 0.5, dropped * (most + 1.6) - 0.8
            axes.text(x, y, f"{name}: {share:.0%}", ha=("left", "right")[missed], va="center", weight="bold")
        axes.set(xlabel="relevant candidates missed by the slate", ylabel="relevant candidates dropped by the ranking",
                 ylim=(-1.1, most + 1.1), yticks=range(most + 1), title=f"{title}: number of queries")  # fmt: skip
        axes.spines[:].set_visible(False)
    return figure


def bias_and_signal(pools: Sequence[Rows]) -> Figure:
    """Bias against signal-to-noise, mean and range over queries. pools: rows of analysis.oracle_table per query."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, first in enumerate(pools[0]):
        own = np.array([[rows[number]["signal_1k"], rows[number]["angle"]] for rows in pools])
        (x, y), (least, most), look = own.mean(0), (own.min(0), own.max(0)), style_of(first["method"], number)
        bars: dict[str, Any] = {"xerr": [[x - least[0]], [most[0] - x]], "yerr": [[y - least[1]], [most[1] - y]]}
        axes.errorbar(x, y, **bars, **look | {"linestyle": "none"}, markersize=9, elinewidth=0.8)
        axes.annotate(name_of(first["method"]), (x, y), (5, 8), textcoords="offset points", rotation=30 if y < 1 else 0)
    axes.set(xlabel="signal-to-noise per 1,000 sampled tokens", ylabel="bias: angle to the true gradient (degrees)")
    tidy(axes)
    return figure


def bias_over_lambda(curves: Mapping[str, Sequence[float]], values: Sequence[float]) -> Figure:
    """Bias of each method against lambda: `{method: angles in degrees}`."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (method, angles) in enumerate(curves.items()):
        axes.plot(values, angles, label=name_of(method), markersize=6, **style_of(method, number))
    axes.set(xlabel="lambda (weight of the rank reward)", ylabel="bias: angle to the true gradient (degrees)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    tidy(axes)
    return figure


def numbers_and_overlaps(shares: Mapping[str, Sequence[float]], agreement: Mapping[str, tuple[float, float]]) -> Figure:
    """How often each number of the pool is in the slate, one row per policy; and whether slates follow texts or numbers.

    shares: per policy one share for each number. agreement: per policy the overlap of its slates for one pool in two
    orders, (of the numbers, of the candidates).
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])
    values = np.array(list(shares.values()))
    image = left.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        look: dict[str, Any] = {"fontsize": 7, "color": "white" if value < 0.55 else "black"}
        left.text(column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", **look)
    left.set_yticks(range(len(shares)), list(shares))
    left.set_xticks(range(values.shape[1]), [str(i + 1) for i in range(values.shape[1])])
    left.set(xlabel="number in the pool", title="share of slates with this number")
    left.spines[:].set_visible(False)
    figure.colorbar(image, ax=left, pad=0.01)
    for number, (name, (by_number, by_text)) in enumerate(agreement.items()):
        color, marker, _ = list(STYLES.values())[number % len(STYLES)]
        right.plot(by_number, by_text, marker, color=color, markersize=10, label=name, alpha=0.8)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    for x, y, word in ((0.03, 0.97, "reads"), (0.97, 0.03, "counts")):
        right.text(x, y, word, ha="left" if x < 0.5 else "right", va="center", weight="bold")
    right.set(xlim=(0, 1), ylim=(0, 1), xlabel="same numbers in two orders", ylabel="same candidates in two orders",
              title="overlap of two slates of one pool")  # fmt: skip
    right.legend(frameon=False, loc="upper right", fontsize=8)
    tidy(right)
    return figure


def means_by_task(tables: Mapping[str, Rows], metric: str = "ndcg@5") -> Figure:
    """Recorded means with their 95 % intervals, one panel per task and one row per method."""
    figure = Figure(figsize=(3.2 * len(tables), 3.6), layout="constrained")
    every = figure.subplots(1, len(tables), squeeze=False, sharex=True)[0]
    for axes, (title, rows) in zip(every, tables.items(), strict=True):
        chosen = pick(rows, metric=metric)[::-1]
        for y, r in enumerate(chosen):
            color, marker, _ = STYLES.get(r["method"], ("0.45", "o", "-"))
            interval(axes, y, r["mean"], r["low"], r["high"], {"fmt": marker, "color": color})
        first = title == next(iter(tables))
        axes.set_yticks(range(len(chosen)), [name_of(r["method"]) for r in chosen] if first else [""] * len(chosen))
        axes.set(title=title, xlabel=metric)
        tidy(axes)
    return figure
