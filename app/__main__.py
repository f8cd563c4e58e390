"""`python -m app`: serve the page on 127.0.0.1, for the bundled runs and those below --runs."""

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

from fgrpo.config import KitError

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
    try:
        for number in (x for x in signal.Signals if x.name in ("SIGTERM", "SIGHUP")):
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
    port = free_port(args.host, args.port)
    with temporary_folder(Path(args.runs)) as name:
        print("Starting (takes a few seconds) ...", flush=True)
        page = launch(args.host, port, Path(args.runs), Path(name), args.model, args.gguf_file)
        print(f"F-GRPO app: {page.local_url}  (Ctrl-C to stop)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises KitError, with the reason, if the app cannot listen there."""
    if not 0 <= port <= 65535:
        raise KitError(f"--port {port}: choose a number between 1 and 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
            s.listen()
            return int(s.getsockname()[1])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not the name of a machine"
        raise KitError(
            f"cannot listen on {host}:{port} ({reason}); choose another --port, or another --host."
        ) from None


def temporary_folder(runs: Path) -> "tempfile.TemporaryDirectory[str]":
    """The folder of what the app writes: below `runs`, which is made if it is missing, or elsewhere if that is read-only."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        list(runs.iterdir())
        try:
            return tempfile.TemporaryDirectory(dir=runs, prefix=".app-")
        except OSError:
            return tempfile.TemporaryDirectory(prefix="fgrpo-app-")
    except OSError as error:
        raise KitError(f"{runs}: cannot be used ({error.strerror}); name another folder with --runs.") from None


def launch(host: str, port: int, runs: Path, folder: Path, model: str = "", gguf_file: str = "") -> Any:
    """Start the server and return the page (gr.Blocks). All files that the app writes are below `folder`.

    Raises KitError if a package or the bundled traces are missing, and if the server does not start.
    """
    os.environ |= {"GRADIO_TEMP_DIR": str(folder.resolve()), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    for name in [n for n in os.environ if n.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        del os.environ[name]  # the app calls itself only, which no proxy can
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    try:
        from fgrpo.config import LMConfig

        from .library import BUNDLED, Library
        from .wiring import build, theme
    except ModuleNotFoundError as error:
        command = "pip install -e '.[app]' -c constraints.txt"
        raise KitError(f"package {error.name} is missing; install it with {command}") from None
    here = Path(__file__).parent
    if not BUNDLED.is_dir():
        raise KitError(f"the app runs from a clone, where its traces are; {BUNDLED} is missing: {CLONE}.")
    base = LMConfig(model=model, gguf_file=gguf_file) if model else None
    page = build(Library(runs, base), folder.resolve())
    page.queue(default_concurrency_limit=4, max_size=200)
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host.strip("[]") and host[0] != "[" else host, server_port=port,
            max_file_size="20mb", theme=theme(), css_paths=here / "style.css",
            js=(here / "page.js").read_text(encoding="utf-8"), footer_links=[], quiet=True, prevent_thread_lock=True,
            run_history=False, ssr_mode=False, show_error=True, share=False, mcp_server=False,
        )  # fmt: skip
    except Exception as error:  # gradio raises OSError, ValueError, RuntimeError or none but Exception
        first = str(error).partition("\n")[0][:300]
        raise KitError(f"the server did not start on {host}:{port} ({type(error).__name__}: {first}).") from None
    return page


if __name__ == "__main__":
    sys.exit(main())
