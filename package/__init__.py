"""Packages: what one machine, server or library needs of a bundle, and nothing else."""
