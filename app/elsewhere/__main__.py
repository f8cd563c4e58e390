"""What an installed kit runs as `python -m app`: the page itself is in the repository only, beside its traces.

Packaged as `app` without an `__init__.py`, so that any other package of that name comes first.
"""

import sys

print(
    "app: the app is not installed with the package; it runs from a clone: git clone the repository, then run "
    "`make app` or `python -m app` in it.",
    file=sys.stderr,
)
sys.exit(2)
