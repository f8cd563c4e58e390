"""Tasks by name: the lab task, a real data set in its official layout, or a JSONL file of your own."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Config, KitError
from ..data import Splits
from .games import MOST, load_games
from .jsonl import SUFFIXES, doubts, read_jsonl, with_own_ids
from .lastfm import lastfm_task, load_lastfm
from .movielens import load_movielens, load_movielens_loo
from .multihop import load_hotpotqa, load_musique
from .reading import Faults, Notes, catalogue, counted, split_by_position
from .recbole import load_recbole
from .retrieval import LAYOUTS as RETRIEVAL
from .retrieval import load_retrieval

DATA = Path(__file__).parents[2] / "data"
"""data/ of the repository; an installed kit has none"""
TASKS = ("lab-rec", "movielens", "movielens-loo", "lastfm", "lastfm-sdpo", "lastfm-llara", "lastfm-hetrec", "games",
         "games-mixed", "games-union", "games-RETRIEVER", "hotpotqa", "musique", "recbole", "beir", "trec")  # fmt: skip
"""Names of tasks. `lastfm` is the one of the layouts that its folder holds, `games` is `games-mixed` (`resolved`), and
RETRIEVER the ending of a retriever's file."""
USED_BY = {
    "one_relevant": ("lab-rec",), "taste": ("lab-rec",), "hard": ("lab-rec",), "pool": ("lab-rec", "games", "beir", "trec"),
    "negatives": ("movielens-loo", "lastfm", "lastfm-sdpo", "lastfm-llara", "games"), "has_gt": ("games",),
}  # fmt: skip
"""The tasks that a field of a run has an effect on; `lastfm` may turn out to be one without."""


def family(task: str) -> str:
    """The name by which a task is known in tables of tasks: `games` for all retrievers of Games, else its own name."""
    return "games" if re.fullmatch(r"games(-\w+)?", task) else task


def resolved(config: Config) -> Config:
    """The config with the full name of its task: `lastfm` names three, and its folder says which one is meant.

    Raises KitError if the folder holds none of them, or several.
    """
    if config.task == "games":
        return replace(config, task="games-mixed")
    if config.task != "lastfm" or not config.data:
        return config
    return replace(config, task=lastfm_task(config.data))


def check_options(config: Config, skip: bool) -> None:
    """Raise KitError if the config sets what its task has no use for, so that no choice is ignored."""
    task, default, known = config.task, Config(), family(config.task) in TASKS
    for name, tasks in USED_BY.items():
        if getattr(config, name) != getattr(default, name) and family(task) not in tasks:
            what = "--" + ("no_" * (name == "has_gt") + name).replace("_", "-")
            raise KitError(f"{what} is for {', '.join(tasks)} and has no effect on {task}: leave it out.")
    if family(task) == "games" and config.pool > (most := MOST.get(task, 100)):
        raise KitError(f"--pool {config.pool}: the pools of {task} hold at most {most} candidates.")
    if config.data and (not known or task == "lab-rec"):
        raise KitError(f"--data is for the real data sets; task {task} has its own file: leave it out.")
    if skip and known and task.startswith(("movielens", "lastfm", "games", "recbole", *RETRIEVAL)):
        raise KitError(f"--skip-bad is for JSONL, HotpotQA and MuSiQue; of {task} every row is needed: leave it out.")


def load(task: str = "lab-rec", data: str | Path = "", **fields: Any) -> Splits:
    """The splits of a task by name: `fgrpo.tasks.load("movielens", data="DIR")`. `fields` are those of Config itself.

    Raises KitError as `load_task` does.
    """
    unknown = [name for name in fields if name not in Config.__dataclass_fields__]
    if unknown:
        raise KitError(f"field {unknown[0]!r} is not known; a task has the fields {', '.join(USED_BY)}, skip_bad.")
    config = Config(task=task, data=str(data), **fields)
    bad = Faults() if config.skip_bad else None
    splits, _ = load_task(resolved(config), bad)
    if bad:
        print(f"skipped {bad.total:,} broken lines: {bad}", file=sys.stderr)
    return splits


def load_task(config: Config, bad: list[str] | None = None, notes: Notes | None = None) -> tuple[Splits, list[str]]:
    """The splits of a task, and its catalogue: the item keys that a policy for it knows.

    The task is `config.task`, its folder or file `config.data`. Broken rows of a JSONL, HotpotQA or MuSiQue file are
    appended to `bad` as messages; without `bad` the first one raises. Rows that a real data set loses are counted in
    `notes`; without `notes` their number is printed on stderr. Raises KitError on an unknown task, on options that have
    no effect on the task, and on unreadable data.
    """
    check_options(config, bad is not None)
    if config.task == "lab-rec":
        from .lab import lab_catalogue, lab_task  # needs numpy, which other tasks do not

        splits = lab_task(config.one_relevant, config.pool, config.taste, config.hard)
        return splits, [film.title for film in lab_catalogue()]
    lost = Notes() if notes is None else notes
    if family(config.task) in TASKS and not config.data:
        raise KitError(f"task {config.task} needs its data: name the folder or file with --data.")
    if config.task == "movielens":
        splits = load_movielens(config.data, lost)
    elif config.task.startswith("lastfm") and config.task in TASKS:
        splits = load_lastfm(config.data, lost, task=config.task, negatives=config.negatives)
    elif config.task == "movielens-loo":
        splits = load_movielens_loo(config.data, lost, negatives=config.negatives)
    elif family(config.task) == "games":
        name, negatives = resolved(config).task, config.negatives
        splits = load_games(config.data, lost, 0, name, config.pool, negatives, config.has_gt)
    elif config.task in ("hotpotqa", "musique"):
        from .fetch import hub_data  # needs pooch, which other tasks do not

        read = load_hotpotqa if config.task == "hotpotqa" else load_musique
        splits = read(hub_data(config.task, config.data), lost, bad)
    elif config.task == "recbole":
        splits = load_recbole(config.data, lost)
    elif config.task in RETRIEVAL:
        splits = load_retrieval(config.task, config.data, lost, config.pool)
    elif config.task.lower().endswith(SUFFIXES) or Path(config.task).is_file():
        splits = own_file(config.task, lost, bad)
    else:
        if Path(config.task).is_dir():
            raise KitError(
                f"task {config.task!r} is a folder: name its data set with --task and the folder with --data."
            )
        raise KitError(f"task {config.task!r} is not known: use {', '.join(TASKS)}, or the path of a JSONL file.")
    if notes is None:
        for line in lost.sentences():
            print(line, file=sys.stderr)
    return splits, catalogue(splits)


def own_file(path: str, notes: Notes, bad: list[str] | None = None) -> Splits:
    """A JSONL file of your own, split 8:1:1. `data check` reads it here too, so that it accepts what can be trained on."""
    examples = read_jsonl(path, bad)
    notes.remarks |= doubts(examples, Path(path).name)
    lost = f"{counted(bad).total:,} bad lines: {counted(bad)}" if bad else ""
    return Splits(*map(list, split_by_position(with_own_ids(examples), path, lost)))
