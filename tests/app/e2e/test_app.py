"""What a visitor does: inspect rollouts, switch colouring and credit, compare, generate, upload, share."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from fgrpo.runs.trace import read_trace

from .conftest import Served, tab, upload

TRACE = Path(__file__).parents[3] / "data" / "checkpoints" / "lab-rec-fgrpo" / "trace.jsonl"


def radio(page: Any, group: str, name: str) -> None:
    page.get_by_role("group", name=group).get_by_label(name, exact=True).check()


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def offered(page: Any, label: str, option: str) -> bool:
    """Whether the list `label` holds the option; it is closed again."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option").first.wait_for()
    there = page.get_by_role("option", name=option, exact=True).count() == 1
    page.keyboard.press("Escape")
    page.get_by_label(label, exact=True).blur()
    return there


def at(page: Any) -> str:
    """The address as the browser shows it now."""
    return page.evaluate("location.href")


def strip(page: Any) -> Any:
    """The tokens under the chosen credit method, below those under the one that it is compared with."""
    return page.locator("#at-strip [data-strip]").last.locator(".token")


def values(page: Any) -> list[str]:
    return strip(page).locator("small").all_inner_texts()


def until(what: Any, seconds: float = 20) -> None:
    """Wait until `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.05)


def test_opens_on_a_bundled_trace(visit) -> None:
    page = visit()
    assert page.locator("#at-pool tbody tr").count() == 20
    assert "rank drop: 3 of 3 relevant candidates" in page.locator("#at-errors").inner_text()
    assert "query=test-84" in at(page) and "run=lab-rec-fgrpo" in at(page)
    grpo, fgrpo = (page.locator("#at-strip [data-strip]").nth(n).locator("small").all_inner_texts() for n in (0, 1))
    assert len(grpo) == len(fgrpo) > 10 and len(set(grpo)) == 1 and len(set(fgrpo)) == 2
    assert grpo[0].startswith("\N{MINUS SIGN}") and fgrpo[0].startswith("+")  # a perfect slate, blamed by joint credit
    assert "grpo blames its slate tokens" in page.locator("#at-reading").inner_text()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_strip_begins_on_the_first_screen(visit, width) -> None:
    page = visit(width=width)
    until(lambda: page.locator("#at-strip .token").count() > 20)
    assert page.locator("#at-strip .token").first.bounding_box()["y"] < 640
    assert page.locator(".intro").bounding_box()["y"] < page.locator("#at-strip .token").first.bounding_box()["y"]


def test_the_next_steps_set_the_controls(visit) -> None:
    page = visit()
    buttons = page.locator("#at-next button")
    assert buttons.count() == 5
    for n, (address, shown) in enumerate(
        (("query=test-3", "grpo praises its rank tokens"), ("tab=group", "8 rollouts, credit fgrpo"),
         ("tab=queries", "100 queries of lab-rec-fgrpo"), ("tab=try", "Move candidates"),
         ("tab=live", "One RL step on the sampled"))
    ):  # fmt: skip
        tab(page, "Inspect")
        buttons.nth(n).click()
        until(lambda address=address: address in at(page))
        page.get_by_text(shown).first.wait_for()


def test_queries_are_found_sorted_and_opened(visit) -> None:
    page = visit()
    tab(page, "Queries")
    rows = page.locator("#at-table tbody tr")
    rows.first.wait_for()
    assert rows.count() == 100
    flips = [int(x) for x in page.locator("#at-table tbody tr td:nth-child(7)").all_inner_texts()]
    assert flips == sorted(flips, reverse=True) and flips[0] > flips[-1]
    page.get_by_label("Search").fill("slate miss mighty")
    until(lambda: 0 < page.locator("#at-table tbody tr:visible").count() < 50)
    found = page.locator("#at-table tbody tr:visible")
    assert f"{found.count()} found" in page.locator(".found").inner_text()
    assert all("Mighty" in text and "slate miss" in text for text in found.all_inner_texts())
    name = found.first.locator("button").inner_text()
    found.first.locator("button").click()
    until(lambda: f"query={name}&" in at(page))
    tab(page, "Inspect")
    number = int(name.split("-")[1])
    page.get_by_role("button", name="Next").click()
    until(lambda: f"query=test-{(number + 1) % 100}&" in at(page))
    page.get_by_label(f"Query {(number + 1) % 100 + 1} of 100").fill("test-7")
    page.keyboard.press("Enter")
    until(lambda: "query=test-7&" in at(page))
    page.get_by_role("button", name="Previous").click()
    until(lambda: "query=test-6&" in at(page))
    page.get_by_label("Query 7 of 100").fill("nosuch")
    page.keyboard.press("Enter")
    page.locator("#at-problems", has_text="query 'nosuch' was not found").wait_for()


def test_a_rollout_can_be_picked_and_coloured(visit) -> None:
    page = visit(query="test-0")
    before = page.locator("#at-pool").inner_text()
    choose(page, "Rollout", "sampled 4")
    until(lambda: page.locator("#at-pool").inner_text() != before)
    trace = read_trace(TRACE)
    until(lambda: strip(page).count() == len(trace.groups[0].rollouts[3].tokens))
    for colour, legend in (
        ("phase", "slate phase"),
        ("log-prob", "nats"),
        ("entropy", "nats"),
        ("advantage", "reward"),
    ):
        choose(page, "Colour tokens by", colour)
        until(lambda colour=colour, legend=legend: legend in page.locator("#at-strip .legend").inner_text()
              and colour.split("-")[0] in page.locator("#at-strip .legend").inner_text().lower())  # fmt: skip
    assert len(set(values(page))) == 2  # one advantage per phase
    strip(page).nth(3).hover()
    assert "token 4 of" in page.locator(".readout").first.inner_text()


def test_switching_credit_flips_signs(visit) -> None:
    page = visit(query="test-3", rollout="1")
    assert page.locator("#at-strip .flipped").count() == 2 * 8  # the rank tokens: a good slate, badly ordered
    ranked = values(page)[-1]
    assert ranked.startswith("\N{MINUS SIGN}")
    choose(page, "Credit method", "grpo")
    until(lambda: page.locator("#at-strip .flipped").count() == 0)
    assert values(page)[-1].startswith("+")
    tab(page, "Group")
    page.locator("#at-group", has_text="Choose two different credit methods").wait_for()
    for method in ("reward_to_go", "anchor", "nested", "item", "gdpo", "fgrpo"):
        choose(page, "Credit method", method)
        page.locator("#at-group caption", has_text=f"credit {method}").wait_for()
    assert "8 tokens (0 slate, 8 rank)" in page.locator("#at-group").inner_text()


def test_the_group_sorts_and_opens_a_rollout(visit) -> None:
    page = visit()
    tab(page, "Group")
    head = page.locator("#at-group th", has_text="Rank reward")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    column = [float(x) for x in page.locator("#at-group tbody tr td:nth-child(4)").all_inner_texts()]
    assert column == sorted(column) and len(column) == 8 and column[0] < column[-1]
    page.get_by_role("button", name="Inspect rollout 5").click()
    page.get_by_role("tab", name="Inspect").and_(page.locator("[aria-selected=true]")).wait_for()
    until(lambda: "rollout=5" in at(page))


def test_two_runs_side_by_side_and_the_queries_behind_a_bar(visit) -> None:
    page = visit(query="test-0")
    tab(page, "Compare")
    page.locator("#at-side", has_text="only in the slate of").wait_for()
    assert "100 queries" in page.locator("#at-metrics").inner_text()
    choose(page, "A", "lab-rec")
    page.locator("#at-metrics th", has_text="A: lab-rec").wait_for()
    until(lambda: "a=lab-rec&" in at(page))
    bar = page.get_by_role("button", name="slate miss \N{MIDDLE DOT} B")
    count = int(bar.inner_text().split("(")[1].split()[0])
    bar.click()
    buttons = page.locator("#at-listed button")
    buttons.first.wait_for()
    assert buttons.count() == min(count, 200)
    name = buttons.nth(1).inner_text()
    buttons.nth(1).click()
    until(lambda: f"query={name}&" in at(page))


def test_many_runs_are_compared_and_a_point_opens_its_query(visit) -> None:
    page = visit(tab="runs")
    page.locator("#at-overview caption", has_text="NDCG@5 of methods x seeds").wait_for()
    assert page.locator("#at-overlaid svg").count() >= 4 and page.locator("#at-histograms svg").count() >= 5
    assert "no verdict: fewer than 3 seeds" in page.locator("#at-overview").inner_text()
    assert "without a step" in page.locator("#at-steps").inner_text()
    page.get_by_label("Runs to compare").locator("..").get_by_role("button", name="Remove lab-rec-grpo").or_(
        page.locator(".token-remove").nth(2)).first.click()  # fmt: skip
    until(lambda: "lab-rec-grpo" not in page.locator("#at-overview").inner_text())
    until(lambda: "runs=lab-rec%0Alab-rec-fgrpo" in at(page))
    tab(page, "Compare")
    point = page.locator("#at-scatter [role=button]").nth(7)
    point.wait_for()
    name = point.get_attribute("data-query")
    point.focus()
    page.keyboard.press("Enter")
    until(lambda: f"query={name}&" in at(page) and "run=lab-rec-grpo&" in at(page))


def test_a_step_and_a_race_of_two_methods(visit, monkeypatch) -> None:
    from app import live_tab

    monkeypatch.setattr(live_tab, "RACE_STEPS", 4)
    monkeypatch.setattr(live_tab, "RACE_EVERY", 2)
    page = visit(tab="live")
    page.get_by_role("button", name="Take one step").click()
    words = page.locator("#at-step .reading")
    words.wait_for()
    text = words.inner_text()
    assert "less likely under grpo (advantage \N{MINUS SIGN}0.2" in text and "more likely under fgrpo" in text
    page.get_by_label("Learning rate of the step").fill("5")
    page.get_by_role("button", name="Take one step").click()
    page.locator("#at-step-status .problem", has_text="learning rate: enter a number between").wait_for()
    assert words.inner_text() == text  # what was shown stays
    page.get_by_role("button", name="Start the race").click()
    page.locator("#at-race-status", has_text="All 4 steps are done").wait_for()
    assert page.locator("#at-race svg").count() == 4
    rows = page.locator("#at-race tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["grpo", "fgrpo"] and all("4 of 4" in row for row in rows)
    monkeypatch.setattr(live_tab, "RACE_STEPS", 400)
    page.get_by_role("button", name="Start the race").click()
    page.locator("#at-race-status", has_text="of 400 steps").wait_for()
    page.get_by_role("button", name="Stop the race").click()
    page.locator("#at-race-status", has_text="Stopped").wait_for()
    page.wait_for_timeout(1000)
    assert "Stopped" in page.locator("#at-race-status").inner_text()


def test_a_viewer_is_made_by_choosing_films(visit) -> None:
    page = visit(tab="playground")
    page.get_by_role("button", name="Make a viewer").click()
    page.get_by_label("Search films").press_sequentially("western", delay=50)
    until(lambda: 0 < page.locator("#at-films button").count() < 60)
    names = []
    for _ in range(2):
        film = page.locator("#at-films button[aria-pressed=false]").first
        names.append(film.evaluate("(b) => b.firstChild.textContent.trim()"))
        film.click()
        page.locator("#at-films [role=status]", has_text=f"{len(names)} of 8 films chosen").wait_for()
    page.get_by_role("button", name="Put this viewer into the form").click()
    page.locator("#at-status", has_text="A viewer who liked 2 films").wait_for()
    assert page.get_by_label("History, one entry per line").input_value().split("\n") == names
    pool = page.get_by_label("Pool, one candidate per line").input_value().split("\n")
    assert len(pool) == 20 and 2 <= sum(line.startswith("* ") for line in pool) <= 4
    page.get_by_label("number input for Sampled rollouts").fill("2")
    page.get_by_role("button", name="Generate").click()
    page.locator("#at-status", has_text="2 sampled rollouts and the greedy one").wait_for()


def test_an_edited_pool_generates_and_the_export_comes_back(visit, tmp_path) -> None:
    page = visit()
    tab(page, "Playground")
    pool = page.get_by_label("Pool, one candidate per line")
    lines = pool.input_value().split("\n")[:8]
    pool.fill("\n".join(lines))
    page.get_by_label("number input for Sampled rollouts").fill("4")
    page.get_by_role("button", name="Generate").click()
    page.locator("#at-status", has_text="4 sampled rollouts and the greedy one").wait_for()
    assert page.locator("#at-result table").first.locator("tbody tr").count() == 8
    assert "4 rollouts, credit fgrpo" in page.locator("#at-result").inner_text()
    with page.expect_download() as got:
        page.get_by_role("button", name="Download these rollouts").click()
    file = tmp_path / "mine.jsonl"
    got.value.save_as(file)
    (group,) = read_trace(file).groups
    assert len(group.example.candidates) == 8 and len(group.rollouts) == 4 and group.greedy
    page.get_by_role("button", name="Open in Inspect").click()
    until(lambda: page.locator("#at-pool tbody tr").count() == 8)
    tab(page, "Files")
    for _ in range(2):  # the same file again replaces the first
        page.evaluate("history.replaceState({}, '', '/')")
        page.locator("input[type=file]").set_input_files(file)
        page.locator("#at-uploaded", has_text="1 queries").wait_for()
        until(lambda: "run=yours" in at(page))  # which changes last: the button has its file
        with page.expect_download() as again:
            page.get_by_role("button", name="Download the trace of this run").click()
        assert Path(again.value.path()).read_bytes() == file.read_bytes()
        page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
    assert not page.locator("#at-problems .problem").count()
    tab(page, "Inspect")
    assert page.locator("#at-pool tbody tr").count() == 8


def test_bad_forms_are_reported_in_words(visit) -> None:
    page = visit()
    tab(page, "Playground")
    pool, go = page.get_by_label("Pool, one candidate per line"), page.get_by_role("button", name="Generate")
    good = pool.input_value()
    for text, message in (
        ("* Velvet Letter", "the pool has 1 candidates"), ("Velvet Letter\nAmber Embassy", "marked as relevant"),
        ("* A film nobody made\nAmber Embassy", "not in the policy's vocabulary"),
        ("* Velvet Letter\nVelvet Letter", "twice"), ("* Velvet Letter\n" + "x" * 3000, "pool, line 2"),
    ):  # fmt: skip
        pool.fill(text)
        go.click()
        page.locator("#at-status .problem", has_text=message).wait_for()
    pool.fill(good)
    page.get_by_label("number input for Maximum rank size").fill("9")
    page.get_by_label("number input for Maximum slate size").fill("4")
    go.click()
    page.locator("#at-status .problem", has_text="rank_size 9 is larger").wait_for()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"not json\n"], "line 1: not a JSON object"),
        ([b'{"trace": 99}\n'], "newer kit"),
        ([b'{"trace": 1}\n', b'{"query": {"id": 3}}\n'], "line 2"),
        ([b""], "no query in the file"),
        ([b'{"trace": 1, "config": {"rl": {"steps": "many"}}}\n'], "steps"),
        ([b"\xff\xfe\x00\n"], "line 1"),
        ([b'{"id": "lone \\ud800 surrogate"}\n'], "line 1: not a JSON object"),
    ],
)  # fmt: skip
def test_a_bad_upload_is_reported_by_line(visit, tmp_path, lines, message) -> None:
    page = visit()
    tab(page, "Files")
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"".join(lines))
    upload(page, file, page.locator("#at-uploaded .problem", has_text=message))
    tab(page, "Inspect")
    assert page.locator("#at-pool tbody tr").count() == 20  # what was shown is still there


def test_good_lines_of_an_upload_are_kept_and_a_cut_one_is_noted(visit, tmp_path) -> None:
    page = visit()
    lines = TRACE.read_bytes().splitlines(keepends=True)[:5]
    (tmp_path / "half.jsonl").write_bytes(b"".join([*lines[:2], b'{"query": 7}\n', *lines[2:4], lines[4][:200]]))
    tab(page, "Files")
    upload(page, tmp_path / "half.jsonl", page.locator("#at-uploaded", has_text="3 queries"))
    assert "line 3: field 'query'" in page.locator("#at-uploaded .problem").inner_text()
    page.locator("#at-problems", has_text="cut short").wait_for()


def test_an_upload_over_20_mb_is_refused(visit, served: Served, tmp_path) -> None:
    page = visit()
    tab(page, "Files")
    (tmp_path / "large.jsonl").write_bytes(b" " * 21_000_000)
    upload(page, tmp_path / "large.jsonl", page.get_by_text("exceed the maximum allowed size of 20"))
    files = {"files": ("large.jsonl", b" " * 21_000_000)}
    assert httpx.post(f"{served.url}/gradio_api/upload", files=files).status_code == 413  # not by the page alone


def test_a_click_while_an_answer_is_on_its_way_is_kept(visit, monkeypatch) -> None:
    from app import wiring

    real, slow = wiring.show, [1.0, 0.0]  # the answer to the first click comes after the second

    def late(*args):
        time.sleep(slow.pop(0) if slow else 0)
        return real(*args)

    page = visit()
    monkeypatch.setattr(wiring, "show", late)
    choose(page, "Rollout", "sampled 3")
    choose(page, "Credit method", "item")
    until(lambda: not slow and "item" in page.locator("#at-advantages").inner_text())
    page.wait_for_timeout(1500)  # nothing comes after it
    assert page.get_by_label("Credit method", exact=True).input_value() == "item"
    assert "rollout=3" in at(page) and "credit=item" in at(page)
    assert "item" in page.locator("#at-advantages").inner_text()


@pytest.mark.parametrize(("name", "words"), [("Inspect", "grpo blames its slate tokens"), ("Runs", "NDCG@5 of methods"),
                                             ("Compare", "100 queries"), ("Queries", "test-84")])  # fmt: skip
def test_a_view_is_saved_as_a_page_that_needs_nothing_else(visit, browser, tmp_path, name, words) -> None:
    page = visit()
    tab(page, name)
    page.get_by_text(words).first.wait_for()
    tab(page, "Files")
    with page.expect_download() as got:
        page.get_by_role("button", name="Save this view as a page").click()
    assert got.value.suggested_filename == f"fgrpo-{name.lower()}.html"
    page.locator("#at-copied", has_text=f"The view {name.lower()} is saved.").wait_for()
    got.value.save_as(tmp_path / "view.html")
    text = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert "<script" not in text and "src=" not in text and "http-equiv" not in text
    context = browser.new_context(viewport={"width": 360, "height": 800}, offline=True)
    alone = context.new_page()
    alone.goto((tmp_path / "view.html").as_uri())
    assert alone.get_by_text(words).first.is_visible()
    assert alone.title().startswith(f"F-GRPO app, {name.lower()}: lab-rec-fgrpo")
    context.close()


def test_a_link_shows_the_same_in_a_fresh_context(visit) -> None:
    page = visit()
    choose(page, "Rollout", "sampled 3")
    choose(page, "Credit method", "item")
    until(lambda: "rollout=3" in at(page) and "credit=item" in at(page))
    tab(page, "Files")
    page.get_by_role("button", name="Copy a link").click()
    seen = at(page).replace("tab=files", "tab=inspect")  # what was seen before the tab with the button
    until(lambda: page.get_by_label("Link", exact=True).input_value() == seen)
    tab(page, "Inspect")
    until(lambda: at(page) == seen)
    other = visit(**dict(pair.split("=") for pair in at(page).split("?")[1].split("&")))
    first, again = (strip(p) for p in (page, other))
    until(lambda: "advantage under item" in (first.last.get_attribute("title") or ""))
    until(lambda: again.all_inner_texts() == first.all_inner_texts())


def test_new_runs_are_found_and_what_was_chosen_stays(visit, served: Served) -> None:
    page = visit(rollout="2")
    choose(page, "Credit method", "item")
    until(lambda: "credit=item" in at(page))
    tab(page, "Training")
    choose(page, "Run to follow", "lab-rec-grpo")
    run = served.runs / "later"
    run.mkdir()
    for name in ("config.json", "trace.jsonl"):
        (run / name).write_bytes((TRACE.parent / name).read_bytes())
    time.sleep(1.1)  # the list of runs is kept for a second
    tab(page, "Files")
    page.get_by_role("button", name="Update the list of runs").click()
    until(lambda: offered(page, "Run", "runs/later"))
    tab(page, "Training")
    assert page.get_by_label("Run to follow", exact=True).input_value() == "lab-rec-grpo"
    tab(page, "Inspect")
    assert page.get_by_label("Credit method", exact=True).input_value() == "item"
    assert "advantage under item" in (strip(page).last.get_attribute("title") or "")
    assert "rollout=2" in at(page) and "credit=item" in at(page)


def test_a_run_that_is_gone_leaves_the_page_usable(visit, served: Served) -> None:
    run = served.runs / "gone"
    run.mkdir()
    for name in ("config.json", "trace.jsonl"):
        (run / name).write_bytes((TRACE.parent / name).read_bytes())
    time.sleep(1.1)  # the list of runs is kept for a second
    page = visit(run="runs/gone")
    shutil.rmtree(run)
    time.sleep(1.1)
    choose(page, "Credit method", "item")
    until(lambda: page.get_by_label("Run", exact=True).input_value() == "lab-rec-fgrpo")
    assert "runs/gone" in page.locator("#at-problems .problem, #at-problems .message").first.inner_text()
    choose(page, "Run", "lab-rec")
    until(lambda: "run=lab-rec&" in at(page))
    page.locator("#at-strip .token").first.wait_for()


def test_a_stopped_generation_and_one_that_fails_leave_the_app_usable(visit, monkeypatch) -> None:
    from app import form

    real = form.generate

    def endless(*args):
        for found in real(*args):
            for _ in range(10**6 if found[0] == 3 else 1):
                yield found
                time.sleep(0.3)

    def broken(*args):
        yield from list(real(*args))[:2]
        raise MemoryError("no room")

    page = visit()
    tab(page, "Playground")
    go = page.get_by_role("button", name="Generate")
    stop = page.get_by_role("button", name="Stop")
    page.route("**/cancel", lambda route: (time.sleep(1), route.continue_()))  # meanwhile answers go on coming
    monkeypatch.setattr(form, "generate", endless)
    go.click()
    page.locator("#at-status", has_text="3 of 8").wait_for()
    stop.click()
    page.locator("#at-status", has_text="Stopped").wait_for()
    page.wait_for_timeout(1500)
    assert "Stopped" in page.locator("#at-status").inner_text()
    monkeypatch.setattr(form, "generate", broken)
    go.click()
    page.locator("#at-status .problem", has_text="generation failed (MemoryError: no room)").wait_for()
    monkeypatch.setattr(form, "generate", real)
    go.click()
    page.locator("#at-status", has_text="8 sampled rollouts and the greedy one").wait_for()
    stop.click()  # nothing is going
    page.wait_for_timeout(500)
    assert "8 sampled rollouts and the greedy one" in page.locator("#at-status").inner_text()


def test_training_is_followed_live(visit, served: Served) -> None:
    source = TRACE.parent
    rows = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    run = served.runs / "live" / "fgrpo-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text((source / "config.json").read_text())
    (run / "metrics.jsonl").write_text("".join(rows[:20]))
    time.sleep(1)  # the list of runs is kept for a second
    page = visit()
    tab(page, "Training")
    choose(page, "Run to follow", "runs/live/fgrpo-seed0")
    page.locator("#at-curves", has_text="Step 20 of 300").wait_for()
    (run / "metrics.jsonl").write_text("".join(rows[:45]) + rows[45][:30])  # a line half written
    page.locator("#at-curves", has_text="Step 45 of 300").wait_for()
    assert "reward" in page.locator("#at-curves svg").first.get_attribute("aria-label")
    (run / "metrics.jsonl").write_text("x\n")
    page.locator("#at-curves .problem", has_text="line 1: not a JSON object").wait_for()


def test_examples_without_rollouts_open_too(visit, tmp_path) -> None:
    row = json.dumps({"id": "q1", "query": "Which?", "history": [], "candidates": ["a", "b"], "relevant": [0]})
    (tmp_path / "task.jsonl").write_text(row + "\n")
    page = visit()
    tab(page, "Files")
    upload(page, tmp_path / "task.jsonl", page.locator("#at-uploaded", has_text="1 queries"))
    tab(page, "Inspect")
    page.locator("#at-strip", has_text="This query has no rollouts").wait_for()
