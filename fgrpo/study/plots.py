"""Figures. Every function returns a matplotlib Figure; `save` writes it as PNG."""

import io
import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as PlainFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..config import KitError
from ..prompt import PHASE_RANK, PHASE_SLATE

Row = dict[str, Any]
"""One line of a table: text and numbers by column."""

# One colour, one meaning, in figures, notebooks and the app. Blue and amber are the phases, and the fates of the phase at
# fault; no method has them. Each colour of a method has a contrast of at least 3 to white, and differs from all others
# for the colour-blind too; markers and dashes carry the same meaning in grey.
SLATE, RANK = "#0072B2", "#E69F00"
PHASES: dict[int, tuple[str, str, str]] = {
    PHASE_SLATE: ("slate phase", SLATE, ".."),
    PHASE_RANK: ("rank phase", RANK, "//"),
}
"""Name, colour and hatch of each phase."""

STYLES = {
    "grpo": ("#555555", "o", "-"),
    "fgrpo": ("#D55E00", "s", "--"),
    "reward_to_go": ("#009E73", "^", "-."),
    "nested": ("#CC79A7", "D", ":"),
    "item": ("#551177", "v", "-"),
    "gdpo": ("#773311", "P", "--"),
    # in the colour of the method that each is a variant of
    "rloo": ("#555555", "<", ":"),
    "anchor": ("#009E73", ">", ":"),
    "control": ("#009E73", "d", "--"),
    "shapley": ("#551177", "p", ":"),
}
STYLES |= {"shared": ("#882255", "s", "-"), "unshared": ("#6A7F10", "o", "--"), "trl": ("#000000", "X", "-.")}
OTHERS = (("#000000", "X", "-."), ("#888888", "*", ":"), ("#000000", "p", "--"), ("#888888", "h", "-"))


class Figure(PlainFigure):
    """A figure that a notebook shows by itself, as the last value of a cell."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=110, facecolor="white")
        return picture.getvalue()


class Style(TypedDict, total=False):
    """Arguments of matplotlib for one method."""

    color: str
    marker: str
    linestyle: str | tuple[float, tuple[float, float]]
    markerfacecolor: str
    markersize: float


def style_of(method: str, number: int = 0) -> Style:
    """Colour, marker and line style of a method by the first word of its name; `number` picks one for an unknown word.

    A name with more words ("grpo, scaled"; "nested:rankings=2" in recorded tables) has the colour of the plain one and
    open markers.
    """
    word = re.match(r"\w*", method)[0]  # type: ignore[index]
    color, marker, line = STYLES.get(word, OTHERS[number % len(OTHERS)])
    style: Style = {"color": color, "marker": marker, "linestyle": line}
    if word in STYLES and word != method:
        style |= {"markerfacecolor": "white", "linestyle": (0, (1 + 2 * (number % 3), 1.5))}
    return style


def name_of(method: str) -> str:
    """A method's name for figures, without the options in it (recorded tables) that name files or equal tokens."""
    hidden = ("queries=", "model=", "gguf_file=", "dtype=", "passage_tokens=")
    return " ".join(part for part in method.split(":") if not part.startswith(hidden))


def sweep_of(settings: Iterable[str]) -> dict[str, float]:
    """The number behind each setting if one field was varied over numbers ("lam=0.5", "lam=1"); empty otherwise.

    In recorded tables other fields may change with it: the number of `group=4:queries=32` is 4.
    """
    found, fields = {}, set()
    for setting in settings:
        field, _, value = setting.partition(":")[0].partition("=")
        try:
            found[setting] = float(value)
        except ValueError:
            return {}
        fields.add(field)
    return found if len(fields) == 1 else {}


