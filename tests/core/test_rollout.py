"""Sampling: log-probabilities repeat, outputs are well formed, the shared prompt changes nothing."""

from dataclasses import replace

import pytest
import torch

from fgrpo.config import GrammarConfig
from fgrpo.policy import Sampling
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.rollout import choose, drawn_tokens, rollout, uniforms
from fgrpo.trainer import sampled_tokens


def sampled(policy, queries, constrained=True, temperature=1.0, grammar=None, group=5):
    sampling = Sampling(grammar or GrammarConfig(), constrained, temperature)
    return rollout(policy, queries, sampling, group, 0)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("shared", [True, False])
def test_sampled_logprobs_equal_recomputed_ones(policy, queries, constrained, temperature, shared) -> None:
    r = sampled(policy, queries, constrained, temperature)
    logp, entropy = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared)
    assert r.mask.any() and (r.logprobs < -0.1).any()
    assert (logp - r.logprobs).abs().max() < 1e-5
    assert (entropy >= -1e-6).all()


def test_constrained_outputs_are_well_formed_and_of_varied_length(policy, queries) -> None:
    r = sampled(policy, queries, group=16)
    assert not any(o.error for o in r.outputs)
    assert len({len(o.slate) for o in r.outputs}) > 3  # rows end at different times: the ragged path is exercised
    for b, o in enumerate(r.outputs):
        assert max(o.slate) < len(queries[b // 16].candidates)


def test_forced_tokens_have_logprob_zero_and_no_entropy(policy, queries) -> None:
    r = sampled(policy, queries)
    _, entropy = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)
    open_slate, _, open_rank, _ = policy.tags
    for forced in (open_slate, open_rank, policy.end):
        where = (r.completions == forced) & r.mask
        assert where.sum(1).tolist() == [1] * len(r.outputs)
        assert r.logprobs[where].abs().max() == 0 and entropy[where].abs().max() == 0


def test_log_probabilities_are_those_of_the_full_vocabulary_renormalised(policy, queries) -> None:
    """The first slate item, by hand: softmax over the pool alone (the slate may not close while it is empty)."""
    r = sampled(policy, queries)
    logits = policy.completion_logits(r.prompts, r.completions, r.mask, r.group, shared=False)
    for b in range(len(r.outputs)):
        pool = policy.tokenizer.convert_tokens_to_ids(list(policy.labels.candidates(queries[b // r.group])))
        by_hand = logits[b, 1, pool].softmax(0)[r.outputs[b].slate[0]].log()
        assert r.logprobs[b, 1].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_sampling_follows_the_distribution(policy, queries) -> None:
    group = 4000
    r = sampled(policy, queries[:1], group=group, grammar=GrammarConfig(slate_size=1, rank_size=1))
    drawn = torch.bincount(torch.tensor([o.slate[0] for o in r.outputs]), minlength=20) / group
    p = torch.zeros(20)
    for o, logp in zip(r.outputs, r.logprobs[:, 1].exp().tolist(), strict=True):
        p[o.slate[0]] = logp
    assert (drawn - p).abs().max() < 4 * (0.25 / group) ** 0.5


def test_greedy_takes_the_likeliest_choice(policy, queries) -> None:
    r = rollout(policy, queries, Sampling(GrammarConfig()))
    again = rollout(policy, list(reversed(queries)), Sampling(GrammarConfig()))
    assert r.outputs == again.outputs[::-1]  # no randomness, and neighbours in the batch do not matter
    more = sampled(policy, queries, group=64)
    first = r.logprobs[:, 1].unsqueeze(1)
    assert (more.logprobs[:, 1].view(len(queries), -1) <= first + 1e-5).all()


def test_group_rows_share_their_query_and_phases_cover_the_mask(policy, queries) -> None:
    r = sampled(policy, queries)
    assert r.completions.shape[0] == len(queries) * r.group
    assert (((r.phase == PHASE_SLATE) | (r.phase == PHASE_RANK)) == r.mask).all()
    last = r.mask.sum(1) - 1
    assert (r.completions[torch.arange(len(last)), last] == policy.end).all()


def test_shared_prompt_gives_the_same_logits_and_gradients(policy, queries) -> None:
    r = sampled(policy, queries)
    gradients = []
    for shared in (True, False):
        policy.model.zero_grad()
        logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared)
        (logp * torch.linspace(-1, 1, logp.shape[0]).unsqueeze(1)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_free_decoding_may_be_ill_formed(policy, queries) -> None:
    r = sampled(policy, queries, constrained=False)
    assert any(o.error for o in r.outputs)  # random weights do not know the grammar
    assert all(o.slate == () for o in r.outputs if o.error)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("constrained", [True, False])
def test_rankings_share_their_slate_and_logprobs_repeat(policy, queries, shared, constrained) -> None:
    policy.share = shared
    sampling = Sampling(GrammarConfig(), constrained)
    r = rollout(policy, queries, sampling, 6, 0, rankings=3)
    assert r.rankings == 3 and len(r.outputs) == 6 * len(queries)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert (logp - r.logprobs).abs().max() < 1e-5
    slate = torch.where(r.phase == PHASE_SLATE, r.completions, -1).view(len(queries), 2, 3, -1)
    assert (slate == slate[:, :, :1]).all() and (slate[:, 0] != slate[:, 1]).any()
    if constrained:
        assert not any(o.error for o in r.outputs)
        ranks = [o.rank for o in r.outputs]
        assert any(len(set(ranks[i : i + 3])) > 1 for i in range(0, len(ranks), 3))


def test_shared_slates_are_counted_once(policy, queries) -> None:
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 0, rankings=2)
    slate, rank = (((r.phase == p) & drawn_tokens(r)).sum(1).tolist() for p in (PHASE_SLATE, PHASE_RANK))
    assert sampled_tokens(r) == sum(slate[::2]) + sum(rank) > 0


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_forced_tokens_are_not_counted(policy, queries, shared, full) -> None:
    """A token is drawn if another one could have been: its log-probability is then below 0, its entropy above."""
    policy.share = shared
    r = rollout(policy, queries, Sampling(GrammarConfig(full=full)), 4, 0)
    assert torch.equal(drawn_tokens(r), r.logprobs < 0)
    if full:  # 10 + 5 items, of which none but the last of the ranking may be forced; four tags and the end are
        assert sampled_tokens(r) == len(queries) * 4 * 15 < r.mask.sum()
    micro = rollout(policy, queries, Sampling(GrammarConfig(full=full)), 4, 0, micro=2)
    assert torch.equal(drawn_tokens(micro), drawn_tokens(r)) and sampled_tokens(micro) == sampled_tokens(r)
    free = rollout(policy, queries, Sampling(GrammarConfig(), constrained=False), 4, 0)
    assert torch.equal(drawn_tokens(free), free.mask)


@pytest.mark.parametrize("shared", [True, False])
def test_given_slates_are_ranked_as_if_written(policy, queries, shared) -> None:
    """Greedy decoding from the slates that greedy decoding wrote ends in the same rankings."""
    policy.share = shared
    sampling = Sampling(GrammarConfig())
    whole = rollout(policy, queries, sampling)
    ranked = rollout(policy, queries, sampling, slates=[o.slate for o in whole.outputs])
    assert ranked.outputs == whole.outputs
    other = [tuple(range(3 + i % 2)) for i in range(len(queries))]
    assert [o.slate for o in rollout(policy, queries, sampling, slates=other).outputs] == other


def test_a_random_number_depends_on_its_own_names_alone(queries) -> None:
    """Philox by (seed, step, query id, rollout, position): more of anything else changes none of the numbers."""
    u = uniforms(3, 5, queries, 8, 20)
    assert u.shape == (8 * len(queries), 20) and (u >= 0).all() and (u < 1).all()
    assert torch.equal(uniforms(3, 5, queries[1:2], 8, 20), u[8:16])  # alone
    assert torch.equal(uniforms(3, 5, queries[::-1], 8, 20)[:8], u[-8:])  # in another order
    assert torch.equal(uniforms(3, 5, queries, 4, 9).view(-1, 4, 9), u.view(-1, 8, 20)[:, :4, :9])  # fewer and shorter
    others = [uniforms(4, 5, queries, 8, 20), uniforms(3, 6, queries, 8, 20), uniforms(3, 5, queries, 8, 20, "noise")]
    assert all((x != u).all() for x in others) and len(set(u.flatten().tolist())) == u.numel()
    # the same on every machine
    (first,) = uniforms(0, 0, [replace(queries[0], id="u1")], 1, 1).flatten().tolist()
    assert first == 0.31480644472858543
    many = uniforms(1, 1, queries[:1], 500, 40).flatten()
    assert many.mean().item() == pytest.approx(0.5, abs=0.01) and many.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_tokens_are_drawn_by_the_inverse_of_the_distribution(policy) -> None:
    p = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    numbers = [0.0, 0.499, 0.501, 0.699, 0.701, 1 - 2.0**-50]
    index, logp = choose(p.log().expand(6, -1), torch.tensor(numbers, dtype=torch.float64))
    assert index.tolist() == [1, 1, 3, 3, 4, 4]  # never one of probability 0
    assert logp.exp().tolist() == pytest.approx([0.5, 0.5, 0.2, 0.2, 0.3, 0.3])
    assert choose(p.log().unsqueeze(0), None)[0].tolist() == [1]
