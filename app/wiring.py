"""The page: its components, and which event updates which of them. The contents come from show.py, which never raises."""

import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from fgrpo.config import KitError

from . import story
from .form import CLICKS, GENERATED, RAW, Playground, clicked
from .library import Library
from .live_tab import START, Live
from .markup import join, message, printable, told
from .measures import METHODS
from .runs import MOST_RUNS
from .show import DEEP, FIRST, HEAVY, SECOND, SLOTS, Chosen, Page, neighbour, queries_of_bar, show, training
from .token_strip import COLOURS
from .visitors import KNOWN, Visitor, in_turn, remove_files

LINKED = tuple(Chosen.__dataclass_fields__)
"""Parameters of a link, in the order of the controls."""
TABS = ("inspect", "group", "queries", "compare", "runs", "try", "live", "playground", "training", "files")
# JavaScript; page.js has the functions
BACK = """window.addEventListener('popstate', () => trigger('click', Object.fromEntries(new URL(location).searchParams)))"""
TICKET = "(...values) => [...values.slice(0, -1), sessionStorage.getItem('visitor') ?? '']"
OPENED = "(shown, ticket) => { sessionStorage.setItem('visitor', ticket); app.address(shown, true); }"
TO_URL = "(shown) => app.address(shown)"
TO_INSPECT = "() => ({__type__: 'update', selected: 'inspect'})"
LARGE = 4_000_000
"""bytes of a trace from which on what reads all of it waits for other such work"""
SECONDS = 2
"""interval at which the curves of a run are updated"""


def uploaded_path(file: Any) -> str | None:
    """Where the server put an uploaded file, whatever its ending: gradio would refuse others with a traceback."""
    return getattr(file, "path", None)


def text_of(value: object) -> str:
    """The value of a control, which a visitor may make anything, as a text; of a list, one line each."""
    if isinstance(value, list):
        return "\n".join(x for x in value if isinstance(x, str))
    return value if isinstance(value, str) else ""


def drawn_of(value: object) -> dict[str, str]:
    """What the deep views show, from the state of the page."""
    return dict(value) if isinstance(value, dict) else {}


def theme() -> gr.themes.Base:
    """System fonts (nothing is downloaded), and text with a contrast of at least 4.5 in light and dark mode."""
    return gr.themes.Default(
        primary_hue="slate", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800", block_title_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white", link_text_color="*primary_700", link_text_color_dark="*primary_300",
    )  # fmt: skip


