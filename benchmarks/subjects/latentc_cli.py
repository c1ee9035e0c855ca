"""latentc's own command line, from the sources of this module, installed or not."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[1:3]  # latentc's folder and this module: see `line.command`
    runpy.run_module("latentc", run_name="__main__", alter_sys=True)
