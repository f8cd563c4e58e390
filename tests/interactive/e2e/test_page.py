"""The page of a trace in a real browser: its numbers are the kit's, whatever is moved, chosen or read into it."""

import html
import random
from dataclasses import replace
from typing import Any

import pytest

from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.credit import with_credit
from fgrpo.data import Example
from fgrpo.interactive.page import METHODS, build_page, shown
from fgrpo.prompt import PHASE_RANK, Output
from fgrpo.runs.trace import Group, Trace, Traced, credit_of, from_lists, trace_policy
from tests.axe import AXE, VIOLATIONS

HOSTILE = [
    "</script><img src=x onerror=alert(1)>", "<!-- <script>alert(1)</script>", "${alert(1)} `x`",
    "'\" onmouseover=alert(1) x='", "right-to-left \u202egnp.exe", "\x00 \x1b[31m", "&lt;b&gt;", "x" * 5000, "\ud800",
]  # fmt: skip

# --- the kit's numbers, and the page's -------------------------------------------------------------------------------


def kit(group: Group, config: Config, method: str, lam: float, reward: str, std: bool, count: int) -> tuple[list, list]:
    """Rewards (count, 2) and advantages of every token of the first `count` rollouts."""
    rl = replace(with_credit(config.rl, method), lam=lam, slate_reward=reward, scale="std" if std else "none")
    counted = replace(group, rollouts=group.rollouts[:count])
    rewards, advantages = credit_of(counted, replace(config, rl=rl))
    rows = [row[: len(r.tokens)].tolist() for row, r in zip(advantages, counted.rollouts, strict=True)]
    return [*zip(rewards.slate[0].tolist(), rewards.rank[0].tolist(), strict=True)], rows


def shown_by(page: Any, index: int, method: str, lam: float, reward: str, std: bool, count: int) -> tuple[list, list]:
    """The same numbers, from the functions that the page draws them with."""
    script = """([group, method, lam, reward, std, count]) => {
        Object.assign(state, { group, lam, reward, std, count });
        return [scores().slice(0, count).map((x) => [x.slate, x.rank]), advantages(method)];
    }"""
    return tuple(page.evaluate(script, [index, method, lam, reward, std, count]))


