"""Code that comes with a model is run only if the user says so: each call that could load it says so, and none asks."""

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fgrpo.config import KitError, LMConfig, ModelConfig
from fgrpo.lm.pretrained import PretrainedPolicy, load_labels, load_lm
from fgrpo.policy import Policy
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, write_policy
from fgrpo.scale.estimate import shape_of
from tests.families import save_model

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for room in ("fgrpo", "app", "notebooks", "data") for p in (ROOT / room).rglob("*.py"))
LOADERS = {"from_pretrained", "from_config", "SentenceTransformer", "CrossEncoder", "pipeline"}
CONCRETE = {"PreTrainedTokenizerFast", "Qwen3ForCausalLM", "PeftModel"}
"""classes that are code of a library, whatever a folder says"""
CODE = """
import pathlib
pathlib.Path("RAN").touch()
from transformers import LlamaConfig as OwnConfig, LlamaForCausalLM as OwnModel, PreTrainedTokenizerFast as OwnTokenizer
"""


def loaders(path: Path) -> Iterator[tuple[int, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id in CONCRETE):
                yield node.lineno, node


def test_every_call_that_could_run_code_says_whether_it_may() -> None:
    found = {f"{p.relative_to(ROOT)}:{line}": node for p in SOURCES for line, node in loaders(p)}
    assert len([where for where in found if where.startswith("fgrpo")]) >= 9
    silent = [where for where, node in found.items() if "trust_remote_code" not in {k.arg for k in node.keywords}]
    assert not silent, f"without trust_remote_code: {silent}"
    sure = [
        where
        for where, node in found.items()
        for k in node.keywords
        if k.arg == "trust_remote_code" and isinstance(k.value, ast.Constant) and k.value.value is not False
    ]
    assert not sure  # fmt: skip


@pytest.fixture
def own_code(tmp_path, monkeypatch) -> Path:
    """A folder whose configuration, model and tokenizer name code that comes with it."""
    folder = save_model("smollm2", tmp_path / "model")
    (folder / "own.py").write_text(CODE.replace("RAN", str(tmp_path / "ran")))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    for file, values in {
        "config.json": {"model_type": "own", "auto_map": names},
        "tokenizer_config.json": {
            "tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}
        },
    }.items():  # fmt: skip
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def asked(prompt: str = "") -> str:
        raise AssertionError(f"the terminal was asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    return folder


@pytest.mark.parametrize(
    "load",
    [
        lambda name: PretrainedPolicy.new(LMConfig(model=name)),
        lambda name: load_labels(LMConfig(model=name)),
        load_lm,
        lambda name: shape_of(config_with(model=name), []),
    ],
    ids=["policy", "labels", "load_lm", "plan"],
)
def test_code_of_a_model_is_refused_by_name_of_the_option(load, own_code, tmp_path) -> None:
    with pytest.raises(KitError, match="Python code of its own, which runs only with --trust-remote-code") as caught:
        load(str(own_code))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_tokenizer_alone_may_have_code_too(own_code, tmp_path) -> None:
    shutil.copy(save_model("smollm2", tmp_path / "plain") / "config.json", own_code)
    with pytest.raises(KitError, match="cannot be loaded") as caught:
        load_labels(LMConfig(model=str(own_code)))
    assert "--trust-remote-code" in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_tiny_checkpoint_never_runs_code(tmp_path, monkeypatch) -> None:
    policy = Policy.tiny(["a", "b"], ModelConfig(hidden_size=8, layers=1, heads=2))
    write_policy(policy, tmp_path)
    (tmp_path / "own.py").write_text(CODE.replace("RAN", str(tmp_path / "ran")))
    path = tmp_path / "config.json"
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": names}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    loaded = load_policy(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), policy.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["embed", "cross_encoder"])
def test_encoders_and_rerankers_do_not_run_code(kind, own_code, tmp_path) -> None:
    pytest.importorskip("sentence_transformers")
    from fgrpo.baselines.rankers import cross_encoder
    from fgrpo.data import Splits
    from fgrpo.lm.encoders import embed

    with pytest.raises(KitError, match="--trust-remote-code"):
        if kind == "embed":
            embed(["a"], str(own_code))
        else:
            cross_encoder(Splits([], [], []), model=str(own_code))
    assert not (tmp_path / "ran").exists()
