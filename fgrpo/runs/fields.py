"""Configurations by flat field names, whichever concern a field belongs to; and whether examples fit one."""

from collections.abc import Sequence
from typing import Any

from ..config import CONCERNS, Config, KitError
from ..data import Example, Stream

CONCERN_OF = {field: concern for concern, kind in CONCERNS.items() for field in kind.__dataclass_fields__}


def with_fields(config: Config, **values: object) -> Config:
    """The run with some fields replaced: `with_fields(config, lam=0.5, pool=50)`.

    Raises KitError on an unknown field, and on a value of another type or that the field does not allow.
    """
    nested: dict[str, Any] = config.to_dict()
    for name, value in values.items():
        concern = CONCERN_OF.get(name)
        if not concern and (name in CONCERNS or name not in nested):
            raise KitError(f"field {name!r} is not known; the fields are those of fgrpo/config.py.")
        (nested[concern] if concern else nested)[name] = value
    return Config.from_dict(nested, "options")


def config_with(**values: object) -> Config:
    """The default run with some fields replaced: `config_with(steps=50, lam=0.5)`."""
    return with_fields(Config(), **values)


def check_pools(examples: Sequence[Example], config: Config) -> None:
    """Raise KitError if a pool is smaller than the slate."""
    for e in examples[:1] if isinstance(examples, Stream) else examples:
        if len(e.candidates) < config.grammar.slate_size:
            raise KitError(
                f"example {e.id!r}: its pool of {len(e.candidates)} candidates is smaller than "
                f"slate_size {config.grammar.slate_size}: lower --slate-size."
            )
