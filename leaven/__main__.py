"""`python -m leaven` is the command `leaven`."""

import sys

from leaven.cli import main

if __name__ == "__main__":
    sys.exit(main())
