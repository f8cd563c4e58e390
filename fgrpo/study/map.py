"""When does which credit pay? Sample efficiency of every method, by regime, measured from gradients.

Of a policy and a regime many groups are drawn from queries that neither SFT nor RL trained on, and every method
estimates the gradient from the same groups (fgrpo.study.gradients). Efficiency is the squared projection of the mean
estimate on the true direction over the variance of an estimate, relative to grpo: 2 means that half the groups carry as
much signal. The true direction is that of E[R_slate + lambda R_rank] over the tokens in question, estimated by
`reward_to_go`, which is unbiased, on rewards without noise. `nested` is not in the map: it needs other rollouts.
"""

import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, KitError, RLConfig
from ..credit import CREDITS, check_credit, with_credit
from ..data import Splits
from ..lm.pretrained import return_freed_memory
from ..policy import Policy
from ..runs.fields import check_pools, config_with
from ..runs.policies import load_policy
from ..runs.run import provenance
from ..runs.warm_start import warm_start
from ..runs.workers import without_ctrl_c, workers
from ..tasks import load_task
from ..tasks.atomic import write_text
from ..trainer import batch_of
from . import plots
from .gradients import PHASES, CountSketch, Estimates, Key, add_estimates
from .plots import Row
from .report import columns, to_csv
from .signs import sampled_signs, shares


@dataclass(frozen=True)
class Cell:
    """One policy and regime of the lab task, measured at each of `lams` from the same rollouts.

    The policy: `start`, a name in STARTS, trained on pools of `pool` with one or several relevant films. Its lists at
    sampling: at most `slate` (and 5 ranked), or exactly so many (`full`). Noise: standard deviation, on either reward.
    """

    start: str = "warm"
    pool: int = 20
    slate: int = 10
    lams: tuple[float, ...] = (1.0,)
    one_relevant: bool = False
    slate_noise: float = 0.0
    rank_noise: float = 0.0
    full: bool = True

    def config(self, seed: int = 0) -> Config:
        """The run that the cell is about."""
        return config_with(
            pool=self.pool, slate_size=self.slate, rank_size=min(5, self.slate), one_relevant=self.one_relevant,
            slate_noise=self.slate_noise, rank_noise=self.rank_noise, full=self.full, seed=seed,
            sft_steps=STARTS[self.start],
        )  # fmt: skip

    def start_config(self) -> Config:
        """The warm start that its policy is: relevant-only demonstrations, whose lists no slate size cuts."""
        return config_with(pool=self.pool, one_relevant=self.one_relevant, sft_steps=STARTS[self.start])

    def start_name(self) -> str:
        """Name of the folder of its policy."""
        return f"{self.start}-pool{self.pool}{'-one' if self.one_relevant else ''}"


STARTS = {"cold": 300, "warm": 1000, "trained": 3000}
"""SFT steps of the policies, those of the presets lab-cold, lab-warm (shipped for pools of 20) and lab-trained"""
LAMS = (0.25, 1.0, 4.0)
CELLS = {
    "cold": Cell("cold", lams=LAMS),
    "warm": Cell(lams=LAMS),
    "trained": Cell("trained", lams=LAMS),
    "cold-pool50": Cell("cold", pool=50),
    "pool50": Cell(pool=50),
    "trained-pool50": Cell("trained", pool=50),
    "cold-pool100": Cell("cold", pool=100),
    "pool100": Cell(pool=100),
    "trained-pool100": Cell("trained", pool=100),
    "slate5": Cell(slate=5),
    "pool50-slate5": Cell(pool=50, slate=5),
    "pool50-slate20": Cell(pool=50, slate=20),
    "one": Cell(one_relevant=True, lams=LAMS),
    "slate-noise": Cell(slate_noise=1.0),
    "rank-noise": Cell(rank_noise=1.0),
    "free": Cell(full=False),
}
"""The map: variations of a centre (warm, pool 20, slate 10, several relevant, no noise, filled, lambda 1), and how the
start interacts with pool and lambda. A slate of 20 is measured in pools of 50: in a pool of 20 it holds all."""
COARSE = ("cold", "warm", "trained", "pool50", "one", "slate-noise", "rank-noise", "free")

