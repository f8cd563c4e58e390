"""`fgrpo.lab()`: a task, a policy to start from and a config; look at groups, train, measure and compare from a notebook.

    lab = fgrpo.lab()                                               # the lab task and its shipped warm start
    group = lab.group(query=3)                                      # G rollouts, drawn as tokens
    group.credit("grpo", "fgrpo").plot()                            # advantages of every token under two methods
    lab.train(credit=my_credit, slate_reward=my_reward, steps=30)   # a progress bar, a run, a curve
    lab.compare(["grpo", my_credit], seeds=5)                       # a table with intervals and verdicts

What it does is what the command line does; it adds no algorithm. Runs go to `runs/` of the repository, or of the working
directory where there is no repository.
"""

import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from ..baselines import baselines_by_name, demonstrator
from ..config import Config, GrammarConfig, KitError
from ..credit import check_credit, with_credit
from ..data import Example, Splits
from ..evaluate import evaluate, greedy
from ..policy import Policy, Sampling
from ..rewards import score
from ..rollout import rollout
from ..runs.fields import check_pools, with_fields
from ..runs.origin import digest_of, digest_of_policy
from ..runs.own import name_of
from ..runs.policies import load_policy, policy_folder
from ..runs.presets import run_with
from ..runs.run import Run
from ..runs.trace import Group, record
from ..runs.warm_start import fits_shipped, made_by, warm_start
from ..study.analysis import oracle_table
from ..study.compare import compare, run_baseline, seed_starts, slug
from ..study.oracle import enumerate_outputs, small_pool
from ..study.reads import reads_rows, verdict
from ..study.report import reading, write_report
from ..tasks import DATA, load_task, resolved
from ..tasks.atomic import write_text
from ..tasks.jsonl import check_pool, example_of, to_json
from ..tasks.reading import Faults, Notes
from ..trainer import fit, sampling_of
from . import html
from .group import Sampled
from .results import Comparison, Scores, Table, Trained

Method = str | Callable[..., Tensor]
"""a name, or a function of the signature of those in fgrpo.credit or fgrpo.rewards"""
P = ParamSpec("P")
T = TypeVar("T")
REWARDS = ("slate_reward", "rank_reward")


def in_arguments(call: Callable[P, T]) -> Callable[P, T]:
    """A KitError of the call speaks of arguments (slate_size) where the command line has options (--slate-size)."""

    @wraps(call)
    def called(*args: P.args, **options: P.kwargs) -> T:
        try:
            return call(*args, **options)
        except KitError as error:
            text = re.sub(r"--([a-z][a-z-]*[a-z])", lambda found: found[1].replace("-", "_"), str(error))
            raise KitError(text) from None

    return called


@in_arguments
def lab(
    task: object = "lab-rec", start: str | Path | None = None, recipe: str = "", folder: str | Path | None = None,
    **fields: object,
) -> "Lab":  # fmt: skip
    """Open a task: its splits, the policy to start from and the config of its runs.

    `task` is a name (`lab-rec`, `movielens`, ...; real data sets need `data=FOLDER`), the path of a JSONL file, a pandas
    data frame with the fields of that format as columns, or a list of `Example` or dictionaries. The last two are written
    to runs/data/ and split 8:1:1 by position. `start` is a run or policy to start from; by default a warm start is used
    that is shipped or kept under `folder`, or trained when it is first needed. `fields` are those of fgrpo/config.py,
    flat: `slate_size=5, lam=0.5, model="FOLDER"`; credit and rewards may be functions. `recipe`: what --preset names.

    Raises KitError on unknown names, fields and values, and on data that cannot be read.
    """
    html.register()
    where = DATA.parent / "runs" if DATA.is_dir() else Path("runs")
    if not isinstance(task, (str, Path)):
        task = _written(task, where / "data")
    config = resolved(run_with({"task": str(task), **_named(fields)}, recipe))
    check_credit(config.rl)
    notes, bad = Notes(), Faults() if config.skip_bad else None
    splits, items = load_task(config, bad, notes)
    remarks = [*notes.sentences(), *([f"skipped {bad.total:,} broken lines: {bad}"] if bad else [])]
    check_pools(splits.train, config)
    key = hashlib.sha256(repr((made_by(config), config.seed, digest_of(splits.train))).encode()).hexdigest()[:8]
    name = Path(str(task)).stem if Path(str(task)).suffix else str(task)
    place = Path(folder) if folder else where / "lab" / f"{slug(name)}-{key}"
    if start is not None and not policy_folder(start).is_dir():
        raise KitError(f"start {str(start)!r}: no such folder; name a run or a policy.")
    return Lab(config, splits, items, place, None if start is None else Path(start), tuple(remarks))


