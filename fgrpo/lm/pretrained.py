"""Pretrained models: loading one by name, folder or GGUF file, with a LoRA adapter or to train all of its weights.

With an adapter, it alone is trained. A checkpoint holds the adapter (safetensors, as peft writes it) and policy.json,
which names its base model. The pretrained weights are never saved, and are in memory once: the reference policy of a
KL penalty uses them too.

With `lora_rank` 0 all weights are trained. A checkpoint holds the whole model (safetensors, configuration, tokenizer)
and policy.json, and is read without the base model. The reference policy of a KL penalty is a second copy of the
weights: 0.54 GB for SmolLM2-135M in float32. Weights are trained in `dtype` as they are. AdamW in pure bfloat16 loses
updates that are smaller than about 1/256 of a weight, since the sum rounds back to it; choose float32 where memory
allows it (16 bytes a weight with gradient and optimizer, 8 in bfloat16).
"""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from ..config import Config, GrammarConfig, KitError, LMConfig
from ..data import Example
from ..policy import Policy
from .adapter import FROZEN, TRAINED, check_forward, check_lora, check_rank, check_saved, set_weights, with_adapter
from .folder import MERGE, check_counts, check_folder, check_size, read_json
from .index_labels import IndexLabels
from .loading import loading, optional
from .prefix import PrefixTree, SharedPolicy

if TYPE_CHECKING:
    from peft import PeftModel

POLICY_FILE, ADAPTER_FILE = "policy.json", "adapter_model.safetensors"
KEPT = ("model", "gguf_file", "lora_rank", "lora_alpha", "lora_targets", "dtype", "passage_tokens", "date")
"""fields of LMConfig in policy.json: the options that the policy was trained with"""
RECOMPUTE_FROM = 1536
"""number of prompt tokens from which activations are recomputed for the gradient, not kept"""
BATCH_TOKENS = 16_384
"""maximum number of prompt tokens, padding included, in a batch of greedy decoding"""


_MMAP_THRESHOLD = -3
_returned: list[ctypes.CDLL] = []  # glibc, once `give_memory_back` has set its threshold


def give_memory_back() -> None:
    """Make glibc return large tensors to the system when they are freed; other C libraries are not changed.

    Its threshold grows with use up to 32 MB, and recomputed layers then fragment the heap: a step on a prompt of 3,600
    tokens peaked at 6.9 GB although its tensors need 2 GB (SmolLM2-135M, November 2026).
    """
    try:
        libc = ctypes.CDLL(None)
        if libc.mallopt(_MMAP_THRESHOLD, 2**20) and libc.malloc_trim:  # setting it also stops its growth
            _returned[:] = [libc]
    except (OSError, AttributeError, TypeError):
        return


def return_freed_memory() -> None:
    """Make glibc return the pieces of its heap that are free now; other C libraries are not asked."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


@contextmanager
def memory_kept() -> Iterator[None]:
    """Reuse freed tensors of up to 32 MB, since decoding allocates the same sizes at every token; then return them.

    Requesting pages from the system took 14 of 26 CPU seconds of greedy decoding without this, 7 of 19 with it (12
    prompts of 480 tokens, SmolLM2-135M in bfloat16, one core of a busy machine, November 2026).
    """
    for libc in _returned:
        libc.mallopt(_MMAP_THRESHOLD, 2**25)
    try:
        yield
    finally:
        for libc in _returned:
            libc.mallopt(_MMAP_THRESHOLD, 2**20)
            libc.malloc_trim(0)


def load_lm(
    name: str, gguf_file: str = "", dtype: str = "auto", remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a causal language model, on the CPU in evaluation mode, by default in its own dtype.

    `name`: a folder or hub name with safetensors, or with GGUF weights if `gguf_file` names a file in it. GGUF weights are
    dequantized, by default to float32 (needs package gguf; otherwise transformers keeps some quantized on a Mac, and runs
    kernels from the hub). Remote code is run only with `remote_code`. Raises KitError if the model cannot be loaded.
    """
    lm = LMConfig(model=name, gguf_file=gguf_file, trust_remote_code=remote_code)
    return _load_weights(lm, load_config(lm), dtype), load_tokenizer(lm)