def same(found: tuple[list, list], wanted: tuple[list, list]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert [len(row) for row in a] == [len(row) for row in b]
        for x, y in zip(a, b, strict=True):
            assert list(x) == pytest.approx(list(y), abs=2e-5, rel=2e-5)


def sampled(policy: Any, queries: Any, decoding: str, rankings: int) -> Trace:
    rl = RLConfig(
        group=6, credit="nested" if rankings > 1 else "fgrpo", rankings=rankings, decoding=decoding, format_penalty=0.3
    )
    config = Config(rl=rl, grammar=GrammarConfig(6, 3))
    return Trace("sampled", config, trace_policy(policy, queries[:3], config, 3), {})


def spelt(r: Traced) -> Traced:
    """The rollout as a pretrained model writes it: three tokens for each candidate, the last of which ends its label."""
    columns = zip(r.tokens, r.items, r.phases, strict=True)
    rows = [
        row
        for text, i, phase in columns
        for row in ([(" ", -1, phase), ("4", -1, phase)] * (i >= 0) + [(text, i, phase)])
    ]
    return replace(r, **{name: tuple(row[n] for row in rows) for n, name in enumerate(("tokens", "items", "phases"))},
                   logprobs=(), entropy=())  # fmt: skip


def graded() -> Trace:
    """Graded gains in a pool of 200; format errors of each kind; equal rollouts; long lists; labels of several tokens."""
    draw = random.Random(1)
    groups = []
    for number in range(3):
        gains = [draw.choice([0, 0, 0, 0.25, 1, 3, 1000]) * (number != 2) for _ in range(200)]
        relevant = frozenset(i for i, g in enumerate(gains) if g)
        example = Example(f"g{number}", "", (), tuple(f"Title {i}" for i in range(200)), relevant, gains=tuple(gains))
        example = example if relevant else replace(example, gains=())
        outputs = []
        for _ in range(5):
            slate = draw.sample(range(200), draw.randint(1, 14))
            outputs.append(Output(tuple(slate), tuple(draw.sample(slate, draw.randint(1, min(8, len(slate)))))))
        errors = [Output(error="malformed"), Output(outputs[0].slate, (), "out_of_slate"), outputs[1]]
        rollouts = [from_lists(o, 200) for o in (*outputs, *errors)]
        cut = Traced(Output(error="foreign"), ("<SLATE>", "?", "?"), (-1, -1, -1), (1, 1, 1), (-0.5,) * 3, (0.5,) * 3)
        groups.append(Group(example, None, (*rollouts, cut)))
    groups[1] = replace(groups[1], rollouts=tuple(map(spelt, groups[1].rollouts)))
    groups.append(replace(groups[0], rollouts=(groups[0].rollouts[0],) * 4))
    return Trace("graded", Config(rl=RLConfig(format_penalty=0.7)), groups, {})


@pytest.mark.parametrize("kind", ["constrained", "nested", "free", "graded"])
def test_rewards_and_advantages_are_the_kit_s(visit, policy, queries, kind) -> None:
    trace = (
        graded()
        if kind == "graded"
        else sampled(policy, queries, "free" if kind == "free" else "constrained", 1 + (kind == "nested"))
    )
    assert kind not in ("free", "graded") or any(r.output.error for g in trace.groups for r in g.rollouts)
    page, compared = visit(trace), set()
    for index, group in enumerate(trace.groups):
        whole = len(group.rollouts)
        for method in METHODS:
            for lam, reward, std, count in (
                (1.0, "recall", False, whole), (0.0, "precision", False, whole), (0.35, "f1", True, whole),
                (3.0, "f1", False, 4),
            ):  # fmt: skip
                if kind == "graded" and count < whole and len(group.rollouts[3].output.rank) > 5:
                    count = whole  # the longest list is NDCG's k where it is longer than the header says
                try:
                    wanted = kit(group, trace.config, method, lam, reward, std, count)
                except KitError:
                    assert method == "nested" and kind != "nested" and method not in page.evaluate("methods()")
                    continue
                same(shown_by(page, index, method, lam, reward, std, count), wanted)
                compared.add(method)
    assert compared == set(METHODS) - (set() if kind == "nested" else {"nested"})


def test_only_the_trained_phase_has_advantages(visit, policy, queries) -> None:
    trace = sampled(policy, queries, "constrained", 1)
    trace = replace(trace, config=replace(trace.config, rl=replace(trace.config.rl, learn="rank")))
    page = visit(trace)
    for method in ("grpo", "item"):
        args = (method, 1.0, "recall", False, 6)
        same(shown_by(page, 0, *args), kit(trace.groups[0], trace.config, *args))


# --- what is moved ---------------------------------------------------------------------------------------------------


def example(count: int = 8, **fields: Any) -> Example:
    return Example(
        "test-7",
        "Which films?",
        ("Old Film",),
        tuple(f"Film {c}" for c in "ABCDEFGH"[:count]),
        frozenset({0, 1, 2}),
        **fields,
    )


LISTS = [((0, 1, 3), (3, 1)), ((4, 0), (0, 4)), ((5, 6, 2, 1), (1, 2)), ((3,), (3,))]
CONFIG = Config(grammar=GrammarConfig(5, 3), rl=RLConfig(credit="fgrpo", format_penalty=0.4))
CENTRE = "els => els.map(e => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })"


def traced(slate: tuple[int, ...], rank: tuple[int, ...], error: str = "") -> Traced:
    """As a policy with a token for each item writes it, with an end token."""
    lists = from_lists(Output(slate or (0,), rank, error), 8)
    tokens, items, phases = (
        [x for x, item in zip(column, lists.items, strict=True) if slate or item < 0]
        for column in (lists.tokens, lists.items, lists.phases)
    )
    return Traced(Output(slate, rank, error), (*tokens, "<eos>"), (*items, -1), (*phases, PHASE_RANK))


def four(lists: Any = LISTS, rankings: int = 1) -> Group:
    return Group(example(), None, tuple(traced(*x) for x in lists), rankings)


def open_four(visit: Any, rankings: int = 1, lists: Any = LISTS, **how: Any) -> Any:
    config = replace(CONFIG, rl=replace(CONFIG.rl, rankings=rankings, credit="nested")) if rankings > 1 else CONFIG
    return visit([four(lists, rankings)], config=config, link="#rollout=1", **how)


def chip(page: Any, lane: str, candidate: int) -> Any:
    return page.locator(f"[data-lane={lane}] [data-c='{candidate}']")


def lists(page: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(int(e.get_attribute("data-c")) for e in page.locator(f"[data-lane={lane}] .cand").all())
        for lane in ("slate", "rank")
    )


def drag(page: Any, candidate: int, source: str, lane: str, before: int | None = None) -> None:
    """With the mouse: onto the left half of another candidate, or the free space at the end of a list."""
    page.evaluate("document.getElementById('lanes').scrollIntoView({ block: 'center' })")
    x, y = chip(page, source, candidate).locator(".name").evaluate_all(CENTRE)[0]
    page.mouse.move(x, y)
    page.mouse.down()
    if before is None:
        box = page.locator(f"[data-lane={lane}]").bounding_box()
        to = box["x"] + box["width"] - 8, box["y"] + box["height"] - 8
    else:
        box = chip(page, lane, before).bounding_box()
        to = box["x"] + 4, box["y"] + box["height"] / 2
    page.mouse.move(x + 9, y + 9)
    page.mouse.move(*to)
    page.mouse.up()


def check(
    page: Any,
    rollouts: list,
    rankings: int = 1,
    count: int = 4,
    methods: tuple[str, str] = ("grpo", "fgrpo"),
    lam: float = 1.0,
) -> None:
    """What is drawn, word for word, against the kit's numbers of these lists."""
    group = four(rollouts, rankings)
    for line, method in enumerate(methods):
        rewards, advantages = kit(group, CONFIG, method, lam, "recall", False, count)
        same(
            tuple(
                page.evaluate(
                    "(m) => [scores().slice(0, state.count).map((x) => [x.slate, x.rank]), advantages(m)]", method
                )
            ),
            (rewards, advantages),
        )
        for n in range(count):
            drawn = (
                page.locator("#all .card")
                .nth(n)
                .locator(f".tok:not(.head) .adv:nth-of-type({line + 1})")
                .all_inner_texts()
            )
            for text, value in zip(drawn, advantages[n], strict=True):
                word = "neutral" if abs(value) < 5e-3 else "praise" if value > 0 else "blame"
                assert f"{word} " in text and text.startswith(method)
                assert abs(float(text.split()[-1].replace("\N{MINUS SIGN}", "-")) - value) < 5.1e-3
    for n in range(count):
        said = page.locator("#all .card").nth(n).inner_text()
        assert f"slate recall {rewards[n][0]:.2f}" in said and f"ranking NDCG@3 {rewards[n][1]:.2f}" in said
        assert ("format error" in said) == bool(group.rollouts[n].output.error)
    mean = [sum(column) / count for column in zip(*rewards, strict=True)]
    assert f"slate recall {mean[0]:.2f}, ranking NDCG@3 {mean[1]:.2f}" in page.locator("#means").inner_text()


def test_what_the_mouse_moves_changes_every_number(visit) -> None:
    page = open_four(visit)
    rest = LISTS[1:]
    check(page, LISTS)
    for (candidate, source, lane, before), wanted in {
        (2, "pool", "slate", None): ((0, 1, 3, 2), (3, 1)),
        (2, "slate", "rank", 3): ((0, 1, 3, 2), (2, 3, 1)),
        (1, "rank", "rank", 2): ((0, 1, 3, 2), (1, 2, 3)),
        (3, "rank", "slate", None): ((0, 1, 3, 2), (1, 2)),  # it stays in the slate
        (3, "slate", "pool", None): ((0, 1, 2), (1, 2)),
        (7, "pool", "rank", 1): ((0, 1, 2, 7), (7, 1, 2)),  # and so into the slate
        (2, "slate", "slate", 0): ((2, 0, 1, 7), (7, 1, 2)),
        (7, "rank", "pool", None): ((2, 0, 1), (1, 2)),
    }.items():
        drag(page, candidate, source, lane, before)
        assert lists(page) == wanted, (candidate, source, lane)
        check(page, [wanted, *rest])
        assert f"Film {'ABCDEFGH'[candidate]}: " in page.locator("#said").inner_text()
    page.get_by_role("button", name="Reset this query").click()
    assert lists(page) == LISTS[0]
    check(page, LISTS)


def test_a_full_list_and_a_drop_outside_change_nothing(visit) -> None:
    page = open_four(visit)
    drag(page, 0, "slate", "rank")
    drag(page, 2, "pool", "rank")
    assert "ranking is full: it holds at most 3" in page.locator("#said").inner_text()
    for candidate in (4, 5, 6):
        drag(page, candidate, "pool", "slate")
    assert "slate is full: it holds at most 5" in page.locator("#said").inner_text()
    assert lists(page) == ((0, 1, 3, 4, 5), (3, 1, 0))
    page.mouse.move(*chip(page, "slate", 0).evaluate_all(CENTRE)[0])
    page.mouse.down()
    page.mouse.move(5, 5)
    page.mouse.up()
    assert lists(page) == ((0, 1, 3, 4, 5), (3, 1, 0)) and page.locator(".ghost").count() == 0


def test_the_keyboard_moves_candidates(visit) -> None:
    page = open_four(visit)
    page.locator("#lam").focus()
    for _ in range(20):  # to the first candidate of the slate, by the tab key alone
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('[data-lane=slate]') !== null"):
            break
    focus = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focus) == "Film A, relevant, gain 1, slate, place 1 of 3"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focus) == "Film D, not relevant, slate, place 3 of 3"
    for key, wanted in (
        ("Enter", LISTS[0]), ("ArrowUp", ((0, 3, 1), (3, 1))), ("ArrowLeft", ((0, 1), (1,))),
        ("ArrowRight", ((0, 1, 3), (1,))), ("ArrowRight", ((0, 1, 3), (1, 3))), ("ArrowUp", ((0, 1, 3), (3, 1))),
        ("ArrowDown", ((0, 1, 3), (1, 3))),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert lists(page) == wanted, key
        check(page, [wanted, *LISTS[1:]])
        assert page.evaluate(focus).startswith("Film D")
    assert "Film D: ranking, place 2 of 2. Slate recall 0.67" in page.locator("#said").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focus).startswith("Film B") and lists(page) == wanted


