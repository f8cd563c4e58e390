"""Figures as inline SVG: axes and text in the page's colour, so that they follow dark mode; series in fgrpo.study's.

Every string goes through `markup.tag`. Points that open something are focusable groups with data attributes.
"""

import base64
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from markupsafe import Markup

from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.study.plots import PHASES

from .markup import join, number, printable, tag

CURVES = (
    ("reward", {"reward/slate": PHASE_SLATE, "reward/rank": PHASE_RANK}),
    ("share of zero-variance groups", {"zero_variance/slate": PHASE_SLATE, "zero_variance/rank": PHASE_RANK}),
    ("standard deviation of advantages", {"advantage_std/slate": PHASE_SLATE, "advantage_std/rank": PHASE_RANK}),
    ("loss", {"loss": 0}),
    ("slate length", {"slate_length": PHASE_SLATE}),
    ("share of format errors", {"format_errors": 0}),
)
WIDTH, HEIGHT = 360, 250
"""size of a panel in its own units: small, so that text can be read on a screen of 320 pixels"""
FONT, TEXT = 13, 7.1
"""size of the text, and the width of a character"""
POINTS, MARKERS = 240, 12
"""maximum number of points of a curve, and of those that have a marker"""
INK, PAPER = "#222222", "#ffffff"
"""colours of text and background in a downloaded figure"""
ONLY_PAGE = re.compile(r' (?:role|tabindex|aria-label|style|class|data-[\w-]+)="[^"]*"')
"""attributes that a downloaded figure does not need"""


@dataclass(frozen=True)
class Series:
    """A named sequence of numbers: a curve over `steps` (nan: a gap), or the values of a histogram."""

    name: str
    values: Sequence[float]
    steps: Sequence[float] = ()
    colour: str = "currentColor"
    dash: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot: its text, its data-* attributes by name, and how many things it stands for."""

    x: float
    y: float
    words: str
    data: Mapping[str, str] = field(default_factory=dict)
    count: int = 1


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, at most count + 1: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def limits(values: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """A range that holds all finite values, with a margin; it starts at 0 where the margin alone would go below."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    margin = share * (high - low) or max(0.05, share * abs(low))
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


class Axes:
    """Places numbers on a panel, and draws its axes around what is drawn in it."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], xlabel: str, ylabel: str, title: str = "", whole: bool = False
    ):  # fmt: skip
        self.xlim, self.ylim, self.xlabel, self.ylabel, self.title = x, y, xlabel, ylabel, title
        self.xticks, self.yticks = ticks(*x, whole=whole), ticks(*y)
        self.left = (26 if ylabel else 12) + TEXT * max(len(_tick(t)) for t in self.yticks)
        self.right, self.top, self.bottom = WIDTH - 12.0, 28.0 if title else 10.0, HEIGHT - 40.0

    def x(self, value: float) -> float:
        """Horizontal place of a number."""
        low, high = self.xlim
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Vertical place of a number."""
        low, high = self.ylim
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def panel(self, content: Markup, alt: str, opens: bool = False) -> Markup:
        """The panel as SVG. `opens`: it has points that can be focused, which an image could not have."""
        middle, turned = (
            (self.left + self.right) / 2,
            tag(' transform="translate(12 {:.1f}) rotate(-90)"', (self.top + self.bottom) / 2),
        )
        parts = [
            tag('<path d="M{:.1f} {:.1f}V{:.1f}H{:.1f}" fill="none" stroke="currentColor"/>',
                self.left, self.top, self.bottom, self.right),
            _text(middle, HEIGHT - 5, "middle", short(self.xlabel, 40)),
            _text(0, 0, "middle", short(self.ylabel, 24), turned) if self.ylabel else Markup(""),
        ]  # fmt: skip
        for t in self.xticks:
            parts.append(_line(self.x(t), self.top, self.x(t), self.bottom))
            parts.append(_text(self.x(t), self.bottom + 16, "middle", _tick(t)))
        for t in self.yticks:
            parts.append(_line(self.left, self.y(t), self.right, self.y(t)))
            parts.append(_text(self.left - 5, self.y(t) + 4, "end", _tick(t)))
        if self.title:
            parts.append(tag('<text x="4" y="15" font-weight="600">{}</text>', short(self.title, 44)))
        return svg(join([*parts, content]), HEIGHT, alt, opens)


