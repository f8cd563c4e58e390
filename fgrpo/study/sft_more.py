"""The rival of RL: SFT that goes on from the same warm start, on the same queries, for the same compute.

Compute is counted in passes of a token through the network, a forward pass as 1 and a backward pass as 2. RL encodes
each prompt for sampling and again for the loss, with its gradient (1 + 3), and so each token of its G completions; SFT
trains on one prompt and one demonstration (3). Completions count at the grammar's maximum length, in favour of SFT.
Its learning rates are those of the warm start over again: warm-up to the same peak, then decay to zero.
"""

import math
from dataclasses import replace
from pathlib import Path

from ..config import Config
from ..data import Example, Splits
from ..policy import Policy
from ..runs.origin import digest_of, digest_of_policy
from ..runs.policies import load_policy
from ..runs.run import Run
from ..runs.sft import demonstration, generator_of
from ..trainer import batch_of


def queries_of(splits: Splits, config: Config) -> list[Example]:
    """The queries that an RL run with this seed trains on, in its order."""
    rl = config.rl
    return [e for n in range(rl.steps) for e in batch_of(splits.train, rl.queries, n, config.seed)]


def passes_per_query(policy: Policy, queries: list[Example], config: Config) -> float:
    """How often SFT can train on a query for the compute that RL spends on it."""
    rl, some = config.rl, queries[:64]
    prompts = policy.encode(some, config.grammar)
    prompt, longest = float(prompts.mask.sum(1).float().mean()), prompts.choices.longest(config.grammar)
    plain = replace(config, sft=replace(config.sft, demonstrations="relevant"))
    written = policy.spell(some, [demonstration(e, plain, generator_of(0)) for e in some])[1].sum(1).float().mean()
    rollouts = (1 + 3 * rl.epochs) * (prompt + rl.group * longest)
    return rollouts / (3 * (prompt + float(written)))


def steps_of(policy: Policy, queries: list[Example], config: Config, once: bool = False) -> int:
    """Steps of SFT on the queries of an RL run, for the compute of RL (`once`: each query once)."""
    passes = 1.0 if once else passes_per_query(policy, queries, config)
    return math.ceil(passes * len(queries) / config.sft.sft_batch)


def continued(
    config: Config, splits: Splits, start: Path, folder: Path, once: bool = False, resume: bool = False
) -> tuple[Policy, list[Example], Run]:  # fmt: skip
    """SFT from a policy on the queries of the RL run with this seed, for its compute (`once`: each query once).

    Returns what `fit` needs: policy, queries, and the run, whose config holds the number of steps.
    """
    policy, queries = load_policy(start, lm=config.lm), queries_of(splits, config)
    steps = steps_of(policy, queries, config, once)
    config = replace(config, sft=replace(config.sft, sft_steps=steps))
    origin = {"stage": "sft", "init": digest_of_policy(start), "train": digest_of(queries)}
    return policy, queries, Run(folder, config, resume, max(1, steps // 4), origin=origin)
