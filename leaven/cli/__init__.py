"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code: 0, 2 when the user's input cannot be used, 130 after Ctrl-C."""
    try:
        # Imported here so that Ctrl-C during the imports ends as quietly as later.
        from leaven.cli.app import app
        from leaven.cli.contract import run

        return run(app, list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
