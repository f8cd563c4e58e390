"""The app for others: names it answers to, a password, a proxy, a quota, the Space and the container."""

import asyncio
import copy
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.guard import Guard, host_name
from app.library import Library
from fgrpo.config import KitError

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")
from .serving import CONTROLS, ROOT, Server, run  # noqa: E402

EXAMPLE = {"id": "a", "query": "q", "history": [], "candidates": ["x"] * 6, "relevant": [0]}
LOOK = {"Run", "Rollout", "B"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--auth", "class"), "--auth: give a user and a password, separated by a colon"),
        (("--auth", ":hidden"), "--auth: give a user and a password"),
        (("--auth", "hidden:"), "--auth: give a user and a password"),
        (("--auth", " hidden:hidden"), "begins or ends with a space"),
        (("--root-path", "fgrpo"), "--root-path 'fgrpo': give a path as in /fgrpo"),
        (("--root-path", "//evil.example"), "give a path as in /fgrpo"),
        (("--root-path", "/a b"), "give a path as in /fgrpo"),
        (("--root-path", "ftp://example.org/x"), "or an address as in https://example.org/fgrpo"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0 listens on all addresses of this machine: give the name"),
        (("--host", "0"), "--host 0 listens on all addresses"),
        (("--host", "::"), "--host :: listens on all addresses"),
        (("--allow-host", "http://example.org"), "--allow-host 'http://example.org': give a name or an address alone"),
        (("--allow-host", "example.org:80"), "--allow-host 'example.org:80': give a name or an address alone"),
        (("--allow-host", ""), "--allow-host '': give a name"),
        (("--allow-host", "*.example.org"), "give a name or an address alone"),
        (("--space", "0"), "--space 0: choose a number of MB above 0, or --no-uploads"),
        (("--space", "much"), "argument --space: invalid int value: 'much'"),
    ],
)
def test_a_bad_value_is_one_line(args, words, capsys, monkeypatch, tmp_path) -> None:
    from app.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(["--port", "0", *args]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("app: ") and err.count("\n") == 1 and words in err
    assert "hidden" not in err and not list(tmp_path.iterdir())


def test_names_are_compared_in_one_form() -> None:
    assert [host_name(x) for x in (" Class.Example.ORG. ", "[0:0::1]", "192.168.1.5", "*")] == [
        "class.example.org", "::1", "192.168.1.5", "*",
    ]  # fmt: skip


def asked(guard: Guard, method: str = "GET", path: str = "/", kind: str = "http", **headers: str) -> int:
    """The status that a request gets."""
    sent: list[Any] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    run(guard({"type": kind, "method": method, "path": path, "headers": named}, receive, send))
    return sent[0].get("status") or sent[0]["code"]


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})


@pytest.mark.parametrize(
    ("status", "host", "origin"),
    [
        (200, "localhost:7860", None),
        (200, "LOCALHOST.:7860", "http://localhost:7860"),
        (200, "127.0.0.1:7860", "http://127.0.0.1:7860"),
        (200, "[::1]:7860", "http://[::1]:7860"),
        (200, "[0:0:0::1]", "http://[::1]"),
        (200, "192.168.1.5:7860", "http://192.168.1.5:7860"),
        (200, "class.example.org", "https://class.example.org"),
        (200, "class.example.org", "https://class.example.org:443"),
        (200, "127.0.0.1:7860", "https://class.example.org"),  # a proxy that puts its own name into Host
        (403, "evil.example:7860", None),
        (403, "evil.example:7860", "http://evil.example:7860"),
        (403, "localhost.evil.example", None),
        (403, "class.example.org.evil.example", None),
        (403, "127.0.0.1.evil.example", None),
        (403, "evil.example@localhost", None),
        (403, "localhost@evil.example", None),
        (403, "localhost:port", None),
        (403, "localhost/", None),
        (403, "[::1", None),
        (403, "::1", None),
        (403, "", None),
        (403, "localhost\xe9", None),
        (403, "127.0.0.2", None),
        (403, "localhost:7860", "http://localhost:3000"),  # another server of this machine
        (403, "localhost:7860", "http://evil.example"),
        (403, "localhost:7860", "http://evil.example:7860"),
        (403, "localhost:7860", "null"),
        (403, "localhost:7860", ""),
    ],
)
def test_host_and_origin(status: int, host: str, origin: str | None) -> None:
    guard = Guard(answers, ["class.example.org"], "192.168.1.5", lambda more: None)
    more = {} if origin is None else {"origin": origin}
    assert asked(guard, host=host, **more) == status
    assert asked(guard, kind="websocket", host=host, **more) == (200 if status == 200 else 1008)
    assert asked(Guard(answers, ["*"], "0.0.0.0", None), host=host, **more) == 200


