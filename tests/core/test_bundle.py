import os
import shutil

import pytest

from latentc.core.bundle import checked_graph, open_bundle, verify_files
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
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "nowhere")


def wires(manifest):
    return manifest["model"]["wires"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value.update(schema_version=99), "schema version 99"),
        (lambda value: value.pop("schema_version"), "schema version None"),
        (lambda value: value.pop("model"), "model: field required"),
        (lambda value: value.update(famly="sd1"), "did you mean 'family'"),
        (lambda value: value["files"].update({"../x": {"sha256": "0", "bytes": 1}}), "leads out of"),
        (lambda value: value["files"].update({"/etc/passwd": {"sha256": "0", "bytes": 1}}), "leads out of"),
        (lambda value: value["files"].pop("unet/model.onnx"), "lists a part 'unet'"),
        (lambda value: value["parts"].update({"../../x": value["parts"]["unet"]}), "lists a part '../../x'"),
        (lambda value: value["parts"].update({"engines": value["parts"]["unet"]}), "lists a part 'engines'"),
        (lambda value: value["parts"].update({"tokenizer": value["parts"]["unet"]}), "lists a part 'tokenizer'"),
        (lambda value: value["parts"].update({"UNet": value["parts"]["unet"]}), "lists a part 'UNet'"),
        (lambda value: value["parts"]["unet"].update(digest="0"), "digest of unet does not"),
        (lambda value: value["parts"]["unet"].update(role="decoder"), "role should be denoiser or control"),
        (lambda value: value["parts"]["text_encoder"].update(role="image_encoder"), "role should be text_encoder"),
        (lambda value: value["parts"]["vae_decoder"].update(role="encoder"), "role should be decoder"),
        (lambda value: value["parts"]["vae_encoder"].update(role="denoiser"), "role should be encoder or image_"),
        (lambda value: value["model"]["text_encoders"][0].update(tokenizer="../x"), "leads out of"),
        (lambda value: wires(value).pop(1), "an input 'encoder_hidden_states' that no wire feeds"),
        (lambda value: wires(value).pop(0), "an input 'sample' that no wire feeds"),
        (lambda value: wires(value)[1].update(input="prompt"), "to 'prompt', which is not an input of unet"),
        (lambda value: wires(value)[1].update(source="unet_2.out"), "but no part has this output"),
        (
            lambda value: wires(value)[1].update(source="text_encoder.pooler_output"),
            "of 2 axes to encoder_hidden_states, which has 3",
        ),
        (lambda value: wires(value)[1].update(pad=64), "of width 64 to encoder_hidden_states, whose width is 32"),
        (lambda value: wires(value)[1].update(axis="width"), "the first source of this input has an axis"),
        (lambda value: wires(value).append(wires(value)[1]), "another source of this input has no axis"),
        (lambda value: wires(value).append({**wires(value)[1], "axis": "width"}), "sources of width 64 to"),
        *(
            (
                lambda value, field=field: wires(value)[0].update(field),
                "to sample, which takes only the unmodified latents",
            )
            for field in ({"pad": 8}, {"empty": "zeros"}, {"axis": "width"})
        ),
        (
            lambda value: wires(value).append({"input": "sample", "source": "request.size", "axis": "width"}),
            "wires request.size to sample, which takes only the unmodified latents",
        ),
        (
            lambda value: wires(value).insert(0, {"input": "sample", "source": "request.size"}),
            "wires request.size to sample, which takes only the unmodified latents",
        ),
        (
            lambda value: wires(value)[0].update(source="request.size"),
            "has 0 wires of step.latents; expected one",
        ),
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
    with pytest.raises(BundleError, match="manifest lists"):
        verify_files(opened, ["unet/model.onnx_data"])
    data.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(BundleError, match="was modified"):
        verify_files(opened, ["unet/model.onnx_data"])
    data.unlink()
    with pytest.raises(BundleError, match="is missing"):
        verify_files(opened, ["unet/model.onnx_data"])


def test_a_link_out_of_the_bundle_is_refused(own_bundle, tmp_path):
    opened = own_bundle()
    data = opened.folder / "unet" / "model.onnx_data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link that leads out"):
        open_bundle(opened.folder)
    data.unlink()
    (tmp_path / "elsewhere").rename(data)
    shutil.rmtree(opened.engines, ignore_errors=True)
    opened.engines.symlink_to(tmp_path / "engines", target_is_directory=True)
    with pytest.raises(BundleError, match="engines is a link that leads out"):
        open_bundle(opened.folder)


def test_hard_links_of_a_backup_are_files_like_any_other(own_bundle, tmp_path):
    opened = own_bundle()
    shutil.copytree(opened.folder, tmp_path / "backup", copy_function=os.link)
    again = open_bundle(opened.folder)
    verify_files(again, list(again.manifest.files))
    assert checked_graph(again, "unet") == opened.graph("unet")
    with (tmp_path / "backup" / "unet" / "model.onnx_data").open("r+b") as file:  # through the other name
        file.write(b"other")
    with pytest.raises(BundleError, match="was modified"):
        verify_files(again, ["unet/model.onnx_data"])


def test_a_bundle_in_the_hubs_cache_is_one_of_links(own_bundle, in_the_hubs_cache, tmp_path):
    snapshot = in_the_hubs_cache(own_bundle().folder, tmp_path / "models--me--mine")
    opened = open_bundle(snapshot)
    verify_files(opened, list(opened.manifest.files))
    graph = checked_graph(opened, "unet")
    assert not graph.is_symlink()
    assert graph.samefile(opened.graph("unet"))
    assert graph.with_name("model.onnx_data").samefile(opened.folder / "unet" / "model.onnx_data")
    blob = (snapshot / "unet" / "model.onnx_data").resolve()
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")  # a blob that is a link itself leads out
    with pytest.raises(BundleError, match="leads out"):
        open_bundle(snapshot)


def test_git_lfs_pointers_are_named_wherever_they_stand(own_bundle):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n"
    opened = own_bundle()
    for name in ("unet/model.onnx_data", "unet/model.onnx", "tokenizer/tokenizer.json", "reference/unet.npz"):
        path = next(opened.folder.glob(name))
        kept = path.read_bytes()
        path.write_bytes(pointer)
        with pytest.raises(BundleError, match=rf"{path} is a Git LFS pointer.*git lfs pull"):
            verify_files(opened, [name])
        path.write_bytes(kept)
    (opened.folder / "latentc.json").write_bytes(pointer)
    with pytest.raises(BundleError, match=r"latentc.json is a Git LFS pointer"):
        open_bundle(opened.folder)
