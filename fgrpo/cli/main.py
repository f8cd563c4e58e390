"""Command line: `python -m fgrpo demo | train | evaluate | trace | compare | analyse | bench | data`.

Nothing heavy is imported before it is needed.
"""

import argparse
import os
import signal
import sys
from typing import NoReturn

from ..config import KitError
from ..runs.signals import ending, how_to_resume, processes
from .checkpoint import evaluate, trace
from .compare import compare
from .data import data_build, data_check, data_fetch, data_fetch_model, data_push_checkpoint, data_stats
from .demo import demo
from .errors import drop_unwritten, explain, make_printable, say
from .measure import analyse, bench
from .options import parser_of
from .train import train


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or after one clear line on stderr 2 (bad input), 1 (a mistake of the
    kit's own, whose traceback FGRPO_DEBUG=1 prints) or 128 + the number of a signal (Ctrl-C: 130); 1 as well of a control
    that does not hold.
    """
    make_printable()
    args = argparse.Namespace(command="", out="")
    try:
        args = parser_of(COMMANDS).parse_args(argv)
        if args.command != "train" and processes() > 1:
            raise KitError(f"{args.command} runs on one process; only train is made for several.")
        args.argv = argv
        _pull(args)
        with ending():
            status = args.run(args) or 0
        print(end="", flush=True)  # where a full disk or a closed pipe shows
    except BrokenPipeError:
        return 141  # as a process that SIGPIPE ends
    except KeyboardInterrupt as interrupt:
        resumes = args.command in ("train", "compare") or (
            getattr(args, "map", False) and args.out and not args.checkpoint
        )
        again = f"; to go on: {how_to_resume(argv, args.out)}" if resumes else ""
        say(f"stopped{again}")
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except Exception as error:
        status, sentence = explain(error, args.command)
        say(sentence)
        return status
    finally:
        drop_unwritten()
    return status


def _pull(args: argparse.Namespace) -> None:
    """Replace --checkpoint or --init hub:USER/NAME by the folder that it is downloaded to; its commit is reported."""
    for option in ("checkpoint", "init"):
        if (getattr(args, option, None) or "").startswith("hub:"):
            from ..runs.hub import local, pinned

            setattr(args, option, local(getattr(args, option)))
            say(f"--{option} is {pinned(getattr(args, option))}")


def leave(status: int) -> NoReturn:
    """End this process: after a signal at once, without the seconds that it takes to unload the libraries."""
    if status > 128:
        os._exit(status)
    sys.exit(status)


COMMANDS = {
    "demo": demo, "train": train, "evaluate": evaluate, "trace": trace, "compare": compare, "analyse": analyse,
    "bench": bench,
    "data build": data_build, "data check": data_check, "data stats": data_stats, "data fetch": data_fetch,
    "data fetch-model": data_fetch_model, "data push-checkpoint": data_push_checkpoint,
}  # fmt: skip
