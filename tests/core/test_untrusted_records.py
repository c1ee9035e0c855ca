"""Absurd values in a manifest, a profile and a request: named, in a line."""

import copy

import numpy as np
import pytest

from latentc.cli.show import bundle as show_bundle
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, LatentcError, ProfileError, RequestError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.request import Request
from latentc.profiles import load_profile
from latentc.sampling.vocabulary import load_vocabularies

pytestmark = pytest.mark.usefixtures("no_hang")

ABSURD = (
    10**9,
    10**30,
    -1,
    0,
    1.5,
    "many",
    "x" * 100_000,
    "\x1b[2J",
    "../x",
    "a\0b",
    None,
    {},
    [],
    [[]],
    [10**9],
    True,
)


def leaves(value, path=()):
    """The paths to everything inside."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


def changed(whole, path, value):
    whole = copy.deepcopy(whole)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


@pytest.mark.slow
def test_no_value_of_a_manifest_is_a_trace(own_bundle, capsys):
    folder = own_bundle().folder
    path = folder / "latentc.json"
    whole = read_sealed(path)
    paths = list(leaves(whole))
    rng, refused, opened = np.random.default_rng(0), [], 0
    for _ in range(250):
        place, value = paths[rng.integers(len(paths))], ABSURD[rng.integers(len(ABSURD))]
        write_sealed(path, changed(whole, place, value))
        try:
            found = open_bundle(folder)
            show_bundle(found, True)
            show_bundle(found, False)
            opened += 1
            if place[0] == "model":
                load_vocabularies(found)
        except BundleError as exc:
            refused.append(str(exc))
        except LatentcError:
            raise AssertionError(place, value) from None
    assert opened
    assert len(refused) > 50
    assert all(len(text) < 1500 and "\n" not in text for text in refused)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("model", "default_size"), 10**9, "default_size: 1000000000 should be less than or equal to 8192"),
        (("model", "latent_channels"), 0, "latent_channels: 0 should be greater"),
        (("model", "downscale"), -8, "downscale: -8 should be greater"),
        (("model", "scaling_factor"), 0, "scaling_factor: 0 should be greater than 0"),
        (("model", "wires", 1, "pad"), 10**9, "pad: 1000000000 should be"),
        (("model", "wires", 1, "source"), "text_encoder", "source: "),
        (("model", "text_encoders"), [], "text_encoders: "),
        (("model", "tasks"), [], "tasks: "),
        (("model", "tasks"), ["dream"], "tasks.0: input should be 'text'"),
        (("parts", "unet", "opset"), 10**9, "opset: 1000000000 should be less"),
        (("parts", "unet", "parameters"), -1, "parameters: -1 should be greater"),
        (("parts", "unet", "inputs", 0, "shape", 1), 10**12, "shape.1"),
        (("parts", "unet", "inputs", 0, "shape", 2), "0*height", "shape.2"),
        (("parts", "unet", "inputs", 0, "shape", 2), "height/8", "shape.2"),
        (("parts", "unet", "inputs", 0, "shape", 2), "x*height", "shape.2"),
        (("parts", "unet", "inputs", 0, "shape", 2), "2*3*height", "shape.2"),
        (("files",), [], "files: "),
    ],
)
def test_values_that_no_bundle_has(place, value, match, own_bundle):
    path = own_bundle().folder / "latentc.json"
    write_sealed(path, changed(read_sealed(path), place, value))
    with pytest.raises(BundleError, match=match):
        open_bundle(path.parent)


@pytest.mark.parametrize("length", [0, 1, 2, 10**9])
def test_a_text_encoder_without_room(length, own_bundle):
    path = own_bundle().folder / "latentc.json"
    whole = read_sealed(path)
    write_sealed(path, changed(whole, ("parts", "text_encoder", "inputs", 0, "shape", 1), length))
    with pytest.raises(BundleError, match="shape.1|rows of 77 ids were expected"):
        load_vocabularies(open_bundle(path.parent))


@pytest.mark.parametrize("name", ["a\0b/x", "a" * 300, "../x", "/etc/passwd"])
def test_names_of_files_that_no_bundle_has(name, own_bundle, edit_manifest):
    opened = own_bundle()
    edit_manifest(opened, lambda manifest: manifest["files"].update({name: {"sha256": "", "bytes": 1}}))
    with pytest.raises(BundleError, match="leads out of|is not a valid file name"):
        open_bundle(opened.folder)


def test_a_thousand_complaints_are_a_few(own_bundle, edit_manifest):
    opened = own_bundle()
    edit_manifest(opened, lambda manifest: manifest["files"].update({f"f{n}": {} for n in range(1000)}))
    with pytest.raises(BundleError, match="and 1995 more") as caught:
        open_bundle(opened.folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["steps", "seed", "count", "width", "guidance"])
def test_requests_of_absurd_numbers(key):
    for value in (10**5000, -(10**5000), 10**30, float("nan"), "x" * 100_000, [1]):
        with pytest.raises(RequestError) as caught:
            Request.model_validate({"prompt": "a", key: value})
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "line",
    ['sizes = ["' + '", "'.join(["64x64"] * 100) + '"]', 'sizes = ["' + "9" * 5000 + 'x64"]', "images = 1000000000"],
)
def test_absurd_shapes_of_a_profile(line, tmp_path):
    (tmp_path / "mine.toml").write_text(f'title = "Mine"\nruntime = "null"\n[shapes]\n{line}\n')
    with pytest.raises(ProfileError, match="shapes") as caught:
        load_profile(str(tmp_path / "mine.toml"))
    assert len(str(caught.value)) < 400
