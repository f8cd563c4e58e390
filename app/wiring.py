"""The page: its components, and which event updates which of them. The contents come from show.py, which never raises."""

import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from fgrpo.config import KitError

from .form import GENERATED, RAW, Playground, add_trace, remove_files
from .library import Library, open_trace
from .markup import join, message, printable
from .measures import METHODS
from .show import SLOTS, Chosen, Page, queries_of_bar, show, training
from .token_strip import COLOURS

LINKED = tuple(Chosen.__dataclass_fields__)
"""Parameters of a link, in the order of the controls."""
CLICKS = """element.addEventListener('click', (e) => {
  const button = e.target.closest('button[data-rollout], button[data-fate], button[data-query]');
  if (button) trigger('click', {...button.dataset});
});"""
TO_URL = """(shown) => {
  const url = new URL(window.location);
  for (const [name, value] of Object.entries(shown ?? {}))
    value ? url.searchParams.set(name, value) : url.searchParams.delete(name);
  window.history.replaceState({}, "", url);
}"""
COPY = "() => { navigator.clipboard?.writeText(window.location.href); return window.location.href; }"
SECONDS = 2
"""interval at which the curves of a run are updated"""


def clicked(event: gr.EventData) -> dict[str, str]:
    """What a button inside the page's HTML says, which a visitor may make anything: names and values as short texts."""
    data = event._data if isinstance(event._data, dict) else {}
    return {str(name): str(value)[:1000] for name, value in data.items()}


def uploaded_path(file: Any) -> str | None:
    """Where the server put an uploaded file, whatever its ending: gradio would refuse others with a traceback."""
    return getattr(file, "path", None)


def text_of(value: object) -> str:
    """The value of a control, which a visitor may make anything, as a text."""
    return value if isinstance(value, str) else ""


