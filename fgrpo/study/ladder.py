"""Why the effect of credit drowns: the positive control in three rungs, predicted from gradients and then trained.

Where rank tokens alone learn and the slate's reward is noise, joint credit falls and own credit does not (control.py).
The rungs add to it what the full task has, with the same noise and the same recipe:

    ranker alone        rank tokens learn; one model
    separate weights    both phases learn, each a model of its own (apart.py): slates improve, nothing leaks
    shared weights      both phases learn in one model: slate tokens' gradient also moves the ranker

The prediction is of first order, from batches of rollouts of the warm starts: by how much does a step of length 1 along
a batch's gradient raise E[R_rank]? With s and r the batch's gradients from slate and rank tokens, S and R the true ones
of E[R_rank], all divided by the largest value that a step can reach:

    rung                change for the slates as they are      change of E[R_rank]
    ranker alone        r R / |r|                              r (S + R) / |r|
    separate weights    r R / |r|                              s S / |s| + r R / |r|
    shared weights      (s + r) R / |s + r|                    (s + r) (S + R) / |s + r|

Two models take a step of length 1 each, since AdamW scales the step of a weight by its own gradients alone. In shared
weights s R / |s + r| is the leak, and |s + r| grows with the slate's noise, which crowds the ranker's part out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, KitError, RLConfig
from ..credit import advantage, assign_credit, by_phase
from ..data import Example, Splits
from ..evaluate import greedy, measure_outputs
from ..policy import Policy
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..rewards import score
from ..rollout import rollout
from ..runs.fields import with_fields
from ..runs.policies import checkpoints, load_policy
from ..tasks.atomic import write_text
from ..trainer import batch_of, sampling_of
from . import plots
from .apart import begin_apart, read_apart
from .check import LEAST_SEEDS, Groups
from .compare import WARM_START_FULL, Begin, Result, Results, run_folder
from .control import JOINT, OWN, Control, control_experiments, control_found
from .experiments import Experiments
from .plots import Row
from .report import columns, made_of, to_csv
from .significance import holm

ALONE, SEPARATE, SHARED = RUNGS = ("ranker alone", "separate weights", "shared weights")
BEGIN: Mapping[str, Begin] = {SEPARATE: begin_apart}
"""the rungs whose runs do not begin as the warm start itself does"""
BATCHES = 48
"""batches of rollouts per warm start from which a prediction is made"""
LISTS, RANKER = "ndcg@5", "ndcg@5_ranker"
"""metrics: NDCG@5 of a policy's own lists, and of its rankings of the warm start's slates, which are the same for all"""
METHODS = (JOINT, OWN)
FIRST = Path("checkpoints") / "step-000000"
"""of a run: the policy that it began with"""
BOTH = f"{OWN} minus {JOINT}"
NO_LEAK = {"leak": None, "leak_sd": None}


def ladder_experiments(config: Config) -> Experiments:
    """The runs of the three rungs, with all other options as in `config`. Raises KitError on a pretrained model."""
    if config.lm.model:
        raise KitError("--ladder trains two tiny policies side by side: leave out --model.")
    alone = control_experiments(config)[""]
    both = {method: with_fields(own, learn="both") for method, own in alone.items()}
    return {ALONE: alone, SEPARATE: both, SHARED: both}


def with_ranker(
    results: Results, experiments: Experiments, folder: Path, splits: Splits, starts: Sequence[int]
) -> Results:
    """The results of the ladder's runs with the metric RANKER: the ranker alone, asked about the same slates.

    Read from the first and the last checkpoint of the runs.
    """
    found: Results = {}
    slates: dict[int, list[tuple[int, ...]]] = {}
    for rung, by_method in results.items():
        read, own = read_apart if rung == SEPARATE else load_policy, dict(by_method)
        own[WARM_START_FULL] = [_with(run, run.metrics[LISTS]) for run in by_method[WARM_START_FULL]]
        for method in METHODS:
            config = experiments[rung][method]
            own[method] = []
            for seed, (run, start) in enumerate(zip(by_method[method], starts, strict=True)):
                path = run_folder(folder, rung, method, seed)
                if start not in slates:  # of the first rung, whose runs begin with one model
                    before = greedy(load_policy(path / FIRST), splits.test, sampling_of(config))
                    slates[start] = [output.slate for output in before]
                outputs = greedy(read(checkpoints(path)[-1]), splits.test, sampling_of(config), slates[start])
                own[method].append(_with(run, measure_outputs(outputs, splits.test, config.grammar)[LISTS]))
        found[rung] = own
    return found


def _with(run: Result, ranker: Tensor) -> Result:
    return replace(run, metrics={**run.metrics, RANKER: ranker})


def measure_ladder(
    results: Results, experiments: Experiments, folder: Path, splits: Splits, starts: Sequence[int],
    groups: Groups | None = None, batches: int = BATCHES,
) -> list[Row]:  # fmt: skip
    """The table of the ladder's runs in a folder (`ladder_rows`), as ladder.csv with a figure beside it."""
    config = experiments[SHARED][JOINT]
    firsts = [run_folder(folder, SHARED, JOINT, seed) / FIRST for seed in range(max(starts) + 1)]  # the warm starts
    found = joined([predict(first, splits.train, config, batches, seed) for seed, first in enumerate(firsts)])
    rows = ladder_rows(with_ranker(results, experiments, folder, splits, starts), starts, found, groups)
    write_text(folder / "ladder.csv", to_csv(rows, made_of(experiments)))
    plots.save(plots.ladder(rows), folder / "ladder.png")
    return rows


