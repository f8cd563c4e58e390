"""Start several processes of one script, with the environment variables that `torchrun` sets."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(module: str, *args: object, count: int = 2) -> list[str]:
    """Run `count` processes of `python -m module`, which must all succeed. Returns what each wrote to stdout."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1], env={**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)},
        )
        for n in range(count)
    ]  # fmt: skip
    try:
        written = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, written
    return [out for out, _ in written]
