"""Pretrained models: loading one by name, folder or GGUF file, and the LoRA adapter that is all that is trained.

A checkpoint holds the adapter (safetensors, as peft writes it) and policy.json, which says what it belongs on; the
pretrained weights are neither copied nor held twice, not for the reference of a KL penalty either.
"""

import ctypes
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from .config import KitError, LMConfig
from .data import write_text
from .encoders import loading, optional
from .index_labels import IndexLabels
from .sealed import check_seal

POLICY_FILE, ADAPTER_FILE = "policy.json", "adapter_model.safetensors"
TRAINED, FROZEN = "default", "reference"
KEPT = ("model", "gguf_file", "lora_rank", "lora_alpha", "lora_targets", "dtype", "passage_tokens")
"""fields of LMConfig that policy.json holds: what the adapter was trained with"""


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
    """peft 0.21 asks transformers by a name that goes in version 6; whoever runs the kit can do nothing about it."""
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


@dataclass(frozen=True)
class Adapter:
    """What a policy's adapter belongs on, and how it is written, read and switched."""

    config: LMConfig

    @classmethod
    def fresh(cls, config: LMConfig, seed: int) -> "tuple[Adapter, Any, Any]":
        """(adapter, model with it, tokenizer): a new adapter, which changes nothing until it is trained."""
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
        return cls(config), model, tokenizer

    @classmethod
    def load(cls, folder: Path, given: LMConfig | None = None) -> "tuple[Adapter, Any, Any]":
        """(adapter, model with it, tokenizer) from a checkpoint, on the model of `given` if that names one."""
        from peft import PeftModel, get_peft_model_state_dict

        given = given or LMConfig()
        try:
            config = LMConfig(**json.loads((folder / POLICY_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise KitError(f"{folder / POLICY_FILE}: the checkpoint is damaged ({str(error)[:150]}).") from None
        if given.model:
            config = replace(config, model=given.model, gguf_file=given.gguf_file or config.gguf_file)
        config = replace(config, trust_remote_code=given.trust_remote_code, micro=given.micro)
        tensors = _tensors(folder)  # said as damage before minutes are spent on the base
        try:
            model, tokenizer = load_lm(config.model, config.gguf_file, config.dtype, config.trust_remote_code)
        except KitError as error:
            raise KitError(f"{folder}: its base is missing; name where it lies with --model ({error})") from None
        try:
            with _without_its_warning():
                model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
            if get_peft_model_state_dict(model, save_embedding_layers=False).keys() != tensors.keys():
                raise ValueError("it has other layers")
        except Exception as error:  # a damaged file raises whatever its reader raises
            reason = next(iter(str(error).strip().split("\n")), "")[:200]
            raise KitError(f"{folder}: the checkpoint is damaged or fits another model ({reason}).") from None
        return cls(config), model.eval(), tokenizer

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter and what it belongs on."""
        model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's model card, an empty form
        values = {name: value for name, value in asdict(self.config).items() if name in KEPT}
        write_text(folder / POLICY_FILE, json.dumps(values, indent=2) + "\n")

    def restore(self, model: Any, folder: Path | str) -> None:
        """Put the weights of a checkpoint into the trained adapter. Raises KitError if it is damaged."""
        from peft import set_peft_model_state_dict

        try:
            set_peft_model_state_dict(model, _tensors(Path(folder)), adapter_name=TRAINED)
        except (RuntimeError, KeyError) as error:
            raise KitError(f"{folder}: the checkpoint is damaged ({str(error)[:150]}).") from None

    def freeze(self, model: Any, folder: Path | str) -> str | None:
        """The name of a frozen copy of a checkpoint's adapter; None if that adapter changes nothing."""
        tensors = _tensors(Path(folder))
        if not any(t.any() for name, t in tensors.items() if "lora_B" in name):
            return None
        model.load_adapter(str(folder), adapter_name=FROZEN, is_trainable=False)
        model.set_adapter(TRAINED)
        return FROZEN

    @contextmanager
    def replaced(self, model: Any, name: str | None) -> Iterator[None]:
        """While open, the model has another adapter, or none."""
        if name is None:
            with model.disable_adapter():
                yield
            return
        model.set_adapter(name)
        try:
            yield
        finally:
            model.set_adapter(TRAINED)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    check_seal(folder)
    try:
        return safetensors.torch.load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise KitError(f"{folder / ADAPTER_FILE}: the checkpoint is damaged ({str(error)[:150]}).") from None


@dataclass(frozen=True)
class FrozenReference:
    """A pretrained policy as it was when the run began: the same model, its adapter off or another one in its place."""

    policy: Any
    adapter: str | None

    def logprobs(self, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As Policy.logprobs, without gradient."""
        with torch.no_grad(), self.policy.adapter.replaced(self.policy.model, self.adapter):
            return self.policy.logprobs(*args, **options)


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
