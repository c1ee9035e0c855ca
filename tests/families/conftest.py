"""Families that are made up, each of a row and a small class: opened, exported and drawn as the others are."""

import importlib
import sys
from pathlib import Path

import pytest

from latentc.checkpoints.families import FAMILIES
from latentc.checkpoints.parts import CLASSES
from latentc.checkpoints.random import new_checkpoint
from latentc.core.bundle import open_bundle
from latentc.export.export import export

NAMES = ("twin", "moving", "layered")


@pytest.fixture(scope="session", autouse=True)
def made_up():
    """Add the rows and the classes, by name; and take them out again."""
    sys.path.append(str(Path(__file__).parent))
    modules = {name: importlib.import_module(name) for name in NAMES}
    for module in modules.values():
        FAMILIES.append(module.ROW)
        CLASSES.update(module.CLASSES)
    yield modules
    for module in modules.values():
        FAMILIES.remove(module.ROW)
        for name in module.CLASSES:
            del CLASSES[name]
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def made_up_checkpoint(tmp_path_factory, made_up):
    """`made_up_checkpoint(family)`: a folder of random weights."""
    place = tmp_path_factory.mktemp("made-up")

    def make(family):
        folder = place / family
        return folder if folder.exists() else new_checkpoint(family, "tiny", 1, folder)

    return make


@pytest.fixture(scope="session")
def made_up_bundle(made_up_checkpoint, tmp_path_factory):
    """`made_up_bundle(family)`: its export. Engines may be built in it."""
    place = tmp_path_factory.mktemp("bundles")

    def make(family):
        folder = place / family
        return open_bundle(folder) if folder.exists() else export(made_up_checkpoint(family), folder)

    return make
