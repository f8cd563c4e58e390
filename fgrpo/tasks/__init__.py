"""Tasks by name: the lab task, a real data set in its official layout, or a JSONL file of your own."""

import sys
from pathlib import Path

from ..config import Config, KitError
from ..data import Splits
from .jsonl import read_jsonl
from .lab import build_lab, lab_catalogue
from .lastfm import load_lastfm
from .movielens import load_movielens
from .multihop import load_hotpotqa, load_musique
from .reading import Notes, catalogue, split_by_position

DATA = Path(__file__).parents[2] / "data"
"""data/ of the repository; an installed kit has none"""
TASKS = ("lab-rec", "movielens", "lastfm", "hotpotqa", "musique")


def load_task(config: Config, bad: list[str] | None = None, notes: Notes | None = None) -> tuple[Splits, list[str]]:
    """The splits of a task, and its catalogue: the item keys that a policy for it knows.

    The task is `config.task`, its folder or file `config.data`. Broken rows of a JSONL, HotpotQA or MuSiQue file are
    appended to `bad` as messages; without `bad` the first one raises. Rows that a real data set loses are counted in
    `notes`; without `notes` their number is printed on stderr. Raises KitError on an unknown task and on unreadable data.
    """
    if config.task == "lab-rec":
        items = [film.title for film in lab_catalogue()]
        if config.one_relevant or config.pool != 20 or not (DATA / "lab-rec").is_dir():  # the files are only faster
            return build_lab(config.one_relevant, pool=config.pool), items
        return Splits(*(read_jsonl(DATA / "lab-rec" / f"{split}.jsonl") for split in Splits._fields)), items
    lost = Notes() if notes is None else notes
    if config.task in TASKS and not config.data:
        raise KitError(f"task {config.task} needs its data: name the folder or file with --data.")
    if config.task == "movielens":
        splits = load_movielens(config.data, lost)
    elif config.task == "lastfm":
        splits = load_lastfm(config.data, lost)
    elif config.task == "hotpotqa":
        splits = load_hotpotqa(config.data, lost, bad)
    elif config.task == "musique":
        splits = load_musique(config.data, lost, bad)
    elif config.task.endswith(".jsonl"):
        splits = Splits(*map(list, split_by_position(read_jsonl(config.task, bad))))
    else:
        raise KitError(f"task {config.task!r} is not known: use {', '.join(TASKS)}, or the path of a .jsonl file.")
    if notes is None:
        for line in lost.sentences():
            print(line, file=sys.stderr)
    return splits, catalogue(splits)
