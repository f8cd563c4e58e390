"""`python -m app`: serve the page on 127.0.0.1, for the bundled runs and those below --runs."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C. Returns the exit status: 0, or 2 after one clear line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Inspect subsets, rankings and credit.")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    parser.add_argument(
        "--runs", default="runs", help="folder of your runs, listed after the bundled ones (default runs)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--model", default="", help="folder or name of the pretrained base model of adapters")
    parser.add_argument("--gguf-file", default="", help="GGUF file in the --model folder to read its weights from")
    args = parser.parse_args(argv)
    if args.gguf_file and not args.model:
        parser.error("--gguf-file: name the folder that contains the file with --model")
    runs = Path(args.runs)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=runs, prefix=".app-")
    except OSError as error:
        print(f"app: {runs}: cannot be written ({error.strerror}); name another folder with --runs.", file=sys.stderr)
        return 2
    print("Starting (takes a few seconds) ...", flush=True)
    with temporary as folder:
        try:
            page = launch(args.host, args.port, runs, Path(folder), args.model, args.gguf_file)
        except ModuleNotFoundError as error:
            command = "pip install -e '.[app]' -c constraints.txt"
            print(f"app: package {error.name} is missing; install it with {command}", file=sys.stderr)
            return 2
        except (OSError, OverflowError):
            print(f"app: cannot listen on {args.host}:{args.port}; choose another --port.", file=sys.stderr)
            return 2
        print(f"F-GRPO app: {page.local_url}  (Ctrl-C to stop)", flush=True)
        page.block_thread()
    return 0


def launch(host: str, port: int, runs: Path, folder: Path, model: str = "", gguf_file: str = "") -> Any:
    """Start the server and return the page (gr.Blocks). All files that the app writes are below `folder`."""
    os.environ |= {"GRADIO_TEMP_DIR": str(folder.resolve()), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    from fgrpo.config import LMConfig

    from .library import Library
    from .wiring import build, theme

    here = Path(__file__).parent
    base = LMConfig(model=model, gguf_file=gguf_file) if model else None
    page = build(Library(runs, base), folder.resolve())
    page.queue(default_concurrency_limit=4, max_size=200)
    page.launch(
        server_name=host, server_port=port, max_file_size="20mb", theme=theme(), css_paths=here / "style.css",
        js=(here / "page.js").read_text(encoding="utf-8"), footer_links=[], quiet=True, prevent_thread_lock=True,
        run_history=False, ssr_mode=False, show_error=True,
    )  # fmt: skip
    return page


if __name__ == "__main__":
    sys.exit(main())
