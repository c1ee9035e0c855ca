"""Where engines run: targets as TOML files."""

from .profile import FOLDER, Profile, Shapes, load_profile, profile_names

__all__ = ["FOLDER", "Profile", "Shapes", "load_profile", "profile_names"]
