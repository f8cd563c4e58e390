"""Checksums of a checkpoint's files, because no reader of weights notices a flipped bit.

    SHA256SUMS      SHA-256 of each file, one per line, as `sha256sum` writes it (`sha256sum -c SHA256SUMS` checks it)

A folder without this file is not checked: older checkpoints, and adapters made elsewhere, have none.
"""

import hashlib
from pathlib import Path

from ..config import KitError
from ..tasks.atomic import write_text

SUMS = "SHA256SUMS"


def seal(folder: str | Path) -> None:
    """Write the checksums of the files in a folder."""
    folder = Path(folder)
    write_text(folder / SUMS, "".join(f"{_sum(p)}  {p.name}\n" for p in _files(folder)))


def check_seal(folder: Path) -> None:
    """Raise KitError unless the folder holds exactly the files in its SHA256SUMS, unchanged."""
    try:
        for path in _files(folder):  # so that a file without permission is not called damaged
            path.open("rb").close()
        text = (folder / SUMS).read_bytes().decode("ascii")
        found = {p.name: _sum(p) for p in _files(folder)}
        expected = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise KitError(f"{error.filename}: cannot be read (permission denied).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{folder}: the checkpoint is damaged ({error}).") from None
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            reason = "is not in" if name not in expected else "is missing from" if name not in found else "differs from"
            where = "the folder" if name not in found else SUMS
            raise KitError(
                f"{folder}: the checkpoint is damaged ({name[:80]!r} {reason} {where}); if the change is yours, "
                f"delete {SUMS}."
            )


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS and not p.name.startswith("."))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