def _named(fields: Mapping[str, object]) -> dict[str, object]:
    """Fields of a run in which functions are replaced by their names."""
    return {
        name: name_of(name, value) if name in ("credit", *REWARDS) else value  # type: ignore[arg-type]
        for name, value in fields.items()
    }


def _written(rows: object, folder: Path) -> Path:
    """Examples, dictionaries or a data frame as a JSONL file, named by its content."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict("records")
    if not isinstance(rows, Sequence) or not rows:
        raise KitError(f"task: expected a name, a file, a data frame or a list of examples, not {type(rows).__name__}.")
    lines = []
    for number, row in enumerate(rows):
        try:
            example = row if isinstance(row, Example) else example_of(_plain(row))
            check_pool(example)
        except KitError as error:
            raise KitError(f"task, row {number}: {error}.") from None
        lines.append(to_json(example) + "\n")
    text = "".join(lines)
    path = folder / f"examples-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}.jsonl"
    write_text(path, text)
    return path


def _plain(row: object) -> dict[str, object]:
    """A row of a data frame as JSON has it: lists instead of arrays and sets, no missing values, a number as id's text."""
    if not isinstance(row, Mapping):
        raise KitError(f"expected an Example or a dictionary, not {type(row).__name__}")
    found: dict[str, object] = {}
    for name, value in row.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, (tuple, set, frozenset)):
            value = sorted(value) if name == "relevant" else list(value)
        found[str(name)] = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(found.get("id"), int):
        found["id"] = str(found["id"])
    return found


