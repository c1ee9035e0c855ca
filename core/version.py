"""latentc's own version; `pyproject.toml` says the same."""

VERSION = "0.1.0"
