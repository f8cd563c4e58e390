"""Regenerates the screenshots in app/pictures and measures the first view: `python -m tests.app.e2e.pictures`."""

import shutil
import tempfile
import time
from pathlib import Path

from app.__main__ import launch

from ...conftest import FLAGS
from .conftest import tab

FOLDER = Path(__file__).parents[3] / "app" / "pictures"
SCREENSHOTS = (
    ("inspect", "Inspect", 1180, "light"),
    ("group", "Group", 1180, "dark"),
    ("narrow", "Inspect", 360, "light"),
)


def main() -> None:
    """Write every screenshot, then open the page in five fresh contexts and print the seconds of each."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        page_of = launch("127.0.0.1", 7862, Path(folder), Path(folder))
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        FOLDER.mkdir(exist_ok=True)
        for name, opened, width, scheme in SCREENSHOTS:
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            page.goto(page_of.local_url)
            page.locator("#at-pool table").wait_for()
            tab(page, opened)
            page.locator(f"#at-{'plane svg' if opened == 'Group' else 'strip .flipped'}").first.wait_for()
            page.wait_for_timeout(500)
            page.screenshot(path=FOLDER / f"{name}.png")
        seconds = []
        for _ in range(5):
            page = browser.new_context().new_page()
            began = time.perf_counter()
            page.goto(page_of.local_url)
            page.locator("#at-pool table").wait_for()
            seconds.append(round(time.perf_counter() - began, 2))
            tab(page, "Training")
            page.locator(
                "#at-curves svg"
            ).first.wait_for()  # the last work of the server, which would slow the next view
            page.context.close()
        print("first view, seconds:", *sorted(seconds))
        browser.close()
        page_of.close()


if __name__ == "__main__":
    main()
