"""The Live tab: one training step on the group that is selected, and a short race of credit methods."""

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import gradio as gr
from markupsafe import Markup

from fgrpo.config import Config, KitError
from fgrpo.data import Splits
from fgrpo.tasks import load_task

from . import charts
from .form import CLICKS, RAW
from .library import Library
from .live import RATE, SETTINGS, race, race_config, race_panel, step_panel, take_step
from .markup import message, told
from .visitors import Visitor, in_turn, stopped_by

RACE_STEPS, RACE_EVERY = 50, 5
START = "lab-rec"
"""the run whose policy begins the race: a warm start has most to learn"""


class Live:
    """The components of the tab and their events."""

    def __init__(self, library: Library):
        self.library = library
        gr.HTML(
            "<p>One RL step on the sampled rollouts of the selected query, apart for each of the two credit methods: "
            "what becomes more likely, and what less? Below, both methods train for 50 steps side by side.</p>"
        )
        with gr.Row():
            self.lr = gr.Number(RATE, label="Learning rate of the step", minimum=1e-6, maximum=1e-2, step=1e-5)
            self.step = gr.Button("Take one step on this group", variant="primary")
        self.step_status = gr.HTML(elem_id="at-step-status")
        self.stepped = gr.HTML(js_on_load=CLICKS, elem_id="at-step")
        with gr.Row():
            self.model = gr.Dropdown([], label="Start of the race", info="a copy: the run itself stays as it is")
            self.setting = gr.Dropdown(
                list(SETTINGS), value=next(iter(SETTINGS)), label="Race",
                info="control: rank tokens alone learn, and the slate's judge is noisy, so joint credit must do harm",
            )  # fmt: skip
            self.start = gr.Button("Start the race")
            self.stop = gr.Button("Stop the race")
        self.race_status = gr.HTML(elem_id="at-race-status")
        self.raced = gr.HTML(elem_id="at-race")

    def wire(self, own: gr.State, selected: Sequence[Any], methods: Sequence[Any], whole: dict[str, Any]) -> None:
        """The events of the tab. `selected`: run and query; `methods`: the two credit methods; `whole`: event options."""
        heavily = in_turn(self._step, heavy=lambda *_: True)
        self.step.click(heavily, [own, self.lr, *selected, *methods], [self.step_status, self.stepped], **whole)
        going = self.start.click(
            self._race, [own, self.model, self.setting, *methods], [self.race_status, self.raced], concurrency_limit=1,
            concurrency_id="race", show_progress="minimal", show_progress_on=[self.race_status], **RAW,
        )  # fmt: skip
        stopped_by(self.stop, going, own, self.race_status, "race", "Stopped.")

    def _step(self, own: Visitor, lr: object, run: object, query: object, *methods: object) -> list[Any]:
        """A sentence on what is wrong, and what the step shows. The policy is that of the run, where it has one."""
        try:
            model = run if run in self.library.with_policy() else START
            config, policy = self._policy(model)
            group = self.library.trace(str(run), own.traces).group(str(query))
            rate = float(lr) if isinstance(lr, int | float) and not isinstance(lr, bool) else -1.0
            pair = [str(m) for m in reversed(methods)]  # the one compared with first, as everywhere
            found = take_step(policy, group, config, pair, rate, of_another=run != model)
            return [Markup(""), step_panel(found, group.example)]
        except KitError as error:
            return [message(told(error), "problem"), gr.skip()]

    def _race(self, own: Visitor, model: object, setting: object, *methods: object) -> Iterator[list[Any]]:
        shown: Any = gr.skip()  # sent again at the end: of two answers in quick succession a browser may drop the first
        own.going.add("race")
        try:
            yield [message("Loading the policy and the task."), shown]
            config, policy = self._policy(model)
            config = race_config(config, str(setting))
            pair = [str(m) for m in reversed(methods)]
            for state in race(policy, config, splits_of(config), pair, RACE_STEPS, RACE_EVERY):
                done = min(points[-1].step for points in state.points.values())
                shown = race_panel(state, draw)
                if done < state.steps:
                    yield [message(f"{done} of {state.steps} steps."), shown]
            last = message(f"All {state.steps} steps are done.")
        except KitError as error:
            last = message(told(error), "problem")
        except Exception as error:
            print(f"app: a race failed: {error!r:.500}", file=sys.stderr)
            last = message(f"the race failed ({type(error).__name__}: {told(error)[:200]}).", "problem")
        own.going.discard("race")
        yield [last, shown]

    def _policy(self, model: object) -> tuple[Config, Any]:
        return self.library.config(str(model)), self.library.policy(str(model))


@lru_cache(maxsize=4)
def splits_of(config: Config) -> Splits:
    """The queries of a task, read once for each configuration. Raises KitError if its data are not here."""
    if config.data:
        raise KitError("a race runs on tasks that the kit makes itself: choose a policy of a lab task.")
    return load_task(config)[0]


def draw(series: Sequence[tuple[str, Sequence[int], Sequence[float], str]], title: str, ylabel: str) -> Markup:
    """One panel of the curves of a race."""
    found = [charts.Series(name, values, steps, colour) for name, steps, values, colour in series]
    return charts.curves(found, title, ylabel)
