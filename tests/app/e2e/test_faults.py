"""What was broken once: each test does what a visitor did, and looks at what went wrong."""

import json
import re
import signal
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from ..serving import Server
from .conftest import Served, tab, upload
from .test_access import slow_answers
from .test_app import TRACE, at, choose, radio, until, values

OPEN_TAB = "[...document.querySelectorAll('[role=tab][aria-selected=true]')].map((t) => t.innerText).join()"


def generate(page: Any, count: str = "3") -> None:
    tab(page, "Playground")
    page.get_by_label("number input for Sampled rollouts").fill(count)
    page.get_by_role("button", name="Generate").click()
    page.locator("#at-status", has_text=f"{count} sampled rollouts and the greedy one").wait_for()


def test_the_result_of_the_playground_follows_the_credit_opens_and_survives_a_reload(visit) -> None:
    page = visit()
    generate(page)
    choose(page, "Credit method", "grpo")
    page.locator("#at-result caption", has_text="credit grpo").wait_for()
    page.locator("#at-result button[data-rollout='2']").click()
    until(lambda: "run=yours" in at(page) and "rollout=2" in at(page) and page.evaluate(OPEN_TAB) == "Inspect")
    seen = values(page)
    page.reload()
    page.locator("#at-strip .token").first.wait_for()
    until(lambda: values(page) == seen)
    assert page.get_by_label("Run", exact=True).input_value() == "yours: playground"
    assert not page.locator("#at-problems .problem").count()


def test_the_result_of_the_playground_opens_in_compare(visit) -> None:
    page = visit(a="lab-rec")
    generate(page)
    page.get_by_role("button", name="Open in Inspect").click()
    until(lambda: "b=yours" in at(page) and page.evaluate(OPEN_TAB) == "Inspect")
    tab(page, "Compare")
    assert page.get_by_label("A", exact=True).input_value() == "lab-rec"  # the query is unchanged, so it has it too
    page.locator("#at-side caption", has_text="A: lab-rec, B: yours: playground").wait_for()
    assert "1 queries" in page.locator("#at-metrics").inner_text()


def test_after_a_failure_nothing_of_an_earlier_generation_is_saved_or_opened(visit) -> None:
    page = visit()
    generate(page)
    buttons = [page.get_by_role("button", name=name) for name in ("Open in Inspect", "Download these rollouts")]
    assert all(button.is_enabled() for button in buttons)
    page.get_by_label("Pool, one candidate per line").fill("* one")
    page.get_by_role("button", name="Generate").click()
    page.locator("#at-status .problem", has_text="the pool has 1 candidates").wait_for()
    until(lambda: not any(button.is_enabled() for button in buttons))
    choose(page, "Credit method", "item")
    until(lambda: "credit=item" in at(page))
    assert not page.locator("#at-result table").count()


def test_free_decoding_says_why_tokens_repeat(visit) -> None:
    page = visit()
    tab(page, "Playground")
    radio(page, "Decoding", "free")
    generate(page)
    assert "With free decoding nothing keeps the policy to it" in page.locator("#at-result .message").first.inner_text()


def test_only_models_that_can_run_are_offered(visit) -> None:
    page = visit()
    tab(page, "Playground")
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option").first.wait_for()
    assert not [n for n in page.get_by_role("option").all_inner_texts() if "smollm2" in n]


def test_a_bar_of_b_opens_the_run_of_b(visit) -> None:
    page = visit(run="lab-rec", a="lab-rec", b="lab-rec-grpo")
    tab(page, "Compare")
    page.get_by_role("button", name="rank drop \N{MIDDLE DOT} B").click()
    button = page.locator("#at-listed button").nth(2)
    button.wait_for()
    name = button.inner_text()
    button.click()
    until(lambda: "run=lab-rec-grpo&" in at(page) and f"query={name}&" in at(page))


