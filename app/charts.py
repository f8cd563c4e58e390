"""Figures of the app (matplotlib), beside those of fgrpo.study.plots."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.study.plots import PHASES, tidy

CURVES = (
    ("reward", {"reward/slate": PHASE_SLATE, "reward/rank": PHASE_RANK}),
    ("share of zero-variance groups", {"zero_variance/slate": PHASE_SLATE, "zero_variance/rank": PHASE_RANK}),
    ("standard deviation of advantages", {"advantage_std/slate": PHASE_SLATE, "advantage_std/rank": PHASE_RANK}),
    ("loss", {"loss": 0}),
    ("slate length", {"slate_length": PHASE_SLATE}),
    ("share of format errors", {"format_errors": 0}),
)


def reward_plane(slate: Sequence[float], rank: Sequence[float]) -> Figure:
    """Scatter of slate and rank reward, one numbered point per rollout; equal points share one label."""
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = [PHASES[phase][1] for phase in (PHASE_SLATE, PHASE_RANK)]
    axes.axvline(float(np.mean(slate)), color=colours[0], linestyle="--", linewidth=1.2, label="mean slate reward")
    axes.axhline(float(np.mean(rank)), color=colours[1], linestyle=":", linewidth=1.6, label="mean rank reward")
    axes.plot(slate, rank, "o", color="0.15", markersize=6)
    numbers_at: dict[tuple[float, float], list[int]] = {}
    for number, point in enumerate(zip(slate, rank, strict=True), start=1):
        numbers_at.setdefault((round(point[0], 4), round(point[1], 4)), []).append(number)
    for point, numbers in numbers_at.items():
        axes.annotate(", ".join(map(str, numbers)), point, (5, 5), textcoords="offset points", fontsize=9)
    axes.set(xlabel="slate reward", ylabel="rank reward", xlim=(-0.05, 1.12), ylim=(-0.05, 1.12))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.13), ncols=2)
    tidy(axes)
    return figure


def panels(rows: Sequence[dict[str, float]]) -> list[tuple[str, dict[str, int]]]:
    """Those of CURVES that the rows have values of."""
    names = {name for row in rows for name in row}
    return [(title, keys) for title, keys in CURVES if names & keys.keys()]


def training_curves(rows: Sequence[dict[str, float]], window: int = 10) -> Figure:
    """The logged metrics of a run by phase, against steps: running means over `window` steps."""
    shown = panels(rows)
    down, across = -(-len(shown) // 3), min(3, len(shown))
    figure = Figure(figsize=(11, 3.1 * down), layout="constrained")
    steps = [row["step"] for row in rows]
    every = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in every[len(shown) :]:
        axes.set_visible(False)
    for axes, (title, keys) in zip(every, shown, strict=False):
        for key, phase in keys.items():
            values = np.array([row.get(key, np.nan) for row in rows], dtype=float)
            width = min(window, len(values))
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            name, color = (PHASES[phase][0], PHASES[phase][1]) if phase in PHASES else (key, "0.2")
            dash, marker = ("--", "s") if phase == PHASE_RANK else ("-", "o")
            axes.plot(steps[width - 1 :], smooth, color=color, linestyle=dash, label=name, marker=marker,
                      markevery=max(1, len(smooth) // 6), markersize=4)  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    return figure
