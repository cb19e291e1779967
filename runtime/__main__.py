"""`python -m runtime`. Spawned children import this module too, so it does nothing unless it is the program."""

import sys

if __name__ == "__main__":
    from runtime.entrypoints import cli

    sys.exit(cli.main())