def svg(content: Markup, height: float, alt: str, opens: bool = False) -> Markup:
    """A panel of WIDTH x `height` units, as wide as there is room for."""
    return tag(
        '<svg class="chart" role="{}" aria-label="{}" style="width:100%;max-width:28rem;height:auto;display:block" '
        'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {:.0f}" font-size="{}" font-family="system-ui, sans-serif" '
        'fill="currentColor">{}</svg>', "group" if opens else "img", alt, WIDTH, height, FONT, content,
    )  # fmt: skip


def figure(panels: Sequence[Markup], alt: str, file: str) -> Markup:
    """Panels side by side where there is room, with a text alternative and a link that downloads them as one SVG file."""
    across = min(3, len(panels))
    heights = [float(re.search(r'viewBox="0 0 \d+ (\d+)"', p)[1]) for p in panels]  # type: ignore[index]
    tops, below = list[float](), 0.0
    for start in range(0, len(panels), across):
        tops += [below] * across
        below += max(heights[start : start + across]) + 10
    placed = join(
        Markup(str(p).replace("<svg ", f'<svg x="{x * (WIDTH + 10)}" y="{y:g}" width="{WIDTH}" height="{h:g}" ', 1))
        for x, y, p, h in zip(itertools.cycle(range(across)), tops, panels, heights, strict=False)
    )
    width = across * (WIDTH + 10)
    whole = tag(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1:g}" width="{0}" height="{1:g}">'
        '<title>{2}</title><rect width="100%" height="100%" fill="{3}"/>{4}</svg>', width, below, alt, PAPER, placed,
    )  # fmt: skip
    drawn = ONLY_PAGE.sub("", whole).replace("currentColor", INK)
    link = "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()
    columns = "display:grid;gap:.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))"
    return Markup(
        '<figure aria-label="{}"><div style="{}">{}</div><figcaption><a href="{}" download="{}">'
        "Download this figure (SVG)</a></figcaption></figure>"
    ).format(tag("{}", alt), columns, join(panels), Markup(link), file)


def curves(
    series: Sequence[Series], title: str, ylabel: str, xlabel: str = "step", legend: bool = True, alt: str = ""
) -> Markup:
    """Curves of any number of runs in one panel; hovering over a marker names run, step and value."""
    ends = [limits([v for s in series for v in part(s)], share) for part, share in ((_steps, 0.0), (_values, 0.05))]
    axes = Axes(ends[0], ends[1], xlabel, ylabel, title, whole=True)
    parts = []
    for s in series:
        every = max(1, math.ceil(len(s.values) / POINTS))
        kept = sorted({*range(0, len(s.values), every), *([len(s.values) - 1] if len(s.values) else [])})
        path, gap = list[str](), True
        for i in kept:
            if not math.isfinite(s.values[i]):
                gap = True
                continue
            path.append(f"{'M' if gap else 'L'}{axes.x(s.steps[i]):.1f} {axes.y(s.values[i]):.1f}")
            gap = False
        parts.append(
            tag('<path d="{}" fill="none" stroke-width="1.8"{}{}/>', "".join(path), ink(s.colour), _dash(s.dash))
        )
        finite = [i for i in kept if math.isfinite(s.values[i])]
        for i in sorted({finite[round(j)] for j in np.linspace(0, len(finite) - 1, MARKERS)} if finite else []):
            words = f"{printable(s.name, 80)}, {xlabel} {_tick(s.steps[i])}: {number(s.values[i], '.4g')}"
            place = axes.x(s.steps[i]), axes.y(s.values[i])
            parts.append(tag('<circle cx="{:.1f}" cy="{:.1f}" r="2.6" stroke="transparent" stroke-width="10"{}><title>{}'
                             "</title></circle>",
                             *place, ink(s.colour, "fill"), words))  # fmt: skip
    panel = axes.panel(join(parts), alt or _alt(title or ylabel, series, xlabel))
    return under(panel, series) if legend else panel