def theme() -> gr.themes.Base:
    """System fonts (nothing is downloaded), and text with a contrast of at least 4.5 in light and dark mode."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
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
        own = gr.State({}, time_to_live=7200, delete_callback=lambda mine: remove_files(list(mine.values())))
        gr.HTML("<h1>F-GRPO: inspect subsets, rankings and credit</h1>")
        with gr.Row():
            run = gr.Dropdown([], label="Run", info="or a trace of your own (tab Files)")
            query = gr.Dropdown([], label="Query", info="type to search", scale=2)
        with gr.Row():
            method = gr.Radio(METHODS, value="fgrpo", label="Credit method")
            against = gr.Radio(METHODS, value="grpo", label="Compared with")
        problems = gr.HTML(elem_id="at-problems")
        shown = gr.JSON(visible=False)  # the state that the page shows: controls may already be ahead of it
        html: dict[str, gr.HTML] = {}

        def slot(name: str) -> None:
            html[name] = gr.HTML(js_on_load=CLICKS, elem_id=f"at-{name}")

        with gr.Tabs() as tabs:
            with gr.Tab("Inspect", id="inspect"):
                with gr.Row():
                    rollout = gr.Dropdown([], label="Rollout")
                    colour = gr.Radio(COLOURS, value="advantage", label="Colour tokens by")
                slot("query")
                slot("strip")
                with gr.Row():
                    with gr.Column(scale=2, min_width=300):
                        slot("pool")
                    with gr.Column(scale=1, min_width=260):
                        slot("errors")
                        slot("advantages")
            with gr.Tab("Group", id="group"):
                slot("group")
                slot("plane")
            with gr.Tab("Compare", id="compare"):
                with gr.Row():
                    a, b = gr.Dropdown([], label="A"), gr.Dropdown([], label="B")
                for name in ("side", "metrics", "bars", "queries"):
                    slot(name)
            with gr.Tab("Playground", id="playground"):
                form = Playground(library, own, folder, (method, against))
            with gr.Tab("Training", id="training"):
                followed = gr.Dropdown([], label="Run to follow", info=f"updated every {SECONDS} s while it trains")
                curves = gr.HTML(elem_id="at-curves")
                timer, seen = gr.Timer(SECONDS, active=False), gr.State(())
            with gr.Tab("Files", id="files"):
                upload = gr.File(label="Open your own trace or examples (JSONL, up to 20 MB)", file_types=[".jsonl"],
                                 visible=library.space > 0)  # fmt: skip
                upload.preprocess = uploaded_path  # type: ignore[method-assign, assignment]
                uploaded, opened = gr.HTML(elem_id="at-uploaded"), gr.State("")
                save = gr.DownloadButton("Download the trace of this run (JSONL)")
                again = gr.Button("Update the list of runs")
                copy = gr.Button("Copy a link to this view")
                link = gr.Textbox(label="Link", interactive=False)

        controls: list[Any] = [run, query, rollout, colour, method, against, a, b]
        everything = [*controls, shown, problems, save, *(html[name] for name in SLOTS)]
        inputs = [own, *controls]

        def refresh(mine: dict[str, str], *values: object, **changed: str) -> list[Any]:
            sent = Chosen(*map(text_of, values))
            return parts(show(library, replace(sent, **changed), mine), mine, sent)

        def parts(found: Page, mine: dict[str, str], sent: Chosen | None = None) -> list[Any]:
            """Updates for `everything`. A control whose value is still the one that was `sent` is not updated: the visitor
            may have changed it in the meantime, and a late answer must not undo that. A value that is no longer in a list
            is cleared."""
            c, traces = found.chosen, [*library.having("trace.jsonl"), *mine]
            file = library.download(c.run, mine, folder)
            lists: dict[str, Any] = dict.fromkeys(("run", "a", "b"), traces)
            lists |= {"query": found.queries, "rollout": found.rollouts}

            def value_of(name: str) -> str:
                value = getattr(c, name)
                offered = [x if isinstance(x, str) else x[1] for x in lists.get(name, [value])]
                return value if value in offered else ""

            def control(name: str) -> Any:
                changes: dict[str, Any] = {"choices": lists[name]} if name in lists else {}
                if sent is None or values[name] != getattr(sent, name):
                    changes["value"] = values[name] or None
                return gr.update(**changes)

            values = {name: value_of(name) for name in LINKED}
            return [
                *(control(name) for name in LINKED), values, join(found.problems),
                gr.update(value=str(file) if file else None, interactive=bool(file)), *(found.html[n] for n in SLOTS),
            ]  # fmt: skip

        def open_page(mine: dict[str, str], request: gr.Request) -> list[Any]:
            asked = {name: str(request.query_params.get(name, ""))[:1000] for name in LINKED}
            traces, logs, models = library.having("trace.jsonl"), library.having("metrics.jsonl"), library.with_policy()
            first = next((t for t in ("lab-rec-fgrpo", *traces) if t in traces), "")
            second = next((t for t in ("lab-rec-grpo", *traces) if t in traces), "")
            chosen = replace(Chosen(first, a=second, b=first), **{name: text for name, text in asked.items() if text})
            return [
                *parts(show(library, chosen, mine), mine), gr.update(choices=logs, value=first if first in logs else None),
                gr.update(choices=models, value=first if first in models else next(iter(models), None)),
            ]  # fmt: skip

        def refresh_lists(mine: dict[str, str], *values: object) -> list[Any]:
            """Read the folder of runs again; the choices stay."""
            logs, models = library.having("metrics.jsonl"), library.with_policy()
            return [*refresh(mine, *values), gr.update(choices=logs), gr.update(choices=models)]

        def click(event: gr.EventData, mine: dict[str, str], *values: object) -> list[Any]:
            """A button inside the page's HTML: a rollout of the group, or a query of a list."""
            data, a = clicked(event), text_of(values[LINKED.index("a")])
            changed = {"rollout": data["rollout"]} if "rollout" in data else {}
            changed |= {"run": a, "query": data["query"], "rollout": ""} if "query" in data else {}
            tab = gr.Tabs(selected="inspect" if "rollout" in data else "compare")
            return [*refresh(mine, *values, **changed), tab]

        def list_queries(event: gr.EventData, mine: dict[str, str], a: object, b: object) -> Any:
            data = clicked(event)
            if "fate" not in data:
                return gr.skip()
            return queries_of_bar(library, text_of(a), text_of(b), mine, data.get("run", ""), data["fate"])

        def open_upload(path: str | None, mine: dict[str, str]) -> list[Any]:
            """What is wrong with an uploaded file, the visitor's traces, and the name of the new one if it can be shown."""
            if not path:
                return [gr.skip()] * 3
            name, bad = f"yours: {printable(Path(path).name, 60)}", list[str]()
            try:
                library.room(folder, Path(path).stat().st_size)  # for the copy
                opened = open_trace(Path(path), name, bad)
                kept = (
                    folder / uuid.uuid4().hex / "upload.jsonl"
                )  # gradio has one copy for all who upload the same file
                kept.parent.mkdir()
                shutil.copyfile(path, kept)
            except (KitError, OSError) as error:
                return [message("\n".join([str(error), *bad[:3]]), "problem"), mine, ""]
            messages = [message(f"{name}: {len(opened.trace.groups)} queries. Select it as Run, A or B.")]
            if bad:
                more = [f"and {len(bad) - 10} more"] if len(bad) > 10 else []
                messages.append(
                    message("\n".join([f"{len(bad)} invalid lines were left out:", *bad[:10], *more]), "problem")
                )
            return [join(messages), add_trace(mine, name, kept), name]

        def show_upload(name: str, mine: dict[str, str], *values: object) -> list[Any]:
            changed = {"run": name, "query": "", "rollout": ""} if name in mine else {}
            return refresh(mine, *values, **changed)

        def take(mine: dict[str, str], run: object, query: object) -> list[Any]:
            """The selected query, in the form of the Playground."""
            try:
                return [*form.form_of(library.trace(text_of(run), mine).group(text_of(query)).example), gr.skip()]
            except KitError as error:
                return [*[gr.skip()] * 4, message(str(error), "problem")]

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

        def link_to(done: Any) -> None:
            """The address changes last, to what the page shows."""
            done.then(None, [shown], None, js=TO_URL)

        whole = quiet | {"concurrency_id": "page", "concurrency_limit": 1}  # answers come in the order of the events
        link_to(gr.on([c.input for c in controls], refresh, inputs, everything, trigger_mode="always_last", **whole))
        link_to(page.load(open_page, [own], [*everything, followed, form.model], **whole))
        again.click(refresh_lists, inputs, [*everything, followed, form.model], **whole)
        for name in ("group", "queries"):
            link_to(html[name].click(click, inputs, [*everything, tabs], **whole))
        html["bars"].click(list_queries, [own, a, b], [html["queries"]], **quiet)
        read = upload.upload(open_upload, [upload, own], [uploaded, own, opened], **whole | {"preprocess": True})
        link_to(read.then(show_upload, [opened, *inputs], everything, **whole))
        copy.click(None, None, [link], js=COPY)

        form.going.then(refresh, inputs, everything, **whole)
        link_to(form.inspect.click(
            lambda *values: [*refresh(*values, run=GENERATED, query="", rollout=""), gr.Tabs(selected="inspect")],
            inputs, [*everything, tabs], **whole,
        ))  # fmt: skip
        form.take.click(
            take, [own, run, query], [form.query, form.history, form.pool, form.source, form.status], **quiet
        )

        followed.change(follow, [followed, seen], [curves, seen], **quiet)
        timer.tick(follow, [followed, seen], [curves, seen], **quiet)
        tabs.select(watch, None, [timer], **quiet)
    return page