def test_a_finger_moves_candidates(visit) -> None:
    page = open_four(visit, width=360, touch=True)
    chip(page, "pool", 2).locator(".name").tap()  # pick it up, then the place
    page.locator("[data-lane=slate] h3").tap()
    assert lists(page) == ((0, 1, 3, 2), (3, 1))
    chip(page, "slate", 2).locator(".name").tap()
    chip(page, "rank", 3).locator(".name").tap()
    assert lists(page) == ((0, 1, 3, 2), (2, 3, 1))
    page.locator("#lanes").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, document.querySelector('#lanes').offsetTop - 100)")
    client = page.context.new_cdp_session(page)

    def swipe(start: Any, end: Any) -> None:
        (x, y), (u, v) = start.evaluate_all(CENTRE)[0], end.evaluate_all(CENTRE)[0]
        for kind, at in (
            ("touchStart", (x, y)),
            ("touchMove", (x + 8, y + 8)),
            ("touchMove", (u - 6, v)),
            ("touchEnd", None),
        ):
            points = [{"x": at[0], "y": at[1]}] if at else []
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    swipe(chip(page, "slate", 1).locator(".grip"), chip(page, "pool", 4))
    assert lists(page) == ((0, 3, 2), (2, 3))
    check(page, [lists(page), *LISTS[1:]])
    swipe(chip(page, "slate", 0).locator(".name"), chip(page, "pool", 4).locator(".name"))  # scrolls, as anywhere else
    assert lists(page) == ((0, 3, 2), (2, 3))


