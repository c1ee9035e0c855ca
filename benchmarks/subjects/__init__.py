"""Measured subjects, one per file: programs that speak the protocol of `line.py` in processes of their own."""
