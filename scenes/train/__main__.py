"""`python -m latentc.scenes.train PART --state FOLDER --steps N`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def main() -> None:
    """Train one part of the checkpoint, going on from where the last run stopped."""
    parser = argparse.ArgumentParser(prog="python -m latentc.scenes.train", description=main.__doc__)
    parser.add_argument("part", choices=["vae", "text", "unet"])
    parser.add_argument("--state", type=Path, required=True, help="folder of pictures, training state, log and sheets")
    parser.add_argument("--steps", type=int, required=True, help="train up to this step, counted from the very first")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from . import text, unet, vae

    {"vae": vae, "text": text, "unet": unet}[arguments.part].train(arguments.state, arguments.steps)


if __name__ == "__main__":
    main()
