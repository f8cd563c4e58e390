"""Sliders for a figure. `ipywidgets.interact` draws into an Output widget, with which nbclient sometimes hangs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets


def live(draw: Callable[..., Path], **controls: tuple[float, float, float, float] | list[Any]) -> ipywidgets.VBox:
    """A figure that is drawn again when a control changes. `draw` takes the controls' values and returns a PNG file.

    A control is (minimum, maximum, step, start) for a slider, or a list of choices, which starts at the first.
    """
    widgets = {
        name: ipywidgets.Dropdown(options=values, description=name)
        if isinstance(values, list)
        else ipywidgets.FloatSlider(
            value=values[3], min=values[0], max=values[1], step=values[2], description=name, continuous_update=False,
        )
        for name, values in controls.items()
    }  # fmt: skip
    picture = ipywidgets.Image(format="png")

    def redraw(_change: object = None) -> None:
        picture.value = draw(**{name: widget.value for name, widget in widgets.items()}).read_bytes()

    for widget in widgets.values():
        widget.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*widgets.values(), picture])
