"""F-GRPO inside TRL: its GRPOTrainer with one advantage per token, so that vLLM, FSDP, DeepSpeed and several machines
come from there.

TRL generates, computes the loss and updates; rewards and credit are the kit's. The groups of a query may lie on several
processes: rewards and credit are computed from the rollouts of all, and each process keeps its own rows.
"""

from typing import Any

import torch
from torch.nn.functional import pad

from ..config import GrammarConfig, KitError, RLConfig
from ..credit import assign_credit
from ..policy import Prompts, Sampling, pad_rows
from ..prompt import parse
from ..rewards import Rewards, score
from ..rollout import Rollouts
from ..trainer import describe
from .processes import moved
from .trl_options import Labels, check_options, check_version, example_of_row

check_version()
try:
    from accelerate.utils import gather_object
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise KitError(f"TRL cannot be imported ({error}): pip install -e '.[peers]' -c constraints.txt.") from None


class FGRPOTrainer(GRPOTrainer):
    """trl.GRPOTrainer with the kit's rewards and its credit by phase.

    `train_dataset` holds rows of fgrpo.scale.trl_options.trl_rows, `args` options of grpo_options. Logged with TRL's own
    numbers are the kit's (fgrpo.trainer.describe), the share of groups without variance in each phase among them. The
    table of `log_completions` shows the joint advantages that TRL computes and that are not used.

    Raises KitError on options that would undo the credit or be ignored.
    """

    def __init__(
        self, model: Any, args: GRPOConfig, train_dataset: Any, *, labels: Labels, rl: RLConfig,
        grammar: GrammarConfig | None = None, **more: Any,
    ):  # fmt: skip
        check_options(args, rl)
        if "reward_funcs" in more:
            raise KitError("reward_funcs: a reward must say which phase it pays, and those of the kit do.")
        self.labels, self.rl = labels, rl
        self.sampling = Sampling(grammar or GrammarConfig(), constrained=False, temperature=rl.temperature)
        self.own: dict[str, torch.Tensor] = {}  # of this process's rows: rewards by name, and `advantages` (B, T)
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, **more,
            reward_funcs=[self._reward(name) for name in ("slate", "rank", "format")],
        )  # fmt: skip
        if labels.end not in self.eos_token_ids:
            raise KitError(
                f"an answer ends with token {labels.end} in this model's chat template, where TRL's generation does not "
                "stop: add it to the model's generation_config.eos_token_id."
            )

    def _reward(self, name: str) -> Any:
        """A reward function for TRL, which logs what it returns under its name."""

        def reward(completions: list, **_: Any) -> list[float | None]:
            return self.own[name].tolist()

        reward.__name__ = name
        return reward

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Any:
        """TRL's table of rewards (all rows, 3), and on the way the credit of every token."""
        model: Any = self.model
        mode, group = ("train", self.num_generations) if model.training else ("eval", self.num_generations_eval)
        rows = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        rollouts, rewards = self._everyone(inputs, completion_ids_list, int(group or 1))
        advantages = assign_credit(rewards, rollouts, self.rl)
        self.own = {name: getattr(rewards, name).flatten()[rows] for name in ("slate", "rank", "format")}
        self.own["advantages"] = advantages[rows]
        for name, value in describe(rollouts, rewards, advantages).items():
            self._metrics[mode][name].append(value)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _everyone(self, inputs: list, written: list[list[int]], group: int) -> tuple[Rollouts, Rewards]:
        """Rollouts and rewards of all processes, on the CPU, in TRL's order: the rows of a query in turn."""
        labels, examples = self.labels, [example_of_row(row) for row in inputs]
        ids, mask = pad_rows(written, labels.pad)
        pools = [{label: i for i, label in enumerate(labels.candidates(e))} for e in examples]
        outputs = [
            parse(labels.text(row), pool, self.sampling.grammar) for row, pool in zip(written, pools, strict=True)
        ]
        none: Any = None
        own = Rollouts(
            none, ids, mask, labels.phases(ids, mask), torch.zeros(ids.shape), outputs, group, self.sampling,
            words=labels.words(ids, mask),
        )  # fmt: skip
        found = gather_object([(moved(own, "cpu"), examples)])
        every = [e for _, some in found for e in some]
        queries = every[::group]
        if any(e != queries[n // group] for n, e in enumerate(every)):
            raise KitError(f"TRL's batch is not made of groups of {group} rows: keep its own sampler.")
        prompts = Prompts(torch.zeros(len(queries), 0), torch.zeros(len(queries), 0), labels.choices(queries))
        rollouts = Rollouts.join([r for r, _ in found], labels.pad, prompts)
        return rollouts, score(rollouts, queries, self.rl)

    def _generate_and_score_completions(self, inputs: list) -> dict[str, Any]:
        """TRL's batch with advantages (B, T)."""
        output = super()._generate_and_score_completions(inputs)
        ids, advantages = output["completion_ids"], self.own["advantages"]
        advantages = pad(advantages, (0, max(0, ids.shape[1] - advantages.shape[1])))[:, : ids.shape[1]]
        return {**output, "advantages": advantages.to(ids.device)}
