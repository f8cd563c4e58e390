"""The tab Runs: many runs compared, by method and seed, over training steps, by query, and their distributions."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from fgrpo.config import Config, KitError
from fgrpo.credit import with_credit
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.runs.run import flat, how_made
from fgrpo.runs.trace import Group, Traced, credit_of
from fgrpo.study.check import LEAST_SEEDS
from fgrpo.study.compare import WARM_START
from fgrpo.study.plots import PHASES, style_of
from fgrpo.study.report import MARGIN, baseline_of, verdict
from fgrpo.study.significance import Estimate, holm, paired

from .charts import Point, Series, curves, figure, histogram, key_of, scatter, smooth
from .library import Cache, Library, Opened, identity
from .markup import html_table, join, message, number, printable, signed, tag
from .measures import fitting, measure_in_batches, scores

MOST_RUNS, MOST_QUERIES, MOST_TOKENS, MOST_POINTS, MOST_STEPS = 12, 500, 1_000_000, 1000, 200
"""maximum number of runs; of a run's queries with sampled rollouts, and of their tokens; of points; of steps of a query"""
BATCH = 64
"""number of queries of a trace that are in memory at a time"""
METRICS = {"ndcg@5": "NDCG@5", "ndcg@1": "NDCG@1", "recall@5": "Recall@5", "slate_recall": "slate recall",
           "slate_length": "slate length"}  # fmt: skip
PRIMARY = next(iter(METRICS))
LOGGED = {"reward/slate": "slate reward", "reward/rank": "rank reward", "slate_length": "slate length",
          "format_errors": "share of format errors"}  # fmt: skip
DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "5 2 1 2 1 2")
UNTRAINED = "1 2"
"""line styles of the seeds of a method, and of warm starts"""
UNREAD = ("seed", "device", "data", "lm.date", "lm.micro", "rl.credit")
"""options that do not tell runs of one credit method apart"""

Own = Mapping[str, str]
Identity = int
"""what library.identity says of a query: equal where id and candidates are"""


@dataclass(frozen=True)
class Labelled:
    """A run with its method, whether RL trained it, its seed and warm start ("" if not known), and a line style."""

    name: str
    method: str
    trained: bool
    seed: int
    start: str
    config: Config
    colour: str
    dash: str


@dataclass(frozen=True)
class Query:
    """A query of a trace whose greedy rollout was measured: its name there, `Example.group`, the values of METRICS."""

    key: str
    group: str
    values: tuple[float, ...]


_signed = partial(signed, digits=3)
MEASURED = Cache(2 * MOST_RUNS)
"""dict[Identity, Query] by trace"""


def overview(library: Library, names: Sequence[str], own: Own) -> Markup:
    """Methods x seeds on the queries that all runs share: means, differences with intervals, verdicts; and every run.

    Raises KitError on a run that cannot be read, on runs of different tasks or list sizes, and if no query is shared.
    """
    runs = labelled(library, names, own)
    keys, found = shared(library, runs, own)
    values = {
        run.name: torch.tensor([q.values for q in queries]).double().T for run, queries in found.items()
    }  # (M, Q)
    notes = [f"{len(keys):,} queries that all {len(runs)} runs have, greedy decoding."]
    if len({run.config.grammar.full for run in runs}) > 1:
        full = ", ".join(printable(run.name, 60) for run in runs if run.config.grammar.full)
        notes.append(f"Lists are filled in {full} only: length alone may make a difference.")
    if differ := varied([run.config for run in runs if run.trained]):
        names = ", ".join(name.rpartition(".")[2] for name in differ)
        notes.append(f"Besides the credit method, runs differ in {names}: differences between methods may be theirs.")
    rows = []
    for run in runs:
        start = run.start or "not known" if run.trained else "\N{EN DASH}"
        rows.append([run.name, run.method, str(run.seed), start, *(number(float(x)) for x in values[run.name].mean(1))])
    head = ("Run", "Method", "Seed", "Warm start", *METRICS.values())
    try:
        methods = _methods(runs, values, [q.group for q in found[runs[0]]])
    except KitError as error:
        methods = message(str(error))
    return tag("<p>{}</p>{}{}", " ".join(notes), methods, html_table("Means of each run", head, rows, sortable=True))


