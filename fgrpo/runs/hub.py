"""Policies on the Hugging Face Hub: `push` the policy of a run with a model card, `pull` one by name.

    README.md                    the card: method, credit, task, steps, what training logged, how to load, citation
    config.json, metrics.jsonl   of the run, without paths of this machine
    checkpoints/step-000200/     the policy: safetensors, configuration and tokenizer, or an adapter; SHA256SUMS

This is the layout of a run's folder, so that what was pulled is given to `--checkpoint` or `--init`, and transformers
or PEFT read it with `subfolder`. Nothing else is pushed: no traces, no data, no optimizer. Of a task's items a tiny
policy holds the keys alone (items.json). Weights are read as safetensors only, and compared with SHA256SUMS.
"""

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..config import Config, KitError
from ..lm.loading import loading
from ..lm.pretrained import POLICY_FILE
from .policies import is_whole_model, policy_folder, refuse_adapter, step_of
from .run import config_of_checkpoint, how_made, read_json, read_metrics
from .seal import SUMS, check_seal, seal

PREFIX = "hub:"
"""begins the name of a policy on the Hub, where a folder could stand too: hub:USER/NAME or hub:USER/NAME@REVISION"""
KEPT = (".json", ".safetensors", ".txt", ".jinja", ".model")
"""endings of a policy's files that are pushed and pulled"""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy", ".h5", ".msgpack")
PATTERNS = ["README.md", "config.json", "metrics.jsonl", f"checkpoints/step-*/{SUMS}",
            *(f"checkpoints/step-*/*{ending}" for ending in KEPT)]  # fmt: skip
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
BIBTEX = """\
@article{surana2026fgrpo,
  title   = {F-GRPO: Factorized Group-Relative Policy Optimization for Unified Candidate Generation and Ranking},
  author  = {Surana, Rohan and Mundada, Gagan and Wu, Junda and Li, Xintong and Jiao, Yizhu and Jin, Bowen and
             Zhou, Sizhe and Yu, Tong and Sinha, Ritwik and Han, Jiawei and Shang, Jingbo and McAuley, Julian},
  journal = {arXiv preprint arXiv:2605.12995},
  year    = {2026}
}"""


class Pushed(NamedTuple):
    """A policy on the Hub: its name, the commit that holds it, the files that were written and who can read them."""

    name: str
    revision: str
    files: tuple[str, ...]
    private: bool

    def __str__(self) -> str:
        """The name by which it is loaded again, this very version."""
        return f"{PREFIX}{self.name}@{self.revision}"


def push(
    folder: str | Path, name: str, private: bool = True, *, base: str = "", licence: str = "apache-2.0",
    metrics: Mapping[str, float] | None = None,
) -> Pushed:  # fmt: skip
    """Push the policy of a run's folder, of a checkpoint in it or of an adapter's folder to the Hub, as USER/NAME.

    One commit replaces the policy that the repository holds. `base` is the Hub's name of a pretrained base model, where
    the run named a folder of this machine; `metrics` are figures for the card, such as those of `Lab.evaluate`.

    Raises KitError if the folder holds no policy of a run or one that is damaged, if the name cannot be used, if the
    repository is public and `private` was asked for, or holds something else, and if the Hub refuses or is not reached.
    """
    _check_name(name)
    with tempfile.TemporaryDirectory() as made:
        files = stage(folder, Path(made), name, base, licence, metrics or {})
        api = HfApi(library_name="fgrpo")
        with _asking(name):
            api.create_repo(name, private=private, exist_ok=True)
            found = api.model_info(name)
            there = {s.rfilename for s in found.siblings or ()} - {".gitattributes"}
            if private and not found.private:
                raise KitError(f"{name} exists on the Hub and is public: push it as public, or choose another name.")
            if there and not any(n.startswith("checkpoints/step-") for n in there):
                raise KitError(f"{name} exists on the Hub and holds no policy of this kit: choose another name.")
            old = sorted(n for n in there - set(files) if n.startswith("checkpoints/") or n == "metrics.jsonl")
            commit = api.create_commit(
                name,
                [
                    *(CommitOperationAdd(n, Path(made) / n) for n in files),
                    *map(CommitOperationDelete, old),
                ],
                commit_message=f"Policy of fgrpo, {next(n for n in files if n.endswith(SUMS)).split('/')[1]}",
            )
    return Pushed(name, commit.oid, tuple(files), bool(found.private))


