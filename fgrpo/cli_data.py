"""The commands on data: `data build` and `data check`."""

import argparse
import sys

from .config import KitError


def data_build(args: argparse.Namespace) -> None:
    """Write the lab task's files: train, validation and test splits and the catalogue."""
    from .data import lab_files, write_text

    files = lab_files(args.out, one_relevant=args.one_relevant)
    for path, text in files.items():
        write_text(path, text)
        print(f"{path}  {len(text.encode()):,} bytes")


def data_check(args: argparse.Namespace) -> None:
    """Validate a JSONL file and summarise it; broken lines are listed and give status 2."""
    from .data import read_jsonl

    bad: list[str] = []
    examples = read_jsonl(args.file, bad)
    for message in bad[:20]:
        print(message, file=sys.stderr)
    pools, relevant = [len(e.candidates) for e in examples], [len(e.relevant) for e in examples]
    print(
        f"{args.file}: {len(examples)} good lines, {len(bad)} bad; pools of {min(pools)} to {max(pools)} candidates, "
        f"{min(relevant)} to {max(relevant)} relevant."
    )
    if bad:
        raise KitError(f"{args.file}: {len(bad)} bad lines.")