def test_a_late_answer_leaves_the_visitor_on_their_tab(visit, monkeypatch) -> None:
    page = visit()
    tab(page, "Group")
    slow_answers(monkeypatch, 1)
    page.get_by_role("button", name="Inspect rollout 5").click()
    until(lambda: page.evaluate(OPEN_TAB) == "Inspect")  # before the answer
    assert "rollout=5" not in at(page)
    tab(page, "Compare")
    until(lambda: "rollout=5" in at(page))
    page.wait_for_timeout(300)
    assert page.evaluate(OPEN_TAB) == "Compare" and "tab=compare" in at(page)


def test_a_link_has_the_tab_the_training_run_and_the_playground(visit, served: Served) -> None:
    page = visit()
    tab(page, "Training")
    choose(page, "Run to follow", "lab-rec-grpo")
    until(lambda: "follow=lab-rec-grpo" in at(page) and "tab=training" in at(page))
    tab(page, "Playground")
    page.get_by_label("Query", exact=True).last.fill("What & why?")
    page.get_by_label("number input for Temperature").fill("0.5")
    radio(page, "Decoding", "free")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as over http
    tab(page, "Files")
    page.get_by_role("button", name="Copy a link").click()
    page.locator("#at-copied", has_text="The link is copied.").wait_for()
    link = page.get_by_label("Link", exact=True).input_value()
    tab(page, "Playground")
    page.get_by_label("History, one entry per line").fill("")
    page.get_by_label("History, one entry per line").press("Control+v")
    assert page.get_by_label("History, one entry per line").input_value() == link
    other = visit(**dict(httpx.URL(link).params))
    until(lambda: other.evaluate(OPEN_TAB) == "Playground")
    until(lambda: other.get_by_label("Query", exact=True).last.input_value() == "What & why?")
    assert other.get_by_label("number input for Temperature").input_value() == "0.5"
    assert other.get_by_role("group", name="Decoding").get_by_label("free").is_checked()
    tab(other, "Training")
    other.locator("#at-curves svg").first.wait_for()
    assert other.get_by_label("Run to follow", exact=True).input_value() == "lab-rec-grpo"
    for form in ("[", "[1]", "7", json.dumps(["lab-rec", *["x"] * 9])):
        odd = visit(form=form)
        odd.locator(
            "#at-problems .problem", has_text="The form of the Playground in this link cannot be read"
        ).wait_for()


def test_back_returns_to_what_was_shown_before(visit) -> None:
    page = visit()
    choose(page, "Rollout", "sampled 3")
    until(lambda: "rollout=3" in at(page))
    third = values(page)
    choose(page, "Rollout", "sampled 5")
    until(lambda: "rollout=5" in at(page) and values(page) != third)
    tab(page, "Group")
    until(lambda: "tab=group" in at(page))
    page.go_back()
    until(lambda: page.evaluate(OPEN_TAB) == "Inspect")
    page.go_back()
    until(lambda: "rollout=3" in at(page) and values(page) == third)
    assert page.get_by_label("Rollout", exact=True).input_value() == "sampled 3"
    page.go_forward()
    until(lambda: "rollout=5" in at(page) and page.get_by_label("Rollout", exact=True).input_value() == "sampled 5")


def test_a_page_clicked_after_a_restart_is_not_blank(browser, tmp_path) -> None:
    server = Server(tmp_path)
    page = browser.new_context().new_page()
    page.set_default_timeout(30_000)
    page.goto(server.url)
    page.locator("#at-strip .token").first.wait_for()
    tab(page, "Files")
    (tmp_path / "mine.jsonl").write_bytes(b"".join(TRACE.read_bytes().splitlines(keepends=True)[:3]))
    upload(page, tmp_path / "mine.jsonl", page.locator("#at-uploaded", has_text="2 queries"))
    until(lambda: "run=yours" in at(page))
    status, printed = server.stop(signal.SIGTERM)
    assert (status, printed) == (0, "") and not list((tmp_path / "runs").iterdir())  # the upload is gone
    server = Server(tmp_path, "--port", server.url.rsplit(":")[-1])
    try:
        tab(page, "Inspect")
        choose(page, "Credit method", "item")
        page.locator("#at-problems", has_text="Showing lab-rec-fgrpo in its place").wait_for()
        page.locator("#at-strip .token, #at-group .token").first.wait_for(state="attached")
        assert page.get_by_label("Run", exact=True).input_value() == "lab-rec-fgrpo"
    finally:
        server.stop(signal.SIGTERM)
        page.context.close()


