"""`python -m fgrpo`: the command line, in fgrpo/cli."""

from .cli.main import leave, main

if __name__ == "__main__":
    leave(main())
