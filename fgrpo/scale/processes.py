"""The kit's own trainer on several processes, started by `accelerate launch` or `torchrun`. Not used by one process.

Every process holds the whole model and takes an equal share of the queries of each batch, so that no group is split
over processes. It samples, scores and assigns credit without the others: which token is drawn depends on (seed, step,
query, rollout, position) alone (fgrpo.rollout). Gradients are averaged once per optimizer step. A run is therefore the
same on any number of processes, up to rounding: sums are taken in another order.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import KitError
from ..data import Example
from ..policy import Policy
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..rollout import Rollouts
from ..runs.signals import processes
from ..trainer import ALONE, Logs, Team

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes(Team):
    """The processes of a run and this one's place among them."""

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.size, self.rank = accelerator.num_processes, accelerator.process_index
        self.main = self.rank == 0

    def device(self, device: str) -> str:
        """The device of this process: with `cuda`, each has its own GPU. Raises KitError if it is not available."""
        if device not in ("cpu", self.accelerator.device.type):
            raise KitError(f"device {device!r} cannot be used by {self.size} processes here: choose cpu or cuda.")
        return str(self.accelerator.device)

    def share(self, queries: Sequence[Example]) -> list[Example]:
        """This process's queries of a batch, consecutive ones. Raises KitError if the batch cannot be shared evenly."""
        if len(queries) % self.size:
            raise KitError(f"{len(queries)} queries a step cannot be shared evenly by {self.size} processes.")
        part = len(queries) // self.size
        return list(queries[part * self.rank : part * (self.rank + 1)])

    def sum(self, value: float) -> float:
        """A number added up over the processes."""
        return float(self._reduce(torch.tensor([float(value)], dtype=torch.float64)))

    def mean_gradients(self, parameters: Sequence[Tensor], loss: float) -> float:
        """Average the gradients over the processes, in place, and the loss, which is returned, in one exchange."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return loss
        sent = torch.cat([*(g.flatten().float() for g in grads), torch.tensor([loss], device=grads[0].device)])
        *means, total = self._reduce(sent, "mean").split([*(g.numel() for g in grads), 1])
        for grad, mean in zip(grads, means, strict=True):
            grad.copy_(mean.view_as(grad))
        return float(total)

    def reduce(self, logs: Logs, rollouts: Rollouts | None) -> Logs:
        """Logged numbers of the whole batch, from those of each process.

        Means over tokens are weighted by their number of tokens, root mean squares are averaged as squares, token counts
        are added up, and everything else is a plain mean.
        """
        weights = torch.tensor([1.0 if rollouts is None else _weight(name, rollouts) for name in logs])
        values, squared = torch.tensor(list(logs.values())), torch.tensor(["_std" in name for name in logs])
        values = torch.where(squared, values.square(), values)
        weight, total = self._reduce(torch.stack((weights, values * weights)).double())
        means = total / weight.clamp(min=1e-9)  # 0 where no process has such a token
        means = torch.where(squared.to(means.device), means.sqrt(), means)
        found = dict(zip(logs, means.tolist(), strict=True))
        return found | ({"tokens": int(self.sum(logs["tokens"]))} if "tokens" in logs else {})

    def agree(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts, with the longest completion that the grammar allows on any process as divisor of the loss."""
        longest = self.accelerator.gather(torch.tensor([rollouts.longest or 0], device=self.accelerator.device))
        return replace(rollouts, longest=int(longest.max()) or None)

    def any(self, here: bool) -> bool:
        """Whether `here` is true on any of the processes."""
        return bool(self.sum(float(here)))

    def first(self) -> AbstractContextManager[None]:
        """A block that the main process completes before the others enter it."""
        return self.accelerator.main_process_first()

    def prepare(self, *models: object) -> None:
        """With `--mixed_precision bf16`, models compute in bfloat16 (torch.autocast); their weights keep their type."""
        for policy in models:
            if self.accelerator.mixed_precision == "bf16" and isinstance(policy, Policy):
                self.accelerator.prepare_model(policy.model, device_placement=False, evaluation_mode=True)
                policy.precision = torch.bfloat16

    def leave(self) -> None:
        """End communication with the other processes."""
        self.accelerator.end_training()

    def _reduce(self, values: Tensor, how: str = "sum") -> Tensor:
        return self.accelerator.reduce(values.to(self.accelerator.device), how)  # type: ignore[return-value]


def _weight(name: str, rollouts: Rollouts) -> float:
    """The number of tokens that a logged number is the mean of; 1 if it is not a mean over tokens."""
    phases = {"slate": PHASE_SLATE, "rank": PHASE_RANK}
    kind, _, phase = name.partition("/")
    if kind in ("clipfrac", "entropy", "advantage_std"):
        return float((rollouts.phase == phases[phase]).sum())
    return float(rollouts.mask.sum()) if "kl" in name else 1.0


def launched(device: str) -> Team:
    """The processes that `accelerate launch` or `torchrun` started; ALONE if there is only this one.

    Raises KitError if the launcher asks for something that the kit's own trainer does not do.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    for what in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("true", "1"):
            raise KitError(f"{what} splits the model over processes, which this trainer cannot: use fgrpo.scale.trl.")
    if precision not in ("no", "bf16"):
        raise KitError(f"mixed precision {precision!r} needs loss scaling, which this trainer lacks: choose bf16.")
    if int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or 1) > 1:
        raise KitError("gradient accumulation is set with --micro, not in the launcher: remove it there.")
    if processes() == 1 and precision == "no":
        return ALONE
    from accelerate import Accelerator

    try:
        return Processes(Accelerator(cpu=device == "cpu"))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise KitError(f"the processes cannot connect ({str(error).strip()[:150]}).") from None