@dataclass(frozen=True)
class Lab:
    """A task with the policy that runs start from. Made by `fgrpo.lab`; `folder` keeps the warm start and the runs."""

    config: Config
    splits: Splits
    items: list[str]
    folder: Path
    start: Path | None
    notes: tuple[str, ...] = ()

    # --- the policy to start from ---

    @in_arguments
    def warm_start(self) -> Path:
        """Folder of the policy to start from: `start`, the shipped one, or one that is trained here once (SFT)."""
        return self._warm_start

    @cached_property
    def _warm_start(self) -> Path:
        if self.start is not None:
            return policy_folder(self.start)
        teach = demonstrator(self.splits, self.config)
        return warm_start(
            self.config, self.splits, self.items, self.folder / "warm-start", resume=True, seed=self.config.seed,
            demonstrate=teach,
        )  # fmt: skip

    @property
    def policy(self) -> Policy:
        """A fresh copy of the policy to start from."""
        return load_policy(self.warm_start(), self.config.device, self.config.lm)

    # --- look ---

    @in_arguments
    def group(
        self, query: int | str | Example = 0, rollouts: int = 8, seed: int | None = None, policy: Policy | None = None,
        split: str = "validation", **fields: object,
    ) -> Sampled:  # fmt: skip
        """Sample the rollouts of one query: a number or id of `split`, or an Example of your own.

        `policy`: the one to sample from (default: the policy to start from). `fields`: other options, as slate_size.
        """
        config = with_fields(self.config, **_named(fields), group=rollouts)
        config = replace(
            config, rl=replace(config.rl, rankings=1 if config.rl.credit != "nested" else config.rl.rankings)
        )
        example, seed = self._example(query, split), config.seed if seed is None else seed
        policy = policy or self.policy
        drawn = rollout(policy, [example], sampling_of(config), rollouts, seed, rankings=config.rl.rankings)
        traced = Group(example, None, tuple(record(policy, drawn)), config.rl.rankings)
        return Sampled(traced, drawn, score(drawn, [example], config.rl), config)

    def _example(self, query: int | str | Example, split: str) -> Example:
        if isinstance(query, Example):
            return query
        examples = self._split(split)
        if isinstance(query, str):
            found = next((e for e in examples if e.id == query), None)
            if found is None:
                raise KitError(f"query {query[:80]!r} is not in split {split!r}: give a number below {len(examples)}.")
            return found
        if not -len(examples) <= query < len(examples):
            raise KitError(f"query {query} is not in split {split!r}, which has {len(examples)}: count from 0.")
        return examples[query]

    def _split(self, name: str, limit: int | None = None) -> Sequence[Example]:
        if name not in Splits._fields:
            raise KitError(f"split {name!r} is not known; choose from {', '.join(Splits._fields)}.")
        if limit is not None and limit < 1:
            raise KitError(f"limit {limit} must be at least 1.")
        examples: Sequence[Example] = getattr(self.splits, name)
        return examples if limit is None else examples[:limit]

    # --- measure ---

    @in_arguments
    def evaluate(
        self, policy: Policy | str | Path | None = None, split: str = "validation", limit: int | None = None,
        **fields: object,
    ) -> Scores:  # fmt: skip
        """Greedy lists of a policy (default: the one to start from) on a split: values per query, and `means`."""
        if not isinstance(policy, Policy):
            policy = load_policy(policy, self.config.device, self.config.lm) if policy else self.policy
        return Scores(evaluate(policy, self._split(split, limit), with_fields(self.config, **_named(fields))))

    @in_arguments
    def baselines(self, *names: str, split: str = "validation", limit: int | None = None) -> Table:
        """Baselines that need no policy on a split: what chance, popularity or BM25 reach (fgrpo.baselines)."""
        splits = self.splits._replace(test=list(self._split(split, limit)))
        rows = []
        for name, baseline in baselines_by_name(names or ("random", "popularity")).items():
            found = run_baseline(baseline, splits, self.items, self.config, self.folder / "baselines", resume=True)
            rows.append({"baseline": name, **{m: float(found.metrics[m].mean()) for m in Scores.SHOWN}})
        return Table(rows, f"means over {len(splits.test):,} queries of split {split}")

    @in_arguments
    def reads(
        self, policy: Policy | None = None, split: str = "validation", limit: int | None = 500, seed: int = 0
    ) -> Table:
        """Does the policy read its pool and its query, or answer by position or popularity? (fgrpo.study.reads)."""
        examples, asked = self._split(split, limit), policy or self.policy
        sampling = Sampling(replace(self.config.grammar, full=True))
        rows = reads_rows(lambda some: greedy(asked, some, sampling), examples, self.splits.train, seed)
        return Table(rows, verdict(rows))

    @in_arguments
    def oracle(self, *credits: Method, group: int = 8, pools: int = 4, policy: Policy | None = None) -> Table:
        """Bias and variance of credit methods against the exact gradient, every output listed (fgrpo.study.analysis).

        The pools of the first queries of the validation split are cut to 4 candidates, slates and rankings to 2.
        `angle`: between the expected estimate and the true gradient, in degrees, known to `angle_error` (0: all groups
        were listed; else many were drawn); `signal`: length of that estimate along the true gradient over the root of
        the variance of one group.
        """
        policy, config = policy or self.policy, replace(self.config, grammar=GrammarConfig(2, 2))
        methods = {name_of("credit", credit): credit for credit in credits or ("grpo", "fgrpo", "reward_to_go")}
        options = {name: with_credit(replace(config.rl, group=group), name) for name in methods}
        for rl in options.values():
            check_credit(rl)
        listed = [enumerate_outputs(policy, small_pool(e, 4), config) for e in self.splits.validation[:pools]]
        rows = [
            row for name, rl in options.items()
            for row in oracle_table(listed, {name: rl}, (group,), exact=True) or oracle_table(listed, {name: rl}, (group,))
        ]  # fmt: skip
        shown = ("method", "angle", "angle_slate", "angle_rank", "angle_error", "signal")
        caption = f"means over {len(listed)} queries with pools of 4, G = {group}"
        return Table([{name: row[name] for name in shown} for row in rows], caption)

    # --- train ---

    @in_arguments
    def train(
        self, credit: Method | None = None, steps: int | None = None, folder: str | Path | None = None,
        quiet: bool = False, **fields: object,
    ) -> Trained:  # fmt: skip
        """Train the policy to start from with RL: `lab.train(credit=my_credit, slate_reward=my_reward, steps=30)`.

        `fields` are those of fgrpo/config.py; credit, slate_reward and rank_reward may be functions. `folder`: of the
        run (default: a new one). Raises KitError on options that do not fit.
        """
        config = self._config(credit, steps, fields)
        place = Path(folder) if folder else self._new_folder(config.rl.credit)
        start = self.warm_start()
        origin = {"stage": "rl", "init": digest_of_policy(start), "train": digest_of(self.splits.train)}
        run = Run(place, config, save_every=config.rl.steps, origin=origin)
        policy = fit(load_policy(start, lm=config.lm), self.splits.train, config, run, quiet=quiet)
        return Trained(place, config, policy)

    def _config(self, credit: Method | None, steps: int | None, fields: Mapping[str, object]) -> Config:
        given = {**({} if steps is None else {"steps": steps}), **fields}
        config = with_fields(self.config, **_named(given))
        if fixed := [
            name
            for name in given
            if made_by(with_fields(self.config, **_named({name: given[name]}))) != made_by(self.config)
        ]:
            raise KitError(f"{fixed[0]} changes the warm start: give it to fgrpo.lab(...) instead.")
        if credit is not None:
            rankings = given.get("rankings")
            config = replace(config, rl=with_credit(config.rl, name_of("credit", credit)))
            config = with_fields(config, rankings=rankings) if rankings else config
        check_credit(config.rl)
        return config

    def _new_folder(self, name: str) -> Path:
        number = 1
        while (found := self.folder / f"{slug(name)}-{number}").exists():
            number += 1
        return found

    @in_arguments
    def compare(
        self, credits: Sequence[Method] | Mapping[str, Mapping[str, Any]], seeds: int = 3, steps: int | None = None,
        split: str = "validation", limit: int | None = None, baselines: Sequence[str] = ("random",), starts: int = 1,
        sft_more: bool = False, jobs: int | None = None, folder: str | Path | None = None, quiet: bool = False,
        **fields: object,
    ) -> Comparison:  # fmt: skip
        """Train several methods with the same seeds from the same warm starts, and compare them query by query.

        `credits`: names or functions; or `{name: fields}`, each method with its own fields (`{"short": {"credit":
        "fgrpo", "slate_size": 5}}`). Measured on the validation split, so that what is chosen by this table is not chosen
        on test queries; `split="test"` is for the end. `starts`: independent warm starts (the others are trained first).
        With `sft_more` SFT also goes on for RL's compute. `jobs`: runs at a time, each in a process of its own (default: one
        per core in a notebook, 1 in a script, which needs `if __name__ == "__main__":` for more).
        """
        if isinstance(credits, str) or callable(credits):
            raise KitError("credits must be a list of methods, as in ['grpo', my_credit].")
        named = credits if isinstance(credits, Mapping) else {name_of("credit", c): {"credit": c} for c in credits}
        methods = {}
        for name, own in named.items():
            own = dict(own)
            methods[name] = self._config(own.pop("credit", None), steps, {**fields, **own})
        if not isinstance(credits, Mapping) and len(methods) < len(credits):
            raise KitError("credits: two methods have the same name; give one of the functions another name.")
        experiments, place = {"": methods}, Path(folder) if folder else self._new_folder("compare")
        splits = self.splits._replace(test=list(self._split(split, limit)))
        script = hasattr(sys.modules.get("__main__"), "__file__")
        results = compare(
            experiments, seeds, place, lambda config: (splits, self.items), baselines_by_name(baselines),
            self.warm_start() if starts == 1 else None, jobs or (1 if script else os.cpu_count()), quiet,
            starts=starts, sft_more=sft_more,
        )  # fmt: skip
        of_seed = seed_starts(seeds, min(starts, seeds))
        rows, checks = write_report(results, experiments, place, "", of_seed, {"": [e.group for e in splits.test]})
        sentences = [check.sentence for check in checks]
        return Comparison(rows, sentences, f"{len(splits.test):,} queries of split {split}. {reading(rows)}", place)

    # --- what it shows of itself ---

    def __repr__(self) -> str:
        rl, grammar = self.config.rl, self.config.grammar
        return (
            f"Lab of task {self._task()}: {html.SHORT[Splits](self.splits)}, start: {self._start()}, credit {rl.credit}, "
            f"{rl.steps} steps of {rl.queries} x {rl.group}, slates of {grammar.slate_size}, rankings of {grammar.rank_size}"
        )

    def _repr_html_(self) -> str:
        rl, grammar = self.config.rl, self.config.grammar
        rows = [
            ["task", html.escape(self._task())],
            ["policy to start from", html.escape(self._start())],
            ["credit, lambda", f"{rl.credit}, {rl.lam:g}"],
            ["RL", f"{rl.steps} steps of {rl.queries} queries x {rl.group} rollouts, learning rate {rl.lr:g}"],
            ["lists", f"slates of at most {grammar.slate_size}, rankings of at most {grammar.rank_size}"],
            *([["notes on the data", "<br>".join(map(html.escape, self.notes))]] if self.notes else []),
        ]
        return html.table(["Lab", ""], rows) + html.splits_html(self.splits)

    def _task(self) -> str:
        return Path(self.config.task).name

    def _start(self) -> str:
        if self.start is not None:
            return self.start.name
        if fits_shipped(self.config, self.config.seed):
            return "the shipped warm start"
        kept = any(self.folder.glob("warm-start/checkpoints/step-*"))
        return (
            f"a warm start of {self.config.sft.sft_steps} steps, {'kept here' if kept else 'trained when it is needed'}"
        )
