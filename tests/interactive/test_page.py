"""The page of a trace: from every kind of source, whole, within its bounds, with nothing of a text read as code."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fgrpo.cli.main import main
from fgrpo.config import Config, KitError, RLConfig
from fgrpo.credit import CREDITS
from fgrpo.data import Example
from fgrpo.interactive.page import MARK, METHODS, ROLLOUTS, build_page, export_html, shown
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Trace, from_lists, write_trace

ROOT = Path(__file__).parents[2]
CONFIG = Config(rl=RLConfig(credit="grpo", lam=0.5, group=3))


def group(name: str = "q", count: int = 3, titles: tuple[str, ...] = ("a", "b", "c"), step: int | None = None) -> Group:
    example = Example(name, "which?", ("before",), titles, frozenset({1}))
    rollouts = [from_lists(Output((i % 3, (i + 1) % 3), (i % 3,)), len(titles)) for i in range(count)]
    return Group(example, None, tuple(rollouts), 1, step)


def trace(*groups: Group, notes: tuple[str, ...] = ()) -> Trace:
    return Trace("mine", CONFIG, list(groups), {"date": "2026-11-26", "versions": {"fgrpo": "0.1.0"}}, notes)


def data_of(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


@dataclass
class Front:
    found: object

    def trace(self) -> object:
        return self.found


def test_every_kind_of_source_gives_the_same_groups(tmp_path) -> None:
    whole = trace(group("x"), group("y"))
    write_trace(tmp_path / "t.jsonl", whole)
    sources = [whole, Front(whole), tmp_path / "t.jsonl", str(tmp_path / "t.jsonl")]
    pages = [export_html(source, tmp_path / f"{n}.html") for n, source in enumerate(sources)]
    pages.append(export_html(whole.groups, tmp_path / "list.html", config=CONFIG))
    first = data_of(pages[0].html)
    assert [g["id"] for g in first["groups"]] == ["x", "y"] and first["run"]["lam"] == 0.5
    for page in pages:
        assert data_of(page.html)["groups"] == first["groups"] and page.groups == 2 and not page.left_out
        assert data_of(page.html)["run"]["lam"] == 0.5 and "<!doctype" not in repr(page)
    assert (tmp_path / "0.html").read_text(encoding="utf-8") == pages[0].html
    assert pages[0].html.startswith(MARK + "\n<html")
    about = " ".join(first["run"]["about"])
    for said in ("Trace mine", "task lab-rec", "credit: grpo", "lambda 0.5", "2026-11-26", "fgrpo 0.1.0", "3 rollouts"):
        assert said in about
    assert set(METHODS) == {name for name, method in CREDITS.items() if method.__module__ == "fgrpo.credit"}


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        (trace(group(count=1)), {}, "mine: no query has two rollouts or more"),
        (trace(), {}, "no query has two rollouts"),
        (3, {}, "or an object with trace.., not int"),
        ([group(), 3], {}, "or an object with trace.., not list"),
        (Front(None), {}, "trace.. of a Front must return a Trace, not NoneType"),
        (trace(group()), {"most": 0}, "most 0 must be a whole number above 0"),
        (trace(group()), {"config": CONFIG}, "a trace has its own configuration"),
        ("missing.jsonl", {}, "missing.jsonl"),
        ([group(titles=("x" * 200,) * 50_000)], {}, "one query alone takes more than 8,000,000 bytes"),
    ],
)
def test_what_cannot_be_a_page_is_refused_in_a_sentence(tmp_path, source, how, message) -> None:
    with pytest.raises(KitError, match=message):
        export_html(source, tmp_path / "p.html", **how)
    assert not list(tmp_path.iterdir())


def test_only_pages_are_overwritten(tmp_path) -> None:
    page = tmp_path / "p.html"
    page.touch()
    export_html(trace(group("one")), page)
    export_html(trace(group("two")), page)
    assert data_of(page.read_text())["groups"][0]["id"] == "two"
    write_trace(tmp_path / "t.jsonl", trace(group()))
    (tmp_path / "other.html").write_text("<!doctype html><p>mine")
    (tmp_path / "link").symlink_to("t.jsonl")
    for name in ("t.jsonl", "other.html", "link", "."):
        with pytest.raises(KitError, match=r"would be overwritten|is a folder, a link or a device"):
            export_html(tmp_path / "t.jsonl", tmp_path / name)
    with pytest.raises(KitError, match=r"p\.html"):
        export_html(tmp_path / "t.jsonl", page / "below.html")
    assert (tmp_path / "t.jsonl").read_text().startswith('{"trace"') and len(list(tmp_path.iterdir())) == 4


def test_what_is_left_out_is_said_in_the_page_too() -> None:
    old, new, single = (
        [group(f"{kind}{n}", count, step=step) for n in range(3)]
        for kind, count, step in (("old", 2, 1), ("new", 2, 9), ("single", 1, 9))
    )
    page = build_page(trace(*new, *single, *old, notes=("t.jsonl, line 9: cut short",)), most=4)
    assert [g["id"] for g in data_of(page.html)["groups"]] == ["new0", "new1", "new2", "old0"]  # the latest steps
    assert [note.split(":")[0] for note in page.left_out] == [
        "t.jsonl, line 9", "3 queries with fewer than two rollouts are left out", "2 of 6 groups are left out",
    ]  # fmt: skip
    assert data_of(page.html)["run"]["about"][-3:] == list(page.left_out)
    page = build_page([replace(group(count=70), rankings=1), group(count=64)])
    assert [len(g["rollouts"]) for g in data_of(page.html)["groups"]] == [ROLLOUTS, 64]
    assert page.left_out == ("More than 64 rollouts in 1 groups: the first ones are shown and compared.",)
    shared = replace(group(count=72), rankings=9, rollouts=(from_lists(Output((0,), (0,)), 3),) * 72)
    assert len(data_of(build_page([shared]).html)["groups"][0]["rollouts"]) == 63  # whole slates
    large = group(titles=("x" * 500,) * 10_000)
    page = build_page([large] * 5)
    assert page.groups == 3 and page.left_out == ("2 of 5 groups are left out: at most 8,000,000 bytes fit.",)


def test_the_run_s_own_functions_and_options_are_named() -> None:
    config = replace(CONFIG, rl=replace(CONFIG.rl, slate_noise=0.1, learn="rank", format_penalty=2.0))
    run = data_of(build_page([group()], config=config).html)["run"]
    assert run["learn"] == "rank" and run["penalty"] == 2.0 and run["reward"] == "recall"
    assert any("added noise" in text for text in run["about"]) and any(
        "trained its rank" in text for text in run["about"]
    )
    own = replace(CONFIG, rl=replace(CONFIG.rl))
    own.rl.__dict__.update(credit="mine", slate_reward="hits", rank_reward="first")  # functions of the user's, by name
    run = data_of(build_page([group()], config=own).html)["run"]
    about = " ".join(run["about"])
    assert "credit method mine is a function of the run's own" in about and "slate reward hits is a function" in about
    assert (
        "rank reward first is a function of the run's own; this page shows NDCG" in about and run["reward"] == "recall"
    )


def test_the_page_is_self_contained_and_runs_its_own_code_alone() -> None:
    page = build_page(trace(group())).html
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = dict(part.split(" ", 1) for part in found[1].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert policy[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert not re.search(r"//[a-z]|\bsrc=|href=|@import|url\(|@@|\s(style|on\w+)=", page)
    assert not re.search(r"\beval\b|new Function|innerHTML|insertAdjacent|document\.write|\.style\s*=", page)
    assert page.count("<script") == page.count("</script>") == 2


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!-- <script>", "@@script@@", "\ud800 \u2028", "\\u003c"]
)
def test_no_text_ends_the_data(text) -> None:
    named = Trace(text, CONFIG, [group(text, titles=(text, "b", "c"))], {"date": text})
    page = build_page(named).html
    page.encode()  # a lone surrogate could not be written
    assert page.count("<script") == page.count("</script>") == 2
    assert data_of(page)["groups"][0]["titles"][0] == shown(text) and "<script>alert" not in page


def test_what_cannot_be_seen_is_shown_as_its_code_point() -> None:
    assert shown("a\u202eb\x00c\td\u2028e\ud800") == "a\u2308202E\u2309b\u23080\u2309c d e\u2308D800\u2309"
    assert shown("x" * 201) == "x" * 200 + "\N{HORIZONTAL ELLIPSIS}" and shown("x" * 200) == "x" * 200


def test_the_command_writes_a_page_with_and_without_a_trace(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["trace", "--checkpoint", str(ROOT / "data/checkpoints/lab-rec"), "--limit", "3", "--sampled", "2", "--json"]
    assert main([*argv, "--html", "page.html"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["queries"] == 2 and alone["page"]["groups"] == 2 and not alone["page"]["left_out"]
    assert "bytes" not in alone and alone["page"]["bytes"] == (tmp_path / "page.html").stat().st_size
    assert main([*argv[:-1], "--html", "page.html", "--out", "t.jsonl"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("t.jsonl: 3 queries, 2 of them token by token with 8 rollouts each, ")
    assert said[1].startswith("page.html: 2 queries, ") and said[2].startswith(
        "  1 queries with fewer than two rollouts"
    )
    exported = build_page("t.jsonl")
    assert data_of((tmp_path / "page.html").read_text(encoding="utf-8"))["groups"] == data_of(exported.html)["groups"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "t.jsonl"]