def test_a_list_left_by_tab_is_closed(visit) -> None:
    page = visit(rollout="2")
    box = page.get_by_label("Rollout", exact=True)
    box.click()
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("Tab")
    until(lambda: page.get_by_role("option", name="sampled 2").count() == 0)
    assert box.input_value() == "sampled 2"


@pytest.mark.parametrize("width", [360, 1280])
def test_tokens_are_level_and_the_caret_is_beside_its_text(visit, width) -> None:
    page = visit(width=width, query="test-1", rollout="1")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('#at-strip .token')].map((t) => [t, t.firstElementChild].map((e) =>
        Math.round(e.getBoundingClientRect().top)))"""
    )
    rows = {top for top, _ in boxes}
    assert len(boxes) > 10 and len({text for _, text in boxes}) == len(rows)  # one line of text in a row of tokens
    over = page.evaluate(
        """() => [...document.querySelectorAll('.secondary-wrap')].filter((w) => {
          const [text, icon] = [w.querySelector('input'), w.querySelector('.icon-wrap')];
          if (!text || !icon || !text.offsetParent) return false;
          const end = text.getBoundingClientRect().right - parseFloat(getComputedStyle(text).paddingRight);
          return icon.getBoundingClientRect().left < end;
        }).map((w) => w.outerHTML.slice(0, 200))"""
    )
    assert not over and page.locator(".secondary-wrap .icon-wrap").count() > 2


def test_errors_of_an_upload_are_a_list(visit, tmp_path) -> None:
    good = TRACE.read_bytes().splitlines(keepends=True)[:2]
    (tmp_path / "bad.jsonl").write_bytes(b"".join([*good, *[b"[]\n"] * 12]))
    page = visit()
    tab(page, "Files")
    upload(page, tmp_path / "bad.jsonl", page.locator("#at-uploaded", has_text="12 invalid lines were left out"))
    items = page.locator("#at-uploaded .problem li").all_inner_texts()
    assert len(items) == 11 and items[-1] == "and 2 more" and all("line" in item for item in items[:-1])


def test_numbers_have_one_minus_sign(visit, tmp_path) -> None:
    group = json.loads(TRACE.read_text().splitlines()[1])
    for rollout in group["rollouts"][:2]:  # of one slate
        rollout |= {"slate": [], "rank": [], "error": "malformed"}
    (tmp_path / "t.jsonl").write_text(TRACE.read_text().splitlines()[0] + "\n" + json.dumps(group) + "\n")
    page = visit()
    tab(page, "Files")
    upload(page, tmp_path / "t.jsonl", page.locator("#at-uploaded", has_text="1 queries"))
    until(lambda: "run=yours" in at(page))
    for name, wanted in (("Inspect", "#at-strip .token"), ("Group", "#at-group table")):
        tab(page, name)
        page.locator(wanted).first.wait_for()
        text = page.locator("body").inner_text()
        assert not re.findall(r"(?<![\w\]])-\d", text) and "\N{MINUS SIGN}0.50" in text, name


def test_an_answer_that_takes_longer_has_a_sign_of_work(visit, monkeypatch) -> None:
    from app import wiring

    page, busy, real, go = (
        visit(),
        "getComputedStyle(document.querySelector('#at-busy')).visibility",
        wiring.show,
        Event(),
    )
    until(lambda: page.evaluate(busy) == "hidden")
    monkeypatch.setattr(wiring, "show", lambda *args: (go.wait(30), real(*args))[1])
    choose(page, "Credit method", "item")
    until(lambda: page.evaluate(busy) == "visible")
    go.set()
    until(lambda: page.evaluate(busy) == "hidden" and "credit=item" in at(page))


def test_a_waiting_generation_sees_its_place(visit, monkeypatch) -> None:
    from app import form

    real, go = form.generate, Event()
    monkeypatch.setattr(form, "generate", lambda *args: (go.wait(60), real(*args))[1])
    first, second = visit(), visit()
    for page in (first, second):
        tab(page, "Playground")
        page.get_by_role("button", name="Generate").click()
        if page is first:
            first.locator("#at-status", has_text="Loading").wait_for()
    second.locator("#at-status", has_text=re.compile(r"queue: 1/1")).wait_for()
    go.set()
    for page in (first, second):
        page.locator("#at-status", has_text="8 sampled rollouts and the greedy one").wait_for()


def test_the_explorable_follows_the_query_and_nothing_else(visit) -> None:
    page = visit(query="test-1")
    tab(page, "Try it")
    frame = page.frame_locator("iframe.explorable")
    frame.locator("#group option", has_text="test-1").wait_for(state="attached")
    page.evaluate("document.querySelector('iframe.explorable').dataset.kept = 'yes'")
    tab(page, "Inspect")
    choose(page, "Credit method", "item")
    until(lambda: "credit=item" in at(page))
    tab(page, "Try it")
    page.wait_for_timeout(500)
    assert page.locator("iframe.explorable[data-kept]").count() == 1  # what was moved in it stays
    with page.expect_download() as got:
        page.locator("button[data-save]").click()
    assert got.value.suggested_filename == "lab-rec-fgrpo-test-1.html"
    assert Path(got.value.path()).read_text().startswith("<!doctype html>")
    page.get_by_role("button", name="Next").click()
    frame.locator("#group option", has_text="test-2").wait_for(state="attached")
    assert page.locator("iframe.explorable").get_attribute("sandbox") == "allow-scripts"


def test_visitors_do_not_wait_for_each_other_and_one_gets_answers_in_order(served: Served, monkeypatch) -> None:
    from app import wiring

    config = httpx.get(f"{served.url}/config").json()
    titles = {c["id"]: c["props"].get("label") or c["props"].get("elem_id") or "" for c in config["components"]}

    def event(kind: str, source: str) -> dict[str, Any]:
        return next(d for d in config["dependencies"] if d["backend_fn"] and d["targets"] and d["targets"][0][1] == kind
                    and titles[d["targets"][0][0]] == source)  # fmt: skip

    refresh, click = event("input", "Run"), event("click", "at-listed")

    def send(session: str, dependency: dict[str, Any], query: str, data: object = None) -> None:
        asked = {"Run": "lab-rec", "Query": query, "Rollout": "", "Colour tokens by": "advantage", "Credit method": "fgrpo",
                 "Compared with": "grpo", "A": "lab-rec", "B": "lab-rec-grpo"}  # fmt: skip
        body = {"fn_index": dependency["id"], "session_hash": session, "event_data": data,
                "data": [asked.get(titles[i]) for i in dependency["inputs"]]}  # fmt: skip
        assert httpx.post(f"{served.url}/gradio_api/queue/join", json=body).status_code == 200

    def answers(session: str, count: int) -> list[str]:
        found: list[str] = []
        with httpx.stream("GET", f"{served.url}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    found += re.findall(r'"query": ?"(test-\d+)"', json.dumps(message["output"]["data"]))[:1]
                    if len(found) == count:
                        return found
        raise AssertionError("the stream ended early")

    real, go, begun = wiring.show, Event(), Event()

    def held(library: Any, chosen: Any, *others: Any) -> Any:
        if chosen.query == "test-2":
            begun.set()
            assert go.wait(60)
        return real(library, chosen, *others)

    monkeypatch.setattr(wiring, "show", held)
    send("one", refresh, "test-2")
    assert begun.wait(30)
    send("one", click, "test-9", {"query": "test-4", "run": "lab-rec"})
    send("one", refresh, "test-3")
    send("other", refresh, "test-5")
    assert answers("other", 1) == ["test-5"]  # while the first visitor's event is still at work
    assert not go.is_set()
    go.set()
    assert answers("one", 3) == ["test-2", "test-4", "test-3"]
