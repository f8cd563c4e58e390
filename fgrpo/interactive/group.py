"""One query, its G rollouts and what each credit method makes of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from ..config import Config
from ..credit import with_credit
from ..data import Example
from ..rewards import Rewards
from ..rollout import Rollouts
from ..runs.own import name_of
from ..runs.trace import Group, Trace, credit_of, trace_of
from ..study.plots import Figure
from . import html


@dataclass(frozen=True)
class Sampled:
    """G rollouts of one query: `rollouts` with tensors, `group` as traced tokens, `rewards` (1, G) each."""

    group: Group
    rollouts: Rollouts
    rewards: Rewards
    config: Config

    @property
    def example(self) -> Example:
        """The query, with its pool."""
        return self.group.example

    def credit(self, *methods: str | Callable[..., Tensor]) -> "Credited":
        """The advantages under each method, names or functions (rewards, rollouts, config) -> (B, T).

        Raises KitError on an unknown method, and on one that these rollouts do not fit (nested).
        """
        found = {}
        for name in [name_of("credit", method) for method in methods or ("grpo", "fgrpo")]:
            rl = with_credit(self.config.rl, name)
            found[name] = credit_of(self.group, replace(self.config, rl=rl))[1]
        return Credited(self, found)

    def trace(self) -> Trace:
        """The group as a trace, for the app, a file (fgrpo.runs.trace.write_trace) or a page (fgrpo.export_html)."""
        return trace_of("group", self.config, [self.group])

    def __repr__(self) -> str:
        ranges = ", ".join(f"{n} reward {r.min():.2f} to {r.max():.2f}" for n, r in self._rewards().items())
        return f"{len(self.group.rollouts)} rollouts of {self.example.id!r}: {ranges}"

    def _repr_html_(self) -> str:
        rewards = self._rewards()
        rows = [
            [str(i + 1), *(f"{r[0, i]:.2f}" for r in rewards.values()), html.tokens_html(traced, self.example)]
            for i, traced in enumerate(self.group.rollouts)
        ]
        columns = ["rollout", *(f"{name} reward" for name in rewards), "tokens"]
        return html.example_html(self.example) + html.table(columns, rows) + html.legend_html()

    def _rewards(self) -> dict[str, Tensor]:
        return {"slate": self.rewards.slate, "rank": self.rewards.rank}


@dataclass(frozen=True)
class Credited:
    """The advantages of a group's tokens, `advantages[method]` (G, T); padding is 0."""

    sampled: Sampled
    advantages: dict[str, Tensor]

    def plot(self) -> Figure:
        """One panel per method, one row per rollout, one cell per token; slate and ranking apart by a line."""
        rollouts, example = self.sampled.group.rollouts, self.sampled.example
        most, width = self._most(), max(len(r.tokens) for r in rollouts)
        size = (min(22.0, 2.5 + 0.72 * width), 0.9 + len(self.advantages) * (0.5 + 0.42 * len(rollouts)))
        figure = Figure(figsize=size, layout="constrained")
        ends = [tuple(x / 255 for x in color) for color in (html.BLAME, html.PRAISE)]
        scale = LinearSegmentedColormap.from_list("advantage", [(0.0, ends[0]), (0.5, (1.0, 1.0, 1.0)), (1.0, ends[1])])
        every = figure.subplots(len(self.advantages), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (method, values) in zip(every, self.advantages.items(), strict=True):
            grid = np.full((len(rollouts), width), np.nan)
            for row, rollout in enumerate(rollouts):
                grid[row, : len(rollout.tokens)] = values[row, : len(rollout.tokens)]
                for column, (item, phase) in enumerate(zip(rollout.items, rollout.phases, strict=True)):
                    if item < 0:  # a tag: room for the number
                        number = html.signed(float(values[row, column]))
                        axes.text(column, row, number, ha="center", va="center", fontsize=5.5, color="0.25")
                    else:
                        word = example.candidates[item].replace(" ", "\n", 1)[:24]
                        weight = "bold" if item in example.relevant else "normal"
                        axes.text(column, row, word, ha="center", va="center", fontsize=5.5, weight=weight)
                    color = list(html.PHASE_COLORS.values())[phase - 1]
                    axes.plot([column - 0.46, column + 0.46], [row + 0.46] * 2, color=color, linewidth=2)
            image = axes.imshow(grid, cmap=scale, vmin=-most * 1.4, vmax=most * 1.4, aspect="auto")
            axes.set_yticks(range(len(rollouts)), [str(i + 1) for i in range(len(rollouts))])
            axes.set_xticks([])
            axes.set(ylabel="rollout")
            axes.set_title(method, loc="left", fontsize=10)
            axes.spines[:].set_visible(False)
        every[-1].set_xlabel("tokens in order; bold: relevant. Line: blue the slate phase, amber the rank phase.")
        figure.colorbar(image, ax=list(every), label="advantage", pad=0.01)
        return figure

    def __repr__(self) -> str:
        return f"Advantages of {len(self.sampled.group.rollouts)} rollouts under {', '.join(self.advantages)}"

    def _repr_html_(self) -> str:
        rows = []
        for i, traced in enumerate(self.sampled.group.rollouts):
            for number, (method, values) in enumerate(self.advantages.items()):
                first = "" if number else f"{i + 1}"
                rows.append(
                    [first, method, html.tokens_html(traced, self.sampled.example, values[i].tolist(), self._most())]
                )
        return html.table(["rollout", "credit", "tokens"], rows) + html.legend_html(advantages=True)

    def _most(self) -> float:
        return max(float(values.abs().max()) for values in self.advantages.values()) or 1.0