@dataclass(frozen=True)
class Prediction:
    """What N batches of rollouts say about one step of a rung under one method, (N,) each.

    `lists`: gain of E[R_rank], relative to the best step: a cosine (of two models: the weighted mean of two), but for the
    error of the estimated true gradient, which is independent of the batch and has mean 0. `ranker`: the same for the
    slates as they are. `leak`: the part of `ranker` that slate tokens bring.
    """

    lists: Tensor
    ranker: Tensor
    leak: Tensor

    def raises(self, which: str) -> tuple[float, float, float]:
        """Share of batches whose step raises the expected reward, with a 95 % interval (Wilson, J. Am. Stat. Ass. 1927)."""
        up = getattr(self, which) > 0
        n, share, z = len(up), float(up.double().mean()), 1.96
        middle, scale = (share + z**2 / (2 * n)), 1 + z**2 / n
        half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
        return share, (middle - half) / scale, (middle + half) / scale

    def gain(self, which: str) -> tuple[float, float, float]:
        """Mean gain of a step of length 1 with a 95 % interval: over batches, so about these warm starts alone."""
        return _mean(getattr(self, which))


Predictions = dict[str, dict[str, Prediction]]
"""by rung and method"""


def predict(
    start: Path, examples: Sequence[Example], config: Config, batches: int = BATCHES, seed: int = 0
) -> Predictions:
    """The prediction of every rung and method from rollouts of one warm start. `config` is that of one of the runs.

    Batches have the size of a training step. The true gradient for a batch is the mean over all others of an unbiased
    estimate from rewards without noise, so that a batch does not judge itself.
    """
    if batches < 2:
        raise KitError(f"{batches} batches: a prediction needs 2, one for the step and one for the true gradient.")
    policy = load_policy(start, config.device)
    found: dict[str, list[Tensor]] = {}
    for number in range(batches):
        queries = batch_of(examples, config.rl.queries, number, seed, "prediction")
        for name, vector in gradients(policy, queries, config, number, seed).items():
            found.setdefault(name, []).append(vector)
    steps = {name: torch.stack(vectors) for name, vectors in found.items()}  # (N, P) each
    true_slate, true_rank = steps["true slate"], steps["true rank"]
    slate, rank = _others(true_slate), _others(true_rank)  # S and R, for each batch from the others
    best_slate, best_rank, best = _length(true_slate), _length(true_rank), _length(true_slate + true_rank)
    predictions: Predictions = {rung: {} for rung in RUNGS}
    for method in METHODS:
        s, r = _unit(steps[f"{method} slate"]), _unit(steps[f"{method} rank"])
        ranker, none = _dot(r, rank) / best_rank, torch.zeros(batches, dtype=torch.float64)
        predictions[ALONE][method] = Prediction(_dot(r, slate + rank) / best, ranker, none)
        both = _dot(s, slate) + _dot(r, rank)
        predictions[SEPARATE][method] = Prediction(both / (best_slate + best_rank), ranker, none)
        together = steps[f"{method} slate"] + steps[f"{method} rank"]
        step, size = _unit(together), together.norm(dim=1).clamp(min=1e-30)
        leak = _dot(steps[f"{method} slate"], rank) / size / best_rank
        predictions[SHARED][method] = Prediction(_dot(step, slate + rank) / best, _dot(step, rank) / best_rank, leak)
    return predictions


