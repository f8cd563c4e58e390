"""The app in a process of its own, and a client that speaks to it as the page does."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What it returns, from an event loop in a thread: this thread may have one, of a browser or of gradio."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class Server:
    """`python -m app` on a free port, with the options and variables given, started in a folder.

    `start`: what python runs instead. `login`: user and password for the page's form.
    """

    def __init__(
        self, folder: Path, *args: str, start: tuple[str, ...] = ("-m", "app", "--port", "0"),
        login: tuple[str, str] | None = None, **env: str,
    ):  # fmt: skip
        python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, *start, *args], cwd=folder, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, env={**os.environ, "PYTHONPATH": python_path, **env},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if "F-GRPO app:" in line), "")
        assert line, self.stderr()
        self.url = line.split()[2].rstrip("/")
        self.client = httpx.Client(trust_env=False, timeout=120)
        if login:
            self.client.post(f"{self.url}/login", data=dict(zip(("username", "password"), login, strict=True)))
        config = self.get("config").json()
        self.names = {c["id"]: c["props"].get("label") or c["props"].get("elem_id") or "" for c in config["components"]}
        self.events = config["dependencies"]

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"{self.url}/{path}")

    def event(self, *inputs: str, output: str = "") -> dict[str, Any]:
        """The first event with these inputs, by label, and with this output."""
        for event in self.events:
            named = [self.names[i] for i in event["inputs"]]
            if all(name in named for name in inputs) and (
                not output or output in map(self.names.get, event["outputs"])
            ):
                return event
        raise AssertionError(f"no event with {inputs} and {output}")

    def ask(self, event: dict[str, Any], session: str = "me", data: object = None, **values: object) -> dict[str, Any]:
        """The answer to an event: `success`, and `output` by label. `values`: of the inputs, _ for a space."""
        named = {name.replace("_", " "): value for name, value in values.items()}
        sent = [named.get(self.names[i]) for i in event["inputs"]]
        body = {"fn_index": event["id"], "session_hash": session, "data": sent, "event_data": data}
        joined = self.client.post(f"{self.url}/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        stream = f"{self.url}/gradio_api/queue/data?session_hash={session}"
        with self.client.stream("GET", stream) as lines:
            for line in lines.iter_lines():
                answer = json.loads(line[5:]) if line.startswith("data:") else {}
                if answer.get("msg") == "process_completed":
                    found = answer["output"].get("data") or []
                    shown = dict(zip([self.names[i] for i in event["outputs"]], found, strict=False))
                    return {"success": answer["success"], "error": answer["output"].get("error"), "output": shown}
        raise AssertionError("the stream ended early")

    def upload(self, name: str, blob: bytes, session: str = "me") -> dict[str, Any]:
        """Open a file of the visitor's, as the tab Files does."""
        answer = self.client.post(f"{self.url}/gradio_api/upload", files={"files": (name, blob)})
        if answer.status_code != 200:
            return {"success": True, "output": {"at-uploaded": f"refused: {answer.text}"}}
        label = next(n for n in self.names.values() if n.startswith("Open your own"))
        file = {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        return self.ask(self.event(label, output="at-uploaded"), session, **{label.replace(" ", "_"): file})

    def memory(self) -> float:
        """Largest memory that the server has held, in MB (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024

    def stderr(self) -> str:
        self.errors.flush()
        return Path(self.errors.name).read_text()

    def stop(self, number: int) -> tuple[int, str]:
        """Exit status and what was printed after a signal."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out + self.stderr()


CONTROLS = {"Run": "lab-rec", "Query": "test-0", "Rollout": "1", "Colour_tokens_by": "advantage", "Credit_method": "fgrpo",
            "Compared_with": "grpo", "A": "lab-rec", "B": "lab-rec-grpo"}  # fmt: skip
