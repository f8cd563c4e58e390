"""Pretrained models: loading one by name, folder or GGUF file, and the LoRA adapter that is all that is trained.

A checkpoint holds the adapter (safetensors, as peft writes it) and policy.json, which says what it belongs on; the
pretrained weights are neither copied nor held twice, not for the reference of a KL penalty either.
"""

import ctypes
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from ..config import GrammarConfig, KitError, LMConfig
from ..data import Example, write_text
from ..policy import Policy
from ..prefix import PrefixTree
from .index_labels import IndexLabels
from .loading import loading, optional

POLICY_FILE, ADAPTER_FILE = "policy.json", "adapter_model.safetensors"
TRAINED, FROZEN = "default", "reference"
KEPT = ("model", "gguf_file", "lora_rank", "lora_alpha", "lora_targets", "dtype", "passage_tokens")
"""fields of LMConfig that policy.json holds: what the adapter was trained with"""
RECOMPUTE_FROM = 1536
"""tokens of prompts from which layers are run again for the gradient, not kept"""
BATCH_TOKENS = 16_384
"""tokens of prompts, padding included, that are decoded together greedily"""


_MMAP_THRESHOLD = -3
_returned: list[Any] = []  # the C library, once large tensors are to be returned to the system


def give_memory_back() -> None:
    """Have glibc return large tensors to the system when they are freed; other C libraries are left alone.

    Its threshold for that grows with use up to 32 MB, and recomputed layers then leave holes that nothing fits: a step
    on a prompt of 3,600 tokens peaked at 6.9 GB where its tensors took 2 (SmolLM2-135M, November 2026).
    """
    try:
        libc = ctypes.CDLL(None)
        if libc.mallopt(_MMAP_THRESHOLD, 2**20) and libc.malloc_trim:  # setting it also ends its growth
            _returned[:] = [libc]
    except (OSError, AttributeError, TypeError):
        return


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed tensors of up to 32 MB for the next ones, which decoding makes alike at every token; then return them.

    Getting pages from the system again and again took 14 of 26 CPU seconds of greedy decoding, with this 7 of 19 (12
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
    name_or_folder: str, gguf_file: str = "", dtype: str = "auto", remote_code: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) of a causal language model, on the CPU in evaluation mode, by default in its own type.

    A folder or hub name with safetensors, or, if `gguf_file` names a file in it, with GGUF weights, which are unpacked,
    as float32 unless asked otherwise (needs package gguf; left alone, transformers keeps some packed on a Mac, with kernels
    from the hub). Remote code is run only if asked for. Raises KitError if it cannot be loaded.
    """
    source = _source(gguf_file)
    weights = {"quantization_config": GgufConfig(dequantize=True)} if source else {"use_safetensors": True}
    with loading(name_or_folder):
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=remote_code, **source)
        model = AutoModelForCausalLM.from_pretrained(
            name_or_folder, **source, **weights, trust_remote_code=remote_code,
            dtype=("float32" if gguf_file else "auto") if dtype == "auto" else dtype,
        )  # fmt: skip
    give_memory_back()
    return model.eval(), tokenizer


@contextmanager
def _without_its_warning() -> Iterator[None]:
    """Peft 0.21 asks transformers by a name that goes in version 6; whoever runs the kit can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def load_labels(config: LMConfig) -> IndexLabels:
    """The label scheme of a model, from its tokenizer and configuration alone. Raises KitError if it cannot be loaded."""
    source = _source(config.gguf_file)
    with loading(config.model):
        tokenizer, shape = (
            kind.from_pretrained(config.model, trust_remote_code=config.trust_remote_code, **source)
            for kind in (AutoTokenizer, AutoConfig)
        )
    return IndexLabels(tokenizer, shape, config.passage_tokens)


def _source(gguf_file: str) -> dict[str, Any]:
    """What transformers needs to read a GGUF file; nothing where the weights are not in one."""
    if not gguf_file:
        return {}
    optional("gguf")
    return {"gguf_file": gguf_file}


