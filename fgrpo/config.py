"""Every choice of a run: one frozen dataclass per concern, a docstring under every field.

The command line is made from these classes (fgrpo.cli.options): a field, its default and its help are written once.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


class KitError(Exception):
    """Something the user can fix: one clear sentence. The command line prints it alone and exits with status 2."""


@dataclass(frozen=True)
class GrammarConfig:
    """What one output may hold: `<SLATE> ids </SLATE> <RANK> ids </RANK>`."""

    slate_size: int = 10
    """maximum number of candidates in the slate (n in the paper)"""
    rank_size: int = 5
    """maximum number of candidates in the ranked list (k in the paper)"""
    full: bool = False
    """constrained decoding must fill both lists: no closing tag before slate_size and rank_size (or the pool's end)"""

    def __post_init__(self) -> None:
        _check(self, slate_size=(1, 10_000), rank_size=(1, 10_000))
        if self.rank_size > self.slate_size:
            raise KitError(f"rank_size {self.rank_size} is larger than slate_size {self.slate_size}: lower rank_size.")


@dataclass(frozen=True)
class ModelConfig:
    """The tiny policy: a Qwen3-architecture decoder trained from scratch, one token per catalogue item."""

    hidden_size: int = 96
    """width of the residual stream"""
    layers: int = 2
    """decoder layers"""
    heads: int = 4
    """attention heads (half as many key-value heads)"""
    features: str = "id"
    """what an item's token stands for: an id vector (id), its text's embedding projected (text), or their sum (both)"""
    encoder: str = ""
    """sentence encoder of texts, a folder or hub name (empty: all-MiniLM-L6-v2 of the extra baselines)"""

    def __post_init__(self) -> None:
        _check(self, hidden_size=(8, 65_536), layers=(1, 1000), heads=(2, 1024), features=("id", "text", "both"))
        if self.heads % 2 or self.hidden_size % (2 * self.heads):
            raise KitError(f"hidden_size {self.hidden_size} must be a multiple of 2 x heads, and heads be even.")


@dataclass(frozen=True)
class LMConfig:
    """A Hugging Face causal model as policy: which one, with a LoRA adapter or not, what it is shown of each text."""

    model: str = ""
    """folder or hub name of a pretrained causal model (empty: the tiny policy); candidates are then shown by number"""
    gguf_file: str = ""
    """GGUF file in that folder to read the weights from (needs package gguf)"""
    lora_rank: int = 16
    """rank of the LoRA adapter, the only weights that are trained (0: no adapter, all weights are trained and saved)"""
    lora_alpha: int = 32
    """LoRA's scale: the update is multiplied by alpha / rank"""
    lora_targets: str = "all-linear"
    """layers that get an adapter: all-linear, or names separated by commas (q_proj,v_proj)"""
    dtype: str = "float32"
    """type of the pretrained weights: float32 or bfloat16 (adapters stay float32; prefer it with lora_rank 0)"""
    trust_remote_code: bool = False
    """run Python code that comes with the model; never taken from a file, only from the command line"""
    passage_tokens: int = 200
    """maximum number of tokens shown of each text of history and pool (of the query at least 200)"""
    date: str = ""
    """date shown by chat templates that show one, as 2026-11-26 (empty: that of the run's first step)"""
    micro: int = 0
    """queries (SFT: demonstrations) whose memory a process holds at a time; the step is the same (0: all at once)"""

    def __post_init__(self) -> None:
        _check(self, lora_rank=(0, 65_536), lora_alpha=(1, None), passage_tokens=(1, None), micro=(0, None),
               dtype=("float32", "bfloat16"))  # fmt: skip
        if self.gguf_file and not self.model:
            raise KitError(f"gguf_file {self.gguf_file!r}: name the folder that holds it with --model.")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised warm start on demonstrations; every RL run starts from it, as in the paper."""

    sft_steps: int = 1000
    """optimizer steps of the warm start"""
    pretrain: int = 0
    """steps of pre-training on histories before the warm start: the next item, by policies with a token for each"""
    sft_batch: int = 64
    """demonstrations per step"""
    sft_lr: float = 1e-3
    """peak learning rate (AdamW, linear warm-up over 5 % of the steps, then linear decay to zero)"""
    sft_weight_decay: float = 0.05
    """AdamW weight decay of the warm start"""
    demonstrations: str = "relevant"
    """lists to imitate: relevant candidates alone (relevant), or then others: random (filled), by GRU4Rec (ranked)"""

    def __post_init__(self) -> None:
        _check(self, sft_steps=(1, None), pretrain=(0, None), sft_batch=(1, 65_536), sft_lr=(1e-12, 1.0),
               sft_weight_decay=(0.0, 1.0), demonstrations=("relevant", "filled", "ranked"))  # fmt: skip


@dataclass(frozen=True)
class RLConfig:
    """Reinforcement learning: sampling, rewards, credit, loss, optimizer."""

    steps: int = 100
    """RL steps; one step is one rollout batch"""
    queries: int = 16
    """queries per step (Q)"""
    group: int = 8
    """rollouts per query (G)"""
    rankings: int = 1
    """rankings sampled of each slate (K); nested credit needs 2 or more, and group / K slates (M) per query"""
    credit: str = "fgrpo"
    """credit assignment method, a name in fgrpo.credit.CREDITS"""
    slate_reward: str = "recall"
    """reward of the slate phase: recall, precision or f1"""
    rank_reward: str = "ndcg"
    """reward of the rank phase: ndcg, or in Python a function of your own"""
    lam: float = 1.0
    """weight lambda of the rank reward"""
    format_penalty: float = 0.5
    """taken off the reward of the phase at fault when an output is ill-formed"""
    slate_noise: float = 0.0
    """standard deviation of Gaussian noise added to the slate reward: what an unreliable judge does"""
    rank_noise: float = 0.0
    """standard deviation of Gaussian noise added to the rank reward"""
    scale: str = "none"
    """divide advantages by the group's standard deviation (std) or not (none, as Dr. GRPO)"""
    ratio: str = "token"
    """level of the importance ratio: token, item, phase or sequence (GSPO's ratio, without its division by length)"""
    clip_low: float = 0.2
    """lower clip width: the ratio is held above 1 - clip_low"""
    clip_high: float = 0.2
    """upper clip width: the ratio is held below 1 + clip_high"""
    beta: float = 0.0
    """weight of the k3 KL penalty against the warm start (0: no reference is kept)"""
    epochs: int = 1
    """passes over each rollout batch, one optimizer step each"""
    lr: float = 4e-4
    """learning rate of the first step (AdamW)"""
    lr_decay: str = "linear"
    """linear: the learning rate falls to zero over the steps; none: it is constant"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm"""
    learn: str = "both"
    """phases whose tokens are trained: both, slate or rank"""
    temperature: float = 1.0
    """sampling temperature; every log-probability is taken at it, in SFT too"""
    decoding: str = "constrained"
    """constrained (the grammar masks the logits) or free (the format reward matters)"""

    def __post_init__(self) -> None:
        _check(
            self, steps=(1, None), queries=(1, 65_536), group=(2, 65_536), rankings=(1, None), lam=(0.0, None),
            format_penalty=(0.0, None), slate_noise=(0.0, None), rank_noise=(0.0, None),
            clip_low=(0.0, 1.0), clip_high=(0.0, None), beta=(0.0, None), epochs=(1, None), lr=(1e-12, 1.0),
            max_grad_norm=(1e-6, None), temperature=(0.01, 100.0),
            scale=("none", "std"), ratio=("token", "item", "phase", "sequence"), decoding=("constrained", "free"),
            learn=("both", "slate", "rank"), lr_decay=("linear", "none"),
        )  # fmt: skip
        if self.queries * self.group > 2**20:  # before memory is filled with them
            raise KitError(f"{self.queries} queries x group {self.group}: above {2**20:,} rollouts a step, lower one.")


CONCERNS: dict[str, Any] = {
    "grammar": GrammarConfig, "model": ModelConfig, "lm": LMConfig, "sft": SFTConfig, "rl": RLConfig,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One run, whole. Written to `config.json`; `Config.from_dict` reads it back."""

    task: str = "lab-rec"
    """task: lab-rec, movielens (-loo), lastfm (-sdpo, -llara, -hetrec), games (-RETRIEVER), hotpotqa, musique, recbole,
    beir, trec, or a JSONL file"""
    data: str = ""
    """folder or file of a real data set"""
    one_relevant: bool = False
    """lab-rec: exactly one relevant candidate per pool (next-item recommendation) instead of 2 to 4"""
    pool: int = 20
    """lab-rec, games, beir, trec: candidates per query (games: at most 100)"""
    negatives: str = "uniform"
    """movielens-loo, lastfm, games: how negatives are drawn for training: uniform, popular or mixed (a third uniform, a
    third popular, a third neighbours of the history); movielens-loo draws its test pools so too; games: default mixed"""
    has_gt: bool = True
    """games: a next item that the retriever did not find replaces the last one of the pool; else recall has a ceiling"""
    taste: float = 1.0
    """lab-rec: strength of the viewers' tastes (0: chance alone decides what they like)"""
    hard: float = 0.125
    """lab-rec: weight of the viewer's taste in half of the other candidates (0: all are drawn uniformly)"""
    skip_bad: bool = False
    """skip broken rows of a JSONL, HotpotQA or MuSiQue task, and count them"""
    seed: int = 0
    """seed of the initial weights, data order and sampling"""
    device: str = "cpu"
    """where to train and decode: cpu, cuda, cuda:1, mps"""
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lm: LMConfig = field(default_factory=LMConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)

    def __post_init__(self) -> None:
        _check(self, pool=(5, 200), taste=(0.0, 100.0), hard=(0.0, 100.0), seed=(0, 2**32 - 1),
               negatives=("uniform", "popular", "mixed"))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, where: str = "config") -> "Config":
        """Build from nested dictionaries. Raises KitError on an unknown field or a wrong type."""
        return _from_dict(cls, values, where)


def _from_dict(kind: Any, values: object, where: str) -> Any:
    if not isinstance(values, dict):
        raise KitError(f"{where}: expected an object with the fields of {kind.__name__}.")
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise KitError(f"{where}: unknown field {name!r:.80}; known are {', '.join(known)}.")
        wanted: Any = known[name].type
        kinds = (int, float) if wanted is float else wanted
        if dataclasses.is_dataclass(wanted):
            values = {**values, name: _from_dict(wanted, value, f"{where}.{name}")}
        elif isinstance(value, bool) != (wanted is bool) or not isinstance(value, kinds):
            raise KitError(f"{where}: field {name!r} must be of type {wanted.__name__}, not {value!r:.80}.")
    return kind(**values)


def _check(config: Any, **bounds: tuple) -> None:
    """Each bound is (least, most) for numbers, None for what 64 bits hold, or the allowed strings. nan fits no bound."""
    for name, bound in bounds.items():
        value, most = getattr(config, name), bound[1] or 2**62
        if isinstance(value, str):
            if value not in bound:
                raise KitError(f"{name} {value[:80]!r} is not known; choose from {', '.join(bound)}.")
        elif not bound[0] <= value <= most:
            side = f"at most {most:,}" if value > most else f"at least {bound[0]:,}"
            raise KitError(f"{name} {value!s:.40} must be {side}.")