def _methods(runs: Sequence[Labelled], values: Mapping[str, Tensor], groups: Sequence[str]) -> Markup:
    """The table methods x seeds on PRIMARY. Differences are paired by seed and query, on the seeds that both have."""
    by_method: dict[str, dict[int, Labelled]] = {}
    for run in runs:
        first = by_method.setdefault(run.method, {}).setdefault(run.seed, run)
        if first is not run:
            both = f"{printable(first.name, 60)} and {printable(run.name, 60)}"
            raise KitError(f"{both} are both {run.method} with seed {run.seed}: choose one of them to compare methods.")
    trained = list(dict.fromkeys(run.method for run in runs if run.trained))
    baseline = baseline_of(trained or list(by_method))
    differences = {m: difference(some, by_method[baseline], values, groups)
                   for m, some in by_method.items() if m != baseline}  # fmt: skip
    tested = [m for m in trained if m != baseline]
    p_values = [d.p if d and count >= LEAST_SEEDS else 1.0 for d, count in (differences[m] for m in tested)]
    adjusted = dict(zip(tested, holm(p_values), strict=True))
    seeds = sorted({run.seed for run in runs})
    rows = []
    for method, some in by_method.items():
        mean = paired(_stack(some.values(), values), _starts([run.start for run in some.values()]), groups)
        cells = [number(float(values[some[s].name][0].mean())) if s in some else "\N{EN DASH}" for s in seeds]
        cells.append(f"{number(mean.mean)} {_bracket(mean.interval(), number)}")
        diff, count = differences.get(method, (None, 0))
        cells.append(f"{_signed(diff.mean)} {_bracket(diff.interval(), _signed)}" if diff else "")
        enough = method in adjusted and count >= LEAST_SEEDS and diff is not None
        cells.append(_bracket(diff.simultaneous(len(tested)), _signed) if enough and diff else "")
        cells.append(number(adjusted[method]) if enough else "")
        if method == baseline:
            words = "baseline"
        elif method not in adjusted:
            words = "not trained by RL: no verdict"
        elif not diff:
            words = f"no verdict: no seed in common with {baseline}"
        else:
            words = verdict(diff, adjusted[method], len(tested), MARGIN, count)
        rows.append([method, *cells, words])
    head = ("Method", *(f"seed {s}" for s in seeds), "mean [95 %]", f"difference to {baseline} [95 %]", "simultaneous",
            "p (Holm)", "verdict")  # fmt: skip
    filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
    columns = [[line[i] for i in filled] for line in (head, *rows)]
    table = html_table(f"{METRICS[PRIMARY]} of methods x seeds", columns[0], columns[1:])
    return tag("{}<p>{}</p>", table, _reading(by_method, differences, tested))


def _reading(
    by_method: Mapping[str, Mapping[int, Labelled]], differences: Mapping[str, tuple[Estimate | None, int]],
    tested: Sequence[str],
) -> str:  # fmt: skip
    """How to read the table of methods."""
    parts = ["[95 %]: intervals of one row, over queries and seeds; of a method with one seed over queries alone."]
    starts = {run.start for m in tested for run in by_method[m].values()}
    if "" in starts:
        parts.append("Not every run's warm start is known, so runs count as independent.")
    elif len(starts) == 1:
        parts.append("All trained runs begin with one warm start, so the intervals speak about this start alone.")
    elif len(starts) == 2:
        parts.append("Two warm starts leave 1 degree of freedom, so the intervals are wide: use 1, or 3 and more.")
    few = [m for m in tested if differences[m][1] < LEAST_SEEDS]
    if few:
        parts.append(
            f"Fewer than {LEAST_SEEDS} seeds in common with the baseline ({', '.join(few)}): other seeds of the same "
            "method may differ more, so there is no verdict."
        )
    if len(few) < len(tested):
        parts.append(
            f"Verdicts are corrected for {len(tested)} comparison{'s' * (len(tested) > 1)} (Holm's p < 0.05); a difference "
            f"of at most {MARGIN:g} is taken as none."
        )
    return " ".join([*parts, "Whether RL has learned at all is not tested here; the command compare tests it."])


