"""`python -m app`: serve the page on 127.0.0.1, for the bundled runs and those below --runs."""

import argparse
import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fgrpo.config import KitError

from .guard import host_name

ENDING = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP")]
STARTING = 5
"""seconds in which an app that starts has locked its folder"""
CLONE = "git clone the repository, and run `python -m app` in it"


class Parser(argparse.ArgumentParser):
    """Reports a wrong call as one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Hand the message to `main`, which prints it as any other."""
        raise KitError(f"{message} (see python -m app --help).")


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP. Returns the exit status: 0, or 2 after one clear line on stderr."""
    parser = Parser(prog="python -m app", description="Inspect subsets, rankings and credit.")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860; 0: any free one)")
    parser.add_argument(
        "--runs", default="runs", help="folder of your runs, listed after the bundled ones (default runs)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--model", default="", help="folder or name of the pretrained base model of adapters")
    parser.add_argument("--gguf-file", default="", help="GGUF file in the --model folder to read its weights from")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="name or address that visitors use, besides "
        "localhost and --host; may be repeated. Needed with --host 0.0.0.0 and behind a proxy; *: any, where all is public",
    )  # fmt: skip
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this user and password")
    parser.add_argument(
        "--root-path", default="", metavar="PATH", help="path or URL at which a proxy serves the app, as in /fgrpo"
    )
    parser.add_argument(
        "--space",
        type=int,
        default=1000,
        metavar="MB",
        help="disk space for uploads and generated rollouts (default 1000)",
    )
    parser.add_argument("--no-uploads", action="store_true", help="take no files from visitors")
    try:
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the temporary folder is removed
        serve(parser.parse_args(argv))
    except KitError as error:
        print(f"app: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def serve(args: argparse.Namespace) -> None:
    """Serve until KeyboardInterrupt. Raises KitError if the server cannot start."""
    if args.gguf_file and not args.model:
        raise KitError("--gguf-file: name the folder that contains the file with --model.")
    if args.space < 1:
        raise KitError(f"--space {args.space}: choose a number of MB above 0, or --no-uploads.")
    auth, names = credentials(args.auth), [host_name(name) for name in args.allow_host]
    check_root_path(args.root_path)
    address, port = free_port(args.host, args.port)
    if address.is_unspecified and not names:
        raise KitError(
            f"--host {args.host} listens on all addresses of this machine: give the name or address that visitors use with "
            "--allow-host NAME."
        )
    if not (address.is_loopback or auth):
        print(
            "app: warning: whoever reaches this machine can open all runs and generate; ask for a password with --auth "
            "USER:PASSWORD.", file=sys.stderr,
        )  # fmt: skip
    with temporary_folder(Path(args.runs)) as name:
        print("Starting (takes a few seconds) ...", flush=True)
        page = launch(
            args.host, port, Path(args.runs), Path(name), args.model, args.gguf_file, names=names, auth=auth,
            root_path=args.root_path.rstrip("/"), space=0 if args.no_uploads else args.space * 1_000_000,
        )  # fmt: skip
        print(f"F-GRPO app: {page.local_url}  (Ctrl-C to stop)", flush=True)
        try:
            threading.Event().wait()
        finally:
            for number in signal.SIGINT, *ENDING:  # a second one would stop the removal of the temporary folder
                signal.signal(number, signal.SIG_IGN)
            page.close(verbose=False)


def credentials(text: str | None) -> tuple[str, str] | None:
    """User and password of `--auth`. Raises KitError, without the password, if one is missing or cannot be typed."""
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not colon or not user or not password:
        raise KitError("--auth: give a user and a password, separated by a colon, as in class:secret.")
    if user != user.strip():  # the login form strips it
        raise KitError("--auth: the name of the user begins or ends with a space, which the login form drops.")
    return user, password


def check_root_path(path: str) -> None:
    """Raise KitError unless `--root-path` is empty, a path, or an http address."""
    if path and not re.fullmatch(r"(https?://[\w.:\[\]-]+|(?=/[^/]))(/[\w.~%-]+)*/?", path, re.ASCII):
        raise KitError(
            f"--root-path {path[:80]!r}: give a path as in /fgrpo, or an address as in https://example.org/fgrpo."
        )


def free_port(host: str, port: int) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """The address of a host, and the port, or a free one for 0. Raises KitError, with the reason, if the app cannot listen
    there."""
    if not 0 <= port <= 65535:
        raise KitError(f"--port {port}: choose a number between 1 and 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
            s.listen()
            found = s.getsockname()
            return ipaddress.ip_address(found[0]), int(found[1])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not the name of a machine"
        raise KitError(
            f"cannot listen on {host}:{port} ({reason}); choose another --port, or another --host."
        ) from None


@contextmanager
def temporary_folder(runs: Path) -> Iterator[str]:
    """The folder of what the app writes: below `runs`, which is made if it is missing, or elsewhere if that is read-only.

    Removed at the end of the block. Those of apps that were killed are removed at the beginning: nobody holds their lock.
    """
    from filelock import FileLock, Timeout

    from fgrpo.runs.lock import NAME, lock

    try:
        runs.mkdir(parents=True, exist_ok=True)
        for left in runs.glob(".app-*"):
            if left.is_dir() and not left.is_symlink() and time.time() - left.stat().st_mtime > STARTING:
                with suppress(OSError, Timeout), FileLock(left / NAME, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
        list(runs.iterdir())
        try:
            made = tempfile.TemporaryDirectory(dir=runs, prefix=".app-")
        except OSError:
            made = tempfile.TemporaryDirectory(prefix="fgrpo-app-")
        held = lock(Path(made.name))
    except OSError as error:
        raise KitError(f"{runs}: cannot be used ({error.strerror}); name another folder with --runs.") from None
    with made as name:
        try:
            yield name
        finally:
            held.release(force=True)


def launch(
    host: str, port: int, runs: Path, folder: Path, model: str = "", gguf_file: str = "", names: Sequence[str] = (),
    auth: tuple[str, str] | None = None, root_path: str = "", space: int = 1_000_000_000,
) -> Any:  # fmt: skip
    """Start the server and return the page (gr.Blocks). All files that the app writes are below `folder`.

    `names`: what visitors may call this machine, besides localhost and `host`. `auth`: user and password. `root_path`:
    where a proxy serves the app. `space`: bytes that visitors' files may take in all; 0: no uploads.

    Raises KitError if a package or the bundled traces are missing, and if the server does not start.
    """
    os.environ |= {"GRADIO_TEMP_DIR": str(folder.resolve()), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "10000")  # events; each would make a table of all before
    for name in [n for n in os.environ if n.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        del os.environ[name]  # the app calls itself only, which no proxy can
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    try:
        import torch
        from starlette.middleware import Middleware

        from fgrpo.config import LMConfig

        from .guard import Guard
        from .library import BUNDLED, Library
        from .wiring import build, theme
    except ModuleNotFoundError as error:
        command = "pip install -e '.[app]' -c constraints.txt"
        raise KitError(f"package {error.name} is missing; install it with {command}") from None
    here = Path(__file__).parent
    if not BUNDLED.is_dir():
        raise KitError(f"the app runs from a clone, where its traces are; {BUNDLED} is missing: {CLONE}.")
    torch.set_num_threads(1)  # visitors are served side by side; threads that wait for each other slow all of them
    base = LMConfig(model=model, gguf_file=gguf_file) if model else None
    library, folder = Library(runs, base, space), folder.resolve()
    guard = [Middleware(Guard, names, host_name(host), (lambda more: library.room(folder, more)) if space else None)]
    page = build(library, folder)
    page.queue(default_concurrency_limit=4, max_size=200)
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host.strip("[]") and host[0] != "[" else host, server_port=port,
            max_file_size="20mb", theme=theme(), css_paths=here / "style.css",
            js=(here / "page.js").read_text(encoding="utf-8"), footer_links=[], quiet=True, prevent_thread_lock=True,
            run_history=False, ssr_mode=False, auth=auth, root_path=root_path,
            app_kwargs={"middleware": guard}, show_error=True, share=False, mcp_server=False,
        )  # fmt: skip
    except Exception as error:  # gradio raises OSError, ValueError, RuntimeError or none but Exception
        first = str(error).partition("\n")[0][:300]
        raise KitError(f"the server did not start on {host}:{port} ({type(error).__name__}: {first}).") from None
    return page


if __name__ == "__main__":
    sys.exit(main())
