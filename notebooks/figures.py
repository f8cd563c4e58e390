"""The figures of the notebooks. Every function returns a matplotlib Figure; fgrpo.study.plots.save writes it as PNG.

Phases differ in colour and in hatch, signs in direction or in a printed number, so that nothing depends on colour alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from fgrpo.data import Example
from fgrpo.policy import Policy
from fgrpo.rewards import Rewards, output_lists
from fgrpo.rollout import Rollouts
from fgrpo.study.plots import PHASES, name_of, style_of, tidy
from fgrpo.study.signs import ROUNDING

STAR = "\N{BLACK STAR} "


def token_strip(policy: Policy, example: Example, rollouts: Rollouts, row: int = 0) -> Figure:
    """One completion: a bar per token, its height the probability when drawn, its colour the phase.

    Tokens that the grammar forced are hollow.
    """
    phase, logprobs = (x[row][rollouts.mask[row]].tolist() for x in (rollouts.phase, rollouts.logprobs))
    size = 8 if len(phase) < 36 else 5.5
    figure = Figure(figsize=(max(11, 0.27 * len(phase)), 4.6), layout="constrained")
    axes = figure.subplots()
    _token_bars(axes, phase, [math.exp(x) for x in logprobs], [x == 0 for x in logprobs])
    for t, x in enumerate(logprobs):
        axes.text(t, math.exp(x) + 0.02, f"{math.exp(x):.2f}", ha="center", fontsize=size)
    _name_phases(axes, phase, 1.12)
    _name_tokens(axes, _token_names(policy, example, rollouts, row))
    axes.set(ylabel="probability when drawn", ylim=(0, 1.24), yticks=np.linspace(0, 1, 5))
    return figure


def group_rewards(rewards: Rewards, rollouts: Rollouts, query: int = 0) -> Figure:
    """One group as a heat map, one row per rollout: the two rewards, and the contribution of each item and rank."""
    phases = np.stack([rewards.slate[query].numpy(), rewards.rank[query].numpy()], axis=1)
    items, ranks = (
        np.where(indices[query] >= 0, parts[query], np.nan)
        for indices, parts in zip(output_lists(rollouts), (rewards.items, rewards.places), strict=True)
    )
    numbers = [str(i + 1) for i in range(max(items.shape[1], len(phases)))]
    panels = (
        ("reward of each phase", phases, ["slate", "rank"], "phase"),
        ("slate reward lost without the item", items, numbers[: items.shape[1]], "position in the slate"),
        ("contribution to the rank reward", ranks, numbers[: ranks.shape[1]], "rank"),
    )
    figure = Figure(figsize=(12, 1.6 + 0.36 * len(phases)), layout="constrained")
    widths = [values.shape[1] for _, values, _, _ in panels]
    every = figure.subplots(1, 3, sharey=True, width_ratios=[2 * widths[0], *widths[1:]])
    for axes, (title, values, names, label) in zip(every, panels, strict=True):
        image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        axes.set_facecolor("0.88")  # no item here
        for (row, column), value in np.ndenumerate(values):
            if value > 0 or values is phases:
                text = f"{value:.2f}".removeprefix("0") if value < 1 and values is not phases else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8,
                          color="white" if value < 0.55 else "black")  # fmt: skip
        axes.set_xticks(range(len(names)), names)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(values)), minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)
    every[0].set_yticks(range(len(phases)), numbers[: len(phases)])
    every[0].set_ylabel("rollout of the group")
    figure.colorbar(image, ax=every, label="reward (0 to 1)", pad=0.01)
    return figure


def credit_bars(
    names: Sequence[str],
    credit: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    true: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Advantages of the slate and of the rank tokens of each rollout, methods side by side: `{method: (slate, rank)}`.

    `true` are the true advantages of the slates and the rankings, drawn as lines: where a method has the opposite sign,
    it is marked as wrong blame or wrong praise.
    """
    figure = Figure(figsize=(max(11, 1.9 * len(names)), 4.4), layout="constrained")
    every = figure.subplots(1, 2, sharey=True)
    halo = withStroke(linewidth=2.5, foreground="white")  # numbers stay readable where a line crosses them
    drawn = [*credit.values(), *([true] if true else [])]
    width, most = 0.8 / len(credit), max(abs(x) for pair in drawn for values in pair for x in values) or 1.0
    for side, (axes, phase) in enumerate(zip(every, PHASES, strict=True)):
        for number, (method, pair) in enumerate(credit.items()):
            centres = np.arange(len(names)) + (number - (len(credit) - 1) / 2) * width
            look: dict[str, Any] = {"color": style_of(method, number)["color"], "hatch": ("", "//", "xx")[number % 3]}
            axes.bar(centres, pair[side], width * 0.94, label=name_of(method), edgecolor="white", linewidth=0, **look)
            for centre, x, truth in zip(centres, pair[side], true[side] if true else pair[side], strict=True):
                up = x >= 0
                axes.text(centre, x + (0.02 if up else -0.02) * most, _signed(x), ha="center", fontsize=8, zorder=4,
                          va="bottom" if up else "top", path_effects=[halo])  # fmt: skip
                if x * truth < 0 and min(abs(x), abs(truth)) > ROUNDING:
                    axes.annotate(
                        f"wrong\n{'praise' if up else 'blame'}", (centre, x), (0, 46 if up else -46), ha="center",
                        va="bottom" if up else "top", textcoords="offset points", fontsize=8.5, weight="bold",
                        arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkB": 16},
                    )  # fmt: skip
        if true:
            at = np.arange(len(names))
            axes.hlines(true[side], at - 0.46, at + 0.46, color="black", linewidth=1.8, linestyles=(0, (4, 1.5)),
                        label="true advantage")  # fmt: skip
        axes.axhline(0, color="0.3", linewidth=1)
        axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=9)
        axes.set_title(f"tokens of the {PHASES[phase][0]}", fontsize=10)
        axes.set_ylim(-1.35 * most, 1.35 * most)
        tidy(axes)
        axes.grid(visible=False, axis="x")
        axes.set_axisbelow(True)
    every[0].set_ylabel("advantage (units of reward)")
    every[0].legend(frameon=False, loc="lower left")
    return figure


