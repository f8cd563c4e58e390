"""Text from outside is shown as text; links cannot leave the runs; visitors see their own data only."""

import json
import resource
import threading
from pathlib import Path

import httpx
import pytest

from app.markup import printable
from fgrpo.tasks.lab import lab_catalogue

from .conftest import Served, tab, upload

HOSTILE = [
    "<img src=x onerror=alert(1)>", "${alert(1)} {{value}} `x` {0} {name}", "**bold** [link](javascript:alert(1)) # t",
    "\x1b[31mred\x1b[0m \x00 null", "right-to-left \u202egnp.exe",
    "</script><script>alert(1)</script>", "'\" onmouseover=alert(1) x='", "&lt;b&gt; &amp;", "x" * 1_000_000,
]  # fmt: skip


def hostile_trace(folder: Path) -> Path:
    """A trace with every hostile string as id, query, history, candidate and token."""
    rows = []
    for i, text in enumerate(HOSTILE):
        pool = [f"{n} {text}" for n in range(3)]
        example = {"id": text, "query": text, "history": [text], "candidates": pool, "relevant": [1]}
        tokens = ["<SLATE>", text, text, "</SLATE><RANK>", text, "</RANK>"]
        rollout = {"slate": [1, 0], "rank": [1], "error": "", "tokens": tokens, "items": [-1, 1, 0, -1, 1, -1]}
        rollout["phases"] = [1, 1, 1, 1, 2, 2]
        other = {"slate": [2], "rank": [2], "error": ""} if i % 2 else {"slate": [], "rank": [], "error": "malformed"}
        rows.append({"query": example, "greedy": rollout, "rollouts": [rollout, other]})
    path = folder / "hostile.jsonl"
    header = {"trace": 1, "name": HOSTILE[0]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    return path


def test_hostile_strings_are_shown_as_text(visit, tmp_path) -> None:
    page = visit()
    tab(page, "Files")
    upload(page, hostile_trace(tmp_path), page.locator("#at-uploaded", has_text=f"{len(HOSTILE)} queries"))
    tab(page, "Inspect")
    page.locator("#at-query p", has_text=HOSTILE[0]).wait_for()  # the run is selected after its message is shown
    nodes = "document.querySelectorAll('img[src=x], script:not([src]):not([type]), [onerror], [onmouseover]').length"
    before = page.evaluate(nodes)
    for number, text in enumerate(HOSTILE):
        if number:
            page.get_by_role("button", name="Next").click()
        seen = printable(text, 20).split("\N{HORIZONTAL ELLIPSIS}")[0].strip()
        page.locator("#at-query p", has_text=seen).wait_for()
        page.locator("#at-pool td", has_text=f"2 {seen}").first.wait_for()
        assert page.evaluate(nodes) == before, text[:50]
        assert len(page.locator("#at-pool").inner_html()) < 50_000
    assert "(1,000,000 characters)" in page.locator("#at-query").inner_text()
    for name in ("Group", "Queries", "Compare", "Runs", "Try it", "Live", "Playground"):
        tab(page, name)
        assert page.evaluate(nodes) == before
    page.get_by_role("button", name="Use the query selected above").click()


@pytest.mark.parametrize("text", [*HOSTILE[:2], "../../../../etc/passwd", "runs/../../x", "x" * 5000])
def test_links_show_what_they_name_as_text_and_cannot_leave_the_runs(visit, text) -> None:
    others = dict.fromkeys(("query", "rollout", "colour", "credit", "against", "a", "b"), text)
    for asked, count in (({"run": text}, 1), ({"tab": "compare"} | others, 7), ({"tab": "runs", "runs": text}, 1)):
        page = visit(**asked)
        messages = page.locator("#at-problems .message")
        messages.nth(count - 1).wait_for()
        for shown in messages.all_inner_texts():
            assert "was not found" in shown or shown == "Note: Showing lab-rec-fgrpo in its place."
            assert "root:" not in shown and len(shown) < 400
        assert page.locator("img[src=x]").count() == 0
        tab(page, "Playground")


def test_a_run_that_points_outside_is_not_listed(served: Served, tmp_path) -> None:
    from app.library import Library

    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (served.runs / "link").symlink_to(tmp_path / "outside")
    library = Library(served.runs)
    assert not [name for name in library.folders() if "link" in name or "outside" in name]
    for path in ("/etc/passwd", "..%2f..%2fetc/passwd"):
        assert httpx.get(f"{served.url}/gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{served.url}/gradio_api/file={Path(__file__).resolve()}").status_code in (403, 404)


def test_twenty_users_at_once_each_see_their_own(served: Served) -> None:
    config = httpx.get(f"{served.url}/config").json()
    titles = {c["id"]: c["props"].get("label") or c["props"].get("elem_id") for c in config["components"]}

    def event(first_outputs: str, needs: str) -> dict:
        return next(
            d for d in config["dependencies"]
            if needs in [titles[i] for i in d["inputs"]] and d["outputs"] and titles[d["outputs"][0]] == first_outputs
        )  # fmt: skip

    making, looking = event("at-status", "Temperature"), event("Run", "Rollout")
    catalogue = [film.title for film in lab_catalogue()]
    problems: list[str] = []

    def ask(session: str, dependency: dict, values: dict[str, object]) -> list[dict]:
        data = [values.get(titles[i]) for i in dependency["inputs"]]
        body = {"fn_index": dependency["id"], "session_hash": session, "data": data}
        assert httpx.post(f"{served.url}/gradio_api/queue/join", json=body).status_code == 200
        found = []
        with httpx.stream("GET", f"{served.url}/gradio_api/queue/data?session_hash={session}", timeout=120) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    found.append(json.loads(line[5:]))
                    if found[-1]["msg"] == "process_completed":
                        return found
        raise AssertionError("the stream ended early")

    def user(number: int) -> None:
        try:
            mine = catalogue[10 * number : 10 * number + 6]
            form = {
                "Model": "lab-rec", "Credit method": "fgrpo", "Compared with": "grpo", "Query": "Which?",
                "History, one entry per line": catalogue[299], "Pool, one candidate per line, * before relevant ones":
                "* " + "\n".join(mine), "Temperature": 1.0, "Maximum slate size": 4, "Maximum rank size": 2,
                "Decoding": "constrained", "Sampled rollouts": 3, "Seed": number,
            }  # fmt: skip
            session = f"user{number}"
            made = ask(session, making, form)
            assert made[-1]["success"], made[-1]
            asked = {"Run": "yours: playground", "Query": "typed", "Rollout": "1", "Colour tokens by": "advantage",
                     "Credit method": "fgrpo", "Compared with": "grpo", "A": "lab-rec",
                     "B": "yours: playground"}  # fmt: skip
            seen = json.dumps(ask(session, looking, asked)[-1])
            others = {t for t in catalogue[:200] if t not in mine and t in seen}
            assert all(t in seen for t in mine) and not others, others
        except Exception as error:
            problems.append(f"user {number}: {error!r:.500}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    threads = [threading.Thread(target=user, args=(n,)) for n in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(180)
    assert not problems, problems
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MB, on Linux
    assert grown < 400, f"{grown:.0f} MB more"
