"""Tables of data/results, read for the notebooks, and figures of whole experiments and of the oracle.

Every figure is a matplotlib Figure; fgrpo.study.plots.save writes it as PNG.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fgrpo.config import KitError
from fgrpo.evaluate import FATES
from fgrpo.study.check import LEAST_SEEDS
from fgrpo.study.plots import interval, name_of, style_of, tidy
from fgrpo.tasks import DATA
from fgrpo.tasks.atomic import write_text

Rows = list[dict[str, Any]]
REGIMES = {
    "cold": "weak warm start (300 SFT steps)",
    "warm": "usual warm start (1,000 SFT steps)",
    "trained": "strong warm start (3,000 SFT steps)",
    "cold-pool50": "weak warm start, pool of 50",
    "pool50": "pool of 50",
    "trained-pool50": "strong warm start, pool of 50",
    "cold-pool100": "weak warm start, pool of 100",
    "pool100": "pool of 100",
    "trained-pool100": "strong warm start, pool of 100",
    "slate5": "slates of 5",
    "pool50-slate5": "pool of 50, slates of 5",
    "pool50-slate20": "pool of 50, slates of 20",
    "one": "one relevant film (the paper's setting)",
    "slate-noise": "noise on the slate reward",
    "rank-noise": "noise on the rank reward",
    "free": "lists of free length",
}
"""The cells of map.csv in words."""
TESTED = {
    "one": ("one", 1.0),
    "one lam=4": ("one", 4.0),
    "warm lam=4": ("warm", 4.0),
    "cold lam=4": ("cold", 4.0),
    "pool50": ("pool50", 1.0),
    "slate noise": ("slate-noise", 1.0),
}
"""The regimes that were trained (settings of confirm.csv): cell and lambda of map.csv."""
WORDS = ("higher", "same", "lower")
"""What a learner can predict about fgrpo against grpo."""
SHOWN = ("higher", "lower")


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


def as_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def source(made: Mapping[str, Any], rows: Rows | None = None) -> str:
    """One line that says how a table was made: command, hardware, date, and the seeds of `rows`."""
    seeds = f", {rows[-1]['seeds']} seeds from {rows[-1]['starts']} warm starts" if rows else ""
    return f"*`{made['command']}`{seeds}; {made['hardware']}, {made['date']}.*"


def regime(cell: str, lam: float) -> str:
    """A cell of the map and its lambda, in words."""
    return f"{REGIMES[cell]}, lambda {lam:g}"


def differences(rows: Rows, digits: int = 3) -> str:
    """Rows of one metric as a Markdown table: mean, difference to the baseline, p-value, detectable difference, verdict.

    Brackets behind a difference are simultaneous intervals where the row has a p-value, else 95 % intervals of one row.
    """
    metric, baseline, wide = rows[0]["metric"], rows[0]["baseline"], any(r["setting"] for r in rows)
    heads = [*["setting"] * wide, "method", metric, f"difference to {baseline}", "p (Holm)", "detectable", "verdict"]
    lines = []
    for r in rows:
        low, high = (f"{x:+.{digits}f}" for x in bracket(r))
        apart = f"{r['diff']:+.{digits}f} [{low}, {high}]" if r["method"] != baseline else ""
        p, least = (f"{r[k]:.3f}" if isinstance(r[k], (int, float)) else "" for k in ("p_holm", "detectable"))
        mean = f"{r['mean']:.{digits}f}"
        lines.append([*[r["setting"]] * wide, name_of(r["method"]), mean, apart, p, least, r["verdict"]])
    return as_table(heads, lines)


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
    heads = ["method", rows[0]["metric"], "gain over the warm start", "share due to length alone"]
    lines = [["warm start", f"{begin:.3f}", "", ""], ["sft_full", f"{full:.3f}", f"{full - begin:+.3f}", "all"]]
    for r in (r for r in rows if r["seeds"]):
        gain = r["mean"] - begin
        share = f"{(full - begin) / gain:.0%}" if gain > 0 else "no gain"
        lines.append([name_of(r["method"]), f"{r['mean']:.3f}", f"{gain:+.3f}", share])
    return as_table(heads, lines)


def learned(checks: Rows) -> str:
    """The manipulation check (a table `*-check.csv`) as Markdown: a line for each trained method, with its references."""
    references, wide = list(dict.fromkeys(r["reference"] for r in checks)), any(r["setting"] for r in checks)
    heads = [*["setting"] * wide, "method", *(f"beats {name}?" for name in references)]
    lines = []
    for setting, method in dict.fromkeys((r["setting"], r["method"]) for r in checks):
        cells = [*[setting] * wide, name_of(method)]
        for name in references:
            (r,) = pick(checks, setting=setting, method=method, reference=name)
            word = "yes" if r["beats"] == "True" else "worse" if r["diff_high"] < 0 else "not shown"
            word = word if r["seeds"] >= LEAST_SEEDS else f"no verdict ({r['seeds']} seeds)"
            cells.append(f"{word}: {r['diff']:+.3f} [{r['diff_low']:+.3f}, {r['diff_high']:+.3f}]")
        lines.append(cells)
    return as_table(heads, lines)


def miss_and_drop(fates: Mapping[str, Tensor]) -> Figure:
    """Number of queries by slate misses and rank drops, one panel per policy. fates: indices into FATES, (Q, N) each."""
    figure = Figure(figsize=(4.9 * len(fates), 4.9), layout="constrained")
    most = int(max((f >= 0).sum(1).max() for f in fates.values()))
    for axes, (title, fate) in zip(figure.subplots(1, len(fates), squeeze=False)[0], fates.items(), strict=True):
        miss, drop = ((fate == FATES.index(name)).sum(1) for name in ("slate_miss", "rank_drop"))
        count = torch.zeros(most + 1, most + 1).index_put_((drop, miss), torch.ones(len(fate)), accumulate=True)
        axes.imshow(count.sqrt(), origin="lower", cmap="Greys", vmax=2 * float(count.max()) ** 0.5)
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


def write_prediction(prediction: Mapping[str, str | None], path: Path) -> str:
    """Keep a learner's prediction for notebook 7, and say so. Without a word of theirs, an earlier file stays as it is.

    Raises KitError if a regime or a word is not known, naming it.
    """
    for setting, word in prediction.items():
        if setting not in TESTED:
            raise KitError(f"PREDICTION: there is no regime {setting!r}; choose from {', '.join(TESTED)}.")
        if word is not None and word not in WORDS:
            raise KitError(f"PREDICTION[{setting!r}] is {word!r}: write one of {', '.join(WORDS)}, or None.")
    given = {setting: word for setting, word in prediction.items() if word}
    if not given:
        return "No prediction yet: write a word for at least one regime in the cell above."
    write_text(path, json.dumps(given, indent=1))
    return f"Your prediction for {len(given)} of {len(TESTED)} regimes is kept for notebook 7."


def read_prediction(path: Path) -> dict[str, str]:
    """A learner's prediction by regime; empty if there is none. Raises KitError if the file cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {setting: word for setting, word in found.items() if setting in TESTED and word in WORDS}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise KitError(f"{path.name} cannot be read ({error}): delete it and run notebook 5 again.") from None


