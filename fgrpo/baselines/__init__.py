"""Baselines to compare a policy with. To add one, write a function of the splits and name it in BASELINES."""

from collections.abc import Callable, Sequence

from ..config import KitError
from ..prompt import Output
from .ceilings import attributes, taste
from .decoupled import decoupled
from .rankers import bm25, cross_encoder, dense, popularity, random_order, retriever
from .sequential import demonstrator as demonstrator
from .sequential import gru4rec, unisrec
from .zero_shot import zero_shot

Baseline = Callable[..., Sequence[Output] | Sequence[Sequence[int]]]
"""Takes the splits of a task and returns one answer per test example: an Output, or the order of its pool (indices, best
first), whose first n are then the slate and whose first k the ranked list. If it has parameters named `items`, `config`,
`grammar`, `folder`, `quiet`, `resume` or `sft_steps`, a comparison passes its catalogue, Config and so on, and the steps
of SFT that cost as much as warm start and RL together; its other parameters are options, bound by functools.partial:
`partial(dense, model="some/folder")`."""

BASELINES: dict[str, Baseline] = {
    "random": random_order,
    "popularity": popularity,
    "bm25": bm25,
    "dense": dense,
    "retriever": retriever,
    "gru4rec": gru4rec,
    "unisrec": unisrec,
    "decoupled": decoupled,
    "attributes": attributes,
    "taste": taste,
}
"""Baselines that need nothing but the task: names on the command line"""

NEED_A_MODEL: dict[str, Baseline] = {"cross_encoder": cross_encoder, "zero_shot": zero_shot}


def baselines_by_name(names: Sequence[str]) -> dict[str, Baseline]:
    """Baselines as the command line names them. Raises KitError on an unknown name, or on one that needs a model."""
    for name in names:
        if name in NEED_A_MODEL:
            raise KitError(
                f"baseline {name!r} needs a model, so it runs from Python: "
                f"compare(..., baselines={{{name!r}: partial({name}, model='FOLDER')}}), see fgrpo/baselines/README.md."
            )
        if name not in BASELINES:
            raise KitError(f"baseline {name!r} is not known; choose from {', '.join(BASELINES)}.")
    return {name: BASELINES[name] for name in names}