def test_an_empty_list_is_a_format_error_of_its_phase(visit) -> None:
    page = open_four(visit)
    for candidate in (3, 1):
        drag(page, candidate, "rank", "slate")
    check(page, [((0, 1, 3), (), "malformed"), *LISTS[1:]])
    assert "\N{MINUS SIGN}0.40 on the rank reward" in page.locator("#bench").inner_text()
    for candidate in (0, 1, 3):
        drag(page, candidate, "slate", "pool")
    check(page, [((), (), "malformed"), *LISTS[1:]])
    assert "\N{MINUS SIGN}0.40 on the slate reward" in page.locator("#bench").inner_text()
    drag(page, 1, "pool", "rank")
    check(page, [((1,), (1,)), *LISTS[1:]])


def test_rankings_of_one_slate_keep_sharing_it(visit) -> None:
    shared = [((0, 1, 3), (3, 1)), ((0, 1, 3), (0,)), ((5, 6, 2, 1), (1, 2)), ((5, 6, 2, 1), (6,))]
    page = open_four(visit, 2, shared)
    assert "Every 2 consecutive rollouts share one slate" in page.locator("#means").inner_text()
    page.locator("#lower").select_option("nested")
    check(page, shared, 2, methods=("grpo", "nested"))
    drag(page, 2, "pool", "slate", 0)
    moved = [((2, 0, 1, 3), (3, 1)), ((2, 0, 1, 3), (0,)), *shared[2:]]
    check(page, moved, 2, methods=("grpo", "nested"))
    drag(page, 0, "slate", "pool")
    check(page, [((2, 1, 3), (3, 1)), ((2, 1, 3), (), "malformed"), *shared[2:]], 2, methods=("grpo", "nested"))
    assert page.locator("#count").evaluate("e => [e.min, e.max, e.step]") == ["4", "4", "2"]


