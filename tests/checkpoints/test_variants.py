"""Which of a folder's weight files are read: those that diffusers and transformers read."""

import json
import shutil
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import hub, open_checkpoint
from latentc.checkpoints.hub import wanted
from latentc.core.errors import CheckpointError

PARTS = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}


def write(folder, component, name, factor, tensors=None):
    """The component's weights, times a factor, in another file."""
    tensors = tensors or load_file(folder / component / f"{PARTS[component]}.safetensors")
    save_file({key: tensor * factor for key, tensor in tensors.items()}, folder / component / name, {"format": "pt"})


def shard(folder, component, factor, variant=None):
    """The component's weights, times a factor, in two shards and an index, as the libraries save a variant."""
    stem = PARTS[component]
    middle = f".{variant}" if variant else ""
    tensors = load_file(folder / component / f"{stem}.safetensors")
    names = sorted(tensors)
    places = {}
    for number in (1, 2):
        file = f"{stem}{middle}-0000{number}-of-00002.safetensors"
        held = {name: tensors[name] for name in names[number - 1 :: 2]}
        write(folder, component, file, factor, held)
        places |= dict.fromkeys(held, file)
    index = folder / component / f"{stem}.safetensors.index{middle}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def agree(folder, component, **asked):
    """Ours and the library's own module of a component, to the bit."""
    opened = open_checkpoint(str(folder), **asked)
    facts = opened.family.component(component)
    theirs = getattr(import_module(facts.library), facts.cls).from_pretrained(folder / component, **asked).state_dict()
    ours = opened.module(component).state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(tensor.float(), ours[name]), name
    return opened


@pytest.mark.parametrize("component", PARTS)
def test_shards_beside_a_single_file(component, own):
    """diffusers reads the index first; transformers the single file."""
    folder = own()
    shard(folder, component, 1.5)
    agree(folder, component)


@pytest.mark.parametrize("component", PARTS)
@pytest.mark.parametrize("variant", ["fp16", "ema", "non_ema"])
def test_a_variant_is_read_where_it_is_asked_for(component, variant, own):
    folder = own()
    write(folder, component, f"{PARTS[component]}.{variant}.safetensors", 2)
    opened = agree(folder, component, variant=variant)
    assert opened.source.variant == variant
    other = next(name for name in PARTS if name != component)
    assert f"No {variant} weights for" in opened.notices[0]
    assert other in opened.notices[0]
    agree(folder, component)  # the plain ones


@pytest.mark.parametrize("component", PARTS)
def test_a_variant_in_shards(component, own):
    folder = own()
    shard(folder, component, 3, "fp16")
    agree(folder, component, variant="fp16")
    agree(folder, component)


def test_a_variant_that_is_not_there_is_refused_with_those_that_are(own):
    folder = own()
    write(folder, "unet", "diffusion_pytorch_model.ema.safetensors", 1)
    with pytest.raises(
        CheckpointError, match=r"no weights of the variant 'fp16'\. It has the plain weights and: ema\."
    ):
        open_checkpoint(str(folder), variant="fp16")
    with pytest.raises(CheckpointError, match=r"'\.\./x' is not a valid variant"):
        open_checkpoint(str(folder), variant="../x")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no plain weights .* --variant ema"):
        open_checkpoint(str(folder))


def test_what_is_taken_without_being_asked_for_is_said(own):
    folder = own()
    write(folder, "unet", "diffusion_pytorch_model.fp16.safetensors", 1)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert open_checkpoint(str(folder)).notices == ("No plain weights for unet: those of the variant fp16 are used.",)


def test_a_file_has_no_variants(single_file):
    with pytest.raises(CheckpointError, match="single file, which has no variants"):
        open_checkpoint(str(single_file("sd1")), variant="fp16")


def test_the_hub_is_asked_for_a_variant():
    plain = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    half = ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"]
    shards = [
        "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.fp16-00002-of-00002.safetensors",
    ]
    names = [*plain, *half, *shards, "text_encoder/model.safetensors"]
    assert sorted(wanted(names, "fp16")) == sorted([half[0], plain[1], *shards])
    assert sorted(wanted(names, "non_ema")) == sorted([half[1], plain[1], "text_encoder/model.safetensors"])
    assert sorted(wanted(names)) == sorted([*plain, "text_encoder/model.safetensors"])
    alone = [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "sdxl.vae.safetensors",
    ]
    assert wanted(alone) == ["config.json", "diffusion_pytorch_model.safetensors"]


OF_3 = (
    *("sd3_medium.safetensors", "text_encoders/t5xxl_fp16.safetensors", "text_encoders/clip_l.safetensors"),
    *("text_encoder_3/model.fp16-00001-of-00002.safetensors", "text_encoder_3/model.safetensors.index.fp16.json"),
    *("transformer/diffusion_pytorch_model.fp16.safetensors", "text_encoder_2/model.fp16.safetensors", "mmdit.png"),
    *("vae/diffusion_pytorch_model.bin", "sd3.5_example_workflow.json", "tokenizer_3/spiece.model"),
)
"""Files of Stable Diffusion 3's repositories that are not needed besides plain weights."""