BASE, TRUE, PAPER = "grpo", "reward_to_go", "fgrpo"
TRUTH = "the true direction"
"""key of the estimates that the true direction is taken from"""
PARTS = (*PHASES, "whole")
QUERIES = 16
"""groups that are drawn together"""
CHECKED = 160
"""groups between two looks at the interval of fgrpo's efficiency"""
PRECISE = 0.15
"""no more groups are drawn where this interval is within 15 % at every lambda"""
GROUPS, COARSE_GROUPS, LEAST = 1000, 640, 8
"""most groups of a cell, in the coarse map, and the fewest that can be asked for"""
JUDGED = 64
"""most queries of a cell whose signs are judged, at most one for 8 groups"""
RESAMPLES = 300
OTHERS = 1_000_000
"""step of the rollouts whose signs are judged: with other random numbers than those of the gradients"""
STREAM = "map"
"""use of the stream of queries: others than those that SFT and RL train on"""


def map_methods(names: Sequence[str], config: Config) -> tuple[list[str], list[str]]:
    """The methods that the map measures under a configuration, and those whose options do not allow it.

    Always among them: grpo, which the others are compared with. Raises KitError on an unknown name and on `nested`.
    """
    if "nested" in names:
        raise KitError("nested is not in the map: it needs several rankings of a slate, the others one; leave it out.")
    fit, unfit = [], []
    for name in dict.fromkeys((BASE, *names)):
        check_credit(with_credit(replace(config.rl, slate_noise=0.0, rank_noise=0.0), name))
        try:
            check_credit(with_credit(config.rl, name))
            fit.append(name)
        except KitError:
            unfit.append(name)
    return fit, unfit


def all_methods() -> list[str]:
    """Every method of fgrpo.credit.CREDITS but nested."""
    return [name for name in CREDITS if name != "nested"]


# --- one cell ---


