"""Where engines run: targets as TOML files."""

from .profile import FLOORS_DB, FOLDER, OWN, Profile, Shapes, load_profile, profile_names

__all__ = ["FLOORS_DB", "FOLDER", "OWN", "Profile", "Shapes", "load_profile", "profile_names"]
