"""G rollouts a query: one prefill per query, its cache repeated, all rows decoded together.

A token that the grammar forces (tags, the end, the last choice left) costs no step of its own: it is appended at
log-prob 0 and fed together with the next token that has to be fed anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import Example
from .policy import Policy, Prompts, Sampling, constrained_logps
from .prompt import Output, max_tokens, parse, phases


@dataclass(frozen=True)
class Rollouts:
    """Q x G sampled completions, row q * G + g belonging to query q. B = Q * G.

    `completions` (B, T) token ids, padded on the right; `mask` (B, T) bool, true through the end token; `phase` (B, T)
    see fgrpo.prompt; `logprobs` (B, T) at sampling; `outputs` B parsed completions; `group` is G.
    """

    prompts: Prompts
    completions: Tensor
    mask: Tensor
    phase: Tensor
    logprobs: Tensor
    outputs: list[Output]
    group: int
    sampling: Sampling


@torch.no_grad()
def rollout(
    policy: Policy,
    examples: Sequence[Example],
    sampling: Sampling,
    group: int = 1,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Sample `group` completions per example, or decode greedily if there is no generator."""
    prompts = policy.encode(examples)
    if sampling.constrained:
        completions, logprobs, length = _constrained(policy, prompts, sampling, group, generator)
    else:
        completions, logprobs, length = _free(policy, prompts, sampling, group, generator)
    width = int(length.max())
    completions, logprobs = completions[:, :width], logprobs[:, :width]
    mask = torch.arange(width) < length.unsqueeze(1)
    labels = [{label: i for i, label in enumerate(policy.labels.candidates(e))} for e in examples]
    rows = zip(completions.tolist(), length.tolist(), strict=True)
    outputs = [
        parse(policy.text(row[:n]), labels[b // group], sampling.grammar) for b, (row, n) in enumerate(rows)
    ]  # fmt: skip
    phase = phases(completions, mask, policy.tags[1])
    return Rollouts(prompts, completions, mask, phase, logprobs, outputs, group, sampling)


def _constrained(
    policy: Policy, prompts: Prompts, sampling: Sampling, group: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    choices = prompts.choices.repeat(group)
    batch, n_choices = choices.tokens.shape
    completions = torch.full((batch, max_tokens(sampling.grammar)), policy.pad)
    logprobs, length = torch.zeros(completions.shape), torch.zeros(batch, dtype=torch.long)
    counts = torch.zeros(batch, 1, n_choices, dtype=torch.int16)
    everyone = torch.ones(batch, dtype=torch.bool)

    def append(rows: Tensor, choice: Tensor, logp: Tensor | float) -> None:
        index = rows.nonzero().squeeze(1)
        completions[index, length[index]] = choices.tokens[index, choice[index]]
        logprobs[index, length[index]] = logp if isinstance(logp, float) else logp[index]
        counts[index, 0, choice[index]] += 1
        length[index] += 1

    open_slate = prompts.choices.tokens[:, -5:-4]  # every row begins with it, so it is encoded with the prompt
    begun = replace(
        prompts, ids=torch.cat((prompts.ids, open_slate), 1), mask=torch.nn.functional.pad(prompts.mask, (0, 1), value=True)
    )  # fmt: skip
    append(everyone, torch.full((batch,), n_choices - 5), 0.0)
    out = policy.prefill(begun, group)
    logits, cache = out.logits[:, -1].repeat_interleave(group, dim=0), out.cache
    seen, fed = begun.mask.repeat_interleave(group, dim=0), length.clone()
    prompt_length = prompts.mask.sum(1).repeat_interleave(group)
    ended = ~everyone
    while True:
        logps = constrained_logps(logits.unsqueeze(1), choices, counts, sampling).squeeze(1)
        choice, logp = _draw(logps, generator)
        append(~ended, choice, logp)
        while True:
            ended = counts[:, 0, -1] > 0
            allowed = choices.allowed(counts, sampling.grammar).squeeze(1)
            forced = (allowed.sum(-1) == 1) & ~ended
            if not forced.any():
                break
            append(forced, allowed.int().argmax(-1), 0.0)
        if ended.all():
            return completions, logprobs, length
        width = int((length - fed)[~ended].max())
        column = fed.unsqueeze(1) + torch.arange(width)
        real = (column < length.unsqueeze(1)) & ~ended.unsqueeze(1)
        seen = torch.cat((seen, real), dim=1)
        out = policy.model(
            completions.gather(1, column.clamp(max=completions.shape[1] - 1)), attention_mask=seen.long(),
            position_ids=prompt_length.unsqueeze(1) + column, cache=cache, use_cache=True,
        )  # fmt: skip
        last = (length - fed - 1).clamp(min=0, max=width - 1)
        logits, fed = out.logits[torch.arange(batch), last], length.clone()


def _free(
    policy: Policy, prompts: Prompts, sampling: Sampling, group: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    out = policy.prefill(prompts, group)
    logits, cache = out.logits[:, -1].repeat_interleave(group, dim=0), out.cache
    seen = prompts.mask.repeat_interleave(group, dim=0)
    position = seen.sum(1, keepdim=True)
    ended = torch.zeros(len(seen), dtype=torch.bool)
    tokens, logprobs, alive = [], [], []
    for _ in range(max_tokens(sampling.grammar)):
        token, logp = _draw((logits / sampling.temperature).log_softmax(-1), generator)
        tokens.append(token.masked_fill(ended, policy.pad))
        logprobs.append(logp.masked_fill(ended, 0.0))
        alive.append(~ended)
        ended = ended | (token == policy.end)
        if ended.all():
            break
        seen = torch.cat((seen, ~ended.unsqueeze(1)), dim=1)
        out = policy.model(
            tokens[-1].unsqueeze(1), attention_mask=seen.long(), position_ids=position, cache=cache, use_cache=True
        )
        logits, position = out.logits[:, -1], position + 1
    return torch.stack(tokens, 1), torch.stack(logprobs, 1), torch.stack(alive, 1).sum(1)


def _draw(logps: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One index per row of (B, K) log-probabilities: sampled, or the most likely one without a generator."""
    index = logps.argmax(-1, True) if generator is None else torch.multinomial(logps.exp(), 1, generator=generator)
    return index.squeeze(1), logps.gather(-1, index).squeeze(1)