def difference(
    some: Mapping[int, Labelled], base: Mapping[int, Labelled], values: Mapping[str, Tensor], groups: Sequence[str]
) -> tuple[Estimate | None, int]:
    """A method minus the baseline on PRIMARY, paired by seed and query; and the number of seeds that both have.

    A single warm start is taken for every seed of the baseline.
    """
    first = next(iter(some.values()))
    if len(some) == 1 and not first.trained:
        some = dict.fromkeys(base, first)
    seeds = sorted(some.keys() & base.keys())
    if not seeds:
        return None, 0
    x, y = (_stack([side[s] for s in seeds], values) for side in (some, base))
    known = [f"{some[s].start} {base[s].start}" if some[s].start and base[s].start else "" for s in seeds]
    return paired(x - y, _starts(known), groups), len(seeds)


def _stack(runs: Iterable[Labelled], values: Mapping[str, Tensor]) -> Tensor:
    """PRIMARY of the runs (S, Q)."""
    return torch.stack([values[run.name][0] for run in runs])


def _starts(labels: Sequence[str]) -> list[int] | None:
    """Warm starts by number, None if one of them is not known."""
    return [list(dict.fromkeys(labels)).index(label) for label in labels] if all(labels) else None


def _bracket(ends: tuple[float, float], show: Callable[[float], str]) -> str:
    """An interval as text, "" where one query of one run leaves none."""
    return f"[{show(ends[0])}, {show(ends[1])}]" if all(map(math.isfinite, ends)) else ""


def overlaid(library: Library, names: Sequence[str]) -> Markup:
    """The logged metrics of the runs over training steps, in one panel a metric: colours are methods, dashes seeds.

    Raises KitError if no run has logged one of them.
    """
    runs = labelled(library, names, {})
    lines: dict[str, list[Series]] = {key: [] for key in LOGGED}
    for run in runs:
        rows = library.metrics(run.name)
        logged = {name for row in rows for name in row}
        for key in [*LOGGED, *sorted(name for name in logged if "ndcg" in name)[:4]]:
            if key in logged:
                line = replace(smooth(rows, key), name=run.name, colour=run.colour, dash=run.dash)
                lines.setdefault(key, []).append(line)
    drawn = {line.name: line for some in lines.values() for line in some}
    if not drawn:
        raise KitError("none of these runs has logged rewards of RL: choose runs that fgrpo train has trained with RL.")
    panels = [curves(some, LOGGED.get(key, key), "", legend=False) for key, some in lines.items() if some]
    without = [printable(run.name, 80) for run in runs if run.name not in drawn]
    note = message(f"Nothing of this is logged by {', '.join(without)}.") if without else ""
    words = "Running means over 10 steps; colours are methods, dashes are seeds."
    panels.append(key_of(list(drawn.values())))
    return tag("<p>{}</p>{}{}", words, note, figure(panels, f"Training curves of {len(drawn)} runs", "runs.svg"))


