"""Where engines run: targets as TOML files."""

from .profile import FOLDER, OWN, Profile, Shapes, load_profile, profile_names

__all__ = ["FOLDER", "OWN", "Profile", "Shapes", "load_profile", "profile_names"]
