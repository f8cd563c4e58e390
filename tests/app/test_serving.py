"""The running server: any folder of runs, a proxy, files and values that no page sends, its end."""

import gzip
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("gradio")
from .serving import CONTROLS, ROOT, Server

RUN = ROOT / "data/checkpoints/lab-rec-fgrpo"
DOWNLOAD = "Download the trace of this run (JSONL)"
LOOK = {"Run", "Rollout", "B"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place outside the server's current folder and its folder of temporary files."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("current", "temporary", "déjà vu ☃/my run 1"):
        (folder / name).mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "trace.jsonl"):
        shutil.copyfile(RUN / name, folder / "déjà vu ☃/my run 1" / name)
    (folder / "link").symlink_to(folder / "déjà vu ☃")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """The app on a link to runs, by a relative path, where a proxy is set that does not answer."""
    proxy = "http://127.0.0.1:9"
    server = Server(
        folder / "current", "--runs", "../link", HTTP_PROXY=proxy, http_proxy=proxy, ALL_PROXY="socks5://127.0.0.1:9",
        TMPDIR=str(folder / "temporary"),
    )  # fmt: skip
    yield server
    status, printed = server.stop(signal.SIGINT)
    assert status == 0 and "Traceback" not in printed, printed[-3000:]
    assert not list((folder / "link").glob(".app-*"))


def test_runs_outside_the_current_folder_open_and_download(server: Server, folder: Path) -> None:
    answer = server.ask(server.event(*LOOK), **{**CONTROLS, "Run": "runs/my run 1"})
    assert answer["success"] and answer["output"]["Query"]["label"] == "Query 1 of 100"
    assert "token" in answer["output"]["at-strip"]
    file = answer["output"][DOWNLOAD]["value"]
    assert server.client.get(file["url"]).content == (RUN / "trace.jsonl").read_bytes()
    inside = [folder / "déjà vu ☃/my run 1/trace.jsonl", folder / "link/my run 1/config.json", RUN / "trace.jsonl"]
    for path in (*inside, "/etc/passwd"):
        assert server.get(f"gradio_api/file={quote(str(path))}").status_code == 403


EXAMPLE = {"id": "a", "query": "q", "history": [], "candidates": ["x"] * 6, "relevant": [0]}
ROLLOUT = {"slate": [0], "rank": [0]}


def trace(pool: int = 6, rollouts: int = 4, config: dict[str, dict[str, float]] | None = None, **more: object) -> bytes:
    """A small trace: a header, and one query."""
    query = {**EXAMPLE, "candidates": ["x"] * pool}
    row = {"query": query, "greedy": ROLLOUT, "rollouts": [ROLLOUT] * rollouts, **more}
    rows = ({"trace": 1, "config": config or {}}, row)
    return "".join(json.dumps(x, separators=(",", ":")) + "\n" for x in rows).encode()


UPLOADS = {
    "empty": (b"", "no query in the file"),
    "blank": (b"\n" * 10_000, "no query in the file"),
    "binary": (bytes(range(256)) * 40, "not a JSON object"),
    "gzip": (gzip.compress(trace()), "not a JSON object"),
    "utf16": (trace().decode().encode("utf-16"), "not a JSON object"),
    "html": (b"<!DOCTYPE html>\n<html></html>\n", "not a JSON object"),
    "brackets": (b"[" * 100_000, "not a JSON object (nested too deep)"),
    "braces": (b'{"a":' * 100_000, "not a JSON object (nested too deep)"),
    "array": (b"[1, 2]\n", "expected a JSON object, found list"),
    "null": (trace() + b"null\n", "1 invalid lines were left out"),
    "header only": (b'{"trace": 1}\n', "no query in the file"),
    "many bad lines": (b"1\n" * 2_000_000, "more than 1,000 invalid lines"),
    "a long line": (b'{"a": "' + b"x" * 17_000_000 + b'"}', "more than 16,000,000 bytes"),
    "too large": (b"x" * 21_000_000, "refused"),
    "sizes": (trace(config={"grammar": {"slate_size": 10_000, "rank_size": 10_000}}), "1 queries"),
    "slate size": (trace(config={"grammar": {"slate_size": 10**9}}), "slate_size 1000000000 must be at most 10,000"),
    "sizes and a large pool": (trace(1999, 62, {"grammar": {"slate_size": 10_000, "rank_size": 9_999}}), "1 queries"),
    "past 64 bits": (trace(config={"grammar": {"slate_size": 10**30}}), "slate_size 1000000000000000000000000000000 must"),
    "layers": (trace(config={"model": {"hidden_size": 8 * 10**9}}), "hidden_size 8000000000 must be at most"),
    "group": (trace(config={"rl": {"queries": 10**9}}), "queries 1000000000 must be at most"),
    "nan": (trace(config={"rl": {"lam": float("nan")}}), "lam nan must be at least 0.0"),
    "infinity": (trace(config={"rl": {"temperature": float("inf")}}), "temperature inf must be at most 100.0"),
    "step": (trace(step=10**18), "1 queries"),
    "long step": (trace(step=-(10**4000)), "1 queries"),
    "rankings": (trace(rollouts=0, rankings=10**18), "1 queries"),
    "candidates": (json.dumps({**EXAMPLE, "candidates": ["x"] * 100_000}).encode(), "100,000 candidates; the app shows"),
    "a long text": (json.dumps({**EXAMPLE, "query": "y" * 5_000_000}).encode(), "1 queries"),
    "tokens": (trace(greedy={**ROLLOUT, "tokens": ["a"] * 10**5, "items": [0] * 10**5, "phases": [1] * 10**5}),
               "100,000 tokens in a rollout; the app shows"),
    "large numbers": (trace(greedy={**ROLLOUT, "tokens": ["a"], "items": [0], "phases": [1], "logprobs": [10**299]}),
                      "1 queries"),
}  # fmt: skip


