"""``python -m hookery``."""

import sys

from hookery.cli import main

if __name__ == "__main__":
    sys.exit(main())