def histogram(
    series: Sequence[Series], title: str, xlabel: str, bins: int = 20, ylabel: str = "share (%)", legend: bool = True
) -> Markup:
    """Share of the values of each series by bin, as outlines; whole numbers have a bin each if they are few."""
    values = [np.array([v for v in s.values if math.isfinite(v)], dtype=float) for s in series]
    pooled = np.concatenate([*values, np.zeros(0)])
    low, high = (float(pooled.min()), float(pooled.max())) if len(pooled) else (0.0, 1.0)
    if high - low <= 2 * bins and high > 1 and (pooled == pooled.round()).all():
        edges = np.arange(low - 0.5, high + 1)
    else:
        edges = np.linspace(*((low, high) if high > low else (low - 0.5, high + 0.5)), bins + 1)
    counts = [np.histogram(v, edges)[0] for v in values]
    shares = [100 * c / max(1, c.sum()) for c in counts]
    axes = Axes(
        (float(edges[0]), float(edges[-1])), (0.0, max(1.0, *(1.05 * s.max() for s in shares))), xlabel, ylabel, title
    )
    parts = []
    for s, count, share in zip(series, counts, shares, strict=True):
        steps = "".join(f"V{axes.y(y):.1f}H{axes.x(x):.1f}" for x, y in zip(edges[1:], share, strict=True))
        outline = f"M{axes.x(edges[0]):.1f} {axes.bottom:.1f}{steps}V{axes.bottom:.1f}"
        parts.append(tag('<path d="{}" fill="none" stroke-width="1.8"{}{}/>', outline, ink(s.colour), _dash(s.dash)))
        for left, right, c, y in zip(edges, edges[1:], count, share, strict=False):
            if c:
                words = (
                    f"{printable(s.name, 80)}, {_tick(left)} to {_tick(right)}: {y:.1f} % ({c:,} of {count.sum():,})"
                )
                parts.append(tag('<path d="M{:.1f} {:.1f}H{:.1f}" stroke="transparent" stroke-width="9"><title>{}</title>'
                                 "</path>", axes.x(left), axes.y(y), axes.x(right), words))  # fmt: skip
    means = "; ".join(f"{printable(s.name, 80)}: mean {number(float(v.mean()), '.3g')} of {len(v):,} values"
                      for s, v in zip(series, values, strict=True) if len(v))  # fmt: skip
    panel = axes.panel(join(parts), f"{title or xlabel}, histogram. {means}")
    return under(panel, series) if legend else panel


def scatter(
    points: Sequence[Point], xlabel: str, ylabel: str, title: str = "", lim: tuple[float, float] = (-0.03, 1.03)
) -> Markup:
    """Points on axes of one range, with the line where both are equal; larger points stand for more. Each is a button."""
    axes = Axes(lim, lim, xlabel, ylabel, title)
    axes.yticks = axes.xticks
    parts = [
        _line(axes.x(lim[0]), axes.y(lim[0]), axes.x(lim[1]), axes.y(lim[1]), Markup(' stroke-dasharray="5 4"'), 0.7)
    ]
    for p in sorted(points, key=lambda p: -p.count):
        data = join(tag(' data-{}="{}"', Markup(name), value) for name, value in p.data.items())
        parts.append(tag(
            '<g role="button" tabindex="0"{} aria-label="{}" style="cursor:pointer"><circle cx="{:.1f}" cy="{:.1f}" '
            'r="{:.1f}" fill="currentColor" fill-opacity="0.3" stroke="currentColor"><title>{}</title></circle></g>',
            data, p.words, axes.x(p.x), axes.y(p.y), min(14.0, 2 + 1.5 * math.sqrt(p.count)), p.words,
        ))  # fmt: skip
    return axes.panel(join(parts), title or f"{ylabel} against {xlabel}", opens=True)