@pytest.mark.parametrize("name", UPLOADS)
def test_an_odd_file_gets_a_sentence_and_no_memory(server: Server, name: str) -> None:
    blob, words = UPLOADS[name]
    before = server.memory() if sys.platform == "linux" else 0.0
    answer = server.upload(f"{name}.jsonl", blob)
    assert answer["success"] and words in str(answer["output"]["at-uploaded"]), answer
    if "1 queries" in words:
        own = f"yours: {name}.jsonl"
        chosen = {**CONTROLS, "Run": own, "Query": "", "Rollout": "", "A": own, "B": own, "Runs_to_compare": [own]}
        for view, slot in (
            ("group", "at-group"), ("queries", "at-table"), ("compare", "at-metrics"), ("runs", "at-overview")
        ):  # fmt: skip
            answer = server.ask(server.event(*LOOK), **{**chosen, "Credit_method": "item", "at-view": view})
            assert answer["success"] and "cannot be shown" not in str(answer), answer
            assert isinstance(answer["output"][slot], str) and answer["output"]["at-query"]
    if sys.platform == "linux" and len(blob) < 20_000:
        assert server.memory() - before < 400, f"{server.memory() - before:.0f} MB more"
    assert "Traceback" not in server.stderr()


@pytest.mark.parametrize("name", ["n" * 200 + ".jsonl", "../../x.jsonl", ".jsonl", "ü ☃ \u202e.jsonl", "a.txt", "<b>"])
def test_names_of_files_are_texts(server: Server, name: str) -> None:
    shown = str(server.upload(name, trace())["output"]["at-uploaded"])
    assert "yours: " in shown and "1 queries" in shown and ".." not in shown and "<b>" not in shown and len(shown) < 400


JUNK = (None, "", "nosuch", -1, 1e308, True, [], ["a"], {"a": 1}, "../../etc/passwd", "\x00", "y" * 100_000)


@pytest.mark.parametrize("junk", JUNK, ids=lambda x: repr(x)[:20])
def test_no_value_of_a_control_ends_in_a_traceback(server: Server, junk: object) -> None:
    data_of = {
        "click": (None, {"rollout": junk}, {"query": junk}, {"run": junk, "fate": junk}, junk),
        "select": ({"value": junk, "index": junk},),
    }
    for event in server.events:
        if not event["backend_fn"] or any(server.names[i].startswith("Open your own") for i in event["inputs"]):
            continue
        for data in data_of.get(event["targets"][0][1] if event["targets"] else "", (None,)):
            sent = {server.names[i].replace(" ", "_"): junk for i in event["inputs"]}
            answer = server.ask(event, f"junk {event['id']}", data, **sent)
            assert answer["success"], (event["id"], junk, answer["error"])
            assert not any(words in str(answer) for words in ("cannot be shown", "generation failed")), answer
    assert "Traceback" not in server.stderr()


@pytest.mark.parametrize(("number", "options"), [(signal.SIGHUP, ("--host", "::1")), (signal.SIGTERM, ())])
def test_it_ends_quietly_and_leaves_nothing(tmp_path: Path, number: int, options: tuple[str, ...]) -> None:
    server = Server(tmp_path, "--runs", "mine", *options, HTTPS_PROXY="no address", NO_PROXY="example.com")
    assert server.get("").status_code == 200
    assert "1 queries" in str(server.upload("mine.jsonl", trace())["output"]["at-uploaded"])
    assert list((tmp_path / "mine").rglob("*.jsonl"))
    status, printed = server.stop(number)
    assert (status, printed) == (0, "") and not list((tmp_path / "mine").iterdir())
