"""The kit's trainer on several processes, started by `accelerate launch` or `torchrun`. One process needs none of this.

Every process holds the whole model and takes whole queries, an equal share of each batch, so that no group is ever
split. Sampling follows the one stream of random numbers that a single process would draw from: each process draws the
numbers of all rows and uses those of its own, for which all agree before every token on how many rows are still being
written. Rewards and credit are computed from the rollouts of all, by every process; gradients are averaged once a step.
So a run is the same on any number of processes, but for the rounding of sums taken in another order.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from .config import KitError
from .policy import Policy, Prompts
from .prompt import PHASE_RANK, PHASE_SLATE
from .rollout import Draws, Rollouts
from .stopping import processes


def slices(count: int, size: int) -> list[slice]:
    """`count` things, `size` at a time (0: all at once)."""
    return [slice(a, min(a + (size or count), count)) for a in range(0, count, size or count)]


class Team:
    """The processes of a run and this one's place among them. Without an accelerate.Accelerator: one, by itself."""

    def __init__(self, accelerator: Any = None):
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes if accelerator else 1
        self.rank: int = accelerator.process_index if accelerator else 0
        self.main = self.rank == 0  # the one that writes files and talks

    def device(self, device: str) -> str:
        """Where this process computes: under `cuda` each has its own GPU. Raises KitError if it cannot be had."""
        if self.accelerator is None:
            return device
        if device not in ("cpu", self.accelerator.device.type):
            raise KitError(f"device {device!r} cannot be used by {self.size} processes here: choose cpu or cuda.")
        return str(self.accelerator.device)

    def prepare(self, *policies: Any) -> None:
        """Under `--mixed_precision bf16`, models compute in bfloat16 (torch.autocast); their weights stay as they are."""
        if self.accelerator is not None and self.accelerator.mixed_precision == "bf16":
            for policy in policies:
                if isinstance(policy, Policy):
                    self.accelerator.prepare_model(policy.model, device_placement=False, evaluation_mode=True)

    def check(self, queries: int) -> None:
        """Raise KitError if a batch does not give every process the same number of queries."""
        if queries % self.size:
            raise KitError(f"{queries} queries a step cannot be shared evenly by {self.size} processes.")

    def parts(self, queries: int, micro: int) -> list[slice]:
        """This process's share of a batch, `micro` queries at a time: its own of each `size` x `micro` queries."""
        found = []
        for part in slices(queries, self.size * micro):
            share = (part.stop - part.start) // self.size
            found.append(slice(part.start + share * self.rank, part.start + share * (self.rank + 1)))
        return found

    def draws(self, generator: torch.Generator) -> Draws:
        """What rollouts draw from: the stream of one generator, for the rows of all processes."""
        return Draws(generator) if self.accelerator is None else SharedDraws(generator, self.accelerator)

    def gather(self, own: Rollouts, prompts: Prompts, micro: int, pad: int) -> Rollouts:
        """The rollouts of all processes in the order of the batch, whose encoded queries are `prompts`."""
        from accelerate.utils import gather_object

        sent = [moved(own.rows(p), "cpu") for p in slices(len(own.outputs) // own.group, micro)]
        device = str(own.completions.device)
        found = [moved(r, device) for part in zip(*gather_object([sent]), strict=True) for r in part]
        return Rollouts.join(found, pad, prompts)

    def mine(self, advantages: Tensor, queries: int, micro: int) -> Tensor:
        """Of the rows of all, (B, T), those of this process, in the order of its rollouts."""
        if self.accelerator is None:
            return advantages
        by_query = advantages.unflatten(0, (queries, -1))
        return torch.cat([by_query[p] for p in self.parts(queries, micro)]).flatten(0, 1)

    def mean_gradients(self, parameters: Iterable[Tensor], loss: float) -> float:
        """Average the gradients over the processes, in place, and the loss, which is returned: one exchange."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.accelerator is None or not grads:
            return loss
        sent = torch.cat([*(g.flatten().float() for g in grads), torch.tensor([loss], device=grads[0].device)])
        *means, total = self.accelerator.reduce(sent, "mean").split([*(g.numel() for g in grads), 1])
        for grad, mean in zip(grads, means, strict=True):
            grad.copy_(mean.view_as(grad))
        return float(total)

    def mean(self, logs: dict[str, float], own: Rollouts | None = None) -> dict[str, float]:
        """Logged numbers averaged over the processes; those per token by the tokens of `own` that they are about."""
        if self.accelerator is None:
            return logs
        weights = [1.0 if own is None else _weight(name, own) for name in logs]
        sent = torch.tensor([weights, list(logs.values())], device=self.accelerator.device)
        sent[1] *= sent[0]
        weight, total = self.accelerator.reduce(sent, "sum")
        return dict(zip(logs, (total / weight.clamp(min=1)).tolist(), strict=True))

    def any(self, here: bool) -> bool:
        """Whether something is so on any of the processes."""
        if self.accelerator is None:
            return here
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), "sum"))

    def first(self) -> AbstractContextManager[None]:
        """A block that the main process goes through before the others do."""
        return nullcontext() if self.accelerator is None else self.accelerator.main_process_first()

    def leave(self) -> None:
        """End the work in common; what follows, each does alone."""
        if self.accelerator is not None:
            self.accelerator.end_training()


ALONE = Team()


class SharedDraws(Draws):
    """Each process draws for the rows of all, in the order of the processes, and keeps what belongs to its own."""

    def __init__(self, generator: torch.Generator, accelerator: Any):
        super().__init__(generator)
        self.accelerator = accelerator

    def choose(self, probabilities: Tensor) -> Tensor:
        """One index per row of this process that is still written. (B, K) -> (B, 1)."""
        drawn, before = self._round(probabilities)
        return drawn[before : before + len(probabilities)]

    def finish(self) -> None:
        """Draw on for the other processes until none has a row left."""
        while len(self._round(torch.empty(0, 0))[0]):
            pass

    def _round(self, own: Tensor) -> tuple[Tensor, int]:
        """The indices drawn for one token of every row of all processes, and where this process's rows begin."""
        shapes = self.accelerator.gather(torch.tensor([own.shape], device=self.accelerator.device))  # (processes, 2)
        rows, columns = shapes[:, 0].tolist(), int(shapes[:, 1].max())
        before = sum(rows[: self.accelerator.process_index])
        every = torch.ones(sum(rows), columns)
        every[before : before + len(own)] = own if len(own) else 1.0
        return (super().choose(every) if len(every) else torch.empty(0, 1)), before


def _weight(name: str, own: Rollouts) -> float:
    """How many tokens a logged number is the mean of; 1 if it is no mean of tokens."""
    phases = {"slate": PHASE_SLATE, "rank": PHASE_RANK}
    if (which := name.split("/")[-1]) in phases:
        return float((own.phase == phases[which]).sum())
    return float(own.mask.sum()) if "kl" in name else 1.0


def moved(rollouts: Rollouts, device: str) -> Rollouts:
    """Rollouts on another device, without their prompts."""
    values = {f.name: getattr(rollouts, f.name) for f in fields(rollouts)}
    tensors = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(rollouts, prompts=None, tree=None, **tensors)  # type: ignore[arg-type]


def launched(device: str) -> Team:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone.

    Raises KitError if the launcher was asked for what the kit's own trainer does not do.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    for what in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("true", "1"):
            raise KitError(f"{what} splits the model, which this trainer holds whole: use fgrpo.trl_trainer for that.")
    if precision not in ("no", "bf16"):
        raise KitError(f"mixed precision {precision!r} needs its losses scaled, which is not done here: choose bf16.")
    if int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or 1) > 1:
        raise KitError("gradient accumulation is said with --micro here, not to the launcher.")
    if processes() == 1 and precision == "no":
        return ALONE
    from accelerate import Accelerator

    try:
        return Team(Accelerator(cpu=device == "cpu"))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise KitError(f"the processes cannot be joined ({str(error).strip()[:150]}).") from None
