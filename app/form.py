"""The Playground tab: a form, live generation, and its result."""

import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from fgrpo.config import KitError
from fgrpo.data import Example
from fgrpo.runs.trace import Group, trace_of, write_trace
from fgrpo.tasks.jsonl import read_jsonl
from fgrpo.tasks.lab import lab_task

from . import views
from .library import Library
from .markup import join, message, tag, told
from .measures import group_credit
from .playground import GROUP, Form, config_of, example_from, form_of, generate, typed
from .token_strip import tokens_of
from .viewer import catalogue_panel, make_viewer, toggled
from .visitors import Visitor, stopped_by

GENERATED = "yours: playground"
"""name of the trace that was generated last"""
RAW: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
"""options of events that take any value: one that is out of range gets a message of ours, not an error of gradio"""
CLICKS = """const go = (e) => {
  const button = e.target.closest('[data-rollout], [data-fate], [data-query], [data-go], [data-film]');
  if (button) trigger('click', {...button.dataset});
};
element.addEventListener('click', go);
element.addEventListener('keydown', (e) => {  // points of figures are no buttons of HTML
  if (e.target.matches('[role=button]') && (e.key === 'Enter' || e.key === ' ')) { e.preventDefault(); go(e); }
});"""


def clicked(event: gr.EventData) -> dict[str, str]:
    """What a button inside the page's HTML says, which a visitor may make anything: names and values as short texts."""
    data = event._data if isinstance(event._data, dict) else {}
    return {str(name): str(value)[:20_000] for name, value in data.items()}


@cache
def presets() -> dict[str, Example]:
    """Queries to start from, by name."""
    lab = {f"lab-rec, {e.id}": e for e in lab_task().test[:8]}
    return lab | {e.id: e for e in read_jsonl(Path(__file__).parent / "presets.jsonl")}


