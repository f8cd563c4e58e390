"""The tiny policy's fast way of feeding rollouts: the same tokens, log-probabilities and gradients as the plain one."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from fgrpo.config import Config, GrammarConfig, RLConfig
from fgrpo.lm import rows
from fgrpo.lm.rows import BranchTree, RowPolicy, RowTree
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.policies import load_policy, new_policy, save_policy
from fgrpo.runs.sft import sft_step
from fgrpo.trainer import step
from tests.conftest import spread_policy

CASES = {
    "constrained": (Sampling(GrammarConfig()), {}),
    "filled": (Sampling(GrammarConfig(full=True)), {}),
    "free": (Sampling(GrammarConfig(), constrained=False), {}),
    "warm": (Sampling(GrammarConfig(6, 2), temperature=0.6), {}),
    "rankings": (Sampling(GrammarConfig()), {"rankings": 2}),
    "parts": (Sampling(GrammarConfig()), {"micro": 2}),
    "a slate of one": (Sampling(GrammarConfig(1, 1)), {}),
}


@pytest.fixture(scope="module")
def pair() -> tuple[RowPolicy, Policy]:
    """The same weights, fed by row and fed plainly: every rollout with its own copy of the prompt."""
    policy = spread_policy()
    model = copy.deepcopy(policy.model)
    model.set_attn_implementation("sdpa")
    plain = Policy(model, policy.tokenizer, policy.labels)
    assert not plain.share
    return policy, plain


def gradient(policy: Policy, r, advantages) -> tuple[dict[str, float], torch.Tensor]:
    policy.model.zero_grad()
    loss, logs = policy_loss(policy, r, advantages, RLConfig())
    loss.backward()
    return logs, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("short", [0, rows.SHORT])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("keep_prompts", [True, False])
def test_rollouts_loss_and_gradients_are_those_of_the_plain_way(
    name, keep_prompts, short, pair, queries, monkeypatch
) -> None:
    monkeypatch.setattr(rows, "SHORT", short)
    policy, _ = pair
    (sampling, options), results = CASES[name], []
    for p in pair:
        r = rollout(p, queries, sampling, 4, 7, keep_prompts=keep_prompts, **options)
        signs = torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))
        results.append((r, *gradient(p, r, 1 + signs)))
    (r, logs, found), (expected, plain_logs, wanted) = results
    assert policy.share and torch.equal(r.completions, expected.completions) and r.outputs == expected.outputs
    assert (r.logprobs - expected.logprobs).abs().max() < 1e-5
    assert logs == pytest.approx(plain_logs, abs=1e-5) and (found - wanted).norm() < 1e-5 * wanted.norm()
    _, again = gradient(policy, r, 1 + signs)  # a second epoch encodes the prompts anew
    assert (again - wanted).norm() < 1e-5 * wanted.norm()


@pytest.fixture
def replays(monkeypatch) -> list[int]:
    """The number of tokens of each loss that was computed from what sampling had kept."""
    found, replay = [], rows.replay

    def counted(done, layers, embedded, *more):
        found.append(len(embedded))
        return replay(done, layers, embedded, *more)

    monkeypatch.setattr(rows, "replay", counted)
    return found


@pytest.mark.parametrize("short", [0, rows.SHORT])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_on_fresh_rollouts_computes_no_token_again(name, short, pair, queries, replays, monkeypatch) -> None:
    monkeypatch.setattr(rows, "SHORT", short)
    policy, _ = pair
    sampling, options = CASES[name]
    kept = [rollout(policy, queries, sampling, 4, 7, keep_prompts=keep, **options) for keep in (True, False)]
    computed, forward = [], rows.qwen3
    monkeypatch.setattr(
        rows, "qwen3", lambda model, layers, ids, *a: computed.append(len(ids)) or forward(model, layers, ids, *a)
    )
    for r in kept:
        gradient(policy, r, torch.ones_like(r.logprobs))
    if name in ("rankings", "parts", "a slate of one"):  # slates are fed twice; prompts are not kept; nothing is fed
        assert not replays
    else:
        (fed,), begun = replays, kept[0].begun * len(kept[0].outputs)
        assert computed == [kept[1].prompts.ids.numel(), fed + begun]  # all for the second one


def test_completions_that_were_not_sampled_are_computed(pair, queries, replays) -> None:
    """Those of a group in another order."""
    policy, _ = pair
    r = rollout(policy, queries, Sampling(GrammarConfig(full=True)), 4, 7, keep_prompts=True)
    other = replace(r, completions=r.completions.unflatten(0, (-1, 4)).flip(1).flatten(0, 1))
    found, wanted = (gradient(p, other, 1 + torch.randn(r.mask.shape, generator=torch.Generator().manual_seed(1)))[1]
                     for p in pair)  # fmt: skip
    assert not replays and (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("short", [0, rows.SHORT])
def test_greedy_and_given_slates(short, pair, queries, monkeypatch) -> None:
    monkeypatch.setattr(rows, "SHORT", short)
    whole = [rollout(p, queries, Sampling(GrammarConfig())) for p in pair]
    assert whole[0].outputs == whole[1].outputs
    slates = [tuple(range(2 + i % 3)) for i in range(len(queries))]
    ranked = [rollout(p, queries, Sampling(GrammarConfig()), slates=slates).outputs for p in pair]
    assert ranked[0] == ranked[1] and [o.slate for o in ranked[0]] == slates


def test_long_prompts_are_held_once(pair, queries, monkeypatch) -> None:
    policy, _ = pair
    short = policy.encode(queries)
    assert type(policy.grow(short.ids, short.mask, None)) is RowTree
    monkeypatch.setattr(rows, "SHORT", short.ids.shape[1] - 1)
    assert type(policy.grow(short.ids, short.mask, None)) is BranchTree


def test_finished_rows_leave_the_batch(pair, queries, monkeypatch) -> None:
    """Queries of one prompt length, so that no prompt is padded, and of several."""
    monkeypatch.setattr(rows, "SHORT", 0)
    left, leave = [], BranchTree.leave
    monkeypatch.setattr(BranchTree, "leave", lambda self, alive: leave(self, alive) or left.append(self.keys[0].shape))
    for some in ([queries[0]] * 3, queries):
        some = [replace(q, id=f"{n}") for n, q in enumerate(some)]
        for p in (1, 6):
            left.clear()
            r, expected = (rollout(policy, some, Sampling(GrammarConfig()), p, 3) for policy in pair)
            assert torch.equal(r.completions, expected.completions)
            assert (r.logprobs - expected.logprobs).abs().max() < 1e-5
            assert left and left[-1][0] * left[-1][2] < len(some) * p


@pytest.mark.parametrize("short", [0, rows.SHORT])
def test_many_tokens_of_a_row_and_few_give_the_same(short, pair, queries, monkeypatch) -> None:
    """Two ways of computing attention: products for a few queries of a row, torch's own for many."""
    policy, _ = pair
    monkeypatch.setattr(rows, "SHORT", short)
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 7)
    found = []
    for few in (0, 1000):
        monkeypatch.setattr(rows, "FEW", few)
        found.append(gradient(policy, r, torch.ones_like(r.logprobs) * r.mask)[1])
    assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()


