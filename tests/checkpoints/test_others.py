"""Components from elsewhere: another VAE or UNet, as a file or a folder, beside a folder or a file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import new_checkpoint, open_checkpoint
from latentc.checkpoints.parts import model_facts
from latentc.core.errors import CheckpointError

UNET = "model.diffusion_model."
VAE = "first_stage_model."
WEIGHTS = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}


@pytest.fixture(scope="module")
def other(tmp_path_factory, read_folder, as_original):
    """`other(family)`: another tiny checkpoint of a family, as a folder and as a file of the original layout."""
    made = {}

    def make(family):
        if family not in made:
            place = tmp_path_factory.mktemp("others")
            folder = new_checkpoint(family, "tiny", 2, place / family)
            save_file(as_original(family, *read_folder(folder)), place / f"{family}.safetensors")
            made[family] = folder, place / f"{family}.safetensors"
        return made[family]

    return make


def forms(component, other, tmp_path):
    """The component in each form that is published."""
    folder, file = other
    prefix = UNET if component == "unet" else VAE
    named, bare = tmp_path / "alone" / "named.safetensors", tmp_path / "alone" / "bare.safetensors"
    named.parent.mkdir()
    shutil.copyfile(folder / component / WEIGHTS[component], named)
    held = {name.removeprefix(prefix): t for name, t in load_file(file).items() if name.startswith(prefix)}
    save_file(held, bare)
    return [folder, folder / component, folder / component / WEIGHTS[component], file, named, bare]


@pytest.mark.slow
@pytest.mark.parametrize("base", ["folder", "file"])
@pytest.mark.parametrize(("family", "component"), [("sd1", "vae"), ("sd2", "unet"), ("sdxl", "unet"), ("sdxl", "vae")])
def test_every_form_beside_every_base(family, component, base, other, checkpoint, single_file, tmp_path):
    own = checkpoint(family) if base == "folder" else single_file(family)
    wanted = load_file(other(family)[0] / component / WEIGHTS[component])
    plain = open_checkpoint(str(own))
    for form in forms(component, other(family), tmp_path):
        opened = open_checkpoint(str(own), components={component: str(form)})
        found = opened.module(component).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()), form
        source = opened.others[component].source
        assert source.location == str(form)
        for one in opened.family.components:
            assert (opened.digest(one.name) == plain.digest(one.name)) == (one.name != component)
        differing = {k for k, v in opened.configs[component].items() if plain.configs[component].get(k) != v}
        assert differing <= {"sample_size"}


def test_a_file_without_vae_opens_with_one(single_file, checkpoint, tmp_path):
    tensors = {name: t for name, t in load_file(single_file("sd1")).items() if not name.startswith(VAE)}
    save_file(tensors, tmp_path / "pruned.safetensors")
    with pytest.raises(CheckpointError, match=r"no VAE .*latentc export pruned\.safetensors --vae FILE"):
        open_checkpoint(str(tmp_path / "pruned.safetensors"))
    opened = open_checkpoint(str(tmp_path / "pruned.safetensors"), components={"vae": str(checkpoint("sd1"))})
    ours, theirs = opened.module("vae").state_dict(), open_checkpoint(str(checkpoint("sd1"))).module("vae").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("component", ["unet", "vae"])
def test_a_folder_without_the_component_opens_with_one(component, own, other):
    folder = own("sdxl")
    shutil.rmtree(folder / component)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {component: [None, None]}))
    opened = open_checkpoint(str(folder), components={component: str(other("sdxl")[0])})
    assert opened.digest(component) == open_checkpoint(str(other("sdxl")[0])).digest(component)


def test_what_a_distilled_unet_adds_is_read_off_its_tensors(other, checkpoint, tmp_path):
    """LCM's take guidance as an input (`time_cond_proj_dim`), as diffusers loads them with their config."""
    from diffusers import UNet2DConditionModel

    folder, _ = other("sdxl")
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"time_cond_proj_dim": 16}
    torch.manual_seed(0)
    module = UNet2DConditionModel.from_config(config).eval()
    save_file(module.state_dict(), tmp_path / "lcm.safetensors")
    opened = open_checkpoint(str(checkpoint("sdxl")), components={"unet": str(tmp_path / "lcm.safetensors")})
    assert opened.configs["unet"]["time_cond_proj_dim"] == 16
    found = opened.module("unet").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