def per_query(library: Library, a: str, b: str, own: Own) -> Markup:
    """NDCG@5 of every query in run a against run b; a point opens the first of its queries in run a.

    Raises KitError as `overview` does.
    """
    runs = labelled(library, [a, b], own)
    if len(runs) < 2:
        raise KitError("choose two different runs: a run does not differ from itself.")
    _, found = shared(library, runs, own)
    pairs = [(x, x.values[0], y.values[0]) for x, y in zip(*(found[run] for run in runs), strict=True)]
    at: dict[tuple[float, float], list[Query]] = {}
    for query, x, y in pairs:
        at.setdefault((round(x, 3), round(y, 3)), []).append(query)
    points = []
    for (x, y), some in at.items():
        more = f"; the first of {len(some)} queries with these values" if len(some) > 1 else ""
        words = f"Open query {printable(some[0].key, 80)}: {number(x)} in A, {number(y)} in B{more}"
        points.append(Point(x, y, words, {"run": a, "query": some[0].key}, len(some)))
    points.sort(key=lambda p: -p.count)
    higher, lower = (sum(sign * (y - x) > 1e-9 for _, x, y in pairs) for sign in (1, -1))
    text = (
        f"A: {printable(a, 80)}, B: {printable(b, 80)}. Of {len(pairs):,} queries, NDCG@5 is higher in B for {higher:,}, "
        f"higher in A for {lower:,}, and equal for {len(pairs) - higher - lower:,}. Choose a point to open its query in A; "
        "a larger point stands for more queries."
    )
    if len(points) > MOST_POINTS:
        text += f" The figure has the {MOST_POINTS:,} points of most queries, of {len(points):,}."
    drawn = scatter(points[:MOST_POINTS], "NDCG@5 in A", "NDCG@5 in B")
    return tag("<p>{}</p>{}", text, figure([drawn], f"NDCG@5 by query. {text}", "queries.svg"))


def histograms(library: Library, names: Sequence[str], own: Own, method: str = "") -> Markup:
    """Distributions over sampled rollouts: rewards, slate length, and the advantages of the tokens of each phase.

    Credit is that of each run, or `method`. Raises KitError if no run has sampled rollouts, or the credit does not apply.
    """
    runs = labelled(library, names, own)
    titles = ("slate reward", "rank reward", "slate length", "advantage of slate tokens", "advantage of rank tokens")
    drawn: list[list[Series]] = [[] for _ in titles]
    notes, missing = [], []
    for run in runs:
        opened = library.trace(run.name, own)
        columns, cut = _sampled(opened, run, method)
        if not columns[0]:
            missing.append(printable(run.name, 80))
            continue
        if cut:
            notes.append(message(f"{printable(run.name, 80)}: the first {cut} queries with sampled rollouts."))
        for panel, column in zip(drawn, columns, strict=True):
            panel.append(Series(run.name, column, colour=run.colour, dash=run.dash))
    if not drawn[0]:
        raise KitError("none of these runs has queries with two or more sampled rollouts in its trace.")
    if missing:
        notes.append(message(f"No sampled rollouts are in the trace of {', '.join(missing)}."))
    credit = f"credit {method}" if method else "the credit of each run"
    text = f"Sampled rollouts; advantages of tokens under {credit}."
    panels = [histogram(series, title, title, legend=False) for title, series in zip(titles, drawn, strict=True)]
    panels.append(key_of(drawn[0]))
    return tag("<p>{}</p>{}{}", text, join(notes), figure(panels, f"Histograms. {text}", "histograms.svg"))


def _sampled(opened: Opened, run: Labelled, method: str) -> tuple[list[list[float]], int]:
    """Slate and rank reward and slate length of sampled rollouts, advantages of slate and rank tokens.

    Also the number of queries that these are of, if there are more; else 0.
    """
    columns: list[list[float]] = [[] for _ in range(5)]
    config = replace(opened.config, rl=with_credit(opened.config.rl, method)) if method else opened.config
    seen = 0
    for group in (opened.group(key) for key in opened.keys):
        if len(group.rollouts) < 2:
            continue
        if seen == MOST_QUERIES or len(columns[3]) + len(columns[4]) > MOST_TOKENS:
            return columns, seen
        seen += 1
        try:
            rewards, advantages = credit_of(group, config)
        except KitError as error:
            raise KitError(f"{printable(run.name, 80)}: {error}") from None
        columns[0] += rewards.slate[0].tolist()
        columns[1] += rewards.rank[0].tolist()
        columns[2] += [float(len(r.output.slate)) for r in group.rollouts]
        for traced, row in zip(group.rollouts, advantages.tolist(), strict=True):
            for column, phase in ((3, PHASE_SLATE), (4, PHASE_RANK)):
                columns[column] += [x for x, p in zip(row, traced.phases, strict=False) if p == phase]
    return columns, 0


