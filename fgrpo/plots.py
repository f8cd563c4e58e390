"""Figures. Every function returns a matplotlib Figure; `save` writes it as PNG."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from .config import KitError

# Okabe and Ito's colours, told apart by the colour-blind; markers and dashes carry the same meaning in grey.
STYLES = {
    "grpo": ("#0072B2", "o", "-"),
    "fgrpo": ("#D55E00", "s", "--"),
    "reward_to_go": ("#009E73", "^", "-."),
}
STYLES |= {"shared": ("#D55E00", "s", "-"), "unshared": ("#0072B2", "o", "--"), "trl": ("#000000", "X", "-.")}
OTHERS = (("#CC79A7", "D", ":"), ("#E69F00", "v", "-"), ("#56B4E9", "P", "--"), ("#000000", "X", "-."))


def style_of(method: str, number: int = 0) -> dict[str, Any]:
    """Colour, marker and line style of a method; `number` picks one for a method without its own."""
    color, marker, line = STYLES.get(method, OTHERS[number % len(OTHERS)])
    return {"color": color, "marker": marker, "linestyle": line}


def learning_curves(metrics: dict[str, list[list[dict[str, float]]]], window: int = 10) -> Figure:
    """Reward of each phase, and slate length, over training steps.

    metrics: per method one list of metrics.jsonl rows per seed. Lines are means over seeds of a running mean over
    `window` steps, bands reach from the lowest to the highest seed.
    """
    panels = (("reward/slate", "slate reward"), ("reward/rank", "rank reward (NDCG)"), ("slate_length", "slate length"))
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for number, (method, runs) in enumerate(metrics.items()):
            curves = np.array([[row[key] for row in run] for run in runs])
            width = min(window, curves.shape[1])
            smooth = np.array([np.convolve(c, np.ones(width) / width, mode="valid") for c in curves])
            steps = np.arange(width, curves.shape[1] + 1)
            look = style_of(method, number)
            axes.plot(steps, smooth.mean(0), label=method, markevery=max(1, len(steps) // 6), markersize=5, **look)
            if len(smooth) > 1:
                axes.fill_between(steps, smooth.min(0), smooth.max(0), color=look["color"], alpha=0.15, linewidth=0)
        axes.set(xlabel=f"RL step (running mean of {window})", ylabel=label)
        _tidy(axes)
    figure.axes[0].legend(frameon=False)
    return figure


def comparison(rows: list[dict[str, Any]], metric: str = "ndcg@5") -> Figure:
    """Each method's mean and its difference to the baseline, with 95 % intervals."""
    chosen = [r for r in rows if r["metric"] == metric][::-1]
    figure = Figure(figsize=(9, 0.5 + 0.45 * len(chosen)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(chosen):
        look = style_of(row["method"], number) | {"linestyle": "none"}
        _interval(left, number, row["mean"], row["low"], row["high"], look)
        if row["seeds"] and row["method"] != row["baseline"]:
            _interval(right, number, row["diff"], row["diff_low"], row["diff_high"], look)
    right.axvline(0, color="0.5", linewidth=1)
    left.set_yticks(range(len(chosen)), [r["method"] for r in chosen])
    left.set_xlabel(f"{metric} on the test split, 95 % interval")
    right.set_xlabel(f"difference to {rows[0]['baseline']}, 95 % interval")
    for axes in (left, right):
        _tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(-0.6, len(chosen) - 0.4)
    return figure


def error_types(rows: list[dict[str, Any]]) -> Figure:
    """What became of the relevant candidates, per method: right, slate miss, rank drop, format error."""
    parts = (("right", "ranked first", "#009E73", ""), ("rank_drop", "rank drop", "#E69F00", "//"),
             ("slate_miss", "slate miss", "#0072B2", ".."), ("format_error", "format error", "#CC79A7", "xx"))  # fmt: skip
    methods = list(dict.fromkeys(r["method"] for r in rows))[::-1]
    cells = {(r["method"], r["metric"]): r["mean"] for r in rows}
    figure = Figure(figsize=(8, 1 + 0.45 * len(methods)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(methods))
    for key, label, color, hatch in parts:
        share = np.array([100 * cells[m, key] for m in methods])
        axes.barh(methods, share, left=left, label=label, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
        left += share
    axes.set(xlabel="share of relevant candidates (%)", xlim=(0, 100))
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _tidy(axes)
    axes.grid(visible=False)
    return figure


def bench(rows: list[dict[str, Any]]) -> Figure:
    """Seconds of a whole step against prompt length at the middle group size, and peak memory beside it."""
    groups = sorted({r["group"] for r in rows})
    group, completion = groups[len(groups) // 2], max(r["completion"] for r in rows)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("seconds", "peak_mb"), ("seconds", "peak memory (MB)"), strict=True
    ):
        for number, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
            chosen = [
                r
                for r in rows
                if (r["method"], r["part"], r["group"], r["completion"]) == (method, "step", group, completion)
            ]
            points = [(r["prompt"], r[key]) for r in chosen if r[key] != ""]
            _line(axes, points, method, number)
        axes.set(xlabel="prompt (tokens)", ylabel=f"{label} per step", yscale="log", xscale="log")
        _named_ticks(axes, sorted({r["prompt"] for r in rows}))
    figure.suptitle(f"One training step, G = {group}, completions of {completion} tokens", fontsize=10)
    return figure


def scaling(rows: list[dict[str, Any]]) -> Figure:
    """Seconds of a whole step against group size and against pool size."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    step = [r for r in rows if r["part"] == "step"]
    for axes, key, label in zip(
        figure.subplots(1, 2), ("group", "pool"), ("rollouts per query (G)", "pool size"), strict=True
    ):
        chosen = [r for r in step if (r["completion"] == 48) == (key == "group")]
        for number, method in enumerate(dict.fromkeys(r["method"] for r in chosen)):
            _line(axes, [(r[key], r["seconds"]) for r in chosen if r["method"] == method], method, number)
        axes.set(xlabel=label, ylabel="seconds per step", xscale="log", yscale="log")
        _named_ticks(axes, sorted({r[key] for r in chosen}))
    return figure


def _line(axes: Axes, points: list[tuple[float, float]], method: str, number: int) -> None:
    if points:
        axes.plot(*zip(*sorted(points), strict=True), label=method, **style_of(method, number))


def _named_ticks(axes: Axes, values: list[int]) -> None:
    axes.set_xticks(values, [str(v) for v in values])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.1)
    axes.legend(frameon=False)
    _tidy(axes)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, with its folder. Raises KitError if it cannot."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
    except OSError as error:
        raise KitError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def _interval(axes: Axes, y: float, mean: float, low: float, high: float, look: dict[str, Any]) -> None:
    axes.errorbar(mean, y, xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]], capsize=3, **look)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
