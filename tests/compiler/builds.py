"""Profiles and bundles that the tests of builds share."""

import shutil

from latentc.core.bundle import digest, open_bundle
from latentc.core.files import sha256
from latentc.core.manifest import FileInfo
from latentc.core.records import GraphFigure, graph_key, remember
from latentc.core.references import stored_at
from latentc.profiles import load_profile

NULL = load_profile("null")
OPENVINO = load_profile("cpu-openvino-f32")
ONNXRUNTIME = load_profile("cpu-onnxruntime")
OTHERWISE = {"session.set_denormal_as_zero": True}
"""An option that is in the key, and changes nothing of what is written."""


def of(profile, **changes):
    return profile.model_copy(update=changes)


def static(profile, *sizes, **changes):
    return of(profile, shapes=profile.shapes.model_copy(update={"sizes": sizes, "free": (), **changes}))


def new_unet(opened, edit_manifest):
    """The bundle with another UNet: the last bit of a weight differs."""
    data = opened.folder / "unet" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)

    def renamed(value):
        value["files"]["unet/model.onnx_data"]["sha256"] = sha256(data)
        files = {name: FileInfo(**info) for name, info in value["files"].items() if name.startswith("unet/")}
        value["parts"]["unet"]["digest"] = digest(files)

    edit_manifest(opened, renamed)
    return open_bundle(opened.folder)


def as_exported_here(opened):
    """Remember the UNet as this machine's own: it is then compiled in this process, where tests change functions."""
    key = graph_key(opened.part("unet").digest, opened.manifest.files[stored_at("unet")].sha256)
    remember(key, GraphFigure(psnr_db=120.0, worst="", run_by="a test", exported_here=True))
    return opened


def copied(opened, name):
    return open_bundle(shutil.copytree(opened.folder, opened.folder.with_name(name)))
