"""What measuring and training give back: small objects that show themselves."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..config import Config
from ..policy import Policy
from ..runs.run import read_metrics
from ..study import plots
from ..study.report import PRIMARY, bracket, columns
from . import html


class Scores(dict[str, Tensor]):
    """Metrics of one policy: values per query, (Q,) each, by name; `means` over the queries."""

    SHOWN: ClassVar = ("ndcg@5", "recall@5", "slate_recall", "slate_length")

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: float(values.mean()) for name, values in self.items()}

    def __repr__(self) -> str:
        count = len(next(iter(self.values())))
        return f"Scores({', '.join(f'{n} {self.means[n]:.3f}' for n in self.SHOWN)}; {count:,} queries)"

    def _repr_html_(self) -> str:
        return html.scores_html(self, self.SHOWN)


@dataclass(frozen=True)
class Table:
    """Rows of named values, with a caption."""

    rows: list[dict[str, Any]]
    caption: str = ""

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = [[f"{x:.3f}" if isinstance(x := row.get(n, ""), float) else "" if x is None else str(x) for n in names]
                for row in self.rows]  # fmt: skip
        return names, text

    def __repr__(self) -> str:
        names, text = self._cells()
        return "\n".join([*([self.caption] if self.caption else []), columns([tuple(names), *map(tuple, text)])])

    def _repr_html_(self) -> str:
        names, text = self._cells()
        return html.table([*map(escape, names)], [[*map(escape, row)] for row in text], escape(self.caption))


@dataclass(frozen=True)
class Trained:
    """A finished RL run: its `folder`, `config` and `policy`."""

    folder: Path
    config: Config
    policy: Policy

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One row per step, as in metrics.jsonl."""
        return read_metrics(self.folder)

    def plot(self) -> plots.Figure:
        """Rewards of both phases and the slate's length over the steps."""
        rows = self.metrics
        return plots.learning_curves({self.config.rl.credit: [rows]}, window=max(1, min(10, len(rows) // 3)))

    def __repr__(self) -> str:
        rows = self.metrics
        first, last = rows[: max(1, len(rows) // 5)], rows[-max(1, len(rows) // 5) :]
        change = [
            f"{name} reward {mean_of(first, f'reward/{name}'):.3f} to {mean_of(last, f'reward/{name}'):.3f}"
            for name in ("slate", "rank")
        ]
        return f"Run of {self.config.rl.credit}, {len(rows)} steps: {', '.join(change)}"

    def _repr_html_(self) -> str:
        picture = b64encode(self.plot()._repr_png_()).decode()
        text = f"{escape(repr(self))} (means of the first and of the last fifth, sampled)"
        return f'<p>{text}</p><img alt="learning curves" style="max-width:100%" src="data:image/png;base64,{picture}">'


def mean_of(rows: Sequence[dict[str, float]], name: str) -> float:
    """The mean of a logged number."""
    return sum(row[name] for row in rows) / len(rows)


@dataclass(frozen=True)
class Comparison:
    """A comparison: `rows` (fgrpo.study.report.table), `checks` (does RL learn?), how to read it, its `folder`."""

    rows: list[plots.Row]
    checks: list[str]
    reading: str
    folder: Path

    def plot(self, metric: str = PRIMARY) -> plots.Figure:
        """Means and differences with their intervals."""
        return plots.comparison(self.rows, metric)

    def table(self, metric: str = PRIMARY) -> list[dict[str, str]]:
        """The five columns to read: mean, difference, what could have been seen, verdict."""
        found = []
        for row in self.rows:
            if row["metric"] != metric:
                continue
            other = row["method"] != row["baseline"]
            found.append({
                "method": row["method"],
                f"{metric} [95 %]": f"{row['mean']:.3f} {bracket(row, '', '.3f')}",
                f"difference to {row['baseline']} [95 %]":
                    f"{row['diff']:+.3f} {bracket(row, 'diff_', '+.3f')}" if other else "",
                "detectable": "" if row["detectable"] is None else f"{row['detectable']:.3f}",
                "verdict": row["verdict"],
            })  # fmt: skip
        return found

    def __repr__(self) -> str:
        rows = self.table()
        text = columns([tuple(rows[0]), *(tuple(row.values()) for row in rows)])
        return "\n".join([*self.checks, text, self.reading])

    def _repr_html_(self) -> str:
        rows = self.table()
        checks = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.checks)
        cells = [[escape(x) for x in row.values()] for row in rows]
        note = f"<p><small>{escape(self.reading)}</small></p>"
        return f"<p>Does RL learn here?</p><ul>{checks}</ul>" + html.table([*map(escape, rows[0])], cells) + note
