"""The floor counts the products of a step, by hand from its rollouts. No test depends on a time."""

from collections import Counter

import torch

from fgrpo.config import GrammarConfig
from fgrpo.policy import Sampling
from fgrpo.rollout import drawn_tokens, rollout
from fgrpo.scale.floor import products, seconds


def work(found: Counter) -> int:
    return sum(b * m * k * n * count for (b, m, k, n), count in found.items())


def test_every_token_counts_once(policy, queries) -> None:
    """Linear layers of the tiny policy, its head over the choices."""
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 0)
    drawn = drawn_tokens(r)
    loss, sampling, step = (work(products(policy, r.prompts, drawn, part)) for part in ("loss", "rollout", "step"))
    fed = sum(int(row.nonzero().max()) for row in drawn)  # tokens with another one to choose after them
    prompts = sum(int(m.sum()) for m in r.prompts.mask)
    weights = sum(p.numel() for n, p in policy.model.named_parameters() if p.dim() == 2 and "embed" not in n)
    head = int(drawn.sum()) * r.prompts.choices.tokens.shape[1] * policy.model.config.hidden_size
    assert loss == 3 * (prompts + fed) * weights + 3 * head
    assert fed * weights + head <= sampling - prompts * weights < 1.2 * (fed * weights + head)  # whole tokens a step
    assert step == sampling + loss * 2 / 3  # its loss has a backward pass alone


def test_attention_over_prompts(policy, queries) -> None:
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 0)
    drawn, config = drawn_tokens(r), policy.model.config
    more = {
        part: work(products(policy, r.prompts, drawn, part, attention=True))
        - work(products(policy, r.prompts, drawn, part))
        for part in ("loss", "rollout", "step")
    }
    fed, length = sum(int(row.nonzero().max()) for row in drawn), int(r.prompts.mask.sum()) / len(queries)
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    own, branches = (
        width * len(queries) * length**2,
        2 * width * fed * length,
    )  # scores and sums, half of the prompt's own
    assert 0.8 < more["loss"] / (3 * (own + branches)) < 1.2
    assert 0.8 < more["rollout"] / (own + branches) < 1.3
    assert more["step"] == more["rollout"] + more["loss"] * 2 / 3


def test_seconds_of_one_and_of_several_matrices() -> None:
    clock = iter(range(100))
    assert seconds(Counter({(1, 2, 3, 4): 2, (5, 2, 3, 4): 1}), torch.zeros(1), lambda: next(clock)) == 2
