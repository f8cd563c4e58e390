"""The runs of a comparison as plain Python: a whole Config for every setting and method.

    lab = config_with(steps=50)
    {"": {"grpo": with_fields(lab, credit="grpo"), "grpo, scaled": with_fields(lab, credit="grpo", scale="std")}}

`grid` makes such a mapping for the common case, every credit method under every combination of some values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from ..config import CONCERNS, Config, KitError
from ..credit import with_credit
from ..runs.fields import CONCERN_OF, with_fields

Experiments = Mapping[str, Mapping[str, Config]]
"""experiments[setting][method] is the run, up to its seed; the setting is "" if there is only one"""


def grid(
    config: Config, credits: Sequence[str], vary: Mapping[str, Sequence[object]] | None = None
) -> dict[str, dict[str, Config]]:
    """Every credit method under every combination of values: `grid(config, ["grpo", "fgrpo"], {"lam": [0.5, 1.0]})`.

    A setting is named after its values, "lam=0.5 pool=20"; figures read the number of a sweep from this name.
    """
    experiments = {}
    for values in product(*(vary or {}).values()):
        fields = dict(zip(vary or {}, values, strict=True))
        base = with_fields(config, **fields)
        setting = " ".join(f"{name}={_text(value)}" for name, value in fields.items())
        if setting in experiments:
            raise KitError(f"setting {setting!r} is there twice: name each value once.")
        experiments[setting] = {credit: replace(base, rl=with_credit(base.rl, credit)) for credit in credits}
    return experiments


def parse_vary(texts: Sequence[str]) -> dict[str, list[object]]:
    """Fields and values as the command line gives them: `["lam=0.5,1", "pool=20"]` is `{"lam": [0.5, 1.0], "pool": [20]}`.

    Raises KitError on an unknown field, a value that is not of the field's type, or a field that has its own option.
    """
    vary: dict[str, list[object]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not values:
            raise KitError(f"--vary {text!r} must be FIELD=VALUE,VALUE, as in lam=0.5,1,2.")
        if name in ("credit", "seed"):
            raise KitError(f"--vary {text!r}: methods are named with --credits, seeds counted with --seeds.")
        if name in vary:
            raise KitError(f"--vary {name} is given twice: put all of its values into one.")
        kind = CONCERNS[CONCERN_OF[name]] if name in CONCERN_OF else Config
        if name not in kind.__dataclass_fields__ or (name in CONCERNS and name not in CONCERN_OF):
            raise KitError(f"--vary {text!r}: field {name!r} is not known; `compare --help` lists the fields.")
        wanted = kind.__dataclass_fields__[name].type
        assert isinstance(wanted, type)
        try:
            read = {"true": True, "false": False}.__getitem__ if wanted is bool else wanted
            vary[name] = [read(value) for value in values.split(",")]
        except (ValueError, KeyError):
            raise KitError(f"--vary {text!r}: values of {name!r} must be of type {wanted.__name__}.") from None
    return vary


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
