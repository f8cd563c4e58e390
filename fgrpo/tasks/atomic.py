"""Text files that are replaced as a whole."""

import os
import tempfile
from pathlib import Path

from ..config import KitError


def write_text(path: str | Path, text: str) -> None:
    """Replace a file atomically: it holds the old text or the new one, never a part. Raises KitError if it cannot."""
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise KitError(f"{path}: cannot be written ({error.strerror}); the file before it is untouched.") from None
