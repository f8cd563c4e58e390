"""Pages in a real browser, opened from disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fgrpo.interactive.page import export_html


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Export a source and open the page. At the end: no error in the console, and no request but for the file."""
    contexts, events = [], []

    def go(
        source: Any, width: int = 1280, scheme: str = "light", touch: bool = False, link: str = "", config: Any = None
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=touch)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: events.append(f"{m.type}: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: events.append(f"exception: {e} {e.stack}"))
        page.on("dialog", lambda d: (events.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: None if r.url.startswith("file:") else events.append(r.url))
        export_html(source, tmp_path / "page.html", config=config)
        page.goto((tmp_path / "page.html").as_uri() + link)
        page.locator("#all .tok").first.wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert not events, events