def test_what_runs_make_and_load_is_fed_by_row(config: Config, queries, tmp_path) -> None:
    policy = new_policy(spread_policy().labels.items, config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for do in (sft_step, step):
        assert do(policy, optimizer, queries[:4], config)["loss"] == pytest.approx(0, abs=10)
    save_policy(policy, tmp_path / "p")
    assert '"rows"' not in (tmp_path / "p/config.json").read_text()  # any program reads it
    loaded = load_policy(tmp_path / "p")
    assert isinstance(policy, RowPolicy) and isinstance(loaded, RowPolicy)
    r, again = (rollout(p, queries, Sampling(GrammarConfig()), 4, 7) for p in (policy, loaded))
    assert torch.equal(r.logprobs, again.logprobs)


def test_a_query_alone_and_in_company_gives_the_same_rollouts(pair, queries) -> None:
    policy, _ = pair
    together = rollout(policy, queries, Sampling(GrammarConfig()), 4, 7)
    for q, query in enumerate(queries):
        alone = rollout(policy, [replace(query)], Sampling(GrammarConfig()), 4, 7)
        assert alone.outputs == together.outputs[q * 4 : (q + 1) * 4]


@pytest.mark.parametrize("change", [{"attention_bias": True}, {"hidden_act": "gelu"}, {"rope_theta": 500.0}])
def test_variants_of_the_architecture_give_their_own_results(change, queries) -> None:
    """Those that the forward pass of `qwen3` does not know are left to transformers' own."""
    tiny = spread_policy()
    model = Qwen3ForCausalLM(Qwen3Config(**{**tiny.model.config.to_diff_dict(), **change}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    policy = RowPolicy(model, tiny.tokenizer, tiny.labels)
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 7)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert policy.share and (logp - r.logprobs).abs().max() < 1e-5
    tree = policy.grow(r.prompts.ids, r.prompts.mask, None)
    assert isinstance(tree, RowTree) == ("rope_theta" in change)