def promises(rows: Rows, methods: Sequence[str] = ("fgrpo", "reward_to_go")) -> Figure:
    """What the map promises: sample efficiency relative to grpo by regime, with 95 % intervals. rows: of map.csv.

    Markers are filled where the interval is on one side of 1. Names of regimes that were trained (TESTED) are bold.
    """
    own = [r for r in pick(rows, part="whole") if r["method"] in methods]
    cells = list(dict.fromkeys((r["cell"], r["lam"]) for r in own))[::-1]
    figure = Figure(figsize=(9.5, 1.2 + 0.33 * len(cells)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="0.4", linewidth=1)
    least, most = 0.5, 8.0
    for number, method in enumerate(methods):
        look: dict[str, Any] = {**style_of(method), "linestyle": "none", "markersize": 6}
        for y, (cell, lam) in enumerate(cells):
            (r,) = pick(own, cell=cell, lam=lam, method=method)
            if r["efficiency_low"] <= 0:
                axes.text(1.04, y, "not resolved: too few groups" if not number else "", va="center", fontsize=8)
                continue
            low, value, high = (min(max(r[f"efficiency{end}"], least), most) for end in ("_low", "", "_high"))
            clear = r["efficiency_low"] > 1 or r["efficiency_high"] < 1
            face = {} if clear else {"markerfacecolor": "white"}
            interval(axes, y + 0.24 * ((len(methods) - 1) / 2 - number), value, low, high, {**look, **face})  # type: ignore[typeddict-item]
        axes.plot([], [], label=name_of(method), **look)
    axes.set_yticks(range(len(cells)), [regime(*cell) for cell in cells], fontsize=9)
    for label, cell in zip(axes.get_yticklabels(), cells, strict=True):
        label.set_fontweight("bold" if cell in TESTED.values() else "normal")
    ticks = (0.5, 1, 2, 4, 8)
    axes.set(xscale="log", xlim=(least, most), ylim=(-0.6, len(cells) - 0.4),
             xlabel="sample efficiency relative to grpo (2: half the rollouts carry as much signal)")  # fmt: skip
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    tidy(axes)
    return figure


def credit_experiments() -> Rows:
    """Every recorded comparison of fgrpo with grpo on the lab task, one row each: what was seen, and what could be.

    `detectable` is the true difference that is found with a probability of 80 %.
    """
    rows: Rows = []

    def add(group: str, label: str, r: Mapping[str, Any], value: str = "diff", ends: str = "diff_") -> None:
        row = {"group": group, "label": label, "diff": r[value], "low": r[f"{ends}low"], "high": r[f"{ends}high"]}
        own = "higher" if (r["p_holm"] or 1) < 0.05 else "undecided"  # of the ladder, which has no verdicts
        rows.append(row | {"detectable": r["detectable"], "verdict": r.get("verdict", own), "seeds": r["seeds"]})

    for r in pick(read_table("control-ladder")[1], method="fgrpo minus grpo"):
        add("control, noisy slate reward", r["rung"], r, "gain", "")
    for name, words in (("confirm", ""), ("confirm-starts", ", 10 warm starts")):
        found = {r["setting"]: r for r in pick(read_table(name)[1], method="fgrpo", metric="ndcg@5_area")}
        for setting in (s for s in TESTED if s in found):
            add("on the way (mean over 200 steps)", f"{regime(*TESTED[setting])}{words}", found[setting])
    for name, words in (("lambda", "150 steps"), ("lab", "600 steps, each at its own best rate"),
                        ("lab-temperature", "600 steps at one rate, temperature 0.7"),
                        ("trained", "300 steps from a strong warm start")):  # fmt: skip
        for r in pick(read_table(name)[1], method="fgrpo", metric="ndcg@5"):
            add("at the end", words + (f", lambda {value_of(r['setting']):g}" if r["setting"] else ""), r)
    return rows


def seen(rows: Rows) -> Figure:
    """`credit_experiments` as a figure: each difference with its 95 % interval over the range that could not be seen.

    Filled: shown. Grey: differences that the experiment finds with less than 80 %.
    """
    figure = Figure(figsize=(11.5, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    least, most = -0.04, 0.065
    axes.axvline(0, color="0.4", linewidth=1)
    for y, r in enumerate(reversed(rows)):
        hidden = min(r["detectable"], most), max(-r["detectable"], least)
        axes.barh(y, hidden[0] - hidden[1], left=hidden[1], height=0.7, color="0.9")
        word = r["verdict"].partition(":")[0]
        look: dict[str, Any] = {**style_of("fgrpo"), "linestyle": "none", "markersize": 6}
        look["markerfacecolor"] = look["color"] if word in SHOWN else "white"
        interval(axes, y, r["diff"], max(r["low"], least), min(r["high"], most), look)  # type: ignore[arg-type]
        axes.text(most + 0.002, y, f"{'shown: ' * (word in SHOWN)}{word}", va="center", fontsize=9,
                  weight="bold" if word in SHOWN else "normal")  # fmt: skip
    groups = [r["group"] for r in reversed(rows)]
    for y in range(1, len(rows)):
        if groups[y] != groups[y - 1]:
            axes.axhline(y - 0.5, color="0.6", linewidth=0.8)
    for group in dict.fromkeys(groups):
        top = len(groups) - 1 - groups[::-1].index(group)
        axes.text(least, top + 0.42, f" {group}", va="top", fontsize=8, style="italic")
    axes.set_yticks(range(len(rows)), [r["label"] for r in reversed(rows)], fontsize=9)
    axes.set(xlim=(least, most), ylim=(-0.6, len(rows) - 0.4),
             xlabel="NDCG@5, fgrpo minus grpo, 95 % interval (grey: would probably not have been seen)")  # fmt: skip
    tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    return figure


def choices(shares: Mapping[str, tuple[float, float]]) -> Figure:
    """Does a policy read or count? `{policy: (reading, blind)}`: shares of first choices, the rest follows neither."""
    figure = Figure(figsize=(9.5, 1.1 + 0.42 * len(shares)), layout="constrained")
    axes = figure.subplots()
    for y, (reading, blind) in enumerate(reversed(shares.values())):
        parts = (
            (reading, "0.2", "", "white"),
            (1 - reading - blind, "0.93", "", "black"),
            (blind, "0.7", "xx", "black"),
        )
        left = 0.0
        for share, color, hatch, text in parts:
            axes.barh(y, share, left=left, height=0.7, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
            if share > 0.06:
                box = {"facecolor": color, "edgecolor": "none", "pad": 1.5} if hatch else None
                axes.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", color=text, bbox=box)
            left += share
    for color, hatch, label in (("0.2", "", "same candidate: reads"), ("0.93", "", "neither"),
                                ("0.7", "xx", "same number: counts")):  # fmt: skip
        axes.barh(0, 0, color=color, hatch=hatch, edgecolor="white", label=label)
    axes.set_yticks(range(len(shares)), list(reversed(shares)))
    axes.set(xlim=(0, 1), xlabel="share of queries, by what the first choice does when the pool is put in three orders")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    tidy(axes)
    axes.grid(visible=False)
    return figure