def pull(name: str, revision: str = "") -> Path:
    """The folder of a policy of the Hub, USER/NAME, downloaded into the Hub's cache unless it is there.

    `revision` is a commit, a branch or a tag; the folder is named after the commit. Without an answer of the Hub, or
    with HF_HUB_OFFLINE, the cache is used. Raises KitError if there is no such policy, or if it differs from SHA256SUMS.
    """
    _check_name(name)
    with loading(name), _asking(name, revision):
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=PATTERNS))
    policy = policy_folder(folder)
    if policy == folder or not (policy / SUMS).is_file():
        raise KitError(f"{PREFIX}{name}: no policy of this kit (no checkpoints/step-.../{SUMS} is in the repository).")
    check_seal(policy)
    return folder


def local(path: str) -> str:
    """A path as it is; of `hub:USER/NAME` or `hub:USER/NAME@REVISION` the folder that it is pulled to."""
    if not path.startswith(PREFIX):
        return path
    name, _, revision = path.removeprefix(PREFIX).partition("@")
    return str(pull(name, revision))


def pinned(path: str | Path) -> str:
    """`hub:USER/NAME@COMMIT` of a folder that `pull` returned or of a checkpoint in it, and "" of any other."""
    found = re.search(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})", str(path))
    return f"{PREFIX}{found[1]}/{found[2]}@{found[3]}" if found else ""


