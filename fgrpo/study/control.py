"""A positive control for comparisons of credit: a task on which credit must matter, and it is known which way.

Only rank tokens learn, so that the slates change through shared weights alone, and noise of standard deviation 1 is added
to the slate's reward. Joint credit (grpo) pays the ranker for that noise and must fall; its own reward (fgrpo) does not
know the noise and must rise. Lists are filled, so that length is not learned. If either fails, the instrument is broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Config
from ..runs.fields import with_fields
from .check import LEAST_SEEDS, Groups, by_seed
from .compare import WARM_START_FULL, Results
from .experiments import Experiments, grid
from .significance import Estimate, paired

JOINT, OWN = "grpo", "fgrpo"
OPTIONS = {"learn": "rank", "slate_noise": 1.0, "full": True, "steps": 120, "lr": 3e-4, "lr_decay": "none"}


def control_experiments(config: Config) -> Experiments:
    """The two runs of the control, with all other options as in `config`."""
    return grid(with_fields(config, **OPTIONS), [JOINT, OWN])


@dataclass(frozen=True)
class Control:
    """What the control found: gains of NDCG@5 over the warm start with filled lists, under each credit."""

    start: float
    joint: Estimate
    own: Estimate
    seeds: int

    @property
    def holds(self) -> bool:
        """Whether joint credit fell and its own credit rose, each by its 95 % interval, over enough seeds."""
        return self.seeds >= LEAST_SEEDS and self.joint.interval()[1] < 0 < self.own.interval()[0]

    @property
    def sentences(self) -> list[str]:
        """The result in words."""
        lines = []
        for name, found, must in ((JOINT, self.joint, "fall"), (OWN, self.own, "rise")):
            low, high = found.interval()
            lines.append(
                f"{name}: NDCG@5 {self.start:.3f} -> {self.start + found.mean:.3f} "
                f"({found.mean:+.3f} [{low:+.3f}, {high:+.3f}]); it must {must}."
            )
        if self.seeds < LEAST_SEEDS:
            return [*lines, f"Fewer than {LEAST_SEEDS} seeds decide nothing."]
        if self.holds:
            return [*lines, "The control holds: where credit must matter, this instrument sees it."]
        return [*lines, "The control FAILS: the instrument is broken, and no comparison of credit made with it counts."]


def control_found(results: Results, starts: Sequence[int], groups: Groups | None = None) -> Control:
    """The control's result from its runs, `compare(control_experiments(config), ...)`."""
    ((setting, by_method),) = results.items()
    start = by_seed(by_method[WARM_START_FULL], "ndcg@5", starts)
    joint, own = (
        paired(by_seed(by_method[m], "ndcg@5", starts) - start, starts, (groups or {}).get(setting))
        for m in (JOINT, OWN)
    )
    return Control(float(start.mean()), joint, own, len(starts))