def logprob_change(
    policy: Policy, example: Example, rollouts: Rollouts, row: int,
    change: Mapping[str, Tensor], advantages: Mapping[str, Tensor],
) -> Figure:  # fmt: skip
    """Change of the log-probability of every token of one rollout after a step, one panel per method.

    change, advantages: per method (B, T). The advantage is printed next to the name of the phase.
    """
    mask = rollouts.mask[row]
    phase, logprobs = (x[row][mask].tolist() for x in (rollouts.phase, rollouts.logprobs))
    forced = [x == 0 for x in logprobs]
    figure = Figure(figsize=(11, 2.2 + 2.1 * len(change)), layout="constrained")
    every = figure.subplots(len(change), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    most = 1.1 * max(float(x[row][mask].abs().max()) for x in change.values()) or 1.0
    for axes, (method, values) in zip(every, change.items(), strict=True):
        _token_bars(axes, phase, values[row][mask].tolist(), forced)
        axes.axhline(0, color="0.3", linewidth=1)
        hollow = [t for t, is_forced in enumerate(forced) if is_forced]
        axes.plot(hollow, [0] * len(hollow), "o", color="white", markeredgecolor="0.3", markersize=5)
        given = dict(zip(phase, advantages[method][row][mask].tolist(), strict=True))
        _name_phases(axes, phase, 1.2 * most, {p: f"advantage {_signed(x)}" for p, x in given.items()})
        axes.set(ylim=(-most, 1.5 * most))
        axes.set_ylabel(f"{name_of(method)}\nchange of log-prob (nats)")
    _name_tokens(every[-1], _token_names(policy, example, rollouts, row))
    return figure


def _token_bars(axes: Axes, phase: Sequence[int], heights: Sequence[float], hollow: Sequence[bool]) -> None:
    for t, (p, height, empty) in enumerate(zip(phase, heights, hollow, strict=True)):
        _, color, hatch = PHASES[p]
        look: dict[str, Any] = (
            {"facecolor": "white", "edgecolor": color} if empty else {"facecolor": color, "edgecolor": "white"}
        )
        axes.bar(t, height, 0.84, hatch="" if empty else hatch, linewidth=1.2 if empty else 0, **look)
    tidy(axes)
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlim(-0.6, len(phase) - 0.4)


def _name_phases(axes: Axes, phase: Sequence[int], height: float, more: Mapping[int, str] | None = None) -> None:
    """A bracket over the tokens of each phase, with its name."""
    for which, (name, color, _) in PHASES.items():
        own = [t for t, p in enumerate(phase) if p == which]
        if own:
            ends = (own[0] - 0.42, own[-1] + 0.42)
            axes.plot(ends, [height] * 2, color=color, linewidth=4, solid_capstyle="butt")
            text = f"{name}: {more[which]}" if more else f"{name}, {len(own)} tokens"
            look = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axes.text(sum(ends) / 2, height * 1.04, text, ha="center", va="bottom", fontsize=10, bbox=look)


def _token_names(policy: Policy, example: Example, rollouts: Rollouts, row: int) -> list[str]:
    """Titles instead of the policy's item tokens, with a star before the relevant ones."""
    titles = {
        label: STAR * (i in example.relevant) + example.candidates[i]
        for i, label in enumerate(policy.labels.candidates(example))
    }
    words = policy.tokenizer.convert_ids_to_tokens(rollouts.completions[row][rollouts.mask[row]].tolist())
    return [titles.get(w, w) for w in words]


def _name_tokens(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=55, ha="right", fontsize=9, rotation_mode="anchor")
    axes.set_xlabel("tokens, in the order of the output (\N{BLACK STAR} relevant; hollow: forced by the grammar)")


def _signed(x: float) -> str:
    return f"{x:+.2f}".replace("-", "\N{MINUS SIGN}")
