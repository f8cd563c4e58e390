"""Decoding with static shapes on a GPU: one step of the decoder, captured once as a CUDA graph and replayed for each token.

A small model's step is thousands of short kernels, whose launches take longer than their work. Here every tensor of a step
keeps its shape and place: all rows are fed, ended ones write into a slot that nobody sees, prompts are held once, and each
rollout's own keys and values in memory set aside. Attention is that of `two_parts`, in float32.

Where it is used its first step is compared with the plain way (fgrpo.lm.prefix), which is taken for the rest of the run
if they differ or the capture fails. On other devices than those of DEVICES nothing of this is used.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionInterface

from .attention import two_parts

if TYPE_CHECKING:
    from .prefix import PrefixTree

DEVICES = {"cuda"}
ATTENTION = "fgrpo_branches"
"""name under which transformers knows `attention`"""
BUCKET = 128
"""prompts are padded to a multiple of so many tokens, so that steps of a run share their graphs"""
KEPT = 4
"""shapes of which a model keeps memory and graphs; evaluation, for one, has another than training"""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""relative difference of the first logits up to which both ways are the same"""
LogitsAfter = Callable[[Tensor, Tensor], Tensor]


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: object, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls for each layer: query (B, heads, W, size) -> (B, W, heads, size)."""
    return options["branches"].attend(module.layer_idx, query, key, value, options["scaling"]), None


AttentionInterface.register(ATTENTION, attention)


@dataclass
class Step:
    """The decoder's step for W tokens a row: what it reads, and the hidden states that it writes, (B, W, width)."""

    ids: Tensor  # (B, W)
    position: Tensor
    slot: Tensor
    graph: Any = None
    hidden: Tensor | None = None


class Branches:
    """Memory for Q prompts of at most P tokens with `group` rollouts each, whose own tokens have `room` - 1 slots."""

    def __init__(self, model: Any, prompt: list[tuple[Tensor, Tensor]], length: int, group: int, room: int):
        """`prompt`: keys and values of each layer, (Q, key heads, tokens, size), which say all other sizes."""
        self.decoder, self.group, self.room = decoder_of(model), group, room
        queries, heads, _, size = prompt[0][0].shape
        self.prompt = [
            (x.new_zeros(queries, heads, length, size), x.new_zeros(queries, heads, length, size)) for x, _ in prompt
        ]
        self.own = [
            (k.new_zeros(queries, heads, group, room, size), k.new_zeros(queries, heads, group, room, size))
            for k, _ in prompt
        ]
        self.hidden = prompt[0][0].new_zeros(queries, 1, 1, length, dtype=torch.float32)  # -inf at padding
        self.row = torch.arange(queries * group, device=self.hidden.device)
        self.steps: dict[int, Step] = {}
        self.mask, self.slot = self.hidden, self.row  # of the step at hand

    def load(self, prompt: list[tuple[Tensor, Tensor]], seen: Tensor) -> None:
        """Take over encoded prompts; `seen` (Q, tokens) bool."""
        tokens = seen.shape[1]
        for (keys, values), (k, v) in zip(self.prompt, prompt, strict=True):
            keys[:, :, :tokens], values[:, :, :tokens] = k, v
        self.hidden.fill_(float("-inf"))
        self.hidden[:, 0, 0, :tokens].masked_fill_(seen, 0.0)

    def feed(self, ids: Tensor, position: Tensor, slot: Tensor) -> Tensor:
        """Hidden states (B, W, width) of tokens (B, W), each at its position, written into its slot."""
        width = ids.shape[1]
        if width not in self.steps:
            self.steps[width] = self.captured(width)
        step = self.steps[width]
        step.ids.copy_(ids)
        step.position.copy_(position)
        step.slot.copy_(slot)
        if step.graph is None:
            return self.compute(step)
        step.graph.replay()
        assert step.hidden is not None
        return step.hidden

    def captured(self, width: int) -> Step:
        """A step of so many tokens a row, as a graph where the device has graphs."""
        shape = len(self.row), width
        ids = self.row.new_zeros(shape)
        step = Step(
            ids, ids.clone(), ids + self.room - 1
        )  # nobody sees the last slot, so that a rehearsal leaves nothing
        if ids.is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.compute(step)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step.hidden = self.compute(step)
            step.graph = graph
        return step

    def compute(self, step: Step) -> Tensor:
        """The step itself."""
        queries, heads = self.own[0][0].shape[:2]
        width, config = step.ids.shape[1], self.decoder.config
        sharing = config.num_attention_heads // heads
        self.slot = step.slot.flatten()
        own = torch.arange(self.room, device=self.slot.device) > step.slot.unsqueeze(-1)  # (B, W, room): not to be seen
        mask = torch.zeros_like(own, dtype=torch.float32).masked_fill(own, float("-inf"))
        mask = mask.view(queries, 1, self.group, width, 1, self.room).expand(-1, heads, -1, -1, sharing, -1)
        self.mask = mask.reshape(-1, width * sharing, self.room)
        unused = torch.zeros(1, 1, 1, 1, device=self.slot.device)  # of four dimensions: taken as it is
        with attending(config):
            return self.decoder(
                step.ids, attention_mask=unused, position_ids=step.position, use_cache=False, branches=self
            ).last_hidden_state

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of all rows to their prompts and own tokens, whose keys and values are written first."""
        (keys, values), (queries, heads, group, _, size) = self.own[layer], self.own[layer][0].shape
        width = query.shape[2]
        row = self.row.repeat_interleave(width)
        place = row // group, slice(None), row % group, self.slot
        keys[place], values[place] = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
        q = query.view(queries, group, heads, -1, width, size).permute(0, 2, 1, 4, 3, 5)
        shape = q.shape  # (Q, heads, branches, W, heads that share keys, size)
        prompt_keys, prompt_values, keys, values = (x.float() for x in (*self.prompt[layer], keys, values))
        q = q.reshape(queries, heads, -1, size).float() * (scaling * size**0.5)  # two_parts divides by the latter
        out = two_parts(q, prompt_keys, prompt_values, self.hidden, keys.flatten(0, 2), values.flatten(0, 2), self.mask)
        return out.view(shape).permute(0, 2, 3, 1, 4, 5).reshape(len(self.row), width, -1, size).to(query.dtype)


@dataclass
class Found:
    """What is known of one model: memory and graphs by shape, and whether its first step was as the plain way's."""

    branches: dict[tuple[object, ...], Branches] = field(default_factory=dict)
    same: bool | None = None


