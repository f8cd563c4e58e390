"""F-GRPO inside TRL: its GRPOTrainer with one advantage per token. vLLM, FSDP, DeepSpeed and several machines are TRL's.

TRL generates, computes the loss and updates; rewards and credit are the kit's. TRL may split the G rollouts of a query
over processes: rewards and credit are computed from the rollouts of all processes, and each keeps its own rows.

Rewards are TRL's reward functions, advantages replace those in what `_generate_and_score_completions` returns, and
`_tokenize_prompts` is replaced for prompts of the kit; nothing else of TRL's inside is touched.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import GrammarConfig, KitError, RLConfig
from ..credit import assign_credit
from ..lm.folder import check_folder
from ..lm.index_labels import IndexLabels
from ..policy import Prompts, Sampling, pad_rows
from ..prompt import Labels, parse
from ..rewards import Rewards, score
from ..rollout import Rollouts
from ..trainer import describe
from .trl_options import (
    Row,
    check_advantages,
    check_options,
    check_trained,
    check_trl,
    example_of_row,
    is_message,
    trl_version,
)

trl_version()  # raises KitError if there is none
try:
    from accelerate.utils import gather_object
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise KitError(f"TRL cannot be imported ({error}): pip install -e '.[peers]' -c constraints.txt.") from None
check_trl(GRPOTrainer, GRPOConfig)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

REWARDS = ("slate", "rank", "format")
FIELDS = ("query", "relevant", "gains", "pool")
"""columns of a row from which rewards are computed"""


class FGRPOTrainer(GRPOTrainer):
    """trl.GRPOTrainer with the kit's rewards and its credit by phase.

    `train_dataset` holds rows of fgrpo.scale.trl_options.trl_rows, `args` options of grpo_options. Beside TRL's own
    numbers it logs those of the kit (fgrpo.trainer.describe), such as the share of groups without variance in each
    phase. The table of `log_completions` shows the joint advantages that TRL computes, which are not used.

    Raises KitError on options that would undo the credit or be ignored.
    """

    def __init__(
        self, model: "PreTrainedModel | str", args: GRPOConfig, train_dataset: "Dataset", *, labels: Labels, rl: RLConfig,
        grammar: GrammarConfig | None = None, **more: Any,
    ):  # fmt: skip
        if not isinstance(args, GRPOConfig):
            raise KitError(
                f"args is a {type(args).__name__}, and FGRPOTrainer takes a trl.GRPOConfig (TRL's AsyncGRPO is not "
                "covered: its rollouts carry one advantage per completion)."
            )
        check_options(args, rl)
        if isinstance(model, str):
            check_folder(model)
        if "reward_funcs" in more:
            raise KitError("reward_funcs: the trainer uses the kit's own rewards, which pay one phase each; remove it.")
        self.labels, self.rl = labels, rl
        self.sampling = Sampling(grammar or GrammarConfig(), constrained=False, temperature=rl.temperature)
        self.own: dict[str, Tensor] = {}  # of this process's rows: rewards by name (B,), and `advantages` (B, T)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            **more,
            reward_funcs=[self._reward(name) for name in REWARDS],
        )
        ends = getattr(self, "eos_token_ids", [getattr(self.processing_class, "eos_token_id", None)])
        if labels.end not in ends:
            raise KitError(
                f"an answer ends with token {labels.end} in this model's chat template, but TRL's generation does not "
                "stop there: add it to the model's generation_config.eos_token_id (TRL reads it from 1.14.2 on)."
            )
        assert isinstance(self.model, torch.nn.Module)
        check_trained(self.model)
        check_advantages(self)

    def _reward(self, name: str) -> Callable[..., list[float | None]]:
        """A reward function for TRL, which logs what it returns under its name. The first that is called computes all."""

        def reward(
            completion_ids: list[list[int]], log_metric: Callable[[str, float], None], **columns: Any
        ) -> list[float | None]:
            if not self.own:
                rows = [{k: columns[k][n] for k in FIELDS if k in columns} for n in range(len(completion_ids))]
                self._assign(cast("list[Row]", rows), completion_ids, log_metric)
            return self.own[name].tolist()

        reward.__name__ = name
        return reward

    def _assign(self, rows: list[Row], written: list[list[int]], log_metric: Callable[[str, float], None]) -> None:
        """Rewards and advantages of this process's rows, from the rollouts of all processes."""
        assert self.model is not None
        args: Any = self.args
        group = args.num_generations if self.model.training else args.num_generations_eval or args.num_generations
        rollouts, rewards = self._everyone(rows, written, int(group or 1))
        advantages = assign_credit(rewards, rollouts, self.rl)  # (B of all processes, T)
        first = self.accelerator.process_index * len(rows)
        here = slice(first, first + len(rows))
        self.own = {name: getattr(rewards, name).flatten()[here] for name in REWARDS}
        self.own["advantages"] = advantages[here]
        for name, value in describe(rollouts, rewards, advantages).items():
            log_metric(name, value)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The kit's own prompts: TRL's generation prompt may end before an answer's content, and shows today's date."""
        if not isinstance(self.labels, IndexLabels) or not all(is_message(p) for p in prompts):
            return super()._tokenize_prompts(prompts)
        return [self.labels.framed(p[0]["content"]) for p in prompts], None, {}

    def _everyone(self, inputs: list[Row], written: list[list[int]], group: int) -> tuple[Rollouts, Rewards]:
        """Rollouts and rewards of all processes, on the CPU, in TRL's order: the rows of a query follow each other."""
        everyone = gather_object([(example_of_row(row), ids) for row, ids in zip(inputs, written, strict=True)])
        examples, labels, grammar = [example for example, _ in everyone], self.labels, self.sampling.grammar
        queries = examples[::group]
        if any(e != queries[n // group] for n, e in enumerate(examples)):
            raise KitError(f"TRL's batch is not made of groups of {group} rows: keep TRL's own sampler.")
        ids, mask = pad_rows([ids for _, ids in everyone], labels.pad)  # (B, T), B = Q * G
        pools = [{label: i for i, label in enumerate(labels.candidates(query))} for query in queries]
        outputs = [parse(labels.text(ids), pools[n // group], grammar) for n, (_, ids) in enumerate(everyone)]
        nothing = torch.zeros(len(queries), 0)  # credit does not look at prompts
        rollouts = Rollouts(
            Prompts(nothing, nothing, labels.choices(queries)), ids, mask, labels.phases(ids, mask),
            torch.zeros(ids.shape), outputs, group, self.sampling, words=labels.words(ids, mask),
        )  # fmt: skip
        return rollouts, score(rollouts, queries, self.rl)

    def _generate_and_score_completions(self, inputs: list[dict[str, Tensor | Any]]) -> dict[str, Tensor | Any]:
        """TRL's batch, with the kit's advantages (B, T) in place of TRL's (B,)."""
        self.own = {}
        output = super()._generate_and_score_completions(inputs)
        ids, advantages = output["completion_ids"], self.own["advantages"]
        # the longest completion of all processes may be longer or shorter than this process's padded width
        advantages = pad(advantages, (0, max(0, ids.shape[1] - advantages.shape[1])))[:, : ids.shape[1]]
        return {**output, "advantages": advantages.to(ids.device)}
