"""A folder or name that is no pretrained model: one sentence with the way out, before anything is built."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

from fgrpo.cli.main import main
from fgrpo.config import KitError, LMConfig
from fgrpo.lm import folder as folders
from fgrpo.lm import loading
from fgrpo.lm.folder import check_folder
from fgrpo.lm.pretrained import PretrainedPolicy, load_config, load_labels, load_lm
from fgrpo.policy import Policy
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, save_policy, write_policy
from fgrpo.scale.estimate import shape_of
from fgrpo.tasks.jsonl import write_jsonl
from tests.families import examples, policy_of, save_model

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 538090408\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return save_model("smollm2", tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def model(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def change(**values: object) -> Callable[[Path], None]:
    """Other values in config.json; those with a dot in nested objects."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return apply


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def write(name: str, text: str | bytes) -> Callable[[Path], object]:
    blob = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(blob)


def rename(name: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / new)


def nested(folder: Path) -> None:
    (folder / "model").mkdir()
    for path in folder.glob("*.*"):
        path.rename(folder / "model" / path.name)


def header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")


BROKEN = {
    "adapter beside weights": (write("adapter_config.json", "{}"), "holds an adapter .PEFT.*merge_and_unload"),
    "adapter weights alone": (rename("model.safetensors", "adapter_model.safetensors"), "holds an adapter"),
    "adapter in a pickle": (write("adapter_model.bin", "x"), "holds an adapter"),
    "checkpoint": (write("policy.json", "{}"), "is a checkpoint of this kit: give it with --checkpoint"),
    "tiny checkpoint": (write("items.json", "[]"), "is a checkpoint of this kit"),
    "run": (write("metrics.jsonl", ""), "is the folder of a run: give it with --checkpoint"),
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "one folder too high": (nested, r"has no config\.json; did you mean .*model/model\?"),
    "gguf beside config": (rename("model.safetensors", "a.Q4.gguf"), r"in GGUF: name the file with --gguf-file a\.Q4\.gguf"),
    "pickled": (rename("model.safetensors", "pytorch_model.bin"), r"pytorch_model\.bin, which .* to safetensors"),
    "pth": (rename("model.safetensors", "consolidated.00.pth"), "convert them to safetensors"),
    "a name that is none": (change(hidden_act="of_tomorrow"), "'of_tomorrow' is not known"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "pointer to weights": (write("model.safetensors", LFS), r"model\.safetensors: is a Git LFS pointer.*git lfs pull"),
    "pointer to tokenizer": (write("tokenizer.json", LFS), r"tokenizer\.json: is a Git LFS pointer"),
    "page": (write("config.json", "<!DOCTYPE html><html>"), r"config\.json: is a web page"),
    "gzip": (write("tokenizer.json", b"\x1f\x8b\x08"), "compressed with gzip"),
    "empty": (write("config.json", ""), r"config\.json: is damaged .it is empty."),
    "truncated": (cut("model.safetensors", 9_000), r"model\.safetensors: is truncated or damaged: it has 9,000 bytes"),
    "truncated header": (cut("model.safetensors", 99), "is damaged or truncated"),
    "huge header": (header, "is damaged or truncated"),
    "brackets in the header": (
        write("model.safetensors", (2**18).to_bytes(8, "little") + b"[" * 2**18), "header cannot be read"
    ),
    "brackets": (write("config.json", "[" * 100_000), "nested too deeply"),
    "not an object": (write("config.json", "[1]"), "is not an object"),
    "long number": (write("config.json", '{"vocab_size": ' + "9" * 5000 + "}"), r"config\.json: is damaged"),
    "missing shards": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        r"names 'model-00001-of-00002\.safetensors', which is not in the folder",
    ),
    "layers": (change(num_hidden_layers=10**7), r"num_hidden_layers 10000000 is more than its weight files can hold"),
    "layers of a part": (change(vision_config={"depth": 10**9}), "depth 1000000000 is more"),
    "labels": (change(num_labels=10**9), "num_labels 1000000000 is more"),
    "experts": (change(num_local_experts=10**8), "num_local_experts 100000000 is more"),
    "width": (change(hidden_size=2**20, head_dim=2**18), r"asks for [\d,]+ weights, and its files have [\d,]+ bytes"),
    "vocabulary": (change(vocab_size=10**10), r"asks for [\d,]+ weights, and its files have"),
    "another width": (change(intermediate_size=80), r"gate_proj\.weight is \[64, 32\], and by config\.json \[80, 32\]"),
    "a word for a number": (change(num_hidden_layers="2"), "Validation error for field 'num_hidden_layers': TypeError"),
    "code of the hub": (change(_attn_implementation="someone/kernel"), "someone/kernel' is code of the hub"),
    "code for a part": (change(text_config={"attn_implementation": "a/b"}), "attn_implementation 'a/b' is code of the hub"),
    "more layers than weights": (change(num_hidden_layers=5), r"files lack 27 weights of LlamaForCausalLM, such as "),
    "another architecture": (change(model_type="t5", is_encoder_decoder=True), "is an encoder-decoder"),
    "no language model": (change(model_type="vit", architectures=["ViTModel"]), "ViTConfig is not the .* causal language"),
    "unknown architecture": (change(model_type="of_tomorrow"), "of_tomorrow"),
    "damaged tokenizer": (cut("tokenizer.json", 500), "cannot be loaded"),
    "brackets in the tokenizer": (write("tokenizer.json", "[" * 100_000), "nested too deeply|cannot be loaded"),
    "brackets in its configuration": (write("tokenizer_config.json", "[" * 100_000), "nested too deeply"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_sentence(name, model, capfd) -> None:
    apply, reason = BROKEN[name]
    apply(model)
    began = time.process_time()
    with pytest.raises(KitError, match=reason) as caught:
        PretrainedPolicy.new(LMConfig(model=str(model)))
    assert "\n" not in str(caught.value) and str(model) in str(caught.value) and time.process_time() - began < 3
    assert "REPORT" not in capfd.readouterr().err


def test_a_good_folder_passes_and_sizes_of_nothing_are_read(model) -> None:
    check_folder(str(model))
    (model / "notes.json").write_text(" " * 2**25)  # not of the model
    assert load_config(LMConfig(model=str(model))).num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.gguf", r"is a file: name its folder, and --gguf-file a\.gguf"),
        ("config.json", "is a file: name its folder"),
    ],
)
def test_a_file_is_not_a_folder(model, name, reason) -> None:
    (model / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(KitError, match=reason):
        load_lm(str(model / name))


@pytest.mark.parametrize(
    ("blob", "asked", "reason"),
    [
        (b"GGUF", "b.gguf", r"no GGUF file 'b\.gguf' \(it has a\.gguf\)"),
        (LFS.encode(), "a.gguf", r"a\.gguf: is a Git LFS pointer"),
        (b"model", "a.gguf", r"a\.gguf: is not a GGUF file"),
        (b"GGUF", "a.gguf", "cannot be loaded: a file of it is truncated or damaged"),
        (b"GGUF\3\0\0\0" + b"\x15llama.block_count\4\0\0\0\xff\xff\xff\xff", "a.gguf", "block_count 4294967295 is more"),
    ],
)  # fmt: skip
def test_gguf_files_are_checked(tmp_path, blob, asked, reason) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(blob)
    with pytest.raises(KitError, match=reason):
        load_lm(str(tmp_path), asked)


def test_what_may_not_be_read_is_not_called_damaged(model, tmp_path, monkeypatch) -> None:
    save_policy(policy_of(model), tmp_path / "p")
    opened, locked = Path.open, {"tokenizer.json"}

    def refuse(path, *args, **options):
        if path.name in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(KitError, match=r"tokenizer\.json: may not be read \(permission denied\)"):
        load_labels(LMConfig(model=str(model)))
    for file in ("policy.json", "adapter_model.safetensors", "SHA256SUMS"):
        locked = {file}
        with pytest.raises(KitError, match=rf"{file}: may not be read \(permission denied\)") as caught:
            load_policy(tmp_path / "p")
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("command", ["train", "evaluate", "data stats", "dry run"])
def test_the_command_line_refuses_an_adapter_as_model(command, model, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl("task.jsonl", examples(12))
    policy_of(model).model.save_pretrained("adapter")
    shutil.copy(model / "tokenizer.json", "adapter")
    tail = ["--task", "task.jsonl", "--model", "adapter"]
    head = {
        "train": ["train", "--out", "run"], "evaluate": ["evaluate", "--checkpoint", "base"],
        "data stats": ["data", "stats"], "dry run": ["train", "--out", "run", "--dry-run"],
    }[command]  # fmt: skip
    assert main([*head, *tail]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "model 'adapter' cannot be loaded: it holds an adapter (PEFT)" in said[-1]


@pytest.mark.parametrize("option", ["train --out run --init", "evaluate --checkpoint", "trace --out t.jsonl --checkpoint",
                                    "compare --out c --init"])  # fmt: skip
def test_an_adapter_of_another_program_is_no_checkpoint(option, model, tmp_path, monkeypatch, capsys) -> None:
    policy_of(model).model.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert main([*option.split(), "adapter"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "adapter: is an adapter of another program (PEFT): merge it into its base model first" in line


def test_the_base_of_a_checkpoint_may_not_be_an_adapter(model, tmp_path) -> None:
    save_policy(policy_of(model), tmp_path / "p")
    policy_of(model).model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(KitError, match=r"its base model cannot be loaded.*--model .*it holds an adapter"):
        load_policy(tmp_path / "p", lm=LMConfig(model=str(tmp_path / "adapter")))
    with pytest.raises(KitError, match="is a checkpoint of this kit"):
        load_policy(tmp_path / "p", lm=LMConfig(model=str(tmp_path / "p")))


def test_an_adapter_from_the_hub_is_found_when_it_is_loaded(model, monkeypatch) -> None:
    """A hub's files are not checked one by one; transformers loads such an adapter with its base."""
    load = transformers.AutoModelForCausalLM.from_pretrained

    def with_adapter(*args, **options):
        found = load(*args, **options)
        found[0]._hf_peft_config_loaded = True
        return found

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", with_adapter)
    with pytest.raises(KitError, match=r"is an adapter \(PEFT\)"):
        load_lm(str(model))


def test_a_tiny_checkpoint_with_absurd_sizes_is_refused(tmp_path) -> None:
    from fgrpo.config import ModelConfig

    write_policy(Policy.tiny(["a", "b"], ModelConfig(hidden_size=8, layers=1, heads=2)), tmp_path)
    change(num_hidden_layers=10**7)(tmp_path)
    with pytest.raises(KitError, match="num_hidden_layers 10000000 is more"):
        load_policy(tmp_path)
    change(num_hidden_layers=1)(tmp_path)
    (tmp_path / "items.json").write_text("[" * 100_000)
    with pytest.raises(KitError, match="damaged or incomplete"):
        load_policy(tmp_path)


def refused(*_: object, **__: object):
    raise OSError("[Errno -2] Name or service not known")


@pytest.mark.parametrize("way", ["refused", "silent", "offline"])
def test_a_hub_that_does_not_answer_is_asked_once_and_for_seconds(way, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", way == "offline")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "SECONDS", 0.2)
    asked: list[str] = []
    calls = {"refused": refused, "silent": lambda *a, **k: time.sleep(3), "offline": refused}
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **k: asked.append(name) or calls[way]())
    loading._silence.cache_clear()
    began = time.monotonic()
    reason = {
        "refused": "cannot be reached .*Name or service",
        "silent": "no answer within",
        "offline": "HF_HUB_OFFLINE",
    }[way]
    for _ in range(2):
        with pytest.raises(
            KitError, match=f"must be a folder or hub name: there is no such folder, .*{reason}"
        ) as caught:
            load_lm("someone/some-model")
        assert "\n" not in str(caught.value)
    assert asked == ["someone/some-model"] * (way != "offline") and time.monotonic() - began < 2
    assert (way == "offline") == huggingface_hub.constants.HF_HUB_OFFLINE
    loading._silence.cache_clear()


def test_a_path_that_no_hub_name_can_be_is_a_missing_folder(tmp_path) -> None:
    for name, reason in {
        str(tmp_path / "absent"): "no such folder",
        "a" * 5000: "name too long",
        "a\0b": "no such",
    }.items():
        with pytest.raises(KitError, match=reason) as caught:
            load_lm(name)
        assert len(str(caught.value)) < 300


def test_planning_checks_the_folder_too(model) -> None:

    change(num_hidden_layers=10**7)(model)
    with pytest.raises(KitError, match="more than its weight files can hold"):
        shape_of(config_with(model=str(model)), [])


def test_weights_of_a_tied_or_larger_vocabulary_are_not_missing(tmp_path) -> None:
    """What a model need not save: a head that is the embedding, tables that are computed."""
    torch.manual_seed(0)
    for name in ("gemma3", "qwen3_5"):
        load_lm(str(save_model(name, tmp_path / name)))
    assert folders.SLACK > 2048**2 * 2
