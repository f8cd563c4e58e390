"""`python -m app`: the page on this machine's own address, over the bundled runs and those below --runs."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C. Returns the exit status: 0, or 2 after one clear line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Look inside subsets, rankings and credit.")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    parser.add_argument(
        "--runs", default="runs", help="folder whose runs are listed beside the bundled ones (default runs)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--model", default="", help="folder or name of the pretrained model that adapters are put on")
    parser.add_argument("--gguf-file", default="", help="GGUF file in that folder to read the weights from")
    args = parser.parse_args(argv)
    if args.gguf_file and not args.model:
        parser.error("--gguf-file: name the folder that holds it with --model")
    runs = Path(args.runs)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        kept = tempfile.TemporaryDirectory(dir=runs, prefix=".app-")
    except OSError as error:
        print(f"app: {runs}: cannot be written ({error.strerror}); name another folder with --runs.", file=sys.stderr)
        return 2
    print("Starting, which takes some seconds ...", flush=True)
    with kept as folder:
        try:
            page = launch(args.host, args.port, runs, Path(folder), args.model, args.gguf_file)
        except ModuleNotFoundError as error:
            how = "pip install -e '.[app]' -c constraints.txt"
            print(f"app: package {error.name} is missing; install it: {how}", file=sys.stderr)
            return 2
        except (OSError, OverflowError):
            print(f"app: {args.host}:{args.port} cannot be listened on; choose another --port.", file=sys.stderr)
            return 2
        print(f"F-GRPO app: {page.local_url}  (Ctrl-C stops it)", flush=True)
        page.block_thread()
    return 0


def launch(host: str, port: int, runs: Path, folder: Path, model: str = "", gguf_file: str = "") -> Any:
    """Start to serve, and return the page (gr.Blocks); everything that it writes goes into `folder`."""
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