def stage(
    folder: str | Path, out: Path, name: str, base: str = "", licence: str = "apache-2.0",
    metrics: Mapping[str, float] | None = None,
) -> list[str]:  # fmt: skip
    """Write to `out` what `push` would push, and return the names of the files. Raises KitError as `push` does."""
    policy = policy_folder(folder)
    refuse_adapter(policy)
    config = config_of_checkpoint(folder)
    run = policy.parent.name == "checkpoints" and (policy.parents[1] / "config.json").is_file()
    root = policy.parents[1] if run else policy
    if not any((policy / n).is_file() for n in ("items.json", POLICY_FILE)):
        raise KitError(f"{folder}: no policy here; name the folder of a run, or a checkpoint in it.")
    check_seal(policy)
    if pickled := sorted(p.name for p in policy.iterdir() if p.suffix in PICKLED):
        raise KitError(f"{policy / pickled[0]}: is not safetensors, and nothing else is pushed: remove it.")
    rows = read_metrics(root) if (root / "metrics.jsonl").is_file() else []
    step = max(step_of(policy), 0) or max((int(row["step"]) for row in rows), default=0)
    into = out / "checkpoints" / f"step-{step:06d}"
    into.mkdir(parents=True)
    for path in sorted(policy.iterdir()):
        ours = path.name in ("config.json", "metrics.jsonl") and policy == root  # those of the run: below
        if path.is_file() and path.suffix in KEPT and not path.name.startswith("trainer.") and not ours:
            shutil.copyfile(path, into / path.name)
    model = base or _shown(config.lm.model)
    for file, field in ((POLICY_FILE, "model"), ("adapter_config.json", "base_model_name_or_path")):
        if (into / file).is_file():
            values = read_json(into / file)
            values[field] = model
            if base:
                values.pop("gguf_file", None)
            (into / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    seal(into)
    values = read_json(root / "config.json")
    values["task"], values["data"] = _shown(config.task), ""
    if config.lm.model:
        values["lm"] |= {"model": model, **({"gguf_file": ""} if base else {})}
    if isinstance(values.get("made"), dict) and isinstance(values["made"].get("command"), str):
        values["made"]["command"] = " ".join(map(_shown_argument, shlex.split(values["made"]["command"])))
    (out / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if rows:
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    origin = how_made(root).get("origin")
    on_hub = bool(base) or (model == config.lm.model and model.count("/") == 1 and not config.lm.gguf_file)
    base = model if (into / POLICY_FILE).is_file() else ""
    text = card(
        name, config, origin if isinstance(origin, dict) else {}, step, rows, base, on_hub, licence, metrics or {},
        is_whole_model(into),
    )  # fmt: skip
    (out / "README.md").write_text(text, encoding="utf-8")
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def card(
    name: str, config: Config, origin: Mapping[str, object], step: int, rows: list[dict[str, float]], base: str,
    on_hub: bool, licence: str, metrics: Mapping[str, float], whole: bool = False,
) -> str:  # fmt: skip
    """The card of a policy: Markdown with the Hub's metadata. `base`: a pretrained model, which is on the Hub or not.

    `whole`: the policy holds all weights, not an adapter of the base model.
    """
    rl, sft = config.rl, origin.get("stage") in ("sft", "pretrain")
    adapter = f"LoRA adapter (rank {config.lm.lora_rank}) of {base}"
    trained = f"all weights of {base}, trained further" if whole else adapter
    about = {
        "policy": trained if base else
                  f"tiny decoder ({config.model.layers} layers, width {config.model.hidden_size}), one token per item",
        "task": _shown(config.task),
        "method": "supervised fine-tuning on demonstrations (the warm start of RL)" if sft else
                  f"RL, credit `{rl.credit}`, slate reward `{rl.slate_reward}`, lambda {rl.lam:g}",
        "steps": f"{step}" + ("" if sft else f" of {rl.queries} queries x {rl.group} rollouts, learning rate {rl.lr:g}"),
        "output": f"slate of at most {config.grammar.slate_size}, ranking of at most {config.grammar.rank_size}, "
                  f"{rl.decoding} decoding",
        "seed": str(config.seed),
    }  # fmt: skip
    logged = {k: v for k, v in (rows[-1] if rows else {}).items() if k.startswith("reward/") or k == "format_errors"}
    front = [
        "---", f"license: {licence}", "library_name: fgrpo",
        *([f"base_model: {base}"] if base and on_hub else []),
        "tags:", *(f"- {tag}" for tag in ("f-grpo", "grpo", "reinforcement-learning", "ranking", "recommendation")), "---",
    ]  # fmt: skip
    parts = [
        "\n".join(front),
        f"# {name.split('/')[-1]}",
        "A policy that reads a query and a pool of candidates and writes a subset and an order of it, trained with "
        "fgrpo, an independent implementation of F-GRPO ([arXiv 2605.12995](https://arxiv.org/abs/2605.12995)).",
        "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in about.items())]),
    ]
    if metrics:
        parts.append("Measured:\n\n" + "\n".join(f"- {k}: {v:.4f}" for k, v in metrics.items()))
    if logged:
        parts.append(
            f"Means over the sampled rollouts of step {rows[-1]['step']:g}, as training logged them (no evaluation):\n\n"
            + "\n".join(f"- {k}: {v:.4f}" for k, v in logged.items())
        )
    parts += [
        f"## How to load\n\n    python -m fgrpo evaluate --checkpoint {PREFIX}{name}"
        + (" --model FOLDER" if base and not (on_hub or whole) else ""),
        "```python\nfrom fgrpo.runs.hub import pull\nfrom fgrpo.runs.policies import load_policy\n\n"
        f'policy = load_policy(pull("{name}"))\n```',
        f"Weights are in `checkpoints/step-{step:06d}` (safetensors), for transformers or PEFT the `subfolder`. "
        "Data sets are not included: name yours with `--data`.",
    ]
    if base and not on_hub:
        how = "it is not needed" if whole else "name yours with `--model`"
        parts.append(f"The base model was a local folder, {base}: {how}.")
    parts += [
        f"## Licence\n\n{licence}, chosen by whoever pushed this. The terms of the base model and of the data that it was "
        "trained on hold as well.",
        f"## Citation\n\n```bibtex\n{BIBTEX}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise KitError("a policy on the Hub is named USER/NAME: letters, digits, -, _ and . in both.")


@contextmanager
def _asking(name: str, revision: str = "") -> Iterator[None]:
    """What the Hub refuses becomes a KitError of one sentence."""
    try:
        yield
    except (KitError, LocalEntryNotFoundError):  # the second is what `loading` knows: neither the Hub nor its cache
        raise
    except OfflineModeIsEnabled:
        raise KitError(f"{name}: HF_HUB_OFFLINE is set, so that the Hub is not asked: unset it.") from None
    except LocalTokenNotFoundError:
        raise KitError(f"{name}: no access token for the Hub: {LOG_IN}.") from None
    except RevisionNotFoundError:
        raise KitError(f"{name}: the repository has no revision {revision!r}.") from None
    except GatedRepoError:
        raise KitError(f"{name}: access must be asked for on the repository's page.") from None
    except RepositoryNotFoundError:
        raise KitError(
            f"{name}: the Hub has no such repository that you may read; if it is private, {LOG_IN}."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        way = f"; {LOG_IN}, with a token that may write there" if status in (401, 403) else ""
        raise KitError(f"{name}: the Hub answers {status}{way}.") from None
    except (HTTPError, OSError) as error:
        raise KitError(f"{name}: the Hub cannot be reached ({str(error)[:100]}).") from None
    except Exception as error:  # an answer that its client cannot read, or an upload that failed
        first = str(error).strip().split("\n")[0][:150]
        raise KitError(f"{name}: the Hub's client failed ({first or type(error).__name__}).") from None


def _shown(path: str) -> str:
    """The name that a path is shown by: of a file or folder of this machine its last part, else itself."""
    if PurePath(path).is_absolute() or path.startswith(("~", ".")) or Path(path).exists():
        return PurePath(path).name
    return path


def _shown_argument(argument: str) -> str:
    option, equals, value = argument.partition("=")
    return shlex.quote(f"{option}={_shown(value)}" if equals else _shown(argument))