def build(library: Library, folder: Path) -> gr.Blocks:
    """The page over a library of runs. Uploads and generated traces are written below `folder`."""
    quiet: dict[str, Any] = RAW | {"show_progress": "hidden"}
    with gr.Blocks(
        title="F-GRPO: subsets, rankings, credit", analytics_enabled=False, delete_cache=(600, 7200)
    ) as page:
        own = gr.State(Visitor(), time_to_live=7200)
        ticket, drawn = gr.Textbox(visible=False), gr.State({})
        view = gr.Textbox("inspect", visible=False, elem_id="at-view")  # the tab that is open
        back = gr.HTML(js_on_load=BACK, elem_id="at-back")
        busy = gr.HTML('<p role="status">Working \N{HORIZONTAL ELLIPSIS}</p>', elem_id="at-busy")
        gr.HTML("<h1>F-GRPO: who is to blame for a bad list?</h1>", elem_id="at-title")
        with gr.Row(elem_id="at-bar"):
            run = gr.Dropdown([], label="Run", scale=3, min_width=140)
            before = gr.Button("\N{BLACK LEFT-POINTING TRIANGLE} Previous", size="sm", scale=1, min_width=90)
            query = gr.Textbox(label="Query", max_lines=1, max_length=200, scale=2, min_width=110)
            after = gr.Button("Next \N{BLACK RIGHT-POINTING TRIANGLE}", size="sm", scale=1, min_width=70)
            method = gr.Dropdown(METHODS, value="fgrpo", label="Credit method", scale=2, min_width=120,
                                 elem_id="at-method")  # fmt: skip
            against = gr.Dropdown(METHODS, value="grpo", label="Compared with", scale=2, min_width=120,
                                  elem_id="at-against")  # fmt: skip
        problems = gr.HTML(elem_id="at-problems")
        shown = gr.JSON(visible=False)  # the state that the page shows: controls may already be ahead of it
        html: dict[str, gr.HTML] = {}

        def slot(name: str, value: str = "") -> None:
            html[name] = gr.HTML(value, js_on_load=CLICKS, elem_id=f"at-{name}")

        named: dict[str, gr.Tab] = {}
        with gr.Tabs() as tabs:
            with gr.Tab("Inspect", id="inspect", elem_id="tab-inspect") as named["inspect"]:
                slot("intro", story.intro())
                for name in ("reading", "strip"):
                    slot(name)
                with gr.Row(elem_id="at-choice"):
                    rollout = gr.Dropdown([], label="Rollout", min_width=140)
                    colour = gr.Dropdown(COLOURS, value="advantage", label="Colour tokens by",
                                         min_width=140)  # fmt: skip
                slot("next", story.next_steps())
                slot("words")
                slot("query")
                with gr.Row():
                    with gr.Column(scale=2, min_width=300):
                        slot("pool")
                    with gr.Column(scale=1, min_width=260):
                        slot("errors")
                        slot("advantages")
            with gr.Tab("Group", id="group", elem_id="tab-group") as named["group"]:
                slot("group")
                slot("plane")
            with gr.Tab("Queries", id="queries", elem_id="tab-queries") as named["queries"]:
                slot("table")
            with gr.Tab("Compare", id="compare", elem_id="tab-compare") as named["compare"]:
                with gr.Row():
                    a, b = gr.Dropdown([], label="A"), gr.Dropdown([], label="B")
                for name in ("side", "metrics", "scatter", "bars", "listed"):
                    slot(name)
            with gr.Tab("Runs", id="runs", elem_id="tab-runs") as named["runs"]:
                runs = gr.Dropdown([], label="Runs to compare", info=f"up to {MOST_RUNS}: methods and their seeds",
                                   multiselect=True, max_choices=MOST_RUNS)  # fmt: skip
                for name in ("overview", "overlaid", "histograms", "steps"):
                    slot(name)
            with gr.Tab("Try it", id="try", elem_id="tab-try") as named["try"]:
                slot("try")
            with gr.Tab("Live", id="live", elem_id="tab-live") as named["live"]:
                live = Live(library)
            with gr.Tab("Playground", id="playground", elem_id="tab-playground") as named["playground"]:
                form = Playground(library, own, folder, (method, against))
            with gr.Tab("Training", id="training", elem_id="tab-training") as named["training"]:
                followed = gr.Dropdown([], label="Run to follow", info=f"updated every {SECONDS} s while it trains")
                curves = gr.HTML(elem_id="at-curves")
                timer, seen = gr.Timer(SECONDS, active=False), gr.State(())
            with gr.Tab("Files", id="files", elem_id="tab-files") as named["files"]:
                upload = gr.File(label="Open your own trace or examples (JSONL, up to 20 MB)", file_types=[".jsonl"],
                                 visible=library.space > 0)  # fmt: skip
                upload.preprocess = uploaded_path  # type: ignore[method-assign, assignment]
                uploaded, opened = gr.HTML(elem_id="at-uploaded"), gr.State("")
                save = gr.DownloadButton("Download the trace of this run (JSONL)")
                again = gr.Button("Update the list of runs")
                copy = gr.Button("Copy a link to this view")
                page_of = gr.Button("Save this view as a page (HTML)")
                link, copied = gr.Textbox(label="Link", interactive=False), gr.HTML(elem_id="at-copied")

        controls: list[Any] = [run, query, rollout, colour, method, against, a, b, runs]
        everything = [*controls, own, drawn, shown, problems, save, *(html[name] for name in SLOTS)]
        opening = [ticket, tabs, view, followed, live.model, *form.linked, form.source]
        inputs = [own, drawn, view, *controls]

        def refresh(mine: Visitor, seen: object, at: object, *values: object, **changed: str) -> list[Any]:
            sent = Chosen(*map(text_of, values))
            return parts(show(library, replace(sent, **changed), mine.traces, text_of(at), drawn_of(seen)), mine, sent)

        def open_tab(mine: Visitor, seen: object, at: object, *values: object) -> list[Any]:
            """What the tab shows, unless it does already, as after a link to it: then nothing else changes either."""
            found = show(library, Chosen(*map(text_of, values)), mine.traces, text_of(at), drawn_of(seen))
            if found.drawn == drawn_of(seen):
                return [gr.skip()] * len(everything)
            answer = parts(found, mine, Chosen(*map(text_of, values)))
            if not found.problems:  # those of the link that was opened stay
                answer[everything.index(problems)] = gr.skip()
            return answer

        def large(mine: Visitor, seen: object, at: object, *values: object) -> bool:
            """Whether the open tab reads whole traces, and one of them is large."""
            c = Chosen(*map(text_of, values))
            return text_of(at) in HEAVY and any(
                library.size_of(name, mine.traces) > LARGE for name in (c.run, c.a, c.b, *c.runs.split("\n"))
            )

        def parts(found: Page, mine: Visitor, sent: Chosen | None = None) -> list[Any]:
            """Updates for `everything`. A control whose value is still the one that was `sent` is not updated: the visitor
            may have changed it in the meantime, and a late answer must not undo that. A value that is no longer in a list
            is cleared."""
            c, traces = found.chosen, [*library.having("trace.jsonl"), *mine.traces]
            file = library.download(c.run, mine.traces, folder)
            lists: dict[str, Any] = dict.fromkeys(("run", "a", "b", "runs"), traces) | {"rollout": found.rollouts}
            number, count = found.place

            def value_of(name: str) -> str:
                value = getattr(c, name)
                if name == "runs":
                    return "\n".join(x for x in dict.fromkeys(value.split("\n")) if x in traces)
                offered = [x if isinstance(x, str) else x[1] for x in lists.get(name, [value])]
                return value if value in offered else ""

            def control(name: str) -> Any:
                changes: dict[str, Any] = {"choices": lists[name]} if name in lists else {}
                if name == "query":
                    changes["label"] = f"Query {number:,} of {count:,}"
                if sent is None or values[name] != getattr(sent, name):
                    changes["value"] = (
                        values[name].split("\n") if name == "runs" and values[name] else values[name] or None
                    )
                return gr.update(**changes)

            values = {name: value_of(name) for name in LINKED}
            return [
                *(control(name) for name in LINKED), mine, found.drawn, values, join(found.problems),
                gr.update(value=str(file) if file else None, interactive=bool(file)),
                *(found.html.get(name, gr.skip()) for name in SLOTS),
            ]  # fmt: skip

        def open_page(mine: Visitor, given: object, request: gr.Request) -> list[Any]:
            """The page as a link says. A page that is loaded again has its ticket, and so its visitor's traces."""
            mine = KNOWN.get(text_of(given)) or mine
            return opened_by(dict(request.query_params), mine, {}, new=True)

        def go_back(event: gr.EventData, mine: Visitor, seen: object) -> list[Any]:
            """The page as the address says to which the visitor has gone back or forward."""
            return opened_by(clicked(event), mine, seen)

        def opened_by(asked: dict[str, str], mine: Visitor, seen: object, new: bool = False) -> list[Any]:
            asked = {name: str(text)[: 20_000 if name == "form" else 1000] for name, text in asked.items() if text}
            logs, models, traces = library.having("metrics.jsonl"), library.with_policy(), library.having("trace.jsonl")
            first, second = (next((t for t in (wanted, *traces) if t in traces), "") for wanted in (FIRST, SECOND))
            chosen = replace(
                Chosen(first, a=second, b=first, runs="\n".join(library.bundled())),
                **{n: asked[n] for n in LINKED if n in asked},
            )
            at = asked["tab"] if asked.get("tab") in TABS else "inspect"
            found = show(library, chosen, mine.traces, at, drawn_of(seen))
            filled, problem = form.opened(asked.get("form", ""), models)
            found.problems += [message(problem, "problem")] if problem else []
            if new and "form" not in asked:
                filled[0] = gr.update(value=first if first in models else next(iter(models), None))
            wanted = asked.get("follow", first if new else "")
            return [
                *parts(found, mine), mine.ticket, gr.Tabs(selected=at) if asked.get("tab") in TABS else gr.skip(), at,
                gr.update(choices=logs) | ({"value": wanted} if wanted in logs else {}),
                gr.update(choices=models) | ({"value": START if START in models else first} if new else {}),
                gr.update(choices=models) | filled[0], *filled[1:],
            ]  # fmt: skip

        def refresh_lists(mine: Visitor, *values: object) -> list[Any]:
            """Read the folder of runs again; the choices stay."""
            logs, models = library.having("metrics.jsonl"), library.with_policy()
            return [*refresh(mine, *values), gr.update(choices=logs), *[gr.update(choices=models)] * 2]

        def click(event: gr.EventData, mine: Visitor, *values: object) -> list[Any]:
            """A button inside the page's HTML: a rollout of the group, or a query of a list, with the run that it is of."""
            data = clicked(event)
            changed = {"rollout": data["rollout"]} if "rollout" in data else {}
            if "query" in data and "run" in data:
                changed = {"run": data["run"], "query": data["query"], "rollout": ""}
            return refresh(mine, *values, **changed)

        def follow_step(event: gr.EventData, mine: Visitor, seen: object, at: object, *values: object) -> list[Any]:
            """A button that sets controls, and opens a tab."""
            data = clicked(event)
            to = data["tab"] if data.get("tab") in TABS else "inspect"
            changed = {name: data[name] for name in LINKED if name in data}
            return [*refresh(mine, seen, to, *values, **changed), gr.Tabs(selected=to), to]

        def beside(step: int) -> Callable[..., list[Any]]:
            """The next query of the run, or the one before."""

            def go(mine: Visitor, *values: object) -> list[Any]:
                chosen = Chosen(*map(text_of, values[2:]))
                key = neighbour(library, chosen, mine.traces, step)
                return refresh(mine, *values, query=key, rollout="" if key != chosen.query else chosen.rollout)

            return in_turn(go)

        def click_generated(event: gr.EventData, mine: Visitor, *values: object) -> list[Any]:
            """A rollout in the result of the Playground."""
            return refresh(mine, *values, run=GENERATED, query="", rollout=clicked(event).get("rollout", ""))

        def open_generated(mine: Visitor, *values: object) -> list[Any]:
            """The result of the Playground, in Compare beside a run that has the same query, if there is one."""
            a = text_of(values[2 + LINKED.index("a")])
            try:
                example = next(library.trace(GENERATED, mine.traces).groups()).example
                names = [a, *library.having("trace.jsonl"), a]
                a = next(n for n in names if n != GENERATED and library.trace(n, mine.traces).find(example))
            except (KitError, StopIteration):
                pass  # Compare reports what is missing
            return refresh(mine, *values, run=GENERATED, query="", rollout="", a=a, b=GENERATED)

        def list_queries(event: gr.EventData, mine: Visitor, a: object, b: object) -> Any:
            data = clicked(event)
            if "fate" not in data:
                return gr.skip()
            return queries_of_bar(library, text_of(a), text_of(b), mine.traces, data.get("run", ""), data["fate"])

        def open_upload(path: str | None, mine: Visitor) -> list[Any]:
            """What is wrong with an uploaded file, and the name of the new trace if it can be shown."""
            if not path:
                return [gr.skip()] * 2
            name, bad = f"yours: {printable(Path(path).name, 60)}", list[str]()
            kept = folder / uuid.uuid4().hex / "upload.jsonl"  # gradio has one copy for all who upload the same file
            try:
                library.room(folder, Path(path).stat().st_size)
                kept.parent.mkdir()
                shutil.copyfile(path, kept)
                opened = library.trace(name, {name: str(kept)}, bad)
            except (KitError, OSError) as error:
                remove_files([str(kept)])
                return [message(told(error), "problem", bad[:3]), ""]
            messages = [message(f"{name}: {len(opened.keys)} queries. Select it as Run, A or B.")]
            if bad:
                more = [f"and {len(bad) - 10} more"] if len(bad) > 10 else []
                messages.append(message(f"{len(bad)} invalid lines were left out:", "problem", [*bad[:10], *more]))
            mine.add(name, kept)
            return [join(messages), name]

        def show_upload(name: str, mine: Visitor, *values: object) -> list[Any]:
            changed = {"run": name, "query": "", "rollout": ""} if name in mine.traces else {}
            return refresh(mine, *values, **changed)

        def take(mine: Visitor, run: object, query: object) -> list[Any]:
            """The selected query, in the form of the Playground."""
            try:
                group = library.trace(text_of(run), mine.traces).group(text_of(query))
                return [*form.form_of(group.example), gr.skip()]
            except KitError as error:
                return [*[gr.skip()] * 4, message(told(error), "problem")]

        def follow(chosen: object, before: tuple) -> list[Any]:
            """The curves, drawn again only if the run has logged something since."""
            name = text_of(chosen)
            try:
                status = (library.folder(name) / "metrics.jsonl").stat()
                now = (name, status.st_mtime_ns, status.st_size)
            except (KitError, OSError):
                now = (name, 0, 0)
            return [gr.skip(), gr.skip()] if now == before else [training(library, name), now]

        def watch(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == "Training")

        def address(done: Any) -> Any:
            """The address changes last, to what the page shows."""
            return done.then(None, [shown], None, js=TO_URL)

        # events of one visitor are answered in their order (in_turn), those of different visitors side by side
        shows: dict[str, Any] = RAW | {"show_progress": "minimal", "show_progress_on": [busy]}
        whole: dict[str, Any] = shows | {"concurrency_id": "page", "concurrency_limit": None}
        turn = partial(in_turn, heavy=large)
        changes = [c.submit if c is query else c.input for c in controls]
        for name, one in named.items():
            one.select(None, None, [view], js=f"() => {{ app.address({{tab: '{name}'}}); return '{name}'; }}")
        address(gr.on(changes, turn(refresh), inputs, everything, trigger_mode="always_last", **whole))
        for name in DEEP:
            now = f"(...values) => {{ values[{inputs.index(view)}] = '{name}'; return values; }}"
            named[name].select(turn(open_tab), inputs, everything, js=now, trigger_mode="always_last", **whole)
        address(before.click(beside(-1), inputs, everything, **whole))
        address(after.click(beside(1), inputs, everything, **whole))
        gr.on([method.input, against.input], in_turn(form.redrawn), [own, form.made, method, against], [form.result],
              trigger_mode="always_last", **whole)  # fmt: skip
        loaded = page.load(in_turn(open_page), [own, ticket], [*everything, *opening], js=TICKET, **whole)
        gone_back = back.click(in_turn(go_back), [own, drawn], [*everything, *opening], **whole)
        for done in (loaded, gone_back):
            done.then(None, [shown, ticket], None, js=OPENED)
        for opener in (html["group"], html["plane"], form.result, form.inspect):
            opener.click(None, None, [tabs], js=TO_INSPECT)  # at once: a late answer leaves the visitor where they are
        address(again.click(turn(refresh_lists), inputs, [*everything, followed, form.model, live.model], **whole))
        for name in ("group", "plane", "listed", "table", "scatter", "steps"):
            address(html[name].click(turn(click), inputs, everything, **whole))
        address(html["next"].click(turn(follow_step), inputs, [*everything, tabs, view], **whole))
        address(form.result.click(turn(click_generated), inputs, everything, **whole))
        address(form.inspect.click(turn(open_generated), inputs, everything, **whole))
        html["bars"].click(in_turn(list_queries), [own, a, b], [html["listed"]], **whole)
        heavily = partial(in_turn, heavy=lambda *_: True)
        read = upload.upload(heavily(open_upload), [upload, own], [uploaded, opened], **whole | {"preprocess": True})
        address(read.then(turn(show_upload), [opened, *inputs], everything, **whole))
        page_of.click(None, None, [copied], js="() => app.save()")
        live.wire(own, (run, query), (method, against), whole)
        copy.click(None, form.linked, [link, copied], js="(...form) => app.copy(form)")

        form.run.click(None, form.linked, None, js="(...form) => { app.form(form); }")
        done = form.going.then(turn(refresh), inputs, everything, **whole)
        done.then(in_turn(form.redrawn), [own, form.made, method, against], [form.result], **whole)
        form.take.click(
            in_turn(take), [own, run, query], [form.query, form.history, form.pool, form.source, form.status], **whole
        )

        gr.on([followed.input, named["training"].select], follow, [followed, seen], [curves, seen], **shows)
        followed.input(None, [followed], None, js="(follow) => app.address({follow})")
        timer.tick(follow, [followed, seen], [curves, seen], **quiet)
        tabs.select(watch, None, [timer], **quiet)
    return page
