"""Shared fixtures: a small task, a tiny policy with fresh weights, a configuration that runs in a second."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    # ignored in the background of a script, or under nohup, and by every process that a test starts then
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

from fgrpo.config import Config, ModelConfig  # noqa: E402
from fgrpo.data import Example, Splits  # noqa: E402
from fgrpo.lm import encoders  # noqa: E402
from fgrpo.lm.rows import RowPolicy  # noqa: E402
from fgrpo.policy import Policy  # noqa: E402
from fgrpo.runs.fields import config_with  # noqa: E402
from fgrpo.tasks import load_task  # noqa: E402
from fgrpo.tasks.lab import lab_catalogue  # noqa: E402

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
"""of chromium"""
SMALL = {"hidden_size": 32, "layers": 1, "heads": 2}
LONG = ("notebooks/test_notebooks.py", "app/e2e/", "scale/", "runs/", "test_wheel.py", "cli/test_cli.py")
"""what `make test` begins with: a file that takes minutes and comes last keeps one core waiting for the other"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: those of LONG first."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((n for n, begin in enumerate(LONG) if path.startswith(begin)), len(LONG))

    items.sort(key=place)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, as tests often wait: for a browser, a server, processes that they start."""
    return 1 + (os.cpu_count() or 1)


@pytest.fixture(scope="session")
def lab() -> Splits:
    """The shipped lab task, read once."""
    return load_task(Config())[0]


@pytest.fixture(scope="session", autouse=True)
def embeddings(tmp_path_factory) -> None:
    """Embeddings are kept apart from those of the user."""
    encoders.cache_file = lambda: tmp_path_factory.getbasetemp() / "embeddings.sqlite"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A test in which a run is stopped leaves no signal ignored, as processes that later tests start would have it too."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def config() -> Config:
    """A run that takes a second: 4 queries x 4 rollouts."""
    return config_with(queries=4, group=4, steps=4, sft_steps=4, sft_batch=8, **SMALL)


@pytest.fixture
def policy() -> Policy:
    """A small policy of the test's own."""
    return spread_policy()


def spread_policy() -> Policy:
    """As a run makes it, small, over the lab's catalogue, with weights large enough that its choices are not all alike."""
    policy = RowPolicy.tiny([f.title for f in lab_catalogue()], ModelConfig(**SMALL), seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return policy


@pytest.fixture
def queries(lab: Splits) -> list[Example]:
    """Six test queries, one with a short history and one with a smaller pool, so that padding is never idle."""
    from dataclasses import replace

    rows = list(lab.test[:6])
    rows[1] = replace(rows[1], history=rows[1].history[:3])
    pool = tuple(c for i, c in enumerate(rows[2].candidates) if i < 14 or i in rows[2].relevant)
    relevant = frozenset(pool.index(rows[2].candidates[i]) for i in rows[2].relevant)
    rows[2] = replace(rows[2], candidates=pool, relevant=relevant)
    return rows


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, one for each file of tests. With CI=true a missing one is a failure, else these tests are skipped.

    Playwright has an event loop run in this thread as long as it is open: tests of other files meet none.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing: install Debian's package chromium.")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
