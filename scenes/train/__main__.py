"""`python -m latentc.scenes.train PART --state FOLDER --steps N`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..judge import JUDGE


def main() -> None:
    """Train one part, resuming from the last run; or save all of them as the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m latentc.scenes.train", description=main.__doc__)
    parser.add_argument("part", choices=["vae", "text", "unet", "wider", "judge", "save"])
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of images, training state, log and sample sheets"
    )
    parser.add_argument("--steps", type=int, default=0, help="train up to this step, counted over all runs")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from . import judge, save, text, unet, vae, wider

    if arguments.part != "save" and arguments.steps < 1:
        parser.error("--steps is required: pass the step up to which to train")
    try:
        if arguments.part == "save":
            save.save(arguments.state, save.CHECKPOINT)
            if (arguments.state / "judge").exists():
                save.save_judge(arguments.state, JUDGE)
            return
        courses = {"vae": vae, "text": text, "unet": unet, "wider": wider, "judge": judge}
        courses[arguments.part].train(arguments.state, arguments.steps)
    except FileNotFoundError as exc:  # a part that needs another one first
        parser.error(str(exc))


if __name__ == "__main__":
    main()
