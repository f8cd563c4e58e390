"""A positive control for comparisons of credit: a task on which credit must matter, and it is known which way.

Only rank tokens learn, so that the slates stay those of the warm start, and noise of standard deviation 1 is added to
the slate's reward. Joint credit (grpo) pays the ranker for that noise and must fall; its own reward (fgrpo) does not
know the noise and must rise. Lists are filled, so that length is not learned. If either fails, the instrument is broken.
"""

from collections.abc import Callable
from pathlib import Path

from ..config import Config
from ..data import Splits
from ..runs.fields import with_fields
from .compare import WARM_START_FULL, Results, compare
from .experiments import Experiments, grid

JOINT, OWN = "grpo", "fgrpo"
OPTIONS = {"learn": "rank", "slate_noise": 1.0, "full": True, "steps": 120, "lr": 1e-3, "lr_decay": "none"}


def control_experiments(config: Config) -> Experiments:
    """The two runs of the control, with all other options as in `config`."""
    return grid(with_fields(config, **OPTIONS), [JOINT, OWN])
