"""The small checkpoint shipped with the package, and the world of captioned pictures it was trained on."""
