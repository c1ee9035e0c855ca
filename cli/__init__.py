"""The command line: thin commands over the rooms below."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `latentc`: an error of ours is one line and exit code 1, wrong usage is 2; `--debug` shows the trace."""
    from ..core.errors import LatentcError
    from .app import app

    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="latentc")
    except LatentcError as exc:
        if debug:
            raise
        from .text import plain

        sys.stderr.write(plain(f"latentc: {exc}\n"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("latentc: stopped\n")
        sys.exit(130)
