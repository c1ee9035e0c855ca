"""IP-Adapters: layouts, what fits a checkpoint, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints.open import open_checkpoint
from latentc.core.errors import CheckpointError


def opened(folder, adapter, encoder=None):
    given = {"ip_adapter": str(adapter)} | ({"image_encoder": str(encoder)} if encoder else {})
    return open_checkpoint(folder, components=given)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("kind", ["plain", "plus"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_module_is_the_one_that_diffusers_makes(checkpoint, ip_adapter, family, kind):
    import diffusers

    from latentc.checkpoints.parts.ip_adapter import cross_attentions

    path = ip_adapter(family, kind)
    module = opened(checkpoint(family), path).module("ip_adapter")
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint(family) / "unet", local_files_only=True)
    given = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        given[part][rest] = tensor
    unet._load_ip_adapter_weights([given], low_cpu_mem_usage=False)
    (expected,) = unet.encoder_hid_proj.image_projection_layers
    found, wanted = module.image_proj.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    layers = cross_attentions(unet)
    assert len(layers) == len(module.layers)
    for one, layer in zip(layers, module.layers, strict=True):
        assert torch.equal(one.processor.to_k_ip[0].weight, layer.to_k_ip.weight)
        assert torch.equal(one.processor.to_v_ip[0].weight, layer.to_v_ip.weight)


def test_a_single_file_checkpoint_and_a_folder_take_one(single_file, checkpoint, ip_adapter):
    found = opened(single_file("sd1"), ip_adapter("sd1", "plain"))
    assert [one.name for one in found.family.components][-2:] == ["ip_adapter", "image_encoder"]
    assert "ip_adapter" in open_checkpoint(found, spacing="trailing").configs
    assert "ip_adapter" in opened(checkpoint("sd1"), ip_adapter("sd1", "plain").parent).configs


def test_published_image_encoders_hold_more(checkpoint, ip_adapter, tmp_path):
    folder = shutil.copytree(ip_adapter("sd1", "plain").parent / "image_encoder", tmp_path / "encoder")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"vision_model.embeddings.position_ids": torch.arange(17)[None]},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text()) | {"dropout": 0.0, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    opened(checkpoint("sd1"), ip_adapter("sd1", "plain"), folder).module("image_encoder")


def refused(folder, match, adapter, encoder=None):
    with pytest.raises(CheckpointError, match=match):
        opened(folder, adapter, encoder).check_modules()


def test_one_of_another_family_is_refused_by_name(checkpoint, ip_adapter):
    plain, large = ip_adapter("sd1", "plain"), ip_adapter("sdxl", "plain")
    refused(checkpoint("sdxl"), "is an IP-Adapter .*, but the checkpoint is Stable Diffusion XL", plain)
    refused(checkpoint("sd1"), "is an IP-Adapter .*, but the checkpoint is Stable Diffusion 1", large)
    refused(checkpoint("sd2"), "IP-Adapters of Stable Diffusion 2 are not supported yet", plain)
    refused(checkpoint("sd3"), "IP-Adapters of Stable Diffusion 3 are not supported yet", plain)
    refused(checkpoint("sd1-inpainting"), "Inpainting are not supported yet", plain)
    refused(checkpoint("svd"), "Leave out|cannot be replaced", plain)


def changed(path, tmp_path, change):
    tensors = load_file(path)
    change(tensors)
    folder = tmp_path / "changed"
    folder.mkdir()
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / path.name)
    return folder / path.name


FIRST = "ip_adapter.1.to_k_ip.weight"
FAULTS = {
    "missing": (lambda given: given.pop("ip_adapter.1.to_v_ip.weight"), "has no tensor"),
    "fewer layers": (lambda given: [given.pop(name) for name in list(given) if ".3." in name], "has layers"),
    "unexpected": (lambda given: given.update({"ip_adapter.1.more": torch.ones(2)}), "does not have"),
    "shape": (lambda given: given.update({"image_proj.norm.weight": torch.ones(2)}), "has shape"),
    "integers": (lambda given: given.update({FIRST: torch.ones(32, 32, dtype=torch.int8)}), "quantized"),
    "FaceID": (
        lambda given: (
            given.pop("image_proj.proj.weight"),
            given.update({"image_proj.proj.2.weight": torch.ones(2, 2)}),
        ),
        "is an IP-Adapter FaceID",
    ),
    "full face": (
        lambda given: (
            given.clear(),
            given.update({"image_proj.proj.3.weight": torch.ones(2), FIRST: torch.ones(2, 2)}),
        ),
        "is a full-face IP-Adapter",
    ),
    "nothing": (lambda given: (given.clear(), given.update({"a.b": torch.ones(2)})), "holds no IP-Adapter"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit_are_refused(checkpoint, ip_adapter, tmp_path, fault):
    change, match = FAULTS[fault]
    path = ip_adapter("sd1", "plain")
    refused(checkpoint("sd1"), match, changed(path, tmp_path, change), path.parent / "image_encoder")


def test_values_that_are_not_finite_are_refused(checkpoint, ip_adapter, tmp_path):
    def nan(given):
        given[FIRST][0, 0] = float("nan")

    path = changed(ip_adapter("sd1", "plain"), tmp_path, nan)
    found = opened(checkpoint("sd1"), path, ip_adapter("sd1", "plain").parent / "image_encoder")
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        found.module("ip_adapter")


def test_image_encoders_that_do_not_fit_are_refused(checkpoint, ip_adapter, tmp_path):
    path, folder = ip_adapter("sd1", "plain"), checkpoint("sd1")
    encoder = shutil.copytree(path.parent / "image_encoder", tmp_path / "encoder")
    alone = shutil.copyfile(path, tmp_path / path.name)
    refused(folder, "has no folder image_encoder beside it. Pass .* by --image-encoder", alone)
    refused(folder, "is a file. Pass the folder", path, encoder / "model.safetensors")
    refused(folder, "holds the class|CLIPVisionModelWithProjection", path, folder / "text_encoder")
    config = json.loads((encoder / "config.json").read_text()) | {"projection_dim": 28}
    (encoder / "config.json").write_text(json.dumps(config))
    refused(folder, "reads image embeddings of width 20, but those of .* have 28 .projection_dim.", path, encoder)
    with pytest.raises(CheckpointError, match="Only an IP-Adapter needs an image encoder"):
        open_checkpoint(folder, components={"image_encoder": str(encoder)})
    (tmp_path / "ip-adapter_sd15.bin").write_bytes(b"x")
    refused(folder, "pickle|never opened", tmp_path / "ip-adapter_sd15.bin", encoder)
    refused(folder, "holds 0|no .safetensors file", folder / "text_encoder" / "..")
