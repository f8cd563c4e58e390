"""An offline rival of RL: DPO (arXiv 2305.18290) on outputs of the warm start, ordered by the rewards of RL.

Of every query that RL trains on, the warm start samples one group; its best output is preferred to its worst (DPO), or
to all that earned less (S-DPO's softmax over several rejected ones, arXiv 2406.09215). The preferred side is found by
reward R_slate + lambda R_rank, as joint credit has it; a group whose outputs all earn the same teaches nothing.

Offline means that the outputs are those of the warm start, whatever was learned since. As a draw depends on (seed,
step, query, rollout) alone, each group is drawn when its turn comes: nothing is stored, and a resumed run draws what it
would have drawn. So queries, their order and the number of groups are those of RL with the same seed.

beta 0.5 and the learning rate of RL were chosen on 1,024 validation queries of the lab task, from the shipped warm start
(NDCG@5 with lists filled 0.655; one seed, 600 steps of 16 x 8). DPO: 0.676 and 0.660 at beta 0.1 with 1e-4 and 4e-4,
0.687 and 0.690 at beta 0.5; S-DPO 0.686 at beta 0.5 with 4e-4. Where lists end by themselves they get longer, but NDCG@5
hardly rises (0.508 before; DPO 0.488, S-DPO 0.518 after), so these rows are measured with lists filled, as SFT that goes
on is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..config import Config, KitError, RLConfig
from ..credit import zero_variance
from ..data import Example, Splits
from ..loss import accumulated
from ..policy import Policy, slices
from ..rewards import score
from ..rollout import rollout
from ..runs.origin import digest_of, digest_of_policy
from ..runs.policies import load_policy
from ..runs.run import Run, check_folder
from ..trainer import ALONE, Logs, Stage, Team, sampled_tokens, sampling_of, update

READ = ("steps", "queries", "group", "slate_reward", "lam", "format_penalty", "slate_noise", "rank_noise", "lr_decay",
        "max_grad_norm", "temperature", "decoding")  # fmt: skip
"""the RL options that count here as well; all others are those of methods of credit"""
STAGES = {"worst": "dpo", "all": "s_dpo"}
"""what a run is called in its origin, by `Preference.negatives`"""


@dataclass(frozen=True)
class Preference:
    """One such rival: which outputs are rejected, and the options of its loss."""

    negatives: str = "worst"
    """outputs of a group that its best one is preferred to: the worst one (DPO) or all that earned less (S-DPO)"""
    beta: float = 0.5
    """weight of the log-ratios in the loss: the larger, the closer the policy stays to the warm start"""
    lr: float = 0.0
    """learning rate of the first step (AdamW), which falls as that of RL does (0: that of RL)"""

    def __post_init__(self) -> None:
        if self.negatives not in STAGES:
            raise KitError(f"negatives {self.negatives!r} is not known; choose from {', '.join(STAGES)}.")
        if not self.beta > 0:
            raise KitError(f"beta {self.beta} of a preference must be above 0.")
        RLConfig(beta=self.beta, lr=self.lr or RLConfig.lr)  # refuses what is out of bounds

    def options(self, config: Config) -> Config:
        """The run beside RL with `config`. Raises KitError if RL trains one phase alone."""
        if config.rl.learn != "both":
            raise KitError(
                f"preferences are about whole outputs, and learn is {config.rl.learn!r}: leave out one of them."
            )
        rl = {name: getattr(config.rl, name) for name in READ}
        return replace(config, rl=RLConfig(**rl, beta=self.beta, lr=self.lr or config.rl.lr))

    def check_folder(self, folder: Path, config: Config, resume: bool) -> None:
        """Raise KitError unless the run beside RL with `config` may be written to a folder. Writes nothing."""
        check_folder(folder, self.options(config), resume, {"stage": STAGES[self.negatives]})

    def stage(self, config: Config) -> Stage:
        """What `fit` repeats, with the options of such a run."""
        rl, decay = config.rl, config.rl.lr_decay == "linear"
        step = partial(preference_step, negatives=self.negatives)
        return Stage(step, rl.steps, rl.queries, lambda n: rl.lr * (1 - decay * n / rl.steps), beta=rl.beta)


PREFERENCES = {"dpo": Preference(), "s_dpo": Preference("all")}
"""What the command line names."""


def preferences_by_name(names: Sequence[str]) -> dict[str, Preference]:
    """Preferences as the command line names them. Raises KitError on an unknown name."""
    for name in names:
        if name not in PREFERENCES:
            raise KitError(f"preference {name!r} is not known; choose from {', '.join(PREFERENCES)}.")
    return {name: PREFERENCES[name] for name in names}


def preferring(
    preference: Preference, config: Config, splits: Splits, start: Path, folder: Path, resume: bool = False
) -> tuple[Policy, Run]:
    """The warm start `start` and the run that trains it, beside RL with `config`: what `fit` needs."""
    own = preference.options(config)
    stage = STAGES[preference.negatives]
    origin = {"stage": stage, "init": digest_of_policy(start), "train": digest_of(splits.train)}
    run = Run(folder, own, resume, max(1, own.rl.steps // 4), origin=origin)
    return load_policy(start, lm=config.lm), run


def preference_step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config, number: int = 0,
    reference: Policy | None = None, team: Team = ALONE, negatives: str = "worst",
) -> Logs:  # fmt: skip
    """Step `number`: the groups that the `reference` (the warm start) draws for the queries (Q), their order, an update."""
    assert reference is not None
    rl, sampling = config.rl, sampling_of(config)
    drawn = rollout(reference, queries, sampling, rl.group, config.seed, number, micro=config.lm.micro)
    policy.share = policy.share and reference.share  # the loss trusts what the comparison of these rollouts found
    rewards = score(drawn, queries, rl, config.seed, number)
    paid = rewards.slate + rl.lam * rewards.rank + rewards.format  # (Q, G)
    places = contrasted(paid, negatives)  # (Q, K)
    rows = places + rl.group * torch.arange(len(queries)).unsqueeze(1)
    paid, rows = paid.gather(1, places).to(policy.device), rows.to(policy.device)
    ids, mask, old = drawn.completions[rows], drawn.mask[rows], drawn.logprobs[rows].sum(-1)  # (Q, K, T), old (Q, K)
    count, found = int(team.sum(int((~zero_variance(paid)).sum()))), list[Tensor]()

    def losses() -> Iterator[Tensor]:
        for some in slices(len(queries), config.lm.micro):
            prompts = policy.encode(queries[some], sampling.grammar)
            logp, _ = policy.logprobs(prompts, ids[some].flatten(0, 1), mask[some].flatten(0, 1), sampling)
            ratios = logp.sum(-1).view_as(old[some]) - old[some]  # forced tokens have log-prob 0
            found.append(ratios.detach())
            yield team.size * preference_loss(ratios, paid[some], rl.beta).sum() / max(1, count)

    in_parts = 0 < config.lm.micro < len(queries)
    loss = accumulated(losses(), policy.parameters()) if in_parts else next(losses())
    logs = {
        "loss": loss.item(), "reward/slate": rewards.slate.mean().item(), "reward/rank": rewards.rank.mean().item(),
        "zero_variance": zero_variance(paid).float().mean().item(),
        "preferred": preferred(torch.cat(found), paid),
        "grad_norm": update(policy, optimizer, loss, rl.max_grad_norm, team), "tokens": sampled_tokens(drawn),
    }  # fmt: skip
    return team.reduce(logs, None)


def contrasted(paid: Tensor, negatives: str) -> Tensor:
    """Which outputs of each group the loss is about: the best and the worst (the first of equals), or all.

    (Q, G) rewards -> (Q, K) places in the group.
    """
    if negatives == "worst":
        return torch.stack((paid.argmax(1), paid.argmin(1)), dim=1)
    return torch.arange(paid.shape[1]).expand_as(paid)


def preference_loss(ratios: Tensor, paid: Tensor, beta: float) -> Tensor:
    """-log sigmoid(-log sum_l exp(beta (r_l - r_w))) of each group whose outputs do not all earn the same.

    ratios (Q, K): r, the log-probability of each output under the policy less that under the reference. w is the output
    with the highest reward `paid` (Q, K), l runs over those with a lower one. With a single l this is DPO's loss,
    -log sigmoid(beta (r_w - r_l)); with several S-DPO's.
    """
    best = paid.argmax(1, keepdim=True)
    rejected = paid < paid.gather(1, best)
    margins = (beta * (ratios - ratios.gather(1, best))).masked_fill(~rejected, float("-inf"))
    return softplus(margins[rejected.any(1)].logsumexp(1))


def preferred(ratios: Tensor, paid: Tensor) -> float:
    """Share of the pairs (best, one that earned less) in which the best output's probability grew more; 0 if none."""
    best = paid.argmax(1, keepdim=True)
    rejected = paid < paid.gather(1, best)
    won = (ratios < ratios.gather(1, best)) & rejected
    return int(won.sum()) / max(1, int(rejected.sum()))
