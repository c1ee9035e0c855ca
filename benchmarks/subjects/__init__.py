"""What is measured, one file each: programs for `line.py`, run in processes of their own and imported by nobody."""