def over_steps(library: Library, name: str, query_id: str, own: Own) -> Markup:
    """One query of a run at every training step that its trace has it at: lists, rewards and errors, and their curve.

    `query_id`: the query's name in the trace. Raises KitError if there is none of this name.
    """
    opened = library.trace(name, own)
    wanted = opened.mark(query_id).same
    steps_of = [key for key in opened.keys if opened.mark(key).same == wanted and opened.mark(key).step is not None]
    rows, points = [], list[tuple[int, dict[str, float], dict[str, float]]]()
    for group in map(opened.group, steps_of[:MOST_STEPS]):
        best, drawn = ([group.greedy] if group.greedy else []), group.rollouts
        means = [_means(group, some, opened.config) for some in (best, drawn)]
        points.append((group.step or 0, means[0], means[1]))
        rows.append([str(group.step), *_lists(group), *_numbers(means), _errors(group)])
    if len(points) < 2:
        at = f"at step {points[0][0]} alone" if points else "without a step"
        how = "fgrpo train traces its first validation queries at several steps"
        return message(f"{printable(name, 80)} has this query {at}; {how}.")
    order = sorted(range(len(points)), key=lambda i: points[i][0])
    points, rows = [points[i] for i in order], [rows[i] for i in order]
    lines = []
    for side, dash, who in ((1, "", "greedy"), (2, "2 3", "mean of sampled")):
        for phase, code in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
            values = [point[side].get(phase, math.nan) for point in points]  # type: ignore[union-attr]
            if not all(map(math.isnan, values)):
                steps = [float(point[0]) for point in points]
                lines.append(Series(f"{phase} reward, {who}", values, steps, PHASES[code][1], dash))
    rewards = [f"{phase} reward, {who}" for who in ("greedy", "mean of sampled") for phase in ("slate", "rank")]
    head = ("Step", "Slate (greedy)", "Rank (greedy)", *rewards, "Errors")
    caption = f"Query {printable(query_id, 80)} of {printable(name, 80)} over training"
    text = "\N{BLACK STAR}: relevant."
    text += f" The first {MOST_STEPS} groups of this query are shown." * (len(rows) == MOST_STEPS)
    shown = figure([curves(lines, "", "reward")], f"Rewards of one query over {len(rows)} steps", "steps.svg")
    return tag("{}<p>{}</p>{}", shown, text, html_table(caption, head, rows))


def _means(group: Group, some: Sequence[Traced], config: Config) -> dict[str, float]:
    """Mean slate and rank reward of rollouts; empty without any."""
    found = [list(scores(group.example, r.output, config).values())[:2] for r in some]
    return dict(zip(("slate", "rank"), np.mean(found, axis=0).tolist(), strict=True)) if found else {}


def _numbers(means: Sequence[Mapping[str, float]]) -> list[str]:
    return [number(m[phase]) if phase in m else "\N{EN DASH}" for m in means for phase in ("slate", "rank")]


def _lists(group: Group) -> list[str]:
    """The greedy slate and rank by title."""
    lists, example = group.greedy.output[:2] if group.greedy else ((), ()), group.example
    star = dict.fromkeys(example.relevant, " \N{BLACK STAR}")
    titles = [printable(text, 40) for text in example.candidates]
    return ["; ".join(titles[i] + star.get(i, "") for i in some) or "\N{EN DASH}" for some in lists]


def _errors(group: Group) -> str:
    best = group.greedy.output.error if group.greedy else ""
    wrong = sum(bool(r.output.error) for r in group.rollouts)
    sampled = f"{wrong} of {len(group.rollouts)} sampled" if wrong else ""
    return ", ".join(part for part in (f"greedy: {best}" if best else "", sampled) if part) or "none"


# --- runs and their queries -------------------------------------------------------------------------------------------


