"""Accessibility: keyboard, narrow screens, light and dark mode, what a screen reader reads."""

import time

import pytest

from tests.axe import AXE, VIOLATIONS

from .conftest import tab
from .test_app import at, choose, until, values

TABS = ("Inspect", "Group", "Queries", "Compare", "Runs", "Try it", "Live", "Playground", "Training", "Files")


def open_tab(page, name: str) -> None:
    """Open a tab, which may be in the menu on a narrow screen."""
    if not page.get_by_role("tab", name=name, exact=True).is_visible():
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    else:
        tab(page, name)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, scheme, width) -> None:
    page = visit(width=width, scheme=scheme, rollout="1")
    page.evaluate(AXE)
    found = []
    for name in TABS:
        open_tab(page, name)
        if name == "Compare":
            page.get_by_role("button", name="slate miss \N{MIDDLE DOT} B").click()
            page.locator("#at-listed button").first.wait_for()
        if name == "Runs":
            page.locator("#at-histograms svg").first.wait_for()
        if name == "Live":
            page.get_by_role("button", name="Take one step").click()
            page.locator("#at-step table").first.wait_for()
        if name == "Playground":
            page.get_by_role("button", name="Make a viewer").click()
            page.locator("[data-film='3']").click()
            page.locator("[data-film='3'][aria-pressed=true]").wait_for()
            page.get_by_role("button", name="Generate").click()
            page.locator("#at-status", has_text="the greedy one").wait_for()
        if name == "Training":
            page.locator("#at-curves svg").first.wait_for()
        time.sleep(0.3)
        where = (
            f"#tab-{name.split()[0].lower()}" if name != "Inspect" else "body"
        )  # what all tabs share is looked at once
        for v in page.evaluate(VIOLATIONS, where):
            if v["impact"] in ("serious", "critical"):
                found += [f"{name}: {v['id']}: {n['html'][:150]}" for n in v["nodes"]]
    assert not found, found


def test_every_control_has_a_name(visit) -> None:
    page = visit()
    for name in TABS:
        tab(page, name)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button, fieldset')]
            .filter((e) => e.offsetParent && !e.getAttribute('aria-label') && !e.labels?.length && !e.innerText.trim()
                    && !e.title && !e.getAttribute('aria-labelledby')).map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert not nameless, (name, nameless)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_down_only(visit, scheme) -> None:
    page = visit(width=360, scheme=scheme)
    for name in TABS:
        open_tab(page, name)
        time.sleep(0.3)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_the_keyboard_is_enough(visit) -> None:
    page = visit(rollout="1")

    def press_to(wanted: str, most: int = 80) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("(q) => !!document.activeElement.closest(q)", wanted):
                return
        raise AssertionError(f"{wanted} is not reached by Tab")

    press_to("input[aria-label='Credit method']")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    until(lambda: "credit=gdpo" in at(page))
    press_to("#at-strip .token")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    text = page.locator(".readout").first.inner_text()
    assert text.startswith("token 3 of") and "advantage under grpo" in text
    page.keyboard.press("End")
    count = len(values(page))
    assert page.locator(".readout").first.inner_text().startswith(f"token {count} of {count}")
    for _ in range(2):  # one stop for each of the two strips
        page.keyboard.press("Tab")
    assert not page.evaluate("!!document.activeElement.closest('#at-strip .token')")
    press_to("#at-pool th button")
    page.keyboard.press("Enter")
    assert page.locator("#at-pool th[aria-sort]").count() == 1
    for _ in range(60):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.matches('[role=tab]') && document.activeElement.innerText") == "Group":
            break
    page.keyboard.press("Enter")
    page.locator("#at-group table").wait_for()
    press_to("button[data-rollout='2']")
    page.keyboard.press("Enter")
    until(lambda: "rollout=2" in at(page))


RECORD = """() => {
  window.seen = [];
  const push = history.pushState.bind(history);
  history.pushState = (state, title, url) => {
    const strip = [...document.querySelectorAll('#at-strip .token')].map((t) => t.getAttribute('aria-label')).join();
    window.seen.push([new URL(url, location).searchParams.get('rollout'), strip]);
    push(state, title, url);
  };
}"""


def slow_answers(monkeypatch, seconds: float) -> None:
    """Let the server take `seconds` longer to compute the page."""
    import app.wiring

    def slow(*args):
        time.sleep(seconds)
        return show(*args)

    show = app.wiring.show
    monkeypatch.setattr(app.wiring, "show", slow)


def test_the_address_names_what_the_page_shows(visit, monkeypatch) -> None:
    """A control changed while an answer is on its way is in the address only once the page shows it."""
    page = visit(rollout="1")
    until(lambda: "rollout=1" in at(page))
    page.evaluate(RECORD)
    slow_answers(monkeypatch, 1.5)
    choose(page, "Credit method", "grpo")
    choose(page, "Rollout", "sampled 2")
    until(lambda: "rollout=2" in at(page) and len(page.evaluate("window.seen")) > 1)
    seen = page.evaluate("window.seen")
    strips = {rollout: {strip for r, strip in seen if r == rollout} for rollout in "12"}
    assert len(strips["2"]) == 1 and strips["1"] and not strips["1"] & strips["2"], [rollout for rollout, _ in seen]


def test_a_late_answer_keeps_the_place_in_the_strip(visit, monkeypatch) -> None:
    page = visit(rollout="1")
    until(lambda: "rollout=1" in at(page))
    slow_answers(monkeypatch, 1)
    choose(page, "Credit method", "item")
    page.locator("#at-strip .token").first.focus()
    page.keyboard.press("ArrowRight")
    readout = page.locator(".readout").first
    assert "under fgrpo" in readout.inner_text()
    until(lambda: "credit=item" in at(page))
    assert readout.inner_text().startswith("token 2 of") and "under item" in readout.inner_text()
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("token 3 of")