class PretrainedPolicy(Policy):
    """A Hugging Face causal model with a LoRA adapter, which is all that is trained and all that `save` writes."""

    labels: IndexLabels

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, config: LMConfig):
        self.config = config
        super().__init__(model, tokenizer, IndexLabels(tokenizer, model.config, config.passage_tokens))

    @classmethod
    def new(cls, config: LMConfig, seed: int = 0, device: str = "cpu") -> "PretrainedPolicy":
        """A model with a fresh adapter, which changes nothing until it is trained."""
        from peft import LoraConfig, get_peft_model

        model, tokenizer = load_lm(config.model, config.gguf_file, config.dtype, config.trust_remote_code)
        names: Any = config.lora_targets.split(",")
        targets = names if names != ["all-linear"] else "all-linear"
        lora = LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=targets,
            base_model_name_or_path=config.model, task_type="CAUSAL_LM",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                with _without_its_warning():
                    model = get_peft_model(model, lora)
            except ValueError as error:
                raise KitError(f"lora_targets {config.lora_targets!r}: {str(error).split('. ')[0][:200]}.") from None
        policy = cls(model, tokenizer, config)
        policy.to(device)
        return policy

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", given: LMConfig | None = None) -> "PretrainedPolicy":
        """Read a folder that `save` wrote, on the model that its policy.json names, or on that of `given` if it names one.

        Raises KitError if the folder is damaged or its model missing.
        """
        from peft import PeftModel, get_peft_model_state_dict

        folder, given = Path(folder), given or LMConfig()
        try:
            config = LMConfig(**json.loads((folder / POLICY_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise KitError(f"{folder / POLICY_FILE}: the checkpoint is damaged ({str(error)[:150]}).") from None
        if given.model:
            config = replace(config, model=given.model, gguf_file=given.gguf_file or config.gguf_file)
        config = replace(config, trust_remote_code=given.trust_remote_code, micro=given.micro)
        tensors = _tensors(folder)  # damage is reported before minutes are spent on the base model
        try:
            model, tokenizer = load_lm(config.model, config.gguf_file, config.dtype, config.trust_remote_code)
        except KitError as error:
            raise KitError(f"{folder}: its base model is missing; give its path with --model ({error})") from None
        try:
            with _without_its_warning():
                model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
            if get_peft_model_state_dict(model, save_embedding_layers=False).keys() != tensors.keys():
                raise ValueError("it has other layers")
        except Exception as error:  # a damaged file raises whatever its reader raises
            reason = next(iter(str(error).strip().split("\n")), "")[:200]
            raise KitError(f"{folder}: the checkpoint is damaged or fits another model ({reason}).") from None
        policy = cls(model, tokenizer, config)
        policy.to(device)
        return policy

    def save(self, folder: str | Path) -> None:
        """Write the adapter and, in policy.json, what it belongs on."""
        self.model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's model card, an empty form
        values = {name: value for name, value in asdict(self.config).items() if name in KEPT}
        write_text(Path(folder) / POLICY_FILE, json.dumps(values, indent=2) + "\n")

    def reload(self, folder: str | Path) -> Policy:
        """This model with the adapter of another checkpoint. Raises KitError if that is damaged."""
        from peft import set_peft_model_state_dict

        try:
            set_peft_model_state_dict(self.model, _tensors(Path(folder)), adapter_name=TRAINED)
        except (RuntimeError, KeyError) as error:
            raise KitError(f"{folder}: the checkpoint is damaged ({str(error)[:150]}).") from None
        return self

    def reference(self, folder: str | Path) -> Policy:
        """The same model, its adapter off or a frozen copy of a checkpoint's adapter in its place."""
        tensors = _tensors(Path(folder))
        if not any(t.any() for name, t in tensors.items() if "lora_B" in name):
            return FrozenReference(self, None)
        self.model.load_adapter(str(folder), adapter_name=FROZEN, is_trainable=False)
        self.model.set_adapter(TRAINED)
        return FrozenReference(self, FROZEN)

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """While open, the model has another adapter, or none."""
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
        """Open while tokens are sampled: freed memory is kept."""
        return memory_kept()

    def narrowed(self, columns: torch.Tensor | None) -> AbstractContextManager[None]:
        """While open, the model computes the logits of these tokens alone, where its head is a plain linear layer."""
        return narrowed(self.model, columns)

    def grow(self, ids: torch.Tensor, mask: torch.Tensor) -> PrefixTree:
        """Encoded prompts; the graph of long ones is computed again when it is needed, not kept."""
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


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise KitError(f"{folder / ADAPTER_FILE}: the checkpoint is damaged ({str(error)[:150]}).") from None


class FrozenReference(PretrainedPolicy):
    """A pretrained policy as it was when the run began, for a KL penalty: the same model, another adapter or none."""

    def __init__(self, policy: PretrainedPolicy, frozen: str | None):
        self.__dict__.update(policy.__dict__)
        self.frozen = frozen

    def logprobs(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As Policy.logprobs, without gradient."""
        with torch.no_grad(), self.adapter(self.frozen):
            return super().logprobs(*args, **options)


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """While open, decoder layers keep only their inputs for the backward pass, and run again for the rest.

    A prompt of thousands of tokens then takes its keys, values and one vector a layer.

    transformers' own gradient checkpointing forbids a cache, since a layer that runs again would write into it again.
    Here the second run writes into a cache of its own: a prompt begins with an empty one, so nothing is missing there.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
            if not isinstance(options.get("cache"), DynamicCache):
                return forward(hidden, *args, **options)
            caches = [options.pop("cache")]  # the first run takes it

            def once(hidden: torch.Tensor) -> Any:
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
def narrowed(model: Any, columns: torch.Tensor | None) -> Iterator[None]:
    """While open, a model computes the logits of these tokens alone, where its head is a plain linear layer.

    A grammar over numbers needs some twenty of 50,000 or 150,000 columns.
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