# --- what is chosen --------------------------------------------------------------------------------------------------


def slide(page: Any, name: str, key: str, times: int) -> None:
    page.locator(f"#{name}").focus()
    for _ in range(times):
        page.keyboard.press(key)


def test_sliders_and_menus_change_every_number_and_the_link(visit) -> None:
    page = open_four(visit)
    slide(page, "lam", "ArrowLeft", 10)
    check(page, LISTS, lam=0.5)
    slide(page, "count", "ArrowLeft", 1)
    check(page, LISTS, lam=0.5, count=3)
    left = page.locator("#all .card").nth(3)
    assert "does not count while G is 3" in left.inner_text() and left.locator(".adv").count() == 0
    page.locator("#upper").select_option("item")
    page.locator("#lower").select_option("reward_to_go")
    check(page, LISTS, lam=0.5, count=3, methods=("item", "reward_to_go"))
    page.locator("#reward").select_option("precision")
    assert "slate precision 0.67" in page.locator("#bench").inner_text()
    page.get_by_label("divide by the group's standard deviation").check()
    page.get_by_role("button", name="change rollout 2").click()
    assert "Rollout 2" in page.locator("#bench-title").inner_text()
    seen, link = page.locator("#all").inner_text(), page.url.split("#")[1]
    for part in ("rollout=2", "upper=item", "lower=reward_to_go", "lambda=0.5", "g=3", "reward=precision", "std=1"):
        assert part in link.split("&")
    page.reload()
    assert page.locator("#all").inner_text() == seen and page.locator("#upper").input_value() == "item"
    page.get_by_role("button", name="Reset this query").click()
    assert "\N{MIDDLE DOT}" in page.locator("#group").inner_text() and page.locator("#lam-value").inner_text() == "1"
    assert "4 of 4" in page.locator("#count-value").inner_text()


