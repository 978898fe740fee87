"""`python -m parlib.run`: the runner, parlib.cli.run."""

import sys

from parlib.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