def test_a_folders_config_is_read_and_a_change_of_scale_is_said(other, checkpoint, tmp_path):
    folder = shutil.copytree(other("sdxl")[0] / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    for form in (folder, folder / WEIGHTS["vae"]):
        opened = open_checkpoint(str(checkpoint("sdxl")), components={"vae": str(form)})
        assert opened.configs["vae"]["scaling_factor"] == 0.5
        assert "has scaling_factor 0.5, but the checkpoint's own VAE has 0.13025" in opened.notices[0]


@pytest.mark.parametrize("silent", ["own", "other", "both"])
@pytest.mark.parametrize("base", ["folder", "file"])
def test_a_scale_that_a_config_leaves_out_is_the_classes(base, silent, other, own, single_file, tmp_path):
    from diffusers import AutoencoderKL

    folder = shutil.copytree(other("sdxl")[0] / "vae", tmp_path / "vae")
    checkpoint = own("sdxl") if base == "folder" else single_file("sdxl")
    places = {"other": [folder], "own": [checkpoint / "vae"], "both": [folder, checkpoint / "vae"]}[silent]
    if base == "file" and silent != "other":
        pytest.skip("a file has no config")
    for place in places:
        config = json.loads((place / "config.json").read_text())
        del config["scaling_factor"]
        (place / "config.json").write_text(json.dumps(config))
    theirs = AutoencoderKL.from_pretrained(folder).config.scaling_factor
    opened = open_checkpoint(str(checkpoint), components={"vae": str(folder)})
    assert model_facts(opened).scaling_factor == theirs
    kept = 0.13025 if silent == "other" else 0.18215
    said = [f"has scaling_factor {theirs}, but the checkpoint's own VAE has {kept}: {theirs} is used"]
    assert [one in notice for one, notice in zip(said, opened.notices, strict=False)] == [True] * (silent != "both")


@pytest.mark.parametrize("form", ["named.safetensors", "original.safetensors", "diffusion_pytorch_model.safetensors"])
def test_a_config_beside_a_file_is_read_if_it_is_the_components(form, other, checkpoint, tmp_path):
    folder, file = other("sdxl")
    place = tmp_path / form
    shutil.copyfile(file if form.startswith("original") else folder / "vae" / WEIGHTS["vae"], place)
    config = json.loads((folder / "vae" / "config.json").read_text()) | {"scaling_factor": 0.5}
    for cls, read in (("AutoencoderKL", True), ("UNet2DConditionModel", False), (None, False)):
        if form.startswith("diffusion") and not read:
            continue  # a file of that name is a folder's own, whose config.json must be its own, too
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": cls}))
        opened = open_checkpoint(str(checkpoint("sdxl")), components={"vae": str(place)})
        assert opened.configs["vae"]["scaling_factor"] == (0.5 if read else 0.13025)
        opened.module("vae")


@pytest.mark.parametrize("base", ["folder", "file"])
@pytest.mark.parametrize(
    ("component", "changes", "match"),
    [
        ("unet", {"attention_type": "gated"}, "attention_type = 'gated', which is not supported"),
        ("unet", {"use_rope": True}, "has a field 'use_rope'"),
        ("vae", {"use_wavelets": 1}, "has a field 'use_wavelets'"),
        ("vae", {"shift_factor": 0.1}, "shift_factor = 0.1, but none"),
        ("vae", {"layers_per_block": 100}, "100 layers at each of"),
        ("unet", {"sample_size": 8000}, "sample_size = 8000, but 8 to"),
    ],
)
def test_fields_of_other_components_are_refused_by_their_own_file(
    component, changes, match, base, other, checkpoint, single_file, tmp_path
):
    folder = shutil.copytree(other("sd1")[0], tmp_path / "other")
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    own = (checkpoint if base == "folder" else single_file)("sd1")
    for form in (folder, folder / component, folder / component / WEIGHTS[component]):
        with pytest.raises(CheckpointError, match=match) as caught:
            open_checkpoint(str(own), components={component: str(form)})
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("form", [0, 1], ids=["folder", "file"])
def test_a_component_of_another_class_can_be_replaced(form, other, own, checkpoint):
    """diffusers' AsymmetricAutoencoderKL has no place here; the VAE beside it has."""
    from diffusers import AsymmetricAutoencoderKL

    folder = own("sd1")
    small = {"down_block_out_channels": (16, 16, 32, 32), "up_block_out_channels": (16, 16, 32, 32)}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shutil.rmtree(folder / "vae")
    AsymmetricAutoencoderKL(**small, **kinds, norm_num_groups=4).save_pretrained(folder / "vae")
    with pytest.raises(CheckpointError, match="holds the class AsymmetricAutoencoderKL"):
        open_checkpoint(str(folder))
    opened = open_checkpoint(str(folder), components={"vae": str(other("sd1")[form])})
    theirs = open_checkpoint(str(other("sd1")[0])).module("vae").state_dict()
    assert all(torch.equal(theirs[name], one) for name, one in opened.module("vae").state_dict().items())
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.5}))
    if form:
        with pytest.raises(CheckpointError, match=r"does not state how it scales latents.*'scaling_factor': 0\.5"):
            open_checkpoint(str(folder), components={"vae": str(other("sd1")[form])})
    else:
        assert "own VAE has 0.5" in open_checkpoint(str(folder), components={"vae": str(other("sd1")[0])}).notices[0]


