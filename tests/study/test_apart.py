"""A policy of two models: equal to one model while both are equal, and apart in its gradients, on every path."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from fgrpo.config import GrammarConfig, KitError, ModelConfig
from fgrpo.credit import assign_credit
from fgrpo.evaluate import evaluate, greedy
from fgrpo.lm.prefix import PrefixTree
from fgrpo.lm.rows import RowPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.rewards import score
from fgrpo.rollout import rollout
from fgrpo.runs.fields import config_with, with_fields
from fgrpo.runs.run import Run
from fgrpo.runs.trace import trace_policy
from fgrpo.study.apart import PhasePolicy
from fgrpo.study.oracle import enumerate_outputs, small_pool
from fgrpo.trainer import fit, sampling_of
from tests.conftest import SMALL, spread_policy

SAMPLING = Sampling(GrammarConfig(slate_size=6, rank_size=3))


class BranchPolicy(PhasePolicy):
    """As a policy whose prompts are too long for rows: both models feed branches (fgrpo.lm.prefix)."""

    def grow(self, ids, mask, tokens):
        tree = super().grow(ids, mask, None)
        tree.slate, tree.rank = (PrefixTree(m, ids, mask) for m in (self.slate.model, self.rank.model))
        tree.logits = tree.slate.logits
        return tree

    def decoding(self):
        return torch.no_grad()


def differing() -> tuple[Policy, Policy]:
    """Two policies with different weights."""
    one, other = spread_policy(), spread_policy()
    with torch.no_grad():
        for n, p in enumerate(other.model.parameters()):
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))
    return one, other


@pytest.mark.parametrize("kind", [PhasePolicy, BranchPolicy])
def test_two_equal_models_are_the_single_policy(kind, policy, queries) -> None:
    """Rollouts, log-probabilities on every path, greedy lists and rankings of given slates."""
    apart = kind.twice(spread_policy())
    one, two = (rollout(p, queries, SAMPLING, 4, 0) for p in (policy, apart))
    assert torch.equal(one.completions, two.completions) and one.outputs == two.outputs
    assert torch.allclose(one.logprobs, two.logprobs, atol=1e-5)
    for shared in (True, False):
        (a, x), (b, y) = (
            p.logprobs(one.prompts, one.completions, one.mask, SAMPLING, shared=shared) for p in (policy, apart)
        )
        assert torch.allclose(a, b, atol=1e-5) and torch.allclose(x, y, atol=1e-4) and a.abs().max() > 1
    apart.share = False  # the plain way: one token a step, each row with its own prompt
    assert rollout(apart, queries, SAMPLING, 4, 0).outputs == one.outputs
    apart.share = True
    assert greedy(policy, queries, SAMPLING) == greedy(apart, queries, SAMPLING)
    slates = [o.slate[::-1] for o in one.outputs[::4]]
    assert greedy(policy, queries, SAMPLING, slates) == greedy(apart, queries, SAMPLING, slates)


@pytest.mark.parametrize("kind", [PhasePolicy, BranchPolicy])
def test_each_phase_is_its_own_models(kind, queries) -> None:
    """Of two different models, slate tokens have the first one's log-probabilities and rank tokens the second's."""
    slate, rank = differing()
    apart = kind(slate, rank)
    r = rollout(apart, queries, SAMPLING, 4, 0)
    a, b = (p.logprobs(r.prompts, r.completions, r.mask, SAMPLING)[0] for p in (slate, rank))
    assert not torch.allclose(a, b, atol=0.1)
    expected = torch.where(r.phase == PHASE_SLATE, a, b)
    assert torch.allclose(r.logprobs, expected, atol=1e-5)
    for shared in (True, False):
        found, _ = apart.logprobs(r.prompts, r.completions, r.mask, SAMPLING, shared=shared)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("phase", "mine", "other"), [(PHASE_SLATE, "slate", "rank"), (PHASE_RANK, "rank", "slate")])
def test_a_phases_gradient_touches_its_own_model_alone(phase, mine, other, shared, queries) -> None:
    apart = PhasePolicy(*differing())
    r = rollout(apart, queries, SAMPLING, 4, 0)
    logp, _ = apart.logprobs(r.prompts, r.completions, r.mask, SAMPLING, shared=shared)
    (logp * (r.phase == phase)).sum().backward()
    sizes = {name: sum(float(p.grad.abs().sum()) for p in getattr(apart, name).parameters() if p.grad is not None)
             for name in ("slate", "rank")}  # fmt: skip
    assert sizes[mine] > 1 and sizes[other] == 0


def test_the_loss_has_the_gradients_of_both_phases_side_by_side(policy, queries, config) -> None:
    """From the trees that sampling left, in the loss of a step: those of the single policy, token by token."""
    apart = PhasePolicy.twice(spread_policy())
    gradients = {}
    for name, p in (("one", policy), ("two", apart)):
        r = rollout(p, queries, sampling_of(config), 4, 0, keep_prompts=True)
        advantages = assign_credit(score(r, queries, config.rl), r, config.rl)
        for phase in (PHASE_SLATE, PHASE_RANK):
            tree = r.tree if name == "two" and phase == PHASE_SLATE else None
            loss, _ = policy_loss(p, replace(r, tree=tree), advantages * (r.phase == phase), config.rl)
            gradients[name, phase] = torch.autograd.grad(loss, p.parameters(), allow_unused=True)
    count = len(policy.parameters())
    for phase, part in ((PHASE_SLATE, slice(count)), (PHASE_RANK, slice(count, None))):
        both = gradients["two", phase]
        for a, b in zip(gradients["one", phase], both[part], strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        elsewhere = both[count:] if phase == PHASE_SLATE else both[:count]
        assert not any(g is not None and g.any() for g in elsewhere)


def test_a_slate_step_leaves_the_ranker_as_it_is_and_changes_what_it_is_asked(lab) -> None:
    """Probabilities of every output of a small pool: given the slate exactly the same, of the slates not."""
    example, config = small_pool(lab.test[0], 4), config_with(slate_size=2, rank_size=2)
    apart = PhasePolicy.twice(spread_policy())
    before = enumerate_outputs(apart, example, config)
    slate, rank = before.phase == PHASE_SLATE, before.phase == PHASE_RANK
    assert float(before.gram[slate][:, rank].abs().max()) == 0 < float(before.gram[rank][:, rank].diag().min())
    for p in apart.slate.parameters():
        with torch.no_grad():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))))
    after = enumerate_outputs(apart, example, config)
    a, b = (x.rollouts.logprobs for x in (before, after))
    ranks = before.rollouts.phase == PHASE_RANK
    assert torch.equal(a[ranks], b[ranks]) and not torch.allclose(a[~ranks], b[~ranks], atol=1e-3)


def test_it_trains_resumes_and_is_measured_as_any_policy(tmp_path, lab, config) -> None:
    """`fit` stopped and resumed gives the run that was not stopped; without rank tokens the ranker stays."""
    config = with_fields(config, lr=1e-2, lr_decay="none", full=True)

    def train(folder, steps, resume=False, **options):
        own = with_fields(config, steps=steps, **options)
        run = Run(tmp_path / folder, own, resume=resume, save_every=2)
        return fit(PhasePolicy.twice(spread_policy()), lab.train, own, run, quiet=True)

    whole = train("whole", 4)
    train("parts", 2)
    resumed = train("parts", 4, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    fresh = spread_policy().parameters()
    assert not any(map(torch.equal, whole.slate.parameters(), fresh))
    assert not torch.equal(whole.slate.parameters()[0], whole.rank.parameters()[0])
    slate_alone = train("slate", 2, learn="slate")
    assert all(map(torch.equal, slate_alone.rank.parameters(), fresh))
    assert set(evaluate(whole, lab.test[:8], config)) >= {"ndcg@5", "slate_recall"}
    assert len(trace_policy(whole, lab.test[:2], config, 2, 4, 0)) == 2


def test_a_missing_or_damaged_half_is_reported(tmp_path, lab, config) -> None:
    run = Run(tmp_path / "run", config, save_every=2)
    apart = fit(PhasePolicy.twice(spread_policy()), lab.train, with_fields(config, steps=2), run, quiet=True)
    checkpoint = run.latest()
    weights = checkpoint / "rank" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"beef")
    with pytest.raises(KitError, match="damaged"):
        apart.reload(checkpoint)


def test_other_catalogues_are_refused() -> None:
    with pytest.raises(KitError, match="one catalogue"):
        PhasePolicy(spread_policy(), RowPolicy.tiny(["a", "b"], ModelConfig(**SMALL)))
    assert deepcopy(PhasePolicy.twice(spread_policy())).tags == spread_policy().tags