def reward_plane(slate: Sequence[float], rank: Sequence[float]) -> Markup:
    """The figure of slate and rank reward: one numbered button per rollout; the numbers of equal points are side by side."""
    lim = min(-0.05, *slate, *rank), max(1.08, *slate, *rank)
    axes = Axes(lim, lim, "slate reward", "rank reward")
    axes.top, axes.yticks = 26.0, axes.xticks
    means = [(f"mean {PHASES[phase][0].split()[0]} reward", float(np.mean(values)), PHASES[phase][1], dash)
             for phase, values, dash in ((PHASE_SLATE, slate, "6 4"), (PHASE_RANK, rank, "2 3"))]  # fmt: skip
    ends = ((axes.x(means[0][1]), axes.top, axes.x(means[0][1]), axes.bottom),
            (axes.left, axes.y(means[1][1]), axes.right, axes.y(means[1][1])))  # fmt: skip
    parts = []
    for n, ((name, mean, colour, dash), (x1, y1, x2, y2)) in enumerate(zip(means, ends, strict=True)):
        parts.append(tag('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" stroke-width="1.8"{}{}><title>{}: {}</title></path>',
                         x1, y1, x2, y2, ink(colour), _dash(dash), name, number(mean, ".2f")))  # fmt: skip
        parts.append(_sample(axes.left - 20 + 165 * n, 13, name, colour, dash))
    at: dict[tuple[float, float], list[int]] = {}
    for n, place in enumerate(zip(slate, rank, strict=True), start=1):
        at.setdefault((round(place[0], 4), round(place[1], 4)), []).append(n)
    buttons, taken = dict[int, Markup](), [(axes.x(s) - 4, axes.y(r) - 4, 8.0, 8.0) for s, r in at]
    for (s, r), numbers in at.items():
        texts = [f"{n}{',' if n != numbers[-1] else ''}" for n in numbers]
        lines = [list(zip(numbers[i : i + 5], texts[i : i + 5], strict=True)) for i in range(0, len(numbers), 5)]
        wide, high = max(sum(map(_advance, line)) for line in lines), 13.0 * len(lines)
        x, y = _free(axes, axes.x(s), axes.y(r), wide, high, taken)
        taken.append((x, y, wide, high))
        for row, line in enumerate(lines):
            for i, (n, text) in enumerate(line):
                words = f"Open rollout {n}: slate reward {number(s, '.2f')}, rank reward {number(r, '.2f')}"
                buttons[n] = tag(
                    '<g role="button" tabindex="0" data-rollout="{}" aria-label="{}" style="cursor:pointer">'
                    '<title>{}</title><circle cx="{:.1f}" cy="{:.1f}" r="4.5"/><text x="{:.1f}" y="{:.1f}">{}</text></g>',
                    n, words, words, axes.x(s), axes.y(r), x + sum(map(_advance, line[:i])), y + 11 + 13 * row, text,
                )  # fmt: skip
    words = f"Slate reward against rank reward of {len(slate)} rollouts; " + ", ".join(
        f"{name} {number(mean, '.2f')}" for name, mean, _, _ in means
    )
    parts += [buttons[n] for n in sorted(buttons)]  # the order of the Tab key
    return figure([axes.panel(join(parts), words, opens=True)], words, "slate-against-rank.svg")


def _advance(entry: tuple[int, str]) -> float:
    """Width of a rollout's number in a label."""
    return TEXT * (len(entry[1]) + 0.7)


