"""Command line: `python -m fgrpo demo | train | evaluate | trace | compare | analyse | bench | data`.

Nothing heavy is imported before it is needed.
"""

import sys

from ..config import KitError
from ..runs.signals import processes
from .checkpoint import evaluate, trace
from .compare import compare, demo
from .data import data_build, data_check, data_fetch, data_fetch_model, data_stats
from .measure import analyse, bench
from .options import parser_of
from .train import train


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after one clear line on stderr."""
    try:
        args = parser_of(COMMANDS).parse_args(argv)
        if args.command != "train" and processes() > 1:
            raise KitError(f"{args.command} runs on one process; only train is made for several.")
        args.argv = argv
        args.run(args)
    except KitError as error:
        print(f"fgrpo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fgrpo: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgrpo: stopped; --resume goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


COMMANDS = {
    "demo": demo, "train": train, "evaluate": evaluate, "trace": trace, "compare": compare, "analyse": analyse,
    "bench": bench,
    "data build": data_build, "data check": data_check, "data stats": data_stats, "data fetch": data_fetch,
    "data fetch-model": data_fetch_model,
}  # fmt: skip
