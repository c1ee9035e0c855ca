"""Training of the shipped checkpoint and its judge; see `python -m latentc.scenes.train --help`."""
