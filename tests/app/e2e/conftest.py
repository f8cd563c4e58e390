"""The app in a real browser: Debian's chromium, driven by playwright; the server runs in this process."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest


@dataclass
class Served:
    """The running app: its address, and the folder whose runs it lists."""

    url: str
    runs: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app on a free port, with an empty folder of runs, for one file of tests: it changes the process's environment."""
    from app.__main__ import launch

    runs = tmp_path_factory.mktemp("runs")
    folder = runs / ".app-test"
    folder.mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    before = dict(os.environ)
    page = launch("127.0.0.1", port, runs, folder)
    yield Served(page.local_url.rstrip("/"), runs)
    page.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def visit(served: Served, browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the app in a fresh context. At the end: no console error, no request but to the app itself."""
    contexts, events = [], []

    def go(width: int = 1280, scheme: str = "light", **asked: str) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: events.append(f"{m.type}: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: events.append(f"exception: {e} {e.stack}"))
        page.on("dialog", lambda d: (events.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: None if r.url.startswith((served.url, "data:", "blob:")) else events.append(r.url))
        page.goto(f"{served.url}/?{urlencode(asked)}")
        page.locator("#at-strip .token, #at-strip .message, #at-problems .message").first.wait_for(state="attached")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not events, events


def tab(page: Any, name: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def upload(page: Any, file: Any, shown: Any) -> None:
    """Choose a file in the tab Files, and once more if nothing happens: a tab just opened may not listen yet."""
    from playwright.sync_api import TimeoutError as Waited

    page.locator("input[type=file]").set_input_files(file)
    try:
        shown.wait_for(timeout=30_000)
    except Waited:
        page.locator("input[type=file]").set_input_files(file)
        shown.wait_for()