@pytest.mark.parametrize(
    "link", ["#query=99&rollout=-1&upper=<b>&lower=nested&reward=constructor&lambda=nan&g=0&std=x", "#%E0%A4%A", "#="]
)
def test_a_link_that_does_not_fit_is_not_followed(visit, link) -> None:
    page = visit([four()], config=CONFIG, link=link)
    assert page.locator("#upper").input_value() == "grpo" and page.locator("#lower").input_value() == "fgrpo"
    page.get_by_role("button", name="change rollout 1").or_(page.locator("[data-rollout='0']")).first.click()
    check(page, LISTS)


def test_the_first_group_is_the_one_where_joint_credit_errs_most(visit) -> None:
    alike = four([LISTS[0]] * 4)
    lost = four([((0, 1, 2), (1, 2, 0)), ((0, 1, 2), ((0, 1, 2))), ((0, 3), (0,)), ((0, 1, 2, 3, 4), (3, 4))])
    page = visit([alike, four(), lost], config=CONFIG)
    assert page.locator("#group").input_value() == "2"  # the perfect slate of its fourth rollout, whose ranking is bad
    assert page.locator("#seen").inner_text().startswith("grpo blames the slate tokens of rollout 4 (\N{MINUS SIGN}")
    assert "fgrpo praises them (+" in page.locator("#seen").inner_text()
    assert page.locator("#all .card").nth(3).locator(".tok.slate.clash").count() == 7
    page.get_by_role("button", name="Next query").click()
    assert page.locator("#group").input_value() == "0"
    assert page.locator("#seen").inner_text().startswith("No token has opposite signs")
    page.get_by_role("button", name="Previous query").click()
    page.locator("#group").select_option("1")
    assert "test-7" in page.locator("#group option:checked").inner_text()


# --- who reads it, and where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_read_by_everyone(visit, scheme, width) -> None:
    page = visit(graded(), width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    page.evaluate("document.querySelector('.cand').click()")
    page.evaluate(AXE)
    assert not [(v["id"], v["nodes"][0]["html"][:150]) for v in page.evaluate(VIOLATIONS)]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for term in ("slate", "rank", "rollout, group", "advantage", "recall", "lambda", "grpo", "fgrpo", "item"):
        assert page.locator("#terms dt").get_by_text(term, exact=True).count() == 1, term


def test_hostile_strings_are_shown_as_text(visit) -> None:
    groups = []
    for text in HOSTILE:
        titles = tuple(f"{n} {text}" for n in range(3))
        one = Traced(
            Output((1, 0), (1,)),
            ("<SLATE>", text, text, "</SLATE>", text, text),
            (-1, 1, 0, -1, 1, -1),
            (1, 1, 1, 1, 2, 2),
        )
        groups.append(
            Group(Example(text, text, (text,), titles, frozenset({1})), None, (one, from_lists(Output((2,), (2,)), 3)))
        )
    page = visit(Trace(HOSTILE[0], Config(), groups, {"date": HOSTILE[0], "versions": {"fgrpo": HOSTILE[0]}}))
    for number, text in enumerate(HOSTILE):
        page.locator("#group").select_option(str(number))
        page.locator("[data-rollout='0']").click()
        assert page.locator(".lane [data-c='1'] .name").first.text_content() == f"\u2605 {shown('1 ' + text)}"
        assert shown(text, 500) in page.locator("#query").text_content()
        assert page.evaluate("document.querySelectorAll('img, iframe, [onerror], [onmouseover]').length") == 0
        assert page.evaluate("document.querySelectorAll('script').length") == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert shown(HOSTILE[0], 80) in page.locator("#about").text_content()


def test_it_works_inside_a_frame(browser) -> None:
    page = browser.new_context().new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    source = html.escape(build_page([four()], config=CONFIG).html)
    page.set_content(f'<iframe sandbox="allow-scripts" width="900" height="1500" srcdoc="{source}"></iframe>')
    frame = page.frame_locator("iframe")
    frame.locator("#upper").select_option("item")
    frame.locator("[data-rollout='0']").click()
    frame.locator("[data-lane=pool] [data-c='2']").click()
    frame.locator("[data-lane=slate] h3").click()
    assert "slate recall 1.00" in frame.locator("#bench").inner_text()
    assert not errors
    page.context.close()