def gradients(
    policy: Policy, queries: Sequence[Example], config: Config, number: int = 0, seed: int = 0
) -> dict[str, Tensor]:
    """Gradients of one batch of rollouts, (P,) each, over the weights of the policy: the direction in which a step goes.

    "grpo slate", "grpo rank" and so on: of the slate's tokens and of the ranking's under a method, with reward noise.
    "true slate", "true rank": an estimate of the gradient of E[R_rank] without noise, unbiased but for its length.
    """
    rl = replace(config.rl, learn="both")
    rollouts = rollout(policy, queries, sampling_of(config), rl.group, seed, number)
    rewards = score(rollouts, queries, rl, seed, number)
    advantages = {m: assign_credit(rewards, rollouts, replace(rl, credit=m)) for m in METHODS}  # (B, T) each
    clean = score(rollouts, queries, replace(rl, slate_noise=0.0, rank_noise=0.0)).rank
    own = advantage(clean, RLConfig())
    advantages["true"] = by_phase(own, own, rollouts)
    logp, _ = policy.logprobs(rollouts.prompts, rollouts.completions, rollouts.mask, rollouts.sampling)
    weights, found = policy.parameters(), {}
    for (name, paid), (phase, code) in product(advantages.items(), (("slate", PHASE_SLATE), ("rank", PHASE_RANK))):
        gain = (logp * paid * (rollouts.phase == code)).sum() / len(logp)
        parts = torch.autograd.grad(gain, weights, retain_graph=True)
        found[f"{name} {phase}"] = torch.cat([g.flatten() for g in parts]).cpu()
    return found


def _unit(x: Tensor) -> Tensor:
    """Rows (N, P) at length 1; one that is zero stays so."""
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1).double()


def _others(x: Tensor) -> Tensor:
    """For each row of (N, P) the mean of the other rows."""
    return (x.sum(0) - x) / (len(x) - 1)


def _length(x: Tensor) -> float:
    """Length of the expectation of the rows of (N, P): the mean inner product of two different rows is its square."""
    n, square = len(x), x.double().square().sum()
    return max(float((x.double().sum(0).square().sum() - square) / (n * (n - 1))), 1e-30) ** 0.5


def joined(predictions: Sequence[Predictions]) -> Predictions:
    """The batches of all warm starts together."""
    return {
        rung: {m: Prediction(*(torch.cat([getattr(p[rung][m], which) for p in predictions])
                               for which in ("lists", "ranker", "leak"))) for m in METHODS}
        for rung in RUNGS
    }  # fmt: skip


