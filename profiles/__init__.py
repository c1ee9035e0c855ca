"""Profiles: the targets that engines are built for, as TOML files."""

from .profile import ANY, FOLDER, OWN, Option, Profile, Shapes, load_profile, profile_names

__all__ = ["ANY", "FOLDER", "OWN", "Option", "Profile", "Shapes", "load_profile", "profile_names"]
