"""The Playground tab: a form, live generation, and its result."""

import shutil
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
from .markup import join, message, tag
from .measures import group_credit
from .playground import GROUP, Form, config_of, example_from, form_of, generate, typed
from .token_strip import tokens_of

OWN = 5
"""maximum number of traces kept for one visitor"""
GENERATED = "yours: playground"
"""name of the trace that was generated last"""
RAW: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
"""options of events that take any value: one that is out of range gets a message of ours, not an error of gradio"""


@cache
def presets() -> dict[str, Example]:
    """Queries to start from, by name."""
    lab = {f"lab-rec, {e.id}": e for e in lab_task().test[:8]}
    return lab | {e.id: e for e in read_jsonl(Path(__file__).parent / "presets.jsonl")}


class Playground:
    """The components of the tab and their events."""

    def __init__(self, library: Library, own: gr.State, folder: Path, methods: tuple[gr.Radio, gr.Radio]):
        """`own`: the visitor's traces; `folder`: where new ones are written; `methods`: the two credit methods."""
        self.library, self.folder = library, folder
        first = next(iter(presets().values()), Example("", "", (), (), frozenset()))
        self.source = gr.State(first)
        with gr.Row():
            info = "the policy of a run; a tiny policy knows the titles of its own catalogue only"
            self.model = gr.Dropdown([], label="Model", info=info)
            self.preset = gr.Dropdown(list(presets()), value=next(iter(presets()), None), label="Preset")
            self.take = gr.Button("Use the query selected above")
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
        self.result = gr.HTML(elem_id="at-result")
        values = [getattr(self, f.name) for f in fields(Form)]
        form = [self.query, self.history, self.pool, self.source]
        self.preset.input(self._preset, [self.preset], form, show_progress="hidden", **RAW)
        self.going = self.run.click(
            self._generate, [own, self.model, self.source, *methods, *values],
            [self.status, self.result, own, self.inspect, self.save],
            concurrency_limit=1, concurrency_id="generate", show_progress="hidden", **RAW,
        )  # fmt: skip
        self.stop.click(
            lambda: message("Stopped. The rollouts completed so far are shown, but not saved."),
            None, [self.status], cancels=[self.going], api_visibility="private", show_progress="hidden",
        )  # fmt: skip

    def form_of(self, example: Example) -> list[Any]:
        """The values of the form for a query."""
        return [*typed(example), example]

    def _preset(self, name: object) -> list[Any]:
        return self.form_of(presets()[name]) if isinstance(name, str) and name in presets() else [gr.skip()] * 4

    def _generate(
        self, own: dict[str, str], chosen: object, source: Example, method: object, against: object, *values: object
    ) -> Iterator[list[Any]]:
        """Show each rollout as it is generated. An error is reported in the status line and changes nothing else."""
        nothing = [gr.skip()] * 3
        model, method, against = map(str, (chosen, method, against))
        yield [message(f"Loading {model}."), Markup(""), *nothing]
        try:
            form = form_of(*values)
            count, seed = form.group, form.seed
            config = config_of(form, self.library.config(model))
            example, policy = example_from(form, source), self.library.policy(model)
            group = None
            for done, group in generate(policy, example, config, count, seed):
                progress = message(f"{done} of {count} sampled rollouts.")
                yield [progress, self._result(group, config, method, against, done == count), *nothing]
            assert group is not None
            path = self.folder / uuid.uuid4().hex / "playground.jsonl"
            write_trace(path, trace_of(f"playground, {model}", config, [group]))
            done_text = message(f"Generated {count} sampled rollouts and the greedy one with {model}.")
            yield [done_text, gr.skip(), add_trace(own, GENERATED, path),
                   gr.update(interactive=True), gr.update(value=str(path), interactive=True)]  # fmt: skip
        except KitError as error:
            yield [message(str(error), "problem"), gr.skip(), *nothing]
        except Exception as error:
            print(f"app: generation failed: {error!r:.500}", file=sys.stderr)
            text = f"generation failed ({type(error).__name__}: {str(error)[:200]}); the app still runs, try other settings."
            yield [message(text, "problem"), gr.skip(), *nothing]

    def _result(self, group: Group, config: Any, method: str, against: str, last: bool) -> Markup:
        """The greedy rollout, and after the last one the group with its credit."""
        assert group.greedy is not None
        parts = [
            views.strip_panel(tokens_of(group.example, group.greedy), "log-prob", (method, method)),
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


def add_trace(own: dict[str, str], name: str, path: Path) -> dict[str, str]:
    """The visitor's traces with a new one. If there are more than OWN, the oldest are removed with their files."""
    kept = {k: v for k, v in own.items() if k != name} | {name: str(path)}
    removed = [own[name]] if name in own else []
    while len(kept) > OWN:
        removed.append(kept.pop(next(iter(kept))))
    remove_files(removed)
    return kept


def remove_files(paths: list[str]) -> None:
    """Remove traces that were kept for a visitor, each with its folder."""
    for path in paths:
        shutil.rmtree(Path(path).parent, ignore_errors=True)