def measure(
    policy: Policy, splits: Splits, config: Config, names: Sequence[str], lams: Sequence[float], most: int = GROUPS
) -> list[Row]:
    """A row for each lambda, method and part (slate tokens, rank tokens, whole): efficiency, angle, wrong signs.

    At most `most` groups are drawn, fewer where PRECISE is met before. A pure function of its arguments.
    """
    fit, _ = map_methods(names, config)
    clean = replace(config.rl, credit=TRUE, rankings=1, scale="none", slate_noise=0.0, rank_noise=0.0)
    methods: dict[Key, RLConfig] = {
        (name, lam): replace(with_credit(config.rl, name), lam=lam) for lam in lams for name in fit
    }
    truth: dict[Key, RLConfig] = {(TRUTH, lam): replace(clean, lam=lam) for lam in lams}
    estimates = Estimates([*methods, *truth])
    sketch = CountSketch(sum(p.numel() for p in policy.parameters()), seed=config.seed)
    watched = PAPER if PAPER in fit else fit[-1]
    number = 0
    while len(estimates) < most:
        examples = batch_of(splits.train, QUERIES, number, config.seed, STREAM)[: most - len(estimates)]
        check_pools(examples, config)
        add_estimates(estimates, policy, examples, {**methods, **truth}, config, number, sketch)
        return_freed_memory()  # 960 groups of a policy of 1.8 M weights fragment it to 10 GB, of which 0.1 are in use
        number += 1
        if len(estimates) % CHECKED == 0 and len(estimates) < most:
            found = [Moments.of(estimates, [BASE, watched], lam, config.seed) for lam in lams]
            if all(width(m.efficiency(watched, "whole")) <= 1 + PRECISE for m in found):
                break
    judged = batch_of(splits.train, max(4, min(JUDGED, len(estimates) // 8)), 0, config.seed, f"{STREAM}-signs")
    signs = sampled_signs(policy, judged, methods, config, OTHERS)
    rows = []
    for lam in lams:
        moments = Moments.of(estimates, fit, lam, config.seed)
        for name in fit:
            for part in PARTS:
                sign = shares(signs[name, lam][part], config.seed) if part in PHASES else {}
                rows.append({
                    "lam": lam, "method": name, "part": part, "groups": len(estimates), **moments.row(name, part),
                    **{k: _rounded(sign.get(k)) for k in ("wrong", "wrong_low", "wrong_high")}, "judged": len(judged),
                })  # fmt: skip
    return rows


def width(values: Tensor) -> float:
    """Half the width of the 95 % interval of a ratio, as a factor; infinite if it is not known to be positive."""
    low, high = interval(values)
    return math.sqrt(high / low) if low > 0 else math.inf


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of the bootstrap: values (1 + RESAMPLES,), the estimate itself first."""
    low, high = values[1:].nan_to_num(0.0).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


@dataclass(frozen=True)
class Moments:
    """What the numbers of a cell are made of at one lambda, for the sample and RESAMPLES bootstrap resamples of groups.

    Inner products of two expectations are means over pairs of different groups, which makes them unbiased; a group that
    was drawn twice is no pair. By method and part, (1 + RESAMPLES,) each: `along` <m, t> for the method's mean m and the
    true direction t, `square` <m, m>, `power` E|g|^2; and by part `true` <t, t>.
    """

    along: Mapping[tuple[str, str], Tensor]
    square: Mapping[tuple[str, str], Tensor]
    power: Mapping[tuple[str, str], Tensor]
    true: Mapping[str, Tensor]

    @classmethod
    def of(cls, estimates: Estimates, names: Sequence[str], lam: float, seed: int) -> "Moments":
        """From the sketches of all groups."""
        n = len(estimates)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
        again = torch.zeros(RESAMPLES, n).scatter_add_(1, drawn, torch.ones(RESAMPLES, n))
        times = torch.cat((torch.ones(1, n), again))  # (1 + R, N): how often each group was drawn
        twice = times.double().square()
        pairs = times.double().sum(1).square() - twice.sum(1)

        def pieces(name: str) -> dict[str, tuple[Tensor, Tensor]]:  # by part: of each group, and sums of resamples
            own = {phase: estimates.of((name, lam), phase) for phase in PHASES}
            sums = {phase: times @ x for phase, x in own.items()}
            return {
                **{phase: (own[phase], sums[phase]) for phase in PHASES},
                "whole": (own["slate"] + own["rank"], sums["slate"] + sums["rank"]),
            }

        def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
            same = twice @ (a[0] * b[0]).sum(1).double()
            return ((a[1] * b[1]).sum(1).double() - same) / pairs

        truth = pieces(TRUTH)
        found = cls({}, {}, {}, {part: product(truth[part], truth[part]) for part in PARTS})
        for name in names:
            own = pieces(name)
            for part in PARTS:
                found.along[name, part] = product(own[part], truth[part])  # type: ignore[index]
                found.square[name, part] = product(own[part], own[part])  # type: ignore[index]
                power = own[part][0].square().sum(1).double()
                found.power[name, part] = times.double() @ power / n  # type: ignore[index]
        return found

    def efficiency(self, name: str, part: str) -> Tensor:
        """Relative to grpo; negative where the two mean estimates point to different sides of the true direction."""
        ratio = self.along[name, part] / self.along[BASE, part]
        return ratio * ratio.abs() * self._variance(BASE, part) / self._variance(name, part)

    def angle(self, name: str, part: str) -> Tensor:
        """Between mean estimate and true direction, in degrees; 90 where either cannot be told from nothing."""
        lengths = self.square[name, part] * self.true[part]
        known = (self.square[name, part] > 0) & (self.true[part] > 0)
        cosine = torch.where(known, self.along[name, part] / lengths.clamp(min=1e-300).sqrt(), 0.0)
        return cosine.clamp(-1, 1).arccos().rad2deg()

    def row(self, name: str, part: str) -> Row:
        """Efficiency and angle with their intervals, and `signal`: grpo's own, or the method's, of one group.

        That is the length of the mean estimate along the true direction over the standard deviation of an estimate.
        """
        row: Row = {}
        for column, values in (("efficiency", self.efficiency(name, part)), ("angle", self.angle(name, part))):
            low, high = interval(values)
            row |= {
                column: _rounded(float(values[0])),
                f"{column}_low": _rounded(low),
                f"{column}_high": _rounded(high),
            }
        signal = self.along[name, part] / (self.true[part] * self._variance(name, part)).sqrt()
        return {**row, "signal": _rounded(float(signal[0]))}

    def _variance(self, name: str, part: str) -> Tensor:
        return self.power[name, part] - self.square[name, part]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


# --- the map ---


def measure_cell(name: str, start: Path, names: Sequence[str], most: int, seed: int) -> list[Row]:
    """The rows of one cell of CELLS, of the policy in the folder `start`."""
    cell = CELLS[name]
    config = cell.config(seed)
    rows = measure(load_policy(start), load_task(config)[0], config, names, cell.lams, most)
    return [{**described(name, cell), **row} for row in rows]


def measure_checkpoint(
    name: str, policy: Policy, splits: Splits, config: Config, names: Sequence[str], most: int, out: Path | None = None
) -> list[Row]:
    """The rows of one cell, that of a run's own policy and regime, written to the CSV file `out`."""
    some = batch_of(splits.train, QUERIES, 0, config.seed, STREAM)
    one = all(len(e.relevant) == 1 for e in some)
    cell = Cell(name, len(some[0].candidates), config.grammar.slate_size, (config.rl.lam,), one, config.rl.slate_noise,
                config.rl.rank_noise, config.grammar.full)  # fmt: skip
    rows = [{**described("checkpoint", cell), **r} for r in measure(policy, splits, config, names, cell.lams, most)]
    if out is not None:
        made = {**provenance(), "groups_per_cell": most, "credits": list(names), "config": config.to_dict()}
        write_text(out, to_csv(rows, made))
    return rows


def described(name: str, cell: Cell) -> Row:
    """The columns that say which regime a row is about."""
    return {"cell": name, "start": cell.start, "pool": cell.pool, "slate": cell.slate,
            "relevant": "one" if cell.one_relevant else "several", "slate_noise": cell.slate_noise,
            "rank_noise": cell.rank_noise, "full": int(cell.full)}  # fmt: skip


def measure_map(
    cells: Sequence[str], names: Sequence[str], folder: Path, out: Path | None = None, most: int = GROUPS, seed: int = 0,
    jobs: int = 1, resume: bool = False,
) -> list[Row]:  # fmt: skip
    """The rows of all cells, `jobs` cells at a time. Warm starts that are missing are made in `folder`.

    The rows of a cell are written to the CSV file `out` as soon as it is measured; with `resume` cells that the file
    holds are kept. Raises KitError if the file was made with other options.
    """
    made = {**provenance(), "seed": seed, "groups_per_cell": most, "credits": list(names),
            "cells": {name: asdict(CELLS[name]) for name in cells}}  # fmt: skip
    done: dict[str, list[Row]] = {}
    if out is not None and resume and out.exists():
        made, done = read_map(out, made)
    left = [name for name in cells if name not in done]

    def keep(name: str, rows: list[Row]) -> None:
        done[name] = rows
        if out is not None:
            write_text(out, to_csv([row for cell in cells for row in done.get(cell, [])], made))

    starts = {CELLS[name].start_name(): CELLS[name] for name in left}
    # the longest first, so that no process waits for it in the end
    order = sorted(starts, key=lambda name: -STARTS[starts[name].start] * starts[name].pool)
    found: dict[str, Path] = {}
    _run_all({name: partial(make_start, starts[name], folder / name) for name in order}, jobs, found.__setitem__)
    order = sorted(left, key=lambda name: -CELLS[name].pool * CELLS[name].slate)
    calls = {name: partial(measure_cell, name, found[CELLS[name].start_name()], names, most, seed) for name in order}
    _run_all(calls, jobs, keep)
    return [row for name in cells for row in done[name]]


def make_start(cell: Cell, folder: Path) -> Path:
    """The folder of a cell's policy: the shipped warm start if it is that one, else trained in `folder`, once."""
    config = cell.start_config()
    return warm_start(config, *load_task(config), folder, quiet=True, resume=True)


def _run_all(calls: Mapping[str, Callable], jobs: int, keep: Callable) -> None:
    """Call `keep` with the name and result of each call as it ends; `jobs` go on at a time."""
    if jobs == 1 or len(calls) < 2:
        for name, call in calls.items():
            keep(name, _timed(name, call))
        return
    with workers(min(jobs, len(calls))) as pool:
        with without_ctrl_c():
            futures = {pool.submit(_timed, name, call): name for name, call in calls.items()}
        for future in as_completed(futures):
            keep(futures[future], future.result())


def _timed(name: str, call: Callable) -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # results must not depend on the number of jobs
    began, used = time.perf_counter(), time.process_time()
    try:
        return call()
    finally:
        torch.set_num_threads(threads)
        took, cpu = time.perf_counter() - began, time.process_time() - used
        print(f"{name}: {took:.0f} s ({cpu:.0f} s of CPU)", file=sys.stderr, flush=True)


def read_map(path: Path, made: Mapping[str, object]) -> tuple[dict[str, object], dict[str, list[Row]]]:
    """The first line of a map's CSV file, and the rows of its cells. Raises KitError unless its options are `made`."""
    first, _, table = path.read_text(encoding="utf-8").partition("\n")
    try:
        was = json.loads(first.removeprefix("# "))
        for option in ("seed", "groups_per_cell", "credits", "cells"):
            if was[option] != json.loads(json.dumps(made[option])):
                raise KitError(f"{path}: was measured with other {option}: name another --out, or leave out --resume.")
        rows: dict[str, list[Row]] = {}
        for row in csv.DictReader(io.StringIO(table)):
            rows.setdefault(row["cell"], []).append({name: _value(text) for name, text in row.items()})
    except (ValueError, KeyError, TypeError):
        raise KitError(f"{path}: is not a map of this kit; name another --out, or leave out --resume.") from None
    return was, rows


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def write_figure(rows: Sequence[Row], out: Path) -> None:
    """The heat maps beside the CSV file."""
    plots.save(plots.credit_map(list(rows)), out.with_suffix(".png"))


def format_map(rows: Sequence[Row]) -> str:
    """Efficiency of all tokens by cell and method, as text."""
    whole = [r for r in rows if r["part"] == "whole"]
    methods = [m for m in dict.fromkeys(r["method"] for r in whole) if m != BASE]
    cells = {(r["cell"], r["lam"], r["method"]): r for r in whole}
    lines: list[tuple[str, ...]] = [("cell", "lambda", "groups", *methods)]
    for name, lam in dict.fromkeys((r["cell"], r["lam"]) for r in whole):
        found = [cells.get((name, lam, m)) for m in methods]
        groups = cells[name, lam, BASE]["groups"]
        lines.append((name, f"{lam:g}", str(groups), *("" if r is None else _ratio(r) for r in found)))
    return f"""{columns(lines)}

Sample efficiency relative to grpo (all tokens, 95 % interval): squared projection of the mean estimate on the true
direction over the variance of an estimate; 2 means that half the groups carry as much signal. Left out are nested, which
needs several rankings of a slate, and where rewards are noisy methods that are paid by item."""


def _ratio(row: Row) -> str:
    value, low, high = (row[f"efficiency{x}"] for x in ("", "_low", "_high"))
    return "none" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
