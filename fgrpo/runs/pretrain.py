"""Pre-training on histories, before the warm start: the next item of each history, as a sequential recommender learns it.

An example is read as `<HISTORY>`, the items of its history, then a relevant candidate. Each item is predicted from those
before it, among the whole catalogue, or, of one larger than FULL, among the batch's own items and FULL others drawn
uniformly. Pools are not shown.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..config import Config
from ..data import Example, Splits
from ..lm.text import Items
from ..policy import Policy, pad_rows, positions
from ..prompt import POOL
from ..trainer import ALONE, Logs, Stage, Team, fit, update
from .origin import digest_of
from .policies import new_policy
from .run import Run
from .sft import generator_of, rising_and_falling

FULL = 4096
"""items up to which the softmax is over the whole catalogue"""


def initial_policy(
    config: Config, splits: Splits, items: Sequence[str], folder: Path, quiet: bool = False, resume: bool = False,
    stop: Callable[[], bool] = lambda: False, writes: bool = True,
) -> Policy:  # fmt: skip
    """The policy that a warm start in `folder` begins with, with config.seed: a new one, pre-trained in folder/pretrain.

    Of several processes one `writes`; the others call this when it is done.
    """
    policy = new_policy(items, config, config.seed, splits)
    if not config.sft.pretrain:
        return policy
    origin = {"stage": "pretrain", "train": digest_of(splits.train)}
    run = Run(folder / "pretrain", config, resume, 250, writes, origin)
    return fit(policy, splits.train, config, run, pretrain_stage(config), quiet, stop=stop)


def pretrain_stage(config: Config) -> Stage:
    """Pre-training as a stage of `fit`, with batch, learning rates and weight decay of the warm start."""
    sft = config.sft
    lr = rising_and_falling(sft.sft_lr, sft.pretrain)
    return Stage(pretrain_step, sft.pretrain, sft.sft_batch, lr, "pretrain", sft.sft_weight_decay)


def pretrain_step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config, number: int = 0,
    reference: Policy | None = None, team: Team = ALONE,
) -> Logs:  # fmt: skip
    """Step `number`: cross-entropy of the next item, the mean over all items of the batch."""
    labels: Any = policy.labels
    rows: list[list[int]] = []
    policy.encode(queries, config.grammar)  # reads texts that are new
    generator = generator_of(config.seed, number, "pretrain")
    for example in queries:
        ids, relevant = labels.prompt_ids(example), sorted(example.relevant)
        end, chosen = ids.index(labels.vocabulary[POOL]), int(torch.randint(len(relevant), (), generator=generator))
        rows.append([*ids[:end], ids[end + 1 + relevant[chosen]]])
    ids, mask = (x.to(policy.device) for x in pad_rows(rows, policy.pad))  # (Q, T)
    out = policy.model.model(ids, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False)
    later = mask[:, 1:]
    hidden, targets = out.last_hidden_state[:, :-1][later], ids[:, 1:][later]  # (N, width), (N,)
    choices = torch.arange(labels.vocabulary[POOL] + 1, len(labels.names))
    if len(choices) > FULL:
        others = choices[torch.randint(len(choices), (FULL,), generator=generator)]
        choices = torch.cat((targets.cpu(), others)).unique()
    choices = choices.to(policy.device)  # in order
    embeddings = policy.model.get_input_embeddings()
    logits = hidden @ embeddings(choices).T
    if isinstance(embeddings, Items):
        logits = logits + embeddings.worths(choices)
    loss = cross_entropy(logits, torch.searchsorted(choices, targets))
    norm = update(policy, optimizer, loss, 1.0, team)
    return team.reduce({"loss": loss.item()}, None) | {"grad_norm": norm, "tokens": int(later.sum())}
