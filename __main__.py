"""`python -m latentc`."""

from latentc.cli import main

if __name__ == "__main__":
    main()