def test_a_vae_of_unknown_scale_is_refused(other, own):
    """Beside Playground's VAE, a file could be of either scale."""
    folder = own("sdxl")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.5}))
    with pytest.raises(CheckpointError, match=r"does not state how it scales latents.*'scaling_factor': 0\.5"):
        open_checkpoint(str(folder), components={"vae": str(other("sdxl")[1])})
    assert not open_checkpoint(str(folder), components={"unet": str(other("sdxl")[1])}).notices


@pytest.mark.parametrize(
    ("component", "make", "match"),
    [
        ("unet", lambda other: other("sdxl")[0], "is a UNet of Stable Diffusion XL, but the checkpoint is"),
        (
            "unet",
            lambda other: other("sdxl")[1],
            "UNet of Stable Diffusion XL or Stable Diffusion XL Refiner, but the",
        ),
        ("unet", lambda other: other("sd2")[0], "is a UNet of Stable Diffusion 2, but the checkpoint is"),
        ("unet", lambda other: other("sd1")[0] / "vae" / WEIGHTS["vae"], "is a VAE alone"),
        ("vae", lambda other: other("sd1")[0] / "unet" / WEIGHTS["unet"], "is a UNet alone"),
        ("vae", lambda other: other("sd1")[0] / "unet", "holds the class UNet2DConditionModel"),
        ("vae", lambda other: other("sd1")[0] / "tokenizer", "no config.json"),
        ("vae", lambda _: "no/such-thing/here", "vae 'no/such-thing/here' was not found"),
        ("text_encoder", lambda other: other("sd1")[0], "is not a file. .*only unet and vae can be replaced"),
        (
            "text_encoder",
            lambda other: other("sd1")[0] / "unet/diffusion_pytorch_model.safetensors",
            "has its own text",
        ),
        ("tokenizer", lambda other: other("sd1")[0], "tokenizer cannot be replaced; only unet and vae can"),
    ],
)
def test_other_components_are_refused_when_they_are_opened(component, make, match, other, checkpoint):
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(checkpoint("sd1")), components={component: str(make(other))})


@pytest.mark.parametrize(
    ("component", "name", "shape", "match"),
    [
        ("unet", "conv_in.weight", (32, 9, 3, 3), "is a UNet of Stable Diffusion 1 Inpainting, but the checkpoint is"),
        ("vae", "decoder.conv_in.weight", (32, 16, 3, 3), "VAE decodes 16"),
        ("unet", "attn2.to_k.weight", (32, 48), "reads prompt embeddings of width 48 .* have width 32"),
    ],
)
def test_other_shapes_are_refused_when_they_are_opened(component, name, shape, match, other, checkpoint, tmp_path):
    tensors = load_file(other("sd1")[0] / component / WEIGHTS[component])
    tensors |= {key: torch.ones(shape) for key in tensors if key.endswith(name)}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(checkpoint("sd1")), components={component: str(tmp_path / "other.safetensors")})


def test_a_variant_of_another_component(other, checkpoint, tmp_path):
    folder = shutil.copytree(other("sd1")[0] / "vae", tmp_path / "vae")
    half = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS["vae"]).items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    base = shutil.copytree(checkpoint("sd1"), tmp_path / "base")
    shutil.copyfile(base / "unet" / WEIGHTS["unet"], base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    opened = open_checkpoint(str(base), variant="fp16", components={"vae": str(folder)})
    assert opened.others["vae"].source.variant == "fp16"
    assert {tensor.dtype for tensor in opened.weights["vae"].values()} == {"F16"}
