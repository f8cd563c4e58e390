"""Baselines to compare a policy with. To add one, write a function of the splits and name it in BASELINES."""

from collections.abc import Callable, Sequence
from functools import partial

from ..config import Config, KitError
from ..data import Splits
from ..prompt import Output
from ..runs.sft import Demonstrate, demonstration
from .ceilings import attributes, taste
from .decoupled import decoupled
from .rankers import bm25, cross_encoder, dense, popularity, random_order
from .sequential import gru4rec, gru4rec_ranker, unisrec
from .zero_shot import zero_shot

Baseline = Callable[..., Sequence[Output] | Sequence[Sequence[int]]]
"""Takes the splits of a task and returns one answer per test example: an Output, or the order of its pool (indices, best
first), whose first n are then the slate and whose first k the ranked list. If it has parameters named `items`, `config`,
`grammar`, `folder`, `quiet` or `resume`, a comparison passes its catalogue, Config and so on; its other parameters are
options, bound by functools.partial: `partial(dense, model="some/folder")`."""

BASELINES: dict[str, Baseline] = {
    "random": random_order,
    "popularity": popularity,
    "bm25": bm25,
    "dense": dense,
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


def demonstrator(splits: Splits, config: Config) -> Demonstrate | None:
    """What writes the demonstrations of a warm start, if it has to be trained: GRU4Rec for the kind `ranked`."""
    if config.sft.demonstrations != "ranked":
        return None
    return partial(demonstration, ranker=gru4rec_ranker(splits))
