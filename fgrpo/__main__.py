"""`python -m fgrpo`: the command line, in fgrpo/cli."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