class Playground:
    """The components of the tab and their events."""

    def __init__(self, library: Library, own: gr.State, folder: Path, methods: tuple[gr.Dropdown, gr.Dropdown]):
        """`own`: the visitor's traces; `folder`: where new ones are written; `methods`: the two credit methods."""
        self.library, self.folder = library, folder
        first = next(iter(presets().values()), Example("", "", (), (), frozenset()))
        self.source = gr.State(first)
        with gr.Row():
            info = "the policy of a run; text-... read any title, other tiny ones know those of their catalogue only"
            self.model = gr.Dropdown([], label="Model", info=info)
            self.preset = gr.Dropdown(list(presets()), value=next(iter(presets()), None), label="Preset")
            self.take = gr.Button("Use the query selected above")
        with gr.Accordion("Make a viewer by choosing films", open=False) as making:
            self.search = gr.Textbox(
                label="Search films", placeholder="a title, a genre, a tone, an era", max_length=100
            )
            self.films = gr.HTML(js_on_load=CLICKS, elem_id="at-films")
            self.liked = gr.State(())
            self.viewer = gr.Button("Put this viewer into the form")
        texts = typed(first)
        self.query = gr.Textbox(texts[0], label="Query", max_length=5000)
        with gr.Row():
            self.history = gr.Textbox(
                texts[1], label="History, one entry per line", lines=8, max_lines=12, max_length=200_000
            )
            self.pool = gr.Textbox(texts[2], label="Pool, one candidate per line, * before relevant ones", lines=8,
                                   max_lines=12, max_length=500_000)  # fmt: skip
        with gr.Row():
            self.temperature = gr.Slider(0.1, 2, 1.0, step=0.05, label="Temperature")
            self.slate_size = gr.Slider(1, 20, 10, step=1, label="Maximum slate size")
            self.rank_size = gr.Slider(1, 10, 5, step=1, label="Maximum rank size")
            self.group = gr.Slider(1, GROUP, 8, step=1, label="Sampled rollouts")
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
            self.decoding = gr.Radio(["constrained", "free"], value="constrained", label="Decoding")
        with gr.Row():
            self.run = gr.Button("Generate", variant="primary")
            self.stop = gr.Button("Stop")
            self.inspect = gr.Button("Open in Inspect, Group and Compare", interactive=False)
            self.save = gr.DownloadButton("Download these rollouts (JSONL)", interactive=False)
        self.status = gr.HTML(elem_id="at-status")
        self.result = gr.HTML(js_on_load=CLICKS, elem_id="at-result")
        self.made = gr.State(False)  # whether the result is that of the trace GENERATED
        values = [getattr(self, f.name) for f in fields(Form)]
        form = [self.query, self.history, self.pool, self.source]
        self.linked = [self.model, *values]
        # one after the other, so that no late answer shows an older choice: each takes milliseconds
        chosen: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "form", "concurrency_limit": 1, **RAW}
        self.preset.input(self._preset, [self.preset], form, **chosen)
        making.expand(self._found, [self.liked, self.search], [self.films], **chosen)
        self.films.click(self._film, [self.liked, self.search], [self.liked, self.films, self.status], **chosen)
        self.search.input(self._found, [self.liked, self.search], [self.films], trigger_mode="always_last", **chosen)
        self.viewer.click(self._viewer, [self.liked, self.seed], [*form, self.status], **chosen)
        self.going = self.run.click(
            self._generate, [own, self.model, self.source, *methods, *values],
            [self.status, self.result, self.made, self.inspect, self.save],
            concurrency_limit=1, concurrency_id="generate", show_progress="minimal", show_progress_on=[self.status], **RAW,
        )  # fmt: skip
        words = "Stopped. The rollouts completed so far are shown, but not saved."
        stopped_by(self.stop, self.going, own, self.status, "generation", words)

    def form_of(self, example: Example) -> list[Any]:
        """The values of the form for a query."""
        return [*typed(example), example]

    def opened(self, text: str, models: list[str]) -> tuple[list[Any], str]:
        """Updates for `linked` and the source from the text in a link (empty: none), and what is wrong with it."""
        nothing = [gr.skip()] * (len(self.linked) + 1)
        if not text:
            return nothing, ""
        try:
            model, *values = json.loads(text)
            form = form_of(*values)
        except (KitError, ValueError, TypeError, RecursionError) as error:
            why = told(error) if isinstance(error, KitError) else "it is cut or changed"
            return nothing, f"The form of the Playground in this link cannot be read: {why.rstrip('.')}."
        typed_texts = (form.query, form.history, form.pool)
        source = next((e for e in presets().values() if typed(e) == typed_texts), Example("", "", (), (), frozenset()))
        chosen = gr.update(value=model) if model in models else gr.skip()
        return [chosen, *(getattr(form, f.name) for f in fields(Form)), source], ""

    def redrawn(self, own: Visitor, made: object, method: object, against: object) -> Any:
        """The result under the credit methods that are chosen now; unchanged while there is none."""
        try:
            if made is not True:
                return gr.skip()
            opened = self.library.trace(GENERATED, own.traces)
            return self._result(next(opened.groups()), opened.config, str(method), str(against), True)
        except KitError as error:
            return message(told(error), "problem")

    def _film(self, event: gr.EventData, liked: tuple[int, ...], search: object) -> list[Any]:
        """A click on a film: it is chosen, or no longer."""
        try:
            liked = toggled(liked, clicked(event).get("film"))
            return [liked, self._found(liked, search), Markup("")]
        except KitError as error:
            return [liked, gr.skip(), message(told(error), "problem")]

    def _found(self, liked: tuple[int, ...], search: object) -> Markup:
        return catalogue_panel(liked, search[:100] if isinstance(search, str) else "")

    def _viewer(self, liked: tuple[int, ...], seed: object) -> list[Any]:
        try:
            number: Any = int(seed) if isinstance(seed, float) and seed.is_integer() else seed
            example = make_viewer(liked, seed=number)  # which checks it
            words = f"A viewer who liked {len(liked)} films, with a pool drawn as the lab draws pools (seed {number})."
            return [*self.form_of(example), message(words)]
        except KitError as error:
            return [*[gr.skip()] * 4, message(told(error), "problem")]

    def _preset(self, name: object) -> list[Any]:
        return self.form_of(presets()[name]) if isinstance(name, str) and name in presets() else [gr.skip()] * 4

    def _generate(
        self, own: Visitor, chosen: object, source: Example, method: object, against: object, *values: object
    ) -> Iterator[list[Any]]:
        """Show each rollout as it is generated. Only a complete group can be opened and saved, until the next begins.

        Every answer is whole: of two that follow each other fast, a browser may show the second one only.
        """
        shown, none = Markup(""), [False, *[gr.update(interactive=False)] * 2]
        model, method, against = map(str, (chosen, method, against))
        own.going.add("generation")
        yield [message(f"Loading {model}."), shown, *none]
        try:
            form = form_of(*values)
            count, seed = form.group, form.seed
            config = config_of(form, self.library.config(model))
            example, policy = example_from(form, source), self.library.policy(model)
            group = None
            for done, group in generate(policy, example, config, count, seed):
                shown = self._result(group, config, method, against, done == count)
                yield [message(f"{done} of {count} sampled rollouts."), shown, *none]
            assert group is not None
            path = self.folder / uuid.uuid4().hex / "playground.jsonl"
            write_trace(path, trace_of(f"playground, {model}", config, [group]))
            own.add(GENERATED, path)
            last = [message(f"Generated {count} sampled rollouts and the greedy one with {model}."), shown, True,
                    gr.update(interactive=True), gr.update(value=str(path), interactive=True)]  # fmt: skip
        except KitError as error:
            last = [message(told(error), "problem"), shown, *none]
        except Exception as error:
            print(f"app: generation failed: {error!r:.500}", file=sys.stderr)
            text = f"generation failed ({type(error).__name__}: {told(error)[:200]})"
            last = [message(f"{text}; the app still runs, try other settings.", "problem"), shown, *none]
        own.going.discard("generation")
        yield last

    def _result(self, group: Group, config: Any, method: str, against: str, last: bool) -> Markup:
        """The greedy rollout, and after the last one the group with its credit."""
        assert group.greedy is not None
        broken = sum(bool(r.output.error) for r in (group.greedy, *group.rollouts))
        free = (
            f"{broken} of {1 + len(group.rollouts)} rollouts break the grammar. With free decoding nothing keeps the "
            "policy to it: until it ends by itself, its tokens go on to the maximum length, and may repeat. Constrained "
            "decoding allows valid tokens only."
        )
        parts = [
            message(free) if broken and config.rl.decoding == "free" else Markup(""),
            views.strip_panel([("", tokens_of(group.example, group.greedy))], "log-prob"),
            views.pool_table(
                group.example, group.greedy.output, config.grammar, "Pool, with the lists of the greedy rollout"
            ),
            views.errors_panel(group.example, group.greedy, config),
        ]
        if last and len(group.rollouts) > 1:
            try:
                one, other = (group_credit(group, config, m) for m in (method, against))
                parts.append(tag("<h2>Group</h2>{}", views.group_panel(group, config, one, other)))
            except KitError as error:
                parts.append(message(f"No advantages: {error}"))
        return join(parts)
