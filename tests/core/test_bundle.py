import os

import pytest

from latentc.core.bundle import open_bundle, verify_files
from latentc.core.errors import BundleError


def test_a_bundle_opens_and_verifies(bundle):
    opened = bundle("sd1")
    verify_files(opened, list(opened.manifest.files))
    assert opened.manifest.source.random
    assert list(opened.manifest.parts) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    with pytest.raises(BundleError, match="no part 'unit'"):
        opened.part("unit")


def test_a_checkpoint_is_no_bundle(checkpoint, tmp_path):
    with pytest.raises(BundleError, match="run `latentc export` on it first"):
        open_bundle(checkpoint("sd1"))
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="There is no folder"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value.update(schema_version=99), "schema version 99"),
        (lambda value: value.pop("schema_version"), "schema version None"),
        (lambda value: value.pop("model"), "model: field required"),
        (lambda value: value.update(famly="sd1"), "did you mean 'family'"),
        (lambda value: value["files"].update({"../x": {"sha256": "0", "bytes": 1}}), "leads out of"),
        (lambda value: value["files"].update({"/etc/passwd": {"sha256": "0", "bytes": 1}}), "leads out of"),
        (lambda value: value["files"].pop("unet/model.onnx"), "has a part 'unet'"),
        (lambda value: value["parts"].update({"../../x": value["parts"]["unet"]}), "has a part '../../x'"),
        (lambda value: value["parts"]["unet"].update(digest="0"), "digest of unet isn't"),
        (lambda value: value["model"]["text_encoders"][0].update(tokenizer="../x"), "leads out of"),
    ],
)
def test_a_damaged_manifest_says_what_is_wrong(own_bundle, edit_manifest, change, says):
    opened = own_bundle()
    edit_manifest(opened, change)
    with pytest.raises(BundleError, match=says):
        open_bundle(opened.folder)


def test_a_manifest_that_is_no_json(own_bundle):
    opened = own_bundle()
    (opened.folder / "latentc.json").write_text("{")
    with pytest.raises(BundleError, match="is not valid JSON"):
        open_bundle(opened.folder)


def test_files_that_were_changed_are_named(own_bundle):
    opened = own_bundle()
    data = opened.folder / "unet" / "model.onnx_data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="manifest says"):
        verify_files(opened, ["unet/model.onnx_data"])
    data.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(BundleError, match="was changed"):
        verify_files(opened, ["unet/model.onnx_data"])
    data.unlink()
    with pytest.raises(BundleError, match="is missing"):
        verify_files(opened, ["unet/model.onnx_data"])


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_are_refused(own_bundle, tmp_path, link):
    opened = own_bundle()
    data = opened.folder / "unet" / "model.onnx_data"
    data.rename(tmp_path / "elsewhere")
    link(tmp_path / "elsewhere", data)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(opened.folder)