def learning_curves(metrics: dict[str, list[list[dict[str, float]]]], window: int = 10) -> Figure:
    """Reward of each phase, and slate length, over training steps.

    metrics: per method one list of metrics.jsonl rows per seed. Lines are means over seeds of a running mean over
    `window` steps, bands range from the lowest to the highest seed.
    """
    panels = (("reward/slate", "slate reward"), ("reward/rank", "rank reward (NDCG)"), ("slate_length", "slate length"))
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for number, (method, runs) in enumerate(metrics.items()):
            curves = np.array([[row[key] for row in run] for run in runs])
            width = min(window, curves.shape[1])
            smooth = np.array([np.convolve(c, np.ones(width) / width, mode="valid") for c in curves])
            steps = np.arange(width, curves.shape[1] + 1)
            look, every = style_of(method, number), max(1, len(steps) // 6)
            axes.plot(steps, smooth.mean(0), label=name_of(method), markevery=every, markersize=5, **look)
            if len(smooth) > 1:
                axes.fill_between(steps, smooth.min(0), smooth.max(0), color=look["color"], alpha=0.15, linewidth=0)
        axes.set(xlabel=f"RL step (running mean of {window})", ylabel=label)
        tidy(axes)
    figure.axes[0].legend(frameon=False)
    return figure


def comparison(rows: list[Row], metric: str = "ndcg@5") -> Figure:
    """The comparison as a figure: a sweep if one field was varied over numbers, else one row of panels per setting."""
    chosen = [r for r in rows if r["metric"] == metric]
    values = sweep_of(dict.fromkeys(r["setting"] for r in chosen))
    return _sweep(chosen, values, metric) if len(values) > 2 else _panels(chosen, metric)


def _panels(rows: list[Row], metric: str) -> Figure:
    """Means with 95 % intervals; differences to the baseline with 95 % (thick) and simultaneous intervals (thin)."""
    settings = list(dict.fromkeys(r["setting"] for r in rows))
    count = max(sum(r["setting"] == s for r in rows) for s in settings)
    figure = Figure(figsize=(9, (0.9 + 0.3 * count) * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, squeeze=False, sharey="row")
    for setting, (left, right) in zip(settings, panels, strict=True):
        chosen = [r for r in rows if r["setting"] == setting][::-1]
        for number, row in enumerate(chosen):
            look: Style = {**style_of(row["method"], number), "linestyle": "none", "markersize": 5}
            interval(left, number, row["mean"], row["low"], row["high"], look)
            if row["seeds"] and row["method"] != row["baseline"]:
                interval(right, number, row["diff"], row["simultaneous_low"], row["simultaneous_high"], look)
                if row["diff_low"] is not None:
                    ends = [row["diff_low"], row["diff_high"]]
                    right.plot(ends, [number] * 2, color=look["color"], linewidth=3, alpha=0.5)
        right.axvline(0, color="0.5", linewidth=1)
        left.set_yticks(range(len(chosen)), [name_of(r["method"]) for r in chosen])
        left.set_title(setting, fontsize=10, loc="left")
        left.set_xlabel(f"{metric}, 95 % interval")
        right.set_xlabel(f"difference to {rows[0]['baseline']}: 95 % (thick), simultaneous (thin)")
        for axes in (left, right):
            tidy(axes)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_ylim(-0.6, len(chosen) - 0.4)
    return figure


def _sweep(rows: list[Row], values: dict[str, float], metric: str) -> Figure:
    """A metric against the varied field, and the difference to the baseline, one line per method, 95 % intervals."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(dict.fromkeys(r["method"] for r in rows if r["seeds"] or r["method"] == "sft"))
    position = {setting: n for n, setting in enumerate(values)}
    for number, method in enumerate(methods):
        own = [r for r in rows if r["method"] == method]
        shift = 0.08 * (number - len(methods) / 2)
        for axes, key, low, high in ((left, "mean", "low", "high"), (right, "diff", "diff_low", "diff_high")):
            if axes is right and (method == own[0]["baseline"] or not own[0]["seeds"]):
                continue
            x, y = [position[r["setting"]] + shift for r in own], [r[key] for r in own]
            spread = [spread_of(r[key], r[low], r[high]) for r in own]
            axes.errorbar(x, y, yerr=np.transpose(spread), label=name_of(method), capsize=2, markersize=5,
                          **style_of(method, number))  # fmt: skip
    right.axhline(0, color="0.5", linewidth=1)
    left.set_ylabel(f"{metric}, 95 % interval")
    right.set_ylabel(f"difference to {rows[0]['baseline']}")
    for axes in (left, right):
        axes.set_xlabel(next(iter(values)).partition("=")[0])
        axes.set_xticks(range(len(values)), [f"{v:g}" for v in values.values()])
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    return figure


def efficiency(curves: list[Row], reached: list[Row]) -> Figure:
    """NDCG@5 against sampled tokens per method, with the levels to reach (of all settings, if they name none)."""
    settings = list(dict.fromkeys(r["setting"] for r in curves))
    wide = min(3, len(settings))
    high = -(-len(settings) // wide)
    figure = Figure(figsize=(7 if wide == 1 else 4.2 * wide, 0.8 + 3 * high), layout="constrained")
    panels = figure.subplots(high, wide, squeeze=False).flatten()
    for axes, setting in zip(panels, settings, strict=False):
        for number, method in enumerate(dict.fromkeys(r["method"] for r in curves)):
            own = [r for r in curves if (r["setting"], r["method"]) == (setting, method)]
            tokens = [r["tokens"] / 1e6 for r in own]
            look = style_of(method, number)
            axes.plot(tokens, [r["mean"] for r in own], label=name_of(method), markersize=4, **look)
        for level in {r["target"] for r in reached if r.get("setting", setting) == setting}:
            axes.axhline(level, color="0.5", linewidth=1)
        axes.set_title(setting, fontsize=10)
        axes.set_xlabel("sampled tokens (millions)")
        tidy(axes)
    for axes in panels[len(settings) :]:
        axes.set_visible(False)
    figure.supylabel("NDCG@5, mean over seeds and queries", fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def outcome(rows: list[Row]) -> Figure:
    """Prediction and outcome: sample efficiency on the map against tokens saved in training, with 95 % intervals.

    Between the lines lies what the map promises: tokens saved grow with the efficiency, or with its root where every
    step has the same length.
    """
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    ends = [0.5, 2 * max(r["efficiency"] for r in rows)]
    axes.fill_between(np.geomspace(*ends), np.geomspace(*ends) ** 0.5, np.geomspace(*ends), color="0.9", linewidth=0)
    axes.axhline(1, color="0.5", linewidth=1)
    least, most = 0.1, 10.0  # of the axes
    regimes, several = list(dict.fromkeys(r["regime"] for r in rows)), len({r["method"] for r in rows}) > 1
    for r in rows:
        (x_low, x, x_high), (y_low, y, y_high) = (
            [min(max(r[name + end], least), most) for end in ("_low", "", "_high")] for name in ("efficiency", "saved")
        )
        look: dict[str, Any] = {**style_of(r["method"]), "linestyle": "none"}
        look["marker"] = "osD^vPX*"[regimes.index(r["regime"]) % 8]
        axes.errorbar(
            x, y, np.transpose([spread_of(y, y_low, y_high)]), np.transpose([spread_of(x, x_low, x_high)]), capsize=2,
            label=f"{r['regime']} ({name_of(r['method'])})" if several else r["regime"],
            **look,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="sample efficiency relative to grpo, from gradients (before training)",
             ylabel="tokens saved in training: grpo's over the method's")  # fmt: skip
    ticks = (0.1, 0.25, 0.5, 1, 2, 4, 10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    tidy(axes)
    return figure


def oracle(rows: list[Row]) -> Figure:
    """Bias of each method by phase, and its signal against group size and at equal sampled tokens.

    rows: means over queries, as `python -m fgrpo analyse` writes them.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    bias, signal, paid = figure.subplots(1, 3)
    exact, drawn = ([r for r in rows if r["exact"] == flag] for flag in (True, False))
    bars = list({r["method"]: r for r in sorted(exact, key=lambda r: r["group"])}.values())[::-1]  # the largest groups
    for shift, key, color, hatch in ((0.2, "angle_slate", SLATE, ".."), (-0.2, "angle_rank", RANK, "//")):
        bias.barh(
            [i + shift for i in range(len(bars))], [r[key] for r in bars], height=0.38, color=color, hatch=hatch,
            edgecolor="white", label=key.replace("angle_", "") + " tokens",
        )  # fmt: skip
    bias.set_yticks(range(len(bars)), [name_of(r["method"]) for r in bars])
    bias.set_xlabel("angle to the true gradient (degrees), exact")
    bias.legend(frameon=False)
    for axes, key, label in (
        (signal, "signal", "signal-to-noise of one group"),
        (paid, "signal_1k", "signal-to-noise per 1,000 sampled tokens"),
    ):
        for number, method in enumerate(dict.fromkeys(r["method"] for r in drawn)):
            points = sorted((r["group"], r[key]) for r in drawn if r["method"] == method)
            axes.plot(*zip(*points, strict=True), label=name_of(method), markersize=5, **style_of(method, number))
        ticks = sorted({r["group"] for r in drawn})
        axes.set(xlabel="rollouts per query (G)", ylabel=label, xscale="log")
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    paid.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (bias, signal, paid):
        tidy(axes)
    return figure


def credit_map(rows: list[Row]) -> Figure:
    """One heat map a method: its sample efficiency relative to grpo, by cell (rows) and part (columns), in colour.

    rows: as fgrpo.study.map measures them. Hatched: the 95 % interval holds 1; grey: it reaches 0, or there is none.
    """
    cells = list(dict.fromkeys((r["cell"], r["lam"]) for r in rows))
    several = {cell for cell, lam in cells if (cell, lam) != next(c for c in cells if c[0] == cell)}
    names = [f"{cell}, lambda {lam:g}" if cell in several else cell for cell, lam in cells]
    methods = [m for m in dict.fromkeys(r["method"] for r in rows) if m != "grpo"] or ["grpo"]
    parts = list(dict.fromkeys(r["part"] for r in rows))
    found = {(r["cell"], r["lam"], r["method"], r["part"]): r for r in rows}
    figure = Figure(figsize=(2.6 + 1.75 * len(methods), 1.6 + 0.27 * len(cells)), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    colours = colormaps["PuOr_r"].with_extremes(bad="0.8")
    for axes, method in zip(panels, methods, strict=True):
        shade = np.full((len(cells), len(parts)), np.nan)
        for (y, cell), (x, part) in product(enumerate(cells), enumerate(parts)):
            place = axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, edgecolor="0.55", linewidth=0, fill=False))
            row = found.get((*cell, method, part))
            if row is None:
                place.set(fill=True, facecolor="white")
                continue
            value, low, high = (row[f"efficiency{end}"] for end in ("", "_low", "_high"))
            if value is not None and low is not None and low > 0:
                shade[y, x] = np.log2(value)
                place.set_hatch("////" if low < 0.999 and high > 1.001 else "")  # but for rounding
            text = "?" if value is None else f"{value:z.2f}" if abs(value) < 9.95 else f"{value:.0f}"
            dark = abs(shade[y, x]) > 1.3  # of nan False
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        image = axes.imshow(np.ma.masked_invalid(shade), cmap=colours, vmin=-2, vmax=2, aspect="auto")
        axes.set_title(name_of(method), fontsize=10)
        axes.set_xticks(range(len(parts)), parts, fontsize=8)
        axes.set_yticks(range(len(cells)), names, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.suptitle("Sample efficiency relative to grpo, by tokens (hatched: the 95 % interval holds 1; grey: it reaches 0)",
                    fontsize=10)  # fmt: skip
    bar = figure.colorbar(image, ax=panels, shrink=0.6, pad=0.01, ticks=[-2, -1, 0, 1, 2], extend="both")
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"], fontsize=8)
    return figure


def error_types(rows: list[Row]) -> Figure:
    """The fate of the relevant candidates, per method: right, slate miss, rank drop, format error."""
    parts = (("right", "ranked first", "#CCCCCC", ""), ("rank_drop", "rank drop", RANK, "//"),
             ("slate_miss", "slate miss", SLATE, ".."), ("format_error", "format error", "#000000", "xx"))  # fmt: skip
    methods = list(dict.fromkeys(r["method"] for r in rows))[::-1]
    cells, names = {(r["method"], r["metric"]): r["mean"] for r in rows}, [name_of(m) for m in methods]
    figure = Figure(figsize=(8, 1 + 0.45 * len(methods)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(methods))
    for key, label, color, hatch in parts:
        share = np.array([100 * cells[m, key] for m in methods])
        axes.barh(names, share, left=left, label=label, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
        left += share
    axes.set(xlabel="share of relevant candidates (%)", xlim=(0, 100))
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    tidy(axes)
    axes.grid(visible=False)
    return figure


def bench(rows: list[Row]) -> Figure:
    """Seconds of a whole step against prompt length at the middle group size, and peak memory beside it."""
    groups = sorted({r["group"] for r in rows})
    group, completion = groups[len(groups) // 2], max(r["completion"] for r in rows)
    step = [r for r in rows if (r["part"], r["group"], r["completion"]) == ("step", group, completion)]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = (("seconds", "seconds"), ("peak_mb", "peak memory (MB)"))
    for axes, (key, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
            chosen = [r for r in step if r["method"] == method and r[key] != ""]
            _line(axes, [(r["prompt"], r[key]) for r in chosen], method, number)
        axes.set(xlabel="prompt (tokens)", ylabel=f"{label} per step", yscale="log", xscale="log")
        _named_ticks(axes, sorted({r["prompt"] for r in rows}))
    figure.suptitle(f"One training step, G = {group}, completions of {completion} tokens", fontsize=10)
    return figure


def scaling(rows: list[Row]) -> Figure:
    """Seconds of a whole step against group size and against pool size."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    step = [r for r in rows if r["part"] == "step"]
    panels = (("group", "rollouts per query (G)"), ("pool", "pool size"))
    for axes, (key, label) in zip(figure.subplots(1, 2), panels, strict=True):
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
    tidy(axes)


def demo(rows: list[Row], by_method: Mapping[str, Any], control: Any, steps: int) -> Figure:
    """Three panels: RL learns; the control of credit; differences between credit methods, and what could be seen.

    rows: of the table; by_method: fgrpo.study.compare.Result per method; control: fgrpo.study.control.Control.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    learns, must, known = figure.subplots(1, 3)
    means = {r["method"]: r for r in rows if r["metric"] == "ndcg@5"}
    trained = [m for m, r in means.items() if r["seeds"]]
    begin = means["sft"]["mean"]
    for number, method in enumerate(trained):
        points = [float(np.mean([float(run.curve[i][1].mean()) for run in by_method[method]]))
                  for i in range(len(by_method[method][0].curve))]  # fmt: skip
        at = np.linspace(0, steps, len(points) + 1)
        learns.plot(at, [begin, *points], label=name_of(method), markersize=5, **style_of(method, number))
    more = [means["sft_full"]["mean"], *(float(value.mean()) for _, value in by_method["sft_more"][0].curve)]
    learns.plot(np.linspace(0, steps, len(more)), more, color="0.35", linestyle=":", label="SFT goes on, same compute")
    learns.axhline(means["sft_full"]["mean"], color="0.5", linewidth=1)
    learns.annotate("warm start, lists filled", (steps, means["sft_full"]["mean"]), (0, 3), textcoords="offset points",
                    ha="right", fontsize=8, color="0.35")  # fmt: skip
    learns.set(title="Does RL learn?", xlabel="RL steps", ylabel="NDCG@5")
    learns.legend(frameon=False, fontsize=8)
    for number, (name, found) in enumerate((("fgrpo", control.own), ("grpo", control.joint))):
        low, high = found.interval()
        own: Style = {**style_of(name, number), "linestyle": "none"}
        interval(must, number, found.mean, low, high, own)
    must.axvline(0, color="0.5", linewidth=1)
    must.set_yticks([0, 1], ["own reward\n(fgrpo)", "joint reward\n(grpo)"])
    must.set(
        title="Where credit must matter", ylim=(-0.6, 1.6), xlabel="gain of NDCG@5: ranker alone, noisy slate judge"
    )
    others = [m for m in trained if m != means[m]["baseline"]]
    for number, method in enumerate(others):
        row = means[method]
        look: Style = {**style_of(method, number), "linestyle": "none"}
        interval(known, number, row["diff"], row["diff_low"], row["diff_high"], look)
        if row["detectable"] is not None:
            known.plot([-row["detectable"], row["detectable"]], [number - 0.25] * 2, color="0.6", linewidth=3)
    known.axvline(0, color="0.5", linewidth=1)
    known.set_yticks(range(len(others)), [name_of(m) for m in others])
    known.set(title="The full task", ylim=(-0.7, len(others) - 0.4),
              xlabel=f"difference to {means[trained[0]]['baseline']} (grey: could not be seen)")  # fmt: skip
    for axes in (learns, must, known):
        axes.xaxis.set_major_locator(MaxNLocator(5))
        tidy(axes)
    return figure


def ladder(rows: list[Row]) -> Figure:
    """Own minus joint credit on each rung of the ladder (study/ladder.py): predicted from gradients, then measured."""
    apart = [r for r in rows if " minus " in r["method"]]
    figure, at = Figure(figsize=(9, 3.4), layout="constrained"), np.arange(len(apart))
    predicted, measured = figure.subplots(1, 2)
    color = style_of("fgrpo")["color"]
    for axes, key, bounds, shift, label, face in (
        (measured, "gain", "", -0.08, "own lists", color),
        (measured, "ranker_gain", "ranker_", 0.08, "rankings of the same slates", "white"),
        (predicted, "predicted", "predicted_", -0.08, "own lists", color),
        (predicted, "predicted_ranker", "predicted_ranker_", 0.08, "rankings of the same slates", "white"),
    ):
        spread = np.transpose([spread_of(r[key], r[f"{bounds}low"], r[f"{bounds}high"]) for r in apart])
        look: Style = {"color": color, "marker": "s", "linestyle": "none", "markerfacecolor": face}
        axes.errorbar(at + shift, [r[key] for r in apart], yerr=spread, label=label, capsize=3, **look)
    for axes, title, unit in (
        (measured, "Measured after training", "NDCG@5"),
        (predicted, "Predicted from the warm starts", "gain per step"),
    ):
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set_xticks(at, [r["rung"].replace(" ", "\n", 1) for r in apart])
        axes.set(title=title, ylabel=f"{unit}, {apart[0]['method']}", xlim=(-0.5, len(apart) - 0.5))
        tidy(axes)
    figure.legend(*measured.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def save(figure: PlainFigure, path: str | Path) -> Path:
    """Write a figure as PNG, with its folder. Raises KitError if it cannot."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
    except OSError as error:
        raise KitError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def interval(axes: Axes, y: float, mean: float, low: float | None, high: float | None, look: Style) -> None:
    """A mean with its interval, if there is one, at height `y`."""
    axes.errorbar(mean, y, xerr=np.transpose([spread_of(mean, low, high)]), capsize=3, **look)


def spread_of(mean: float, low: float | None, high: float | None) -> tuple[float, float]:
    """Lengths of an error bar below and above a mean, 0 where there is no interval."""
    return (0.0, 0.0) if low is None or high is None else (max(0.0, mean - low), max(0.0, high - mean))


def tidy(axes: Axes) -> None:
    """Two spines and a faint grid, as every plot has them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