def test_a_request_has_one_host() -> None:
    guard = Guard(answers, [], "127.0.0.1", None)
    assert asked(guard) == 403  # as of HTTP/1.0
    twice = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"localhost"), (b"host", b"evil.example")],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    run(guard(twice, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 403


def test_uploads_that_are_on_their_way_count(tmp_path) -> None:
    """Of two at the same time that fit one by one only, the second is refused, and fits when the first is through."""
    library, statuses = Library(tmp_path, space=1_000_000), []

    async def main() -> None:
        go = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await send({"status": 200})

        async def receive() -> dict[str, object]:
            return {"more_body": False}

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        guard = Guard(slow, [], "127.0.0.1", lambda more: library.room(tmp_path, more))
        headers = [(b"host", b"localhost"), (b"content-length", b"600000")]
        upload = {"type": "http", "method": "POST", "path": "/fgrpo/gradio_api/upload/", "headers": headers}
        first = asyncio.create_task(guard(upload, receive, send))
        await asyncio.sleep(0.1)
        await guard(upload, receive, send)
        go.set()
        await first
        await guard(upload, receive, send)

    run(main())
    assert statuses == [507, 200, 200]


def test_the_space_counts_all_but_copies_for_downloads(tmp_path) -> None:
    library = Library(tmp_path, space=1_000_000)
    for name, size in (("downloads/a", 5_000_000), ("a/b/upload.jsonl", 500_000), ("c/empty", 0)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    library.room(tmp_path, 484_000)  # an empty file counts as 16,000
    with pytest.raises(
        KitError, match=r"space for uploads is full: visitors' files take 0\.5 of 1\.0 MB, and this one needs 0\.5"
    ):
        library.room(tmp_path, 484_001)


class Proxy(BaseHTTPRequestHandler):
    """Serves what is behind it below /fgrpo, with the headers that app/README.md names; https is as if it ended here."""

    behind = ""

    def do_GET(self) -> None:
        if not self.path.startswith("/fgrpo/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "content-length")}
        headers |= {
            "X-Forwarded-Host": self.headers["Host"],
            "X-Forwarded-Proto": self.headers.get("X-Test-Proto", "http"),
        }
        url = self.behind + self.path.removeprefix("/fgrpo")
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream(self.command, url, content=body, headers=headers) as answer,
        ):
            self.send_response(answer.status_code)
            for name, value in answer.headers.multi_items():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the browser has left
                for chunk in answer.iter_raw():
                    self.wfile.write(chunk)
                    self.wfile.flush()

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app behind a proxy, with 1 MB for uploads."""
    server = Server(
        tmp_path_factory.mktemp("served"), "--allow-host", "class.example.org", "--root-path", "/fgrpo/", "--space", "1"
    )
    yield server
    assert server.stop(signal.SIGTERM) == (0, "")


@pytest.fixture(scope="module")
def proxied(server: Server) -> Iterator[Server]:
    """The same as a visitor of https://class.example.org/fgrpo sees it."""
    handler = type("Handler", (Proxy,), {"behind": server.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        other = copy.copy(server)
        other.url = f"http://127.0.0.1:{proxy.server_address[1]}/fgrpo"
        names = {"Host": "class.example.org", "Origin": "https://class.example.org", "X-Test-Proto": "https"}
        other.client = httpx.Client(trust_env=False, timeout=120, headers=names)
        yield other
        proxy.shutdown()


def test_the_running_server_checks_names(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    for status, host, origin in (
        (200, f"localhost:{port}", None), (200, f"[::1]:{port}", f"http://[::1]:{port}"),
        (403, f"evil.example:{port}", None),
        (403, f"127.0.0.1:{port}", "http://evil.example"), (200, "class.example.org", "https://class.example.org"),
    ):  # fmt: skip
        for path in ("", "config", "gradio_api/info"):
            headers = {"Host": host} | ({"Origin": origin} if origin else {})
            answer = server.client.get(f"{server.url}/{path}", headers=headers)
            assert answer.status_code == status, (host, origin, path)
            if status == 403:
                assert answer.headers["content-type"].startswith("text/plain")
                assert "does not answer to" in answer.text and "lab-rec" not in answer.text


def test_behind_a_proxy(proxied: Server) -> None:
    page = proxied.get("").text
    assert proxied.get("config").json()["root"] == "https://class.example.org/fgrpo"
    parts = {x for x in re.findall(r'(?:src|href)="([^"]+)"', page) if not x.startswith(("data:", "#"))}
    own = {
        x.removeprefix("https://class.example.org/fgrpo/").removeprefix("./") for x in parts if "gradio.app" not in x
    }
    found = [x for x in sorted(own) if not x.startswith(("http", "/"))]
    assert found and all(proxied.get(x).status_code == 200 for x in found), found
    answer = proxied.ask(proxied.event(*LOOK), "proxied", **CONTROLS)
    assert answer["success"] and "token" in answer["output"]["at-strip"]
    file = answer["output"]["Download the trace of this run (JSONL)"]["value"]
    assert file["url"].startswith("https://class.example.org/fgrpo/gradio_api/file=")
    blob = proxied.get(file["url"].removeprefix("https://class.example.org/fgrpo/")).content
    assert blob == (ROOT / "data/checkpoints/lab-rec/trace.jsonl").read_bytes()
    assert "1 queries" in str(proxied.upload("a.jsonl", json.dumps(EXAMPLE).encode())["output"]["at-uploaded"])


def test_a_browser_behind_a_proxy_and_one_that_was_rebound(server: Server, proxied: Server, browser: Any) -> None:
    """Chromium with a name server of its own: the page works below /fgrpo; another name for this machine shows nothing."""
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * 127.0.0.1",
    ]
    port = int(re.findall(r":(\d+)", proxied.url)[0])
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    own = browser.browser_type.launch(executable_path=path, args=flags)
    try:
        page, problems = own.new_page(), []
        page.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
        page.on(
            "request", lambda request: problems.append(request.url) if "class.example.org" not in request.url else None
        )
        page.goto(f"http://class.example.org:{port}/fgrpo/")
        page.locator("#at-strip .token").first.wait_for(timeout=60_000)
        assert not [url for url in problems if not url.startswith(("data:", "blob:"))], problems
        page.goto(f"http://evil.example:{server.url.rpartition(':')[2]}/config")
        assert page.locator("body").inner_text().startswith("The app does not answer to the name 'evil.example'")
    finally:
        own.close()


def test_a_full_space_is_reported(server: Server) -> None:
    large = json.dumps({**EXAMPLE, "query": "y" * 600_000}).encode()
    full = "space for uploads is full: visitors' files take 0."
    assert full in str(server.upload("b.jsonl", large, "other")["output"]["at-uploaded"]).replace("&#39;", "'")
    answer = server.client.post(f"{server.url}/gradio_api/upload", files={"files": ("c.jsonl", large)})
    assert answer.status_code == 507 and full in answer.text and "of 1.0 MB, and this one needs 0.6" in answer.text
    chunks = server.client.post(f"{server.url}/gradio_api/upload", content=iter([b"x" * 100]))
    assert chunks.status_code == 411 and "must name its length" in chunks.text
    assert server.ask(server.event(*LOOK), "other", **CONTROLS)["success"]


def test_a_password_and_no_uploads(tmp_path) -> None:
    user, password = "class", "s3:crét ☃"
    options = ("--host", "0.0.0.0", "--allow-host", "class.example.org", "--auth", f"{user}:{password}", "--no-uploads")
    server = Server(tmp_path, *options, login=(user, password))
    assert server.ask(server.event(*LOOK), **CONTROLS)["success"]
    component = next(
        c for c in server.get("config").json()["components"] if c["props"].get("label", "").startswith("Open your")
    )
    assert component["props"]["visible"] is False
    refused = server.client.post(f"{server.url}/gradio_api/upload", files={"files": ("a.jsonl", b"{}")})
    assert (refused.status_code, refused.text) == (403, "This app takes no uploads.")
    stranger = httpx.Client(trust_env=False, base_url=server.url)
    body = {"fn_index": server.event(*LOOK)["id"], "session_hash": "x", "data": []}
    assert stranger.post("/gradio_api/queue/join", json=body).status_code == 401
    file = ROOT / "data/checkpoints/lab-rec/trace.jsonl"
    for path in ("/config", "/gradio_api/info", f"/gradio_api/file={file}", "/gradio_api/queue/data?session_hash=me"):
        assert stranger.get(path).status_code == 401, path
    assert "lab-rec" not in stranger.get("/").text
    assert stranger.post("/login", data={"username": user, "password": "wrong"}).status_code == 400
    assert stranger.get("/config", headers={"Host": "evil.example"}).status_code == 403
    assert server.stop(signal.SIGTERM) == (0, "")  # no warning


def tracked(*folders: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_space_starts(tmp_path) -> None:
    """Its folder is put together as app/README.md says, and started as a Space does it."""
    folder = tmp_path / "space"
    for name in tracked("fgrpo", "app", "data"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for path in (ROOT / "app/space").iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    space = {
        "SYSTEM": "spaces",
        "SPACE_ID": "user/fgrpo",
        "SPACE_HOST": "user-fgrpo.hf.space",
        "SPACE_AUTHOR_NAME": "user",
    }
    server = Server(folder, start=("app.py",), PYTHONPATH="", GRADIO_SERVER_PORT="0", **space)
    answer = server.client.get(server.url, headers={"Host": "user-fgrpo.hf.space", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200 and "F-GRPO" in answer.text
    shown = server.ask(server.event(*LOOK), **CONTROLS)
    assert shown["success"] and "token" in shown["output"]["at-strip"]
    assert server.client.post(f"{server.url}/gradio_api/upload", files={"files": ("a", b"x")}).status_code == 403
    status, printed = server.stop(signal.SIGTERM)
    # further lines are of gradio: its watcher needs the package `spaces`, which a Space has
    assert status == 0 and printed.startswith("app: warning: whoever reaches this machine")


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)


def test_what_the_space_installs() -> None:
    """What the kit needs, in the versions that were tested; gradio is what its README names."""
    text = (ROOT / "app/space/README.md").read_text()
    front = dict(line.split(": ", 1) for line in text.split("---\n")[1].splitlines())
    assert front["sdk"] == "gradio" and front["sdk_version"] == pinned()["gradio"]
    assert (ROOT / "app/space" / front["app_file"]).is_file() and len(front["short_description"]) <= 60
    lines = (ROOT / "app/space/requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=\[]", d)[0].lower() for d in project["dependencies"]}
    assert dict(line.split("==") for line in lines if not line.startswith("#")) == {
        name: pinned()[name] for name in needed
    }
    assert project["requires-python"] == f">={json.loads(front['python_version'])}"


def test_the_container_holds_what_the_app_needs(capsys, monkeypatch, tmp_path) -> None:
    """Docker itself is not needed here: what it copies is there, and what it starts is a good call."""
    from app import __main__

    lines = (ROOT / "app/Dockerfile").read_text().splitlines()
    copied = [x for line in lines if line.startswith("COPY") for x in shlex.split(line)[1:-1]]
    assert {"fgrpo", "app", "data", "pyproject.toml", "constraints.txt"} <= {*copied}
    assert all(tracked(name) for name in copied)
    python, *call = json.loads(
        next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT ")
    )
    assert [python, *call[:2]] == ["python", "-m", "app"]
    called: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def launch(*args: object, **options: object) -> None:
        called.append((args[0], options["names"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "launch", launch)
    assert __main__.main([*call[2:], "--port", "0", "--allow-host", "class.example.org"]) == 0
    assert called == [("0.0.0.0", ["localhost", "class.example.org"])]
    assert sys.version_info >= tuple(
        map(int, next(x for x in lines if x.startswith("FROM")).split(":")[1].split("-")[0].split("."))
    )
