"""What a GPU does, in one command of less than ten minutes: `python data/results/gpu.py`.

Not run on a GPU yet; `--device cpu --tiny` runs every part at toy size. Needs the kit's own packages, and `trl` with
`datasets` for the comparison (left out, and said so, where they are missing). Written to data/results, as soon as known:

- gpu-numerics.csv: shared against unshared log-probabilities and gradients, float32 and bfloat16; decoding by graphs
  against the plain way; a run that is stopped and resumed against one that is not.
- gpu-decode.csv: decoded tokens per second of the shape of SmolLM2-135M, 16 queries x 8 rollouts, with graphs and without.
- gpu-masks.csv: the loss of that shape and its gradients with a dense mask and with FlexAttention's block masks, seconds and
  peak memory: where blocks are faster, put "cuda" into BLOCK_MASKS of fgrpo/lm/prefix.py.
- gpu-bench.csv: seconds of a step and its peak memory for Qwen3 shapes of 0.1 to 4 B with random weights, against TRL.
"""

import argparse
import gc
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.lm import prefix, static
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.lm.rows import RowPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.run import Run, provenance
from fgrpo.scale.bench import Case, allocated, bench
from fgrpo.study.report import to_csv
from fgrpo.tasks import load_task
from fgrpo.tasks.atomic import write_text
from fgrpo.trainer import Stopped, fit

RESULTS = Path("data/results")
SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {"0.1B": SMOLLM2} | {
    name: {"vocab_size": 151_936, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
           "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192,
           "tie_word_embeddings": True}
    for name, width, inner, layers, heads in [
        ("0.6B", 1024, 3072, 28, 16), ("1.7B", 2048, 6144, 28, 16), ("4B", 2560, 9728, 36, 32)]
}  # fmt: skip
"""the configurations of SmolLM2-135M and of Qwen3 as published; of the first the sizes, as a Qwen3"""
TINY = {"vocab_size": 5_000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096, "tie_word_embeddings": True}  # fmt: skip
OTHERS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


@dataclass(frozen=True)
class Shaped(Case):
    """A case of the benchmark with a published shape."""

    shape: str = "0.6B"

    def policy(self) -> Policy:
        """The shape with random weights, the same at every call, made on the device."""
        labels = RowPolicy.tiny(self.items, replace(self.config().model, hidden_size=8, layers=1))
        sizes = TINY if self.shape == "tiny" else SHAPES[self.shape]
        return RowPolicy(
            made(Qwen3ForCausalLM, Qwen3Config(**sizes, **OTHERS), self.device, self.dtype),
            labels.tokenizer,
            labels.labels,
        )