_known: WeakKeyDictionary[Any, Found] = WeakKeyDictionary()


def static_feed(
    tree: "PrefixTree", group: int, completions: Tensor, begun: int, plain: Callable[[], LogitsAfter]
) -> LogitsAfter | None:
    """As PrefixTree.feed; None where it cannot be used: other devices, autocast, gradients, windows of attention.

    `plain` makes the plain way, with which the first step of a model is compared.
    """
    if not tree.static or completions.device.type not in DEVICES or torch.is_grad_enabled():
        return None
    if torch.is_autocast_enabled(completions.device.type):  # it keeps copies of weights, which a graph would not renew
        return None
    model, windows = tree.model, getattr(tree, "windows", [("", None)])
    if windows[1:] or windows[0][1]:
        return None
    found = _known.setdefault(model, Found())
    if found.same is False:
        return None
    size = completions.shape[1]
    fed = torch.full((len(completions),), begun, device=completions.device)
    compared = None if found.same else plain()
    state: list[Branches] = []

    def logits_after(rows: Tensor, length: Tensor) -> Tensor:
        nonlocal compared
        if length.max() == begun:
            return tree.logits[rows // group]
        if found.same:
            return step(rows, length)
        assert compared is not None
        expected = compared(rows, length)
        if found.same is False:
            return expected
        try:
            logits = step(rows, length)
            gap = float((logits - expected).float().norm() / expected.float().norm().clamp(min=1e-6))
            found.same, note = gap <= CLOSE.get(expected.dtype, 3e-2), f"logits differ by {gap:.2g}"
        except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:  # a model may lack anything
            found.same, note = False, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:150]}"
        if not found.same:
            found.branches.clear()
            print(f"fgrpo: {type(model).__name__} is decoded without CUDA graphs ({note})", file=sys.stderr)
            return expected
        compared = None
        return logits  # not those of the plain way: a run that is resumed here has to draw what one that is not drew

    def step(rows: Tensor, length: Tensor) -> Tensor:
        if not state:
            state.append(branches_of(tree, found, group, size - begun + 1))
        new = length[rows] - fed[rows]
        width = 1 << (int(new.max()) - 1).bit_length()
        count = torch.zeros_like(fed).index_copy(0, rows, new).unsqueeze(1)
        order = torch.arange(width, device=fed.device)
        depth = fed.unsqueeze(1) + order  # (B, W)
        slot = torch.where(order < count, depth - begun, size - begun)
        ids = completions.gather(1, depth.clamp(max=size - 1))
        position = tree.prompt_length.repeat_interleave(group, dim=0) + depth - begun
        fed.index_copy_(0, rows, length[rows])
        hidden = state[0].feed(ids, position, slot)
        return tree.logits_of(hidden[rows, new - 1], rows, group)

    return logits_after


def branches_of(tree: "PrefixTree", found: Found, group: int, room: int) -> Branches:
    """Memory for the prompts of a tree, with them in it."""
    prompt, seen = tree.prompt_parts()
    length = -(-seen.shape[1] // BUCKET) * BUCKET
    key = (len(seen), length, group, room, torch.is_inference_mode_enabled(), *adapters(tree.model))
    if key not in found.branches:
        while len(found.branches) >= KEPT:
            del found.branches[next(iter(found.branches))]
        found.branches[key] = Branches(tree.model, prompt, length, group, room)
    found.branches[key].load(prompt, seen)
    return found.branches[key]


def decoder_of(model: Any) -> Any:
    """The model without its head, which is another column selection at every task."""
    model = getattr(model, "get_base_model", lambda: model)()
    return getattr(model, model.base_model_prefix)


def adapters(model: Any) -> tuple[object, ...]:
    """Which adapters a model uses now: a graph repeats those that it was captured with."""
    if not hasattr(model, "peft_config"):
        return ()
    disabled = {off for m in model.modules() if isinstance(off := getattr(m, "disable_adapters", None), bool)}
    return (*model.active_adapters, *sorted(disabled))


@contextmanager
def attending(config: Any, name: str = ATTENTION) -> Iterator[None]:
    """A context in which the layers of a model use an attention that transformers knows by name."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