def load_config(lm: LMConfig, checkpoint: bool = False) -> PreTrainedConfig:
    """The configuration of a pretrained model. Raises KitError if it is none of a causal language model.

    A local folder is checked first: what it is, and that its configuration fits its weights. `checkpoint`: it is a
    checkpoint of this kit that holds a whole model.
    """
    source, code = _source(lm.gguf_file), lm.trust_remote_code
    check_folder(lm.model, lm.gguf_file, checkpoint)
    with loading(lm.model):
        if not source and not Path(lm.model).exists():
            check_counts(PreTrainedConfig.get_config_dict(lm.model)[0], lm.model)
        config = AutoConfig.from_pretrained(lm.model, trust_remote_code=code, **source)
        if config.is_encoder_decoder:
            kind = type(config).__name__
            raise KitError(f"model {lm.model!r} is an encoder-decoder ({kind}), not a causal language model.")
        if not code:
            check_size(lm.model, config)
        if not lm.lora_rank and getattr(config, "quantization_config", None):
            raise KitError(f"model {lm.model!r} is quantized, so its weights cannot be trained: use an adapter.")
    return config


def load_tokenizer(lm: LMConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained model. Raises KitError if it cannot be loaded."""
    with loading(lm.model):
        return AutoTokenizer.from_pretrained(lm.model, trust_remote_code=lm.trust_remote_code, **_source(lm.gguf_file))


def _load_weights(lm: LMConfig, config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    source = _source(lm.gguf_file)
    weights = {"quantization_config": GgufConfig(dequantize=True)} if source else {"use_safetensors": True}
    dtype = "float32" if lm.gguf_file and dtype == "auto" else dtype
    with loading(lm.model), _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            lm.model, config=config, **source, **weights,
            trust_remote_code=lm.trust_remote_code, dtype=dtype, output_loading_info=True,
        )  # fmt: skip
        model, found = loaded
        if getattr(model, "_hf_peft_config_loaded", False):
            raise KitError(f"model {lm.model!r} is an adapter (PEFT), which would not be trained further: {MERGE}.")
        if absent := sorted(found["missing_keys"]):
            raise KitError(
                f"model {lm.model!r} cannot be loaded: its files lack {len(absent)} weights of {type(model).__name__}, "
                f"such as {absent[0]}; it is not a whole causal language model."
            )
    give_memory_back()
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' table of missing weights, for which an error is raised here."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_labels(lm: LMConfig, config: PreTrainedConfig | None = None) -> IndexLabels:
    """The label scheme of a model, from its tokenizer and configuration alone. Raises KitError if it cannot be loaded."""
    config = config or load_config(lm)
    tokenizer = load_tokenizer(lm)
    with loading(lm.model):
        try:
            return IndexLabels(tokenizer, config, lm.passage_tokens, lm.date)
        except KitError as error:
            raise KitError(f"model {lm.model!r}: {error}") from None


def _source(gguf_file: str) -> dict[str, str]:
    """Arguments with which transformers reads a GGUF file; none for other weights."""
    if not gguf_file:
        return {}
    optional("gguf")
    return {"gguf_file": gguf_file}


class PretrainedPolicy(SharedPolicy):
    """A Hugging Face causal model. Its LoRA adapter is trained and saved, or all of its weights if `lora_rank` is 0."""

    labels: IndexLabels

    def __init__(
        self, model: "PeftModel | PreTrainedModel", labels: IndexLabels, config: LMConfig, device: str = "cpu"
    ):
        self.config = replace(config, date=labels.date)  # the date that its prompts show, if they show one
        super().__init__(model, labels.tokenizer, labels)
        self.to(device)
        check_forward(self)

    @classmethod
    def new(cls, config: LMConfig, seed: int = 0, device: str = "cpu") -> "PretrainedPolicy":
        """A model with a new adapter, which has no effect until it is trained, or with none if `lora_rank` is 0.

        Raises KitError if the model cannot be loaded, or on options that do not go together.
        """
        check_lora(config)
        shape = load_config(config)
        labels = load_labels(config, shape)  # before the weights, which may take minutes
        model = _load_weights(config, shape, config.dtype)
        return cls(with_adapter(model, config, seed) if config.lora_rank else model, labels, config, device)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", given: LMConfig | None = None) -> "PretrainedPolicy":
        """Read a folder that `save` wrote. The base model is that of `given` if it names one, else that of policy.json.

        The adapter is built from policy.json; adapter_config.json must say the same. A whole model is read from the
        folder alone, and no code that comes with a model runs. Raises KitError if the folder is damaged or its base
        model missing.
        """
        folder, given = Path(folder), given or LMConfig()
        config = saved_options(folder)
        if not config.lora_rank:
            return cls._load_whole(folder, replace(config, micro=given.micro, date=given.date or config.date), device)
        if given.model:
            config = replace(config, model=given.model, gguf_file=given.gguf_file or config.gguf_file)
        if not config.model:
            raise KitError(f"{folder / POLICY_FILE}: names no base model; give its path with --model.")
        config = replace(
            config, trust_remote_code=given.trust_remote_code, micro=given.micro, date=given.date or config.date
        )
        tensors = _tensors(folder)  # first, since loading the base model may take minutes
        check_rank(folder, tensors, config)
        try:
            shape = load_config(config)
            labels = load_labels(config, shape)
            base = _load_weights(config, shape, config.dtype)
        except KitError as error:
            raise KitError(
                f"{folder}: its base model cannot be loaded; if it is elsewhere, name it with --model ({error})"
            ) from None
        model = with_adapter(base, config)
        try:
            set_weights(model, tensors, TRAINED)
        except Exception as error:  # a reader may raise any exception on a damaged file
            reason = next(iter(str(error).strip().split("\n")), "")[:200]
            raise KitError(f"{folder}: the checkpoint is damaged or fits another model ({reason}).") from None
        check_saved(folder, model.peft_config[TRAINED])
        return cls(model, labels, config, device)

    @classmethod
    def _load_whole(cls, folder: Path, config: LMConfig, device: str) -> "PretrainedPolicy":
        own = replace(config, model=str(folder), gguf_file="")
        try:
            check_lora(config)
            shape = load_config(own, checkpoint=True)
            labels = load_labels(own, shape)
            return cls(_load_weights(own, shape, config.dtype), labels, config, device)
        except KitError as error:
            raise KitError(f"{folder}: the checkpoint is damaged or incomplete ({error})") from None

    def save(self, folder: str | Path) -> None:
        """Write the adapter, or the whole model with its tokenizer; and policy.json with its base model and options."""
        if self.config.lora_rank:
            self.model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
            (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's model card, an empty template
        else:
            self.model.save_pretrained(str(folder))
            self.tokenizer.save_pretrained(str(folder))
        values = {name: value for name, value in asdict(self.config).items() if name in KEPT}
        (Path(folder) / POLICY_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def reload(self, folder: str | Path) -> Policy:
        """Load the weights of another checkpoint of this run, whose prompts show its date. Raises KitError if damaged.

        A whole model is in memory twice while it is read.
        """
        folder = Path(folder)
        saved = saved_options(folder).date
        if saved and saved != self.config.date:
            self.config = replace(self.config, date=saved)
            self.labels = IndexLabels(self.tokenizer, self.model.config, self.config.passage_tokens, saved)
        try:
            if self.config.lora_rank:
                set_weights(self.model, _tensors(folder), TRAINED)
            else:
                self.model.load_state_dict(type(self).load(folder).model.state_dict())
        except (RuntimeError, KeyError, ValueError) as error:
            raise KitError(f"{folder}: the checkpoint is damaged ({str(error)[:150]}).") from None
        return self

    def reference(self, folder: str | Path) -> Policy:
        """The same model with its adapter disabled, or with a frozen copy of a checkpoint's adapter.

        Where all weights are trained, a second model: it takes as much memory as the weights (4 bytes each in float32,
        2 in bfloat16).
        """
        if not self.config.lora_rank:
            whole = type(self).load(folder, str(self.device), self.config)
            whole.model.requires_grad_(False)
            return whole
        tensors = _tensors(Path(folder))
        if not any(t.any() for name, t in tensors.items() if "lora_B" in name):
            return FrozenReference(self, None)
        self.model.add_adapter(FROZEN, self.model.peft_config[TRAINED])
        set_weights(self.model, tensors, FROZEN)
        self.model.set_adapter(TRAINED)  # which freezes all others
        return FrozenReference(self, FROZEN)

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Use another adapter, or none, inside this context."""
        if name is None:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(name)
        try:
            yield
        finally:
            self.model.set_adapter(TRAINED)

    def decoding(self) -> AbstractContextManager[None]:
        """A context in which tokens are sampled: freed memory is reused."""
        return memory_kept()

    def narrowed(self, columns: torch.Tensor | None) -> AbstractContextManager[None]:
        """A context in which the model computes logits of these tokens only, if its head is a plain linear layer."""
        return narrowed(self.model, columns)

    def grow(self, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor | None) -> PrefixTree:
        """Encode prompts. For long ones, activations are recomputed in the backward pass, not kept."""
        again = ids.numel() > RECOMPUTE_FROM and torch.is_grad_enabled()
        with recomputed(self.model) if again else nullcontext():
            return PrefixTree(self.model, ids, mask)

    def batches(self, examples: Sequence[Example], grammar: GrammarConfig, size: int) -> list[slice]:
        """At most `size` examples at a time, fewer where prompts are long: at most BATCH_TOKENS with padding."""
        lengths = [len(self.labels.prompt_ids(e, grammar)) for e in examples]
        found, start = [], 0
        for n in range(1, len(examples) + 1):
            together = max(lengths[start : n + 1]) * (n + 1 - start)
            if n == len(examples) or n - start == size or together > BATCH_TOKENS:
                found.append(slice(start, n))
                start = n
        return found


def saved_options(folder: Path) -> LMConfig:
    """The options in a checkpoint's policy.json. Raises KitError if it is damaged."""
    path = folder / POLICY_FILE
    values = read_json(path, "the checkpoint is damaged")
    try:
        return Config.from_dict({"lm": values}, "policy").lm
    except KitError as error:
        raise KitError(f"{path}: the checkpoint is damaged ({error})") from None


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / ADAPTER_FILE
    try:
        return safetensors.torch.load_file(path)
    except PermissionError:
        raise KitError(f"{path}: may not be read (permission denied).") from None
    except (OSError, SafetensorError) as error:
        raise KitError(f"{path}: the checkpoint is damaged ({str(error)[:150]}).") from None


class FrozenReference(PretrainedPolicy):
    """The policy that a run started from: the same base model, with another adapter or none. It has no gradient."""

    def __init__(self, policy: PretrainedPolicy, frozen: str | None):
        self.__dict__.update(policy.__dict__)
        self.frozen = frozen

    @contextmanager
    def narrowed(self, columns: torch.Tensor | None) -> Iterator[None]:
        """As of any policy, with its own adapter: all logits, of rollouts too, are computed inside this context."""
        with torch.no_grad(), self.adapter(self.frozen), super().narrowed(columns):
            yield


@contextmanager
def recomputed(model: torch.nn.Module) -> Iterator[None]:
    """Inside this context, decoder layers keep only their inputs for the backward pass and recompute the rest.

    A prompt of thousands of tokens then takes its keys, its values and one vector per layer and token.

    transformers' own gradient checkpointing forbids a cache, because a recomputed layer would write into it twice.
    Here the second run gets a cache of its own, which may be empty because a prompt starts with an empty cache.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def wrap(forward: Callable[..., object]) -> Callable[..., object]:
        def run(hidden: torch.Tensor, *args: object, **options: object) -> object:
            if not isinstance(options.get("cache"), DynamicCache):
                return forward(hidden, *args, **options)
            caches = [options.pop("cache")]  # used by the first run only

            def once(hidden: torch.Tensor) -> object:
                return forward(hidden, *args, cache=caches.pop() if caches else DynamicCache(), **options)

            return checkpoint(once, hidden, use_reentrant=False, preserve_rng_state=False)

        return run

    for layer in layers:
        layer.forward = wrap(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def narrowed(model: PreTrainedModel, columns: torch.Tensor | None) -> Iterator[None]:
    """Inside this context, a model computes the logits of these tokens only, if its head is a plain linear layer.

    A grammar over numbers needs about twenty of 50,000 to 150,000 columns.
    """
    head = model.get_output_embeddings() if columns is not None else None
    if type(head) is not torch.nn.Linear:
        yield
        return
    bias = None if head.bias is None else head.bias[columns]
    head.forward = lambda x: torch.nn.functional.linear(x, head.weight[columns], bias)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
