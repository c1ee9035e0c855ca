"""`python -m latentc.scenes.train PART --state FOLDER --steps N`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

PARTS = (
    "vae", "text", "unet", "wider", "judge", "save", "style", "lcm", "control", "tiny", "save-adapters",
)  # fmt: skip


def main() -> None:
    """Train one part, resuming from the last run; or save all of them as the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m latentc.scenes.train", description=main.__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of images, training state, log and sample sheets"
    )
    parser.add_argument("--steps", type=int, default=0, help="train up to this step, counted over all runs")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from . import adapters, control, judge, loras, save, text, tiny, unet, vae, wider

    saving: dict[str, Callable[[Path], object]] = {"save": save.save_all, "save-adapters": adapters.save}
    courses: dict[str, Callable[[Path, int], object]] = {
        "vae": vae.train, "text": text.train, "unet": unet.train, "wider": wider.train, "judge": judge.train,
        "style": loras.train_style, "lcm": loras.train_lcm, "control": control.train, "tiny": tiny.train,
    }  # fmt: skip
    if arguments.part in courses and arguments.steps < 1:
        parser.error("--steps is required: pass the step up to which to train")
    try:
        if arguments.part in saving:
            saving[arguments.part](arguments.state)
        else:
            courses[arguments.part](arguments.state, arguments.steps)
    except FileNotFoundError as exc:  # a part that needs another one first
        parser.error(str(exc))


if __name__ == "__main__":
    main()