def labelled(library: Library, names: Sequence[str], own: Own) -> list[Labelled]:
    """The runs with method, seed and warm start, those of one method after each other.

    Runs of one credit method whose options differ are different methods ("fgrpo lam=0.5"). The file of a visitor's own
    trace tells its options, but not its warm start. Raises KitError on no run and on more than MOST_RUNS.
    """
    names = list(dict.fromkeys(names))
    if not 1 <= len(names) <= MOST_RUNS:
        raise KitError(f"{len(names)} runs are chosen: choose 1 to {MOST_RUNS}.")
    found = []
    for name in names:
        config = library.trace(name, own).config if name in own else library.config(name)
        origin = {} if name in own else how_made(library.folder(name)).get("origin")
        origin = origin if isinstance(origin, dict) else {}
        init = str(origin.get("init") or "")
        start = f"{name.rpartition('/')[0]} {origin['start']}".strip() if "start" in origin else printable(init, 8)[:8]
        found.append((name, WARM_START if origin.get("stage") == WARM_START else config.rl.credit, start, config))
    runs = []
    for method in dict.fromkeys(m for _, m, _, _ in found):
        some = [(name, start, config) for name, m, start, config in found if m == method]
        trained = method != WARM_START
        differ = [k for k in varied([c for _, _, c in some]) if trained or not k.startswith("rl.")]
        counts: dict[str, int] = {}
        for name, start, config in some:
            options = flat(config.to_dict())
            label = " ".join([method, *(f"{k.rpartition('.')[2]}={printable(str(options[k]), 30)}" for k in differ)])
            counts[label] = counts.get(label, 0) + 1
            dash = DASHES[(counts[label] - 1) % len(DASHES)] if trained else UNTRAINED
            runs.append(Labelled(name, label, trained, config.seed, start, config, style_of(method)["color"], dash))
    return runs


def varied(configs: Sequence[Config]) -> list[str]:
    """Names of the options, dotted, in which configurations differ, besides those that say no more than the method."""
    options = [flat(config.to_dict()) for config in configs]
    return [k for k in (options[0] if options else {}) if k not in UNREAD and len({repr(o[k]) for o in options}) > 1]


def shared(library: Library, runs: Sequence[Labelled], own: Own) -> tuple[list[Identity], dict[Labelled, list[Query]]]:
    """The queries (same id and candidates) of which all runs have a greedy rollout, and each run's values on them.

    Raises KitError on runs of different tasks or list sizes, and if no query is shared.
    """
    first = runs[0]
    for run in runs[1:]:
        if _task(run.config) != _task(first.config):
            one, other = (f"{printable(r.name, 60)} ({_task(r.config)})" for r in (first, run))
            raise KitError(f"{one} and {other} cannot be compared: choose runs of one task and grammar.")
    found = {run: measured(library, run.name, own) for run in runs}
    keys = [key for key in found[first] if all(key in queries for queries in found.values())]
    if not keys:
        raise KitError("these runs have no greedy rollouts on the same query and pool: choose runs of one task.")
    return keys, {run: [queries[key] for key in keys] for run, queries in found.items()}


def _task(config: Config) -> str:
    grammar, task = config.grammar, config.task.replace("\\", "/").rpartition("/")[2]
    return f"task {printable(task, 40)}, slates of up to {grammar.slate_size}, rankings of up to {grammar.rank_size}"


def measured(library: Library, name: str, own: Own) -> dict[Identity, Query]:
    """METRICS of the greedy rollouts of a trace, cached; of a query that it has at several steps, of the last one."""
    stamp = (str(library.path(name, own)), library.stamp(name, own))
    found: dict[Identity, Query] = MEASURED.get(stamp, lambda: _measured(library.trace(name, own)))
    return found


def _measured(opened: Opened) -> dict[Identity, Query]:
    keys, found = list(opened.keys), dict[Identity, Query]()
    for start in range(0, len(keys), BATCH):
        batch = [(key, opened.group(key)) for key in keys[start : start + BATCH]]
        some = [(key, group.example, group.greedy.output) for key, group in batch if group.greedy]
        if not some:
            continue
        names, examples, outputs = zip(*some, strict=True)
        values = measure_in_batches(outputs, examples, fitting(opened.config.grammar, outputs, examples))
        rows = torch.stack([values[m].double() for m in METRICS], 1).tolist()
        for key, example, row in zip(names, examples, rows, strict=True):
            found[identity(example)] = Query(key, example.group, tuple(row))
    return found
