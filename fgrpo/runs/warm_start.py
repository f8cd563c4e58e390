"""The warm start of a run, and the callback that traces a few queries during training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..config import Config
from ..data import Example, Splits
from ..policy import Policy
from ..tasks import DATA
from ..trainer import Callback, fit
from .origin import digest_of
from .policies import policy_folder
from .pretrain import initial_policy
from .run import Run, check_folder, read_config
from .sft import Demonstrate, sft_stage, teacher, without_full
from .trace import trace_of, trace_policy, write_trace

_PLACES = (DATA / "checkpoints" / "lab-rec", Path(__file__).parent / "shipped" / "lab-rec")
SHIPPED = next((p for p in _PLACES if p.is_dir()), _PLACES[0])
"""the warm start of the lab task that is shipped with the kit: in the repository, or as installed (pyproject.toml)"""
TRACED = 4
"""number of queries of a run that are traced token by token"""
MADE_BY = ("task", "data", "one_relevant", "pool", "negatives", "taste", "hard", "model", "lm", "sft", "grammar")
"""fields of a run that its warm start depends on, besides SFT_READS"""


def warm_start(
    config: Config, splits: Splits, items: Sequence[str], folder: Path, quiet: bool = False, resume: bool = False,
    stop: Callable[[], bool] = lambda: False, writes: bool = True, seed: int = 0, demonstrate: Demonstrate | None = None,
) -> Path:  # fmt: skip
    """Folder of the SFT policy to start from: the shipped one if it was made with these options, else trained here.

    Another `seed` gives an independent one: other initial weights, other training queries of a stream. Demonstrations
    `ranked` may need `demonstrate` (fgrpo.baselines.demonstrator). Of several processes one `writes`; the others call this
    when it is done.
    """
    if fits_shipped(config, seed):
        return policy_folder(SHIPPED)
    if not writes:
        return policy_folder(folder)
    origin = {"stage": "sft", "train": digest_of(splits.train)}
    run = Run(folder, replace(without_full(config), seed=seed), resume=resume, save_every=250, origin=origin)
    callback = tracer(run, splits.validation)
    policy = initial_policy(run.config, splits, items, folder, quiet, resume, stop)
    stage = sft_stage(config, teacher(policy, config, demonstrate))
    fit(policy, splits.train, run.config, run, stage, quiet, after_save=callback, stop=stop)
    latest = run.latest()
    assert latest is not None
    return latest


def fits_shipped(config: Config, seed: int = 0) -> bool:
    """Whether the shipped warm start was made with these options."""
    if not SHIPPED.is_dir():
        return False
    shipped = read_config(SHIPPED)
    return seed == shipped.seed and made_by(shipped) == made_by(config)


def check_warm_start(folder: Path, config: Config, resume: bool, seed: int = 0) -> None:
    """Raise KitError unless `warm_start` may write to a folder. Writes nothing."""
    if not fits_shipped(config, seed):
        check_folder(folder, replace(without_full(config), seed=seed), resume, {"stage": "sft"})


def made_by(config: Config) -> tuple[object, ...]:
    """The fields of a configuration that its warm start depends on."""
    config = without_full(config)
    return (*(getattr(config, part) for part in MADE_BY), config.rl.temperature, config.rl.decoding)


def tracer(run: Run, examples: Sequence[Example]) -> Callback:
    """A callback for `fit` that adds traces of the first TRACED examples to the run's trace.jsonl."""

    def callback(policy: Policy, step: int) -> None:
        groups = trace_policy(policy, examples[:TRACED], run.config, TRACED, step, run.config.seed)
        if groups:
            write_trace(run.trace, trace_of(run.name, run.config, groups), more=True)
            if run.tracker:
                run.tracker.rollouts(groups)

    return callback
