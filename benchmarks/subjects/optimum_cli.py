"""optimum's own command line, as `python -m optimum.commands.optimum_cli`, with telemetry off as in all of latentc."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[1:3]  # latentc's folder and this module: see `line.command`
    runpy.run_module("optimum.commands.optimum_cli", run_name="__main__", alter_sys=True)
