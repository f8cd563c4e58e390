"""The floor of a step: the time of the matrix products that it cannot do without, a lower limit for its speed.

Each product is timed as torch.mm or torch.bmm on matrices of its shape. Every linear layer is counted once for each token
of a prompt and each token fed in sampling, twice more for each token of the loss (its backward pass), and a head of the
grammar's choices. Of a whole step nothing counts twice: its loss needs no forward pass of its own, on the weights that
sampled; a loss by itself does. Tokens after the last choice do not count at all. Of attention, which is counted on
request, the scores and sums over prompts are (half of a prompt's own, for causality), those within a completion are not.
Norms, activations, sampling and credit are left out.
"""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from ..policy import Policy, Prompts

Shape = tuple[int, int, int, int]  # batch, then (m, k) times (k, n)


def products(policy: Policy, prompts: Prompts, wanted: Tensor, part: str, attention: bool = False) -> Counter[Shape]:
    """Shapes of the products of a `part` (loss, rollout, or the whole step) and how many of each.

    wanted (Q * G, T): tokens that were chosen. A token is fed if another one of its row is chosen after it. SFT's step
    is a loss. With `attention`, a prompt has the mean length.
    """
    config, head, queries = policy.model.config, policy.model.get_output_embeddings(), len(prompts.ids)
    layers = [m for m in policy.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    each = (wanted.sum(1, keepdim=True) > wanted.cumsum(1)).sum(1)  # tokens fed of each row
    encoded, fed, chosen, steps = int(prompts.mask.sum()), int(each.sum()), int(wanted.sum()), int(each.max())
    sizes = [(m.in_features, m.out_features) for m in layers]
    choices = head.in_features, prompts.choices.tokens.shape[1]
    found: Counter[Shape] = Counter()
    learned = [(1, encoded + fed, *size) for size in sizes] + [(1, chosen, *choices)]
    prompt, sampled = [(1, encoded, *size) for size in sizes], []
    if fed:
        sampled = [(1, -(-n // steps), *size) for n, size in [*((fed, s) for s in sizes), (chosen, choices)]]
    if attention:
        heads, length = config.num_key_value_heads, encoded // queries
        sharing, size = config.num_attention_heads // heads, config.head_dim
        own = [(length * sharing, size, length // 2), (length * sharing, length // 2, size)]
        branches = -(-fed // queries) * sharing
        both = [*own, (branches, size, length), (branches, length, size)]
        step = -(-fed // (queries * max(steps, 1))) * sharing
        learned += [(queries * heads, *x) for _ in range(config.num_hidden_layers) for x in both]
        prompt += [(queries * heads, *x) for _ in range(config.num_hidden_layers) for x in own]
        if fed:
            decoded = [(step, size, length), (step, length, size)]
            sampled += [(queries * heads, *x) for _ in range(config.num_hidden_layers) for x in decoded]
    found.update(learned if part == "loss" else prompt)
    for b, m, k, n in learned if part != "rollout" else ():
        found.update([(b, m, n, k), (b, k, m, n)])
    if part != "loss":
        for shape in sampled:
            found[shape] += steps
    return found


def seconds(shapes: Counter[Shape], like: Tensor, now: Callable[[], float] = time.process_time) -> float:
    """Seconds that the products take, on the device and in the type of `like`."""
    spent = 0.0
    for (b, m, k, n), count in shapes.items():
        left, right, out = (like.new_empty(b, *size).normal_() for size in ((m, k), (k, n), (m, n)))
        began = now()
        for _ in range(count):
            torch.bmm(left, right, out=out) if b > 1 else torch.mm(left[0], right[0], out=out[0])
        spent += now() - began
    return spent