def ladder_rows(
    results: Results, starts: Sequence[int], predictions: Predictions, groups: Groups | None = None
) -> list[Row]:
    """The table: for each rung both methods and their difference, measured (`with_ranker`) and predicted.

    `gain`: NDCG@5 over the warm start with full lists; in the rows "fgrpo minus grpo" the difference of both gains.
    `ranker_gain`: of rankings of the warm start's slates. The family of tests are the three differences in `gain`:
    `p_holm`, `simultaneous_low` and `_high` and `detectable` are corrected for it. `raises`, `predicted`: share of
    batches whose step raises E[R_rank], and mean gain of a step of length 1 (Prediction); `raises_ranker`,
    `predicted_ranker`: for the slates as they are. `leak`, `leak_sd`: mean over batches, and standard deviation, of what
    slate tokens add to `predicted_ranker`.
    """
    rows: list[Row] = []
    controls: dict[str, tuple[Control, Control]] = {
        rung: (control_found({rung: by_method}, starts, groups), control_found({rung: by_method}, starts, groups, RANKER))
        for rung, by_method in results.items()
    }  # fmt: skip
    adjusted = dict(zip(controls, holm([lists.apart.p for lists, _ in controls.values()]), strict=True))
    for rung, (lists, ranker) in controls.items():
        for method, gain, of_ranker in (
            (JOINT, lists.joint, ranker.joint), (OWN, lists.own, ranker.own), (BOTH, lists.apart, ranker.apart)
        ):  # fmt: skip
            row: Row = {"rung": rung, "method": method, "start": lists.start}
            row |= _bounds("", "gain", (gain.mean, *gain.interval()))
            row |= _bounds("ranker_", "ranker_gain", (of_ranker.mean, *of_ranker.interval()))
            both = method == BOTH
            tested = both and lists.seeds >= LEAST_SEEDS
            low, high = gain.simultaneous(len(controls)) if both else (None, None)
            row |= {"simultaneous_low": low, "simultaneous_high": high, "p_holm": adjusted[rung] if tested else None}
            row |= {"detectable": gain.detectable(len(controls)) if both and len(starts) > 1 else None}
            for which, end in (("lists", ""), ("ranker", "_ranker")):
                raises: tuple[float | None, ...] = (None, None, None)
                if both:
                    own, joint = (getattr(predictions[rung][m], which) for m in (OWN, JOINT))
                    found = _mean(own - joint)
                else:
                    raises, found = (getattr(predictions[rung][method], x)(which) for x in ("raises", "gain"))
                row |= _bounds(f"raises{end}_", f"raises{end}", raises)
                row |= _bounds(f"predicted{end}_", f"predicted{end}", found)
            leaks = None if both else predictions[rung][method].leak
            row |= {"leak": float(leaks.mean()), "leak_sd": float(leaks.std())} if leaks is not None else NO_LEAK
            rows.append(row | {"seeds": lists.seeds, "starts": max(starts) + 1})
    return rows


def _mean(x: Tensor) -> tuple[float, float, float]:
    mean, half = float(x.mean()), 1.96 * float(x.std()) / len(x) ** 0.5
    return mean, mean - half, mean + half


def _bounds(prefix: str, name: str, found: Sequence[float | None]) -> Row:
    return dict(zip((name, f"{prefix}low", f"{prefix}high"), found, strict=True))


def format_ladder(rows: Sequence[Row]) -> str:
    """The table as text, and how to read it."""
    lines: list[tuple[str, ...]] = [
        ("rung", "method", "NDCG@5 gain [95 %]", "ranker's [95 %]", "detectable", "p (Holm)", "steps that raise it",
         "predicted gain [95 %]", "ranker's", "leak +- SD")
    ]  # fmt: skip
    for r in rows:
        percent = "" if r["raises"] is None else f"{100 * r['raises']:.0f} % (ranker {100 * r['raises_ranker']:.0f} %)"
        lines.append((
            r["rung"], r["method"], f"{r['gain']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]",
            f"{r['ranker_gain']:+.3f} [{r['ranker_low']:+.3f}, {r['ranker_high']:+.3f}]",
            "" if r["detectable"] is None else f"{r['detectable']:.3f}",
            "" if r["p_holm"] is None else f"{r['p_holm']:.2g}", percent,
            f"{r['predicted']:+.3f} [{r['predicted_low']:+.3f}, {r['predicted_high']:+.3f}]",
            f"{r['predicted_ranker']:+.3f}", f"{r['leak']:+.3f} +- {r['leak_sd']:.3f}" if r["leak_sd"] else "",
        ))  # fmt: skip
    return f"""{columns(lines)}

Gain: NDCG@5 after training, minus that of the warm start with its lists filled ({rows[0]["start"]:.3f}); ranker's: of
rankings of the warm start's slates. Seeds: {rows[0]["seeds"]}; warm starts: {rows[0]["starts"]}; detectable and p are for
a family of {len(RUNGS)} differences. Predicted from rollouts of the warm starts: share of batches whose step raises
E[R_rank], and the gain of a step of length 1, relative to the best step; ranker's: for the slates as they are. The leak is
the part of it that slate tokens bring (mean and standard deviation over batches)."""
