"""The page: components, and which event changes what. What is shown comes from show.py, which never raises."""

import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from fgrpo.config import KitError

from .form import MADE, Playground, choice, forget, keep
from .library import Library, open_trace
from .markup import join, message, shown
from .measures import METHODS
from .show import PLACES, Chosen, Page, listed, show, training
from .token_strip import COLOURS

LINKED = tuple(Chosen.__dataclass_fields__)
"""What a link says, in the order of the controls."""
CLICKS = """element.addEventListener('click', (e) => {
  const button = e.target.closest('button[data-rollout], button[data-fate], button[data-query]');
  if (button) trigger('click', {...button.dataset});
});"""
TO_URL = """(...values) => {
  const url = new URL(window.location);
  NAMES.forEach((name, i) => values[i] ? url.searchParams.set(name, values[i]) : url.searchParams.delete(name));
  window.history.replaceState({}, "", url);
}""".replace("NAMES", str(list(LINKED)))
COPY = "() => { navigator.clipboard?.writeText(window.location.href); return window.location.href; }"
SECONDS = 2
"""between two looks at the metrics of a run that is followed"""


def theme() -> gr.themes.Base:
    """Fonts of the machine (nothing is fetched), and texts with a contrast of 4.5 and more, in light and dark."""
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
    """The whole page over a library of runs. `folder` takes what visitors upload and generate."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Blocks(
        title="F-GRPO: subsets, rankings, credit", analytics_enabled=False, delete_cache=(600, 7200)
    ) as page:
        own = gr.State({}, time_to_live=7200, delete_callback=lambda mine: forget(list(mine.values())))
        gr.HTML("<h1>F-GRPO: look inside subsets, rankings and credit</h1>")
        with gr.Row():
            run = choice([], label="Run", info="a trace of the list, or one of yours (Files)")
            query = choice([], label="Query", info="type to search")
            method = gr.Radio(METHODS, value="fgrpo", label="Credit method")
            against = gr.Radio(METHODS, value="grpo", label="Compared with")
        problems = gr.HTML(elem_id="at-problems")
        html: dict[str, gr.HTML] = {}

        def place(name: str) -> None:
            html[name] = gr.HTML(js_on_load=CLICKS, elem_id=f"at-{name}")

        with gr.Tabs() as tabs:
            with gr.Tab("Inspect", id="inspect"):
                with gr.Row():
                    rollout = choice([], label="Rollout")
                    colour = gr.Radio(COLOURS, value="advantage", label="Colour tokens by")
                place("query")
                place("strip")
                with gr.Row():
                    with gr.Column(scale=2, min_width=300):
                        place("pool")
                    with gr.Column(scale=1, min_width=260):
                        place("verdict")
                        place("advantages")
            with gr.Tab("Group", id="group"):
                place("group")
                place("plane")
            with gr.Tab("Compare", id="compare"):
                with gr.Row():
                    a, b = choice([], label="A"), choice([], label="B")
                for name in ("side", "metrics", "bars", "listed"):
                    place(name)
            with gr.Tab("Playground", id="playground"):
                form = Playground(library, own, folder, (method, against))
            with gr.Tab("Training", id="training"):
                followed = choice([], label="Run to follow", info=f"drawn anew every {SECONDS} s while it trains")
                curves = gr.HTML(elem_id="at-curves")
                timer, seen = gr.Timer(SECONDS, active=False), gr.State(())
            with gr.Tab("Files", id="files"):
                upload = gr.File(label="Open your own trace or examples (JSONL, up to 20 MB)", file_types=[".jsonl"])
                uploaded = gr.HTML(elem_id="at-uploaded")
                save = gr.DownloadButton("Save the trace that is shown (JSONL)")
                again = gr.Button("Look for new runs")
                copy = gr.Button("Copy a link to what is shown")
                link = gr.Textbox(label="Link", interactive=False)

        controls: list[Any] = [run, query, rollout, colour, method, against, a, b]
        everything = [*controls, problems, save, *(html[name] for name in PLACES)]
        inputs = [own, *controls]

        def look(mine: dict[str, str], *values: str | None, **changed: str) -> list[Any]:
            sent = Chosen(*(x or "" for x in values))
            return parts(show(library, replace(sent, **changed), mine), mine, sent)

        def parts(found: Page, mine: dict[str, str], sent: Chosen | None = None) -> list[Any]:
            """What the page is to show. A control that showed its choice as it was `sent` is left alone: the visitor may
            have moved it since, and an answer on its way must not undo that. What a list no longer holds is not chosen
            in it: gradio would refuse every event after that."""
            c, traces = found.chosen, [*library.having("trace.jsonl"), *mine]
            file = str(library.path(c.run, mine)) if c.run in traces else None
            lists: dict[str, Any] = dict.fromkeys(("run", "a", "b"), traces)
            lists |= {"query": found.queries, "rollout": found.rollouts}

            def control(name: str) -> Any:
                value, more = getattr(c, name), dict[str, Any]()
                if name in lists:
                    more["choices"] = lists[name]
                    value = value if value in [x if isinstance(x, str) else x[1] for x in lists[name]] else ""
                if sent is None or value != getattr(sent, name):
                    more["value"] = value or None
                return gr.update(**more)

            return [
                *(control(name) for name in LINKED), join(found.problems),
                gr.update(value=file, interactive=bool(file)), *(found.html[n] for n in PLACES),
            ]  # fmt: skip

        def open_page(mine: dict[str, str], request: gr.Request) -> list[Any]:
            asked = {name: str(request.query_params.get(name, ""))[:1000] for name in LINKED}
            traces, logs, models = library.having("trace.jsonl"), library.having("metrics.jsonl"), library.with_policy()
            first = next((t for t in ("lab-rec-fgrpo", *traces) if t in traces), "")
            defaults = {"run": first, "a": next((t for t in ("lab-rec-grpo", *traces) if t in traces), ""), "b": first}
            chosen = Chosen(**{name: asked[name] or defaults.get(name, "") for name in LINKED})
            return [
                *parts(show(library, chosen, mine), mine), gr.update(choices=logs, value=first if first in logs else None),
                gr.update(choices=models, value=first if first in models else next(iter(models), None)),
            ]  # fmt: skip

        def look_again(mine: dict[str, str], *values: str | None) -> list[Any]:
            """The lists as the folder of runs is now; what was chosen stays."""
            logs, models = library.having("metrics.jsonl"), library.with_policy()
            return [*look(mine, *values), gr.update(choices=logs), gr.update(choices=models)]

        def click(event: gr.EventData, mine: dict[str, str], *values: str | None) -> list[Any]:
            """A button inside the page's HTML: a rollout of the group, a query of a list."""
            said, a = event._data or {}, values[LINKED.index("a")] or ""
            changed = {"rollout": said["rollout"]} if "rollout" in said else {}
            changed |= {"run": a, "query": said["query"], "rollout": ""} if "query" in said else {}
            tab = gr.Tabs(selected="inspect" if "rollout" in said else "compare")
            return [*look(mine, *values, **changed), tab]

        def list_queries(event: gr.EventData, mine: dict[str, str], a: str, b: str) -> Any:
            said = event._data or {}
            return listed(library, a, b, mine, said.get("run", ""), said["fate"]) if "fate" in said else gr.skip()

        def open_upload(path: str | None, mine: dict[str, str], *values: str | None) -> list[Any]:
            if not path:
                return [gr.skip()] * (2 + len(everything))
            name, bad = f"yours: {shown(Path(path).name, 60)}", list[str]()
            try:
                opened = open_trace(Path(path), name, bad)
            except (KitError, OSError) as error:
                lines = "\n".join([str(error), *bad[:10]])
                return [message(lines, "problem"), mine, *[gr.skip()] * len(everything)]
            told = [message(f"{name}: {len(opened.trace.groups)} queries. Choose it as Run, A or B.")]
            if bad:
                more = [f"and {len(bad) - 10} more"] if len(bad) > 10 else []
                told.append(
                    message("\n".join([f"{len(bad)} broken lines were left out:", *bad[:10], *more]), "problem")
                )
            kept = folder / uuid.uuid4().hex / "upload.jsonl"  # gradio's own copy is one for all who upload the same
            kept.parent.mkdir()
            mine = keep(mine, name, Path(shutil.copyfile(path, kept)))
            return [join(told), mine, *look(mine, *values, run=name, query="", rollout="")]

        def follow(name: str | None, before: tuple) -> list[Any]:
            """The curves, drawn anew only if the run has logged something since."""
            try:
                facts = (library.folder(name or "") / "metrics.jsonl").stat()
                now = (name, facts.st_mtime_ns, facts.st_size)
            except (KitError, OSError):
                now = (name, 0, 0)
            return [gr.skip(), gr.skip()] if now == before else [training(library, name or ""), now]

        def watch(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == "Training")

        def link_to(done: Any) -> None:
            done.then(None, controls, None, js=TO_URL)

        whole = quiet | {"concurrency_id": "page", "concurrency_limit": 1}  # answers come in the order of the questions
        link_to(gr.on([c.input for c in controls], look, inputs, everything, trigger_mode="always_last", **whole))
        link_to(page.load(open_page, [own], [*everything, followed, form.model], **whole))
        again.click(look_again, inputs, [*everything, followed, form.model], **whole)
        for name in ("group", "listed"):
            link_to(html[name].click(click, inputs, [*everything, tabs], **whole))
        html["bars"].click(list_queries, [own, a, b], [html["listed"]], **quiet)
        link_to(upload.upload(open_upload, [upload, *inputs], [uploaded, own, *everything], **whole))
        copy.click(None, None, [link], js=COPY)

        form.going.then(look, inputs, everything, **whole)
        link_to(form.inspect.click(
            lambda mine, *values: [*look(mine, *values, run=MADE, query="", rollout=""), gr.Tabs(selected="inspect")],
            inputs, [*everything, tabs], **whole,
        ))  # fmt: skip
        form.take.click(
            lambda mine, run, query: form.form_of(library.trace(run, mine).group(query).example) if run and query
            else [gr.skip()] * 4, [own, run, query], [form.query, form.history, form.pool, form.source], **quiet,
        )  # fmt: skip

        followed.change(follow, [followed, seen], [curves, seen], **quiet)
        timer.tick(follow, [followed, seen], [curves, seen], **quiet)
        tabs.select(watch, None, [timer], **quiet)
    return page