def _free(
    axes: Axes, x: float, y: float, wide: float, high: float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Left and top of a label near a point: of places beside it the one that overlaps least with what is there."""
    places = [(left, y + dy) for dy in (-14, 2 - high / 2, -high, 3) for left in (x + 7, x - 6 - wide)]
    places = [(min(left, WIDTH - wide), max(axes.top - 8, min(top, axes.bottom - high))) for left, top in places]

    def overlap(place: tuple[float, float]) -> float:
        ends = [(min(place[0] + wide, a + w) - max(place[0], a), min(place[1] + high, b + h) - max(place[1], b))
                for a, b, w, h in taken]  # fmt: skip
        return sum(max(0.0, dx) * max(0.0, dy) for dx, dy in ends)

    return min(places, key=overlap)


def panels(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, dict[str, int]]]:
    """Those of CURVES that the rows have values of."""
    names = {name for row in rows for name in row}
    return [(title, keys) for title, keys in CURVES if names & keys.keys()]


def training_curves(rows: Sequence[Mapping[str, float]], window: int = 10) -> Markup:
    """The figure of a run's metrics by phase, against steps: running means over `window` steps."""
    drawn = []
    for title, keys in panels(rows):
        lines = []
        for key, phase in keys.items():
            name, colour = PHASES[phase][:2] if phase in PHASES else (key, "currentColor")
            lines.append(replace(smooth(rows, key, window), name=name, colour=colour,
                                 dash="6 4" if phase == PHASE_RANK else ""))  # fmt: skip
        drawn.append(curves(lines, title, "", legend=len(lines) > 1))
    return figure(drawn, f"Training curves, running means over {window} steps", "training.svg")


def smooth(rows: Sequence[Mapping[str, float]], key: str, window: int = 10) -> Series:
    """A metric of metrics.jsonl as a running mean over `window` steps; as it is if most rows do not have it."""
    having = [row for row in rows if key in row]
    if 2 * len(having) < len(rows):
        return Series(key, [row[key] for row in having], [row["step"] for row in having])
    values = np.array([row.get(key, np.nan) for row in rows], dtype=float)
    width = max(1, min(window, len(values)))
    means = np.convolve(values, np.ones(width) / width, mode="valid") if len(values) else values
    return Series(key, means.tolist(), [row["step"] for row in rows][width - 1 :])


def under(panel: Markup, series: Sequence[Series]) -> Markup:
    """A panel with the names of its series below it."""
    names = join(_sample(6, HEIGHT + 14 + 17 * n, s.name, s.colour, s.dash) for n, s in enumerate(series))
    taller = str(panel).replace(
        f'viewBox="0 0 {WIDTH} {HEIGHT}"', f'viewBox="0 0 {WIDTH} {HEIGHT + 6 + 17 * len(series)}"', 1
    )
    return Markup(taller.removesuffix("</svg>")) + names + Markup("</svg>")


def key_of(series: Sequence[Series], title: str = "Runs") -> Markup:
    """A panel with the names of the series, for figures whose panels share them."""
    names = join(_sample(6, 34 + 17 * n, s.name, s.colour, s.dash) for n, s in enumerate(series))
    head = tag('<text x="4" y="15" font-weight="600">{}</text>', title)
    return svg(head + names, 40 + 17 * len(series), f"{title}: {', '.join(printable(s.name, 80) for s in series)}")


def ink(colour: str, where: str = "stroke") -> Markup:
    """A colour of the palette, mixed with that of the text, so that its contrast is 3 on white and on dark grounds."""
    if colour in ("currentColor", "#000000"):
        return tag(' {}="currentColor"', where)
    red, green, blue = bytes.fromhex(colour[1:])
    share = 60 if 2 * red + 5 * green + blue < 600 else 80  # dark ones need more of the text's colour in dark mode
    return tag(' {0}="{1}" style="{0}:color-mix(in srgb, {1} {2}%, currentColor)"', where, colour, share)


def _sample(x: float, y: float, name: str, colour: str, dash: str) -> Markup:
    """An entry of a legend."""
    return tag('<path d="M{:.1f} {:.1f}h24" stroke-width="2.2"{}{}/><text x="{:.1f}" y="{:.1f}">{}</text>',
               x, y - 4, ink(colour), _dash(dash), x + 30, y, short(name, 40))  # fmt: skip


def short(text: str, most: int) -> str:
    """A text without its middle, if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}\N{HORIZONTAL ELLIPSIS}{text[1 - most + most // 2 :]}"


def _dash(dash: str) -> Markup | str:
    return tag(' stroke-dasharray="{}"', dash) if dash else ""


def _text(x: float, y: float, anchor: str, words: str, more: Markup | str = "") -> Markup:
    return tag('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>', x, y, anchor, more, words)


def _line(x1: float, y1: float, x2: float, y2: float, more: Markup | str = "", opacity: float = 0.15) -> Markup:
    return tag('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" stroke="currentColor" stroke-opacity="{}"{}/>',
               x1, y1, x2, y2, opacity, more)  # fmt: skip


def _tick(value: float) -> str:
    return number(value, ",.0f") if value == round(value) and abs(value) < 1e6 else number(value, ".4g")


def _steps(s: Series) -> Sequence[float]:
    return s.steps


def _values(s: Series) -> Sequence[float]:
    return s.values


def _alt(title: str, series: Sequence[Series], xlabel: str) -> str:
    """A panel of curves in words: the last value of each."""
    last = []
    for s in series:
        ends = [(x, v) for x, v in zip(s.steps, s.values, strict=True) if math.isfinite(v)][-1:]
        last += [f"{printable(s.name, 80)}: {number(v, '.3g')} at {xlabel} {_tick(x)}" for x, v in ends]
    return f"{title}. Last values: {'; '.join(last) or 'none'}"
