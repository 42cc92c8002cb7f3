"""``python -m sb3_laplace``: the command line."""

import sys

from sb3_laplace.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
