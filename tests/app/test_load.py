"""A class at once: every click is answered, and memory is bounded. `python -m tests.app.load` measures times."""

import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio")
from .load import CLICKS, Load, upload_and_compare, visit, visitors
from .serving import Server


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_sixty_visitors_and_a_large_upload_are_answered(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        many = visitors(server, 60)
        assert not many.problems and len(many.seconds) == 60 * len(CLICKS), many.problems[:3]
        assert server.memory() < 1500, f"{server.memory():.0f} MB"
        heavy, others, before = Load(), Load(), server.memory()
        work = threading.Thread(target=upload_and_compare, args=(server, heavy, 8_000_000))
        work.start()
        while work.is_alive():
            visit(server, f"other {len(others.seconds)}", others)
        assert not heavy.problems and not others.problems and len(heavy.seconds) == 3 and others.seconds
        assert server.memory() - before < 500, f"{server.memory() - before:.0f} MB more"
        assert "Traceback" not in server.stderr()
    finally:
        server.stop(2)
