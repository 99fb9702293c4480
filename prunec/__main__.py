"""`python -m prunec` is the command line."""

import sys

from prunec.cli import main

if __name__ == "__main__":
    sys.exit(main())
