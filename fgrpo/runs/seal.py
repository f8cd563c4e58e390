"""The files of a checkpoint, with their SHA-256: a flipped bit in a weight is a weight like any other to every reader.

    SHA256SUMS      one line per file, as `sha256sum` writes it (`sha256sum -c SHA256SUMS` checks it by hand)

A folder without the list is read as it is: older checkpoints, and adapters made elsewhere, have none.
"""

import hashlib
from pathlib import Path

from ..config import KitError
from ..data import write_text

SUMS = "SHA256SUMS"


def seal(folder: str | Path) -> None:
    """Write the list of a folder's files as they are now."""
    folder = Path(folder)
    write_text(folder / SUMS, "".join(f"{_sum(p)}  {p.name}\n" for p in _files(folder)))


def check_seal(folder: Path) -> None:
    """Raise KitError unless the folder holds the files of its list, all of them and no others, bit for bit."""
    try:
        text = (folder / SUMS).read_bytes().decode("ascii")
        found = {p.name: _sum(p) for p in _files(folder)}
        listed = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{folder}: the checkpoint is damaged ({error}).") from None
    for name in sorted(found.keys() | listed.keys()):
        if found.get(name) != listed.get(name):
            reason = "is not in" if name not in listed else "is missing from" if name not in found else "differs from"
            place = "the folder" if name not in found else SUMS
            raise KitError(
                f"{folder}: the checkpoint is damaged ({name[:80]!r} {reason} {place}); if the change is yours, "
                f"delete {SUMS}."
            )


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS and not p.name.startswith("."))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