def made(kind, config, device, dtype):
    """A model with random weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(0)
    try:
        with torch.device(device):
            return kind(config)
    finally:
        torch.set_default_dtype(before)


def write(name: str, rows: list[dict], device: str) -> None:
    """The rows so far."""
    hardware = torch.cuda.get_device_name(0) if device.startswith("cuda") else "CPU"
    write_text(RESULTS / f"{name}.csv", to_csv(rows, {**provenance(), "accelerator": hardware}))
    print(rows[-1], flush=True)


def numerics(device: str, sizes: dict) -> None:
    """Differences that should be those of rounding."""
    rows, splits = [], load_task(Config())[0]
    queries, items = splits.test[:8], load_task(Config())[1]
    for dtype in ("float32", "bfloat16"):
        for kind, config, policy_type in (
            (Qwen3ForCausalLM, Qwen3Config, RowPolicy),
            (LlamaForCausalLM, LlamaConfig, SharedPolicy),
        ):
            plain = RowPolicy.tiny(items, Config().model)
            policy = policy_type(made(kind, config(**sizes, **OTHERS), device, dtype), plain.tokenizer, plain.labels)
            rollouts = rollout(policy, queries, Sampling(GrammarConfig(full=True)), 8, 0)
            again = rollout(policy, queries, Sampling(GrammarConfig(full=True)), 8, 0)  # by graphs, if the first agreed
            advantages = torch.randn(rollouts.mask.shape, device=device) * rollouts.mask
            gradients = []
            for shared in (True, False):
                policy.share = shared
                policy.model.zero_grad()
                loss, _ = policy_loss(
                    policy, replace(rollouts, tree=None), advantages, RLConfig(clip_low=1.0, clip_high=1e9)
                )
                loss.backward()
                gradients.append(torch.cat([p.grad.float().flatten() for p in policy.parameters()]))
            whole, _ = policy.logprobs(
                rollouts.prompts, rollouts.completions, rollouts.mask, rollouts.sampling, shared=False
            )
            rows.append({
                "model": kind.__name__, "dtype": dtype, "logprob_difference": (whole - rollouts.logprobs).abs().max().item(),
                "gradient_difference": float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
                "graphs": bool(getattr(static._known.get(policy.model), "same", False)),
                "same_tokens_by_graphs": float((again.completions == rollouts.completions).float().mean()),
            })  # fmt: skip
            write("gpu-numerics", rows, device)
    config = config_with(steps=6, queries=4, group=4, device=device)
    with tempfile.TemporaryDirectory() as folder:
        trained = []
        for name, stops in (("whole", [6]), ("stopped", [3, 6])):
            for stop in stops:
                run, seen = Run(Path(folder) / name, config, resume=stop != stops[0], save_every=3), []
                policy = RowPolicy.tiny(items, config.model)
                try:
                    fit(policy, splits.train, config, run, quiet=True, after_step=lambda p, n, seen=seen: seen.append(n),
                        stop=lambda stop=stop, seen=seen: bool(seen) and seen[-1] == stop < 6)  # fmt: skip
                except Stopped:
                    assert stop == 3
            trained.append(run.latest())
        first, second = (sorted(folder.glob("*.safetensors")) for folder in trained)
        same = len(first) > 0 and [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    rows.append(
        {**dict.fromkeys(rows[0], ""), "model": "tiny policy", "dtype": "float32", "resume_bit_identical": same}
    )
    write("gpu-numerics", [{"resume_bit_identical": "", **row} for row in rows], device)


def llama(device: str, sizes: dict, like: Policy) -> Policy:
    """A Llama with random weights, in bfloat16 on a GPU, and the labels of another policy."""
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    model = made(LlamaForCausalLM, LlamaConfig(**sizes, **OTHERS), device, dtype)
    return SharedPolicy(model, like.tokenizer, like.labels)


def decode(device: str, sizes: dict, queries: int) -> None:
    """Tokens per second of rollouts, with graphs and without; the floor reads all weights once a step."""
    rows, (splits, items) = [], load_task(Config())
    plain = RowPolicy.tiny(items, Config().model)
    sampling = Sampling(GrammarConfig(slate_size=10, rank_size=5, full=True))
    for way in ("graphs", "plain"):
        static.DEVICES = {device.partition(":")[0]} if way == "graphs" else set()
        policy = llama(device, sizes, plain)
        seconds, tokens = [], 0
        for number in range(7):  # the first two compare and capture
            some = splits.train.take(number * queries, queries)
            now(device)
            began = time.perf_counter()
            found = rollout(policy, some, sampling, 8, 0, number)
            now(device)
            seconds.append(time.perf_counter() - began)
            tokens = int(found.mask.sum())
        middle = sorted(seconds[2:])[2]
        size = sum(p.numel() * p.element_size() for p in policy.parameters())
        rows.append({"way": way, "rollouts": 8 * queries, "tokens": tokens, "seconds": round(middle, 4),
                     "tokens_per_second": round(tokens / middle), "weights_mb": round(size / 1e6)})  # fmt: skip
        write("gpu-decode", rows, device)
    static.DEVICES = {"cuda"}


def masks(device: str, sizes: dict, prompts: tuple[int, ...]) -> None:
    """The loss with a dense mask and with block masks, by turns; their gradients should differ by rounding."""
    rows: list[dict] = []
    kind, before = device.partition(":")[0], prefix.BLOCK_MASKS
    ways: dict[str, set[str]] = {"dense": set(), "blocks": {kind}}
    for prompt in prompts:
        case = Case(prompt=prompt, device=device)
        policy = llama(device, sizes, case.policy())
        policy.checked = {case.group: sys.maxsize}
        sampling = Sampling(GrammarConfig(slate_size=38, rank_size=5, full=True))
        rollouts = replace(rollout(policy, case.batch(0), sampling, 8, 0), tree=None)
        advantages = torch.randn(rollouts.mask.shape, device=device) * rollouts.mask
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        gradients, peaks, notes = {}, {}, {}

        def loss_and_gradients(policy=policy, rollouts=rollouts, advantages=advantages) -> None:
            policy.model.zero_grad()
            policy_loss(policy, rollouts, advantages, RLConfig())[0].backward()

        for _, way in product(range(6), ways):  # the first turn compiles
            if way in notes:
                continue
            prefix.BLOCK_MASKS = ways[way]
            now(device)
            began = time.perf_counter()
            try:
                if kind == "cuda":
                    peaks[way] = round(allocated(loss_and_gradients))
                else:
                    loss_and_gradients()
            except Exception as error:  # whatever a compiler says: the other way is measured all the same
                notes[way] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"
                continue
            now(device)
            seconds[way].append(time.perf_counter() - began)
            gradients[way] = torch.cat([p.grad.float().flatten() for p in policy.parameters()])
        apart = ""
        if not notes:
            apart = float((gradients["blocks"] - gradients["dense"]).norm() / gradients["dense"].norm())
        for way in ways:
            rows.append({"prompt": prompt, "way": way, "peak_mb": peaks.get(way, ""), "note": notes.get(way, ""),
                         "seconds": "" if way in notes else round(sorted(seconds[way][1:])[2], 4),
                         "gradient_difference": apart if way == "blocks" else ""})  # fmt: skip
            write("gpu-masks", rows, device)
    prefix.BLOCK_MASKS = before


def now(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def steps(device: str, cases: list[Shaped], until: float) -> None:
    """The benchmark; a case that does not fit memory is a row that says so, none is begun after the time is up."""
    rows: list[dict] = []
    peers = ["trl"]
    try:
        import trl  # noqa: F401
    except ImportError:
        peers = []
        print("TRL is not installed: without it")
    for case in cases:
        if time.monotonic() > until:
            print(f"no time for {case.shape} at {case.prompt} and what follows")
            break
        try:
            found = bench(case, peers, repeats=5, memory=device.startswith("cuda"), own=("shared",))
            rows += [{"shape": case.shape, "dtype": case.dtype, "note": "", **row} for row in found]
        except (torch.OutOfMemoryError, KitError) as error:
            empty = dict.fromkeys(rows[0] if rows else (), "")
            rows.append(
                {
                    **empty,
                    "shape": case.shape,
                    "dtype": case.dtype,
                    "note": str(error).partition("\n")[0][:80],
                    "prompt": case.prompt,
                }
            )
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        write("gpu-bench", rows, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.5, help="no case of the benchmark is begun after these")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, written to the folder runs/gpu")
    args = parser.parse_args()
    began = time.monotonic()
    if args.tiny:
        RESULTS = Path("runs/gpu")
        RESULTS.mkdir(parents=True, exist_ok=True)
    big = [(s, p) for s in ("0.1B", "0.6B") for p in (512, 1024, 2048, 4096)] + [
        (s, p) for s in ("1.7B", "4B") for p in (1024, 4096)
    ]
    common = {"device": args.device, "dtype": "bfloat16", "group": 8, "queries": 2, "completion": 48}
    cases = [Shaped(prompt=p, shape=s, **common) for s, p in big]
    if args.tiny:
        cases = [Shaped(prompt=p, shape="tiny", **common | {"dtype": "float32", "completion": 24}) for p in (128, 300)]
        static.DEVICES |= {args.device}
    numerics(args.device, TINY)
    decode(args.device, TINY if args.tiny else SMOLLM2, 2 if args.tiny else 16)
    masks(args.device, TINY if args.tiny else SMOLLM2, (128, 300) if args.tiny else (512, 1024, 4096))
    steps(args.device, cases, began + 60 * args.minutes)
    print(f"{time.monotonic() - began:.0f} s")