@pytest.mark.parametrize("without", [(), ("text_encoder_3",)])
def test_what_the_hub_is_asked_for_of_stable_diffusion_3_is_what_is_read(checkpoint, monkeypatch, tmp_path, without):
    own = checkpoint("sd3")
    names = [path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file()]
    snapshot = tmp_path / ("0123456789" * 4)

    def download(_repository, *, allow_patterns, **_):
        for name in allow_patterns:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own / name, snapshot / name)  # which has none of the others
        return str(snapshot)

    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in (*names, *OF_3)])
    api = SimpleNamespace(model_info=lambda *_, **__: listed)
    monkeypatch.setattr(hub, "_library", lambda _: SimpleNamespace(snapshot_download=download, HfApi=lambda: api))
    opened = open_checkpoint("someone/sd3", without=without)
    opened.check_modules()
    assert (opened.family.name, opened.source.kind, opened.left_out) == ("sd3", "hub", without)
    asked = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    left = {name for name in names if name.partition("/")[0] in without}
    assert asked == {*names} - left - {*OF_3}
    assert bool(left) == bool(without)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("some/repo/model.safetensors", ("some/repo", "model.safetensors", None)),
        ("some/repo@v1/sub/model.safetensors", ("some/repo", "sub/model.safetensors", "v1")),
        ("https://huggingface.co/some/repo/blob/main/a.safetensors", ("some/repo", "a.safetensors", None)),
        ("https://hf.co/some/repo/resolve/abc/sub/a.safetensors", ("some/repo", "sub/a.safetensors", "abc")),
        ("some/repo", None),
        ("./some/repo/a.safetensors", None),
        ("/some/repo/a.safetensors", None),
        ("some/repo/../../a.safetensors", None),
        ("some/repo/a.ckpt", None),
        ("https://example.com/some/repo/a.safetensors", None),
    ],
)
def test_a_single_file_of_a_repository(name, file):
    found = hub.hub_file(name)
    assert (found and (found.repository, found.path, found.revision)) == file


def test_a_single_file_of_a_repository_comes_from_the_cache(single_file, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    held = tmp_path / "models--someone--tiny"
    (held / "snapshots" / commit / "files").mkdir(parents=True)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text(commit)
    (held / "snapshots" / commit / "files" / "one.safetensors").symlink_to(single_file("sd1"))
    opened = open_checkpoint("someone/tiny/files/one.safetensors")
    assert (opened.source.kind, opened.source.location) == ("hub", "someone/tiny/files/one.safetensors")
    assert opened.source.revision == commit
    assert opened.family.name == "sd1"
    with pytest.raises(CheckpointError, match=r"someone/tiny/two\.safetensors could not be downloaded"):
        open_checkpoint("someone/tiny/two.safetensors")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """`repository(files)`: a repository on a hub that answers as huggingface_hub does; the list of what was fetched."""

    def make(files, commit="0123456789" * 4):
        asked, snapshot = [], tmp_path / "snapshots" / commit

        def download(_repository, name, *, revision, **_):
            assert revision in (None, "v1", commit)
            asked.append(name)
            path = snapshot / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
            return str(path)

        listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
        api = SimpleNamespace(model_info=lambda *_, **__: listed)
        library = SimpleNamespace(hf_hub_download=download, HfApi=lambda: api)
        monkeypatch.setattr(hub, "_library", lambda _: library)
        return asked

    return make


CARD = b"---\nlicense: other\nlicense_name: theirs\n---\n"


def test_what_lies_beside_a_single_file_comes_with_it(repository, single_file):
    said = b'{"prediction_type": "v_prediction"}'
    files = {
        "files/one.safetensors": single_file("sdxl").read_bytes(),
        "files/one.json": said,
        "files/one.yaml": b"",
        "files/one.civitai.info": b"{}",
        "README.md": CARD,
        "LICENSE.md": b"the licence",
        "files/config.json": b"{}",
    }
    spare = ["files/two.json", "one.json", "files/README.md", "files/one.ckpt", "unet/config.json", "pytorch_model.bin"]
    asked = repository(files | dict.fromkeys(spare, b""))
    opened = open_checkpoint("someone/tiny@v1/files/one.safetensors")
    assert sorted(asked) == sorted(files)
    assert opened.source.revision == "0123456789" * 4
    assert opened.scheduler["prediction_type"] == "v_prediction"
    assert (opened.card.license, opened.card.name) == ("other", "theirs")
    assert opened.card.files == {"README.md": CARD, "LICENSE.md": b"the licence"}
    assert open_checkpoint(opened, size=256).card == opened.card


def test_a_vae_of_the_hub_comes_with_its_config(repository, checkpoint):
    place = checkpoint("sdxl") / "vae"
    config = json.loads((place / "config.json").read_text()) | {"scaling_factor": 0.5}
    weights = (place / "diffusion_pytorch_model.safetensors").read_bytes()
    repository({"sdxl.vae.safetensors": weights, "config.json": json.dumps(config).encode()})
    opened = open_checkpoint(str(checkpoint("sdxl")), components={"vae": "someone/vae/sdxl.vae.safetensors"})
    assert opened.configs["vae"]["scaling_factor"] == 0.5
    assert opened.card == open_checkpoint(str(checkpoint("sdxl"))).card


def test_what_cant_be_fetched_beside_a_file_is_refused(repository, single_file):
    repository({"one.safetensors": single_file("sdxl").read_bytes(), "one.json": None})
    with pytest.raises(CheckpointError, match=r"someone/tiny/one\.json could not be downloaded"):
        open_checkpoint("someone/tiny/one.safetensors")
