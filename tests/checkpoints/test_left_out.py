"""What a checkpoint holds beside what is drawn with: spare tensors, components that are left out, licence and card."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from latentc.checkpoints import open_checkpoint
from latentc.core.errors import CheckpointError


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def add(path, tensors):
    save_file(load_file(path) | tensors, path, {"format": "pt"})


def states(module, ids):
    with torch.inference_mode():
        found = module(input_ids=ids, output_hidden_states=True)
    return [found[0], *found.hidden_states]


IDS = torch.tensor([[49406, 320, 2368, *[49407] * 74]])


@pytest.mark.parametrize(
    ("family", "encoder", "cls"),
    [
        ("sd1", "text_encoder", CLIPTextModel),
        ("sdxl", "text_encoder", CLIPTextModel),
        ("sdxl", "text_encoder_2", CLIPTextModelWithProjection),
    ],
)
def test_a_baked_in_clip_skip_reads_the_first_layers(family, encoder, cls, own):
    folder = own(family)
    whole = open_checkpoint(str(folder)).module(encoder)
    edit(folder / encoder / "config.json", num_hidden_layers=1)
    opened = open_checkpoint(str(folder))
    theirs = cls.from_pretrained(folder / encoder).eval()
    found = states(opened.module(encoder), IDS)
    assert all(torch.equal(a, b) for a, b in zip(found, states(theirs, IDS), strict=True))
    assert not torch.equal(found[0], states(whole, IDS)[0])
    assert [one for one in opened.notices if "has 1 layers, but 2 are stored" in one]


def test_what_else_encoders_hold_is_left_alone(own):
    """Buffers of old transformers, a projection, and the image side of a whole CLIP."""
    folder = own()
    plain = open_checkpoint(str(folder)).module("text_encoder")
    add(
        folder / "text_encoder" / "model.safetensors",
        {
            "text_model.embeddings.position_ids": torch.arange(77)[None],
            "text_projection.weight": torch.ones(32, 32),
            "logit_scale": torch.ones(()),
            "vision_model.embeddings.class_embedding": torch.ones(4),
            "visual_projection.weight": torch.ones(4, 4),
        },
    )
    opened = open_checkpoint(str(folder))
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    found = states(opened.module("text_encoder"), IDS)
    assert all(torch.equal(a, b) for a, b in zip(found, states(theirs, IDS), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, states(plain, IDS), strict=True))


def test_what_else_there_is_is_named(own):
    folder = own()
    add(folder / "text_encoder" / "model.safetensors", {"text_model.encoder.layers.0.lora.up.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"holds tensor 'text_model.encoder.layers.0.lora.up.weight'"):
        open_checkpoint(str(folder)).module("text_encoder")


def test_a_mask_is_asked_for_where_diffusers_passes_one(own):
    from latentc.checkpoints.parts import model_facts, part_spec

    for family, masked in (("sd1", True), ("sd2", True), ("sdxl", False)):
        folder = own(family)
        edit(folder / "text_encoder" / "config.json", use_attention_mask=True)
        opened = open_checkpoint(str(folder))
        inputs = [tensor.name for tensor in part_spec(opened, "text_encoder").inputs]
        assert ("attention_mask" in inputs) is masked
        assert model_facts(opened).text_encoders[0].masked is masked


def test_components_that_are_left_out_are_named(own):
    folder = own()
    assert open_checkpoint(str(folder)).notices == ()
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=[None, None],
        guide=["diffusers", "Guide"],
    )
    features, unknown, safety = sorted(open_checkpoint(str(folder)).notices)
    assert safety.startswith("safety_checker (StableDiffusionSafetyChecker) is left out: latentc does not check")
    assert features.startswith("feature_extractor (CLIPImageProcessor) is left out")
    assert unknown.startswith("guide (Guide) is left out: latentc does not know this component")


CARDS = {
    "plain": ("---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\n# A\n", ("creativeml-openrail-m", None, None)),
    "own terms": (
        "---\r\nlicense: other\r\nlicense_name: 'faipl 1.0'\r\nlicense_link: https://example.org/x#y\r\n---\r\n",
        ("other", "faipl 1.0", "https://example.org/x#y"),
    ),
    "a list": ("---\nlicense:\n  - mit\n  - apache-2.0 # or so\n---\n", ("mit, apache-2.0", None, None)),
    "in brackets": ("---\nlicense: [mit]\n---\n", ("mit", None, None)),
    "escapes": ("---\nlicense: mit\x1b[31m\u202e\n---\n", ("mit [31m", None, None)),
    "none": ("# license: mit\n", (None, None, None)),
    "not ended": ("---\nlicense: mit\n", (None, None, None)),
    "empty": ("", (None, None, None)),
}


@pytest.mark.parametrize("kind", CARDS)
def test_the_card_declares_a_licence(kind, own):
    folder = own()
    text, said = CARDS[kind]
    (folder / "README.md").write_bytes(text.encode())
    (folder / "LICENSE.md").write_text("terms")
    (folder / "license_notes.safetensors.bin").write_text("no text")
    card = open_checkpoint(str(folder)).card
    assert (card.license, card.name, card.link) == said
    assert card.files == {"README.md": text.encode(), "LICENSE.md": b"terms"}


def test_a_card_that_cannot_be_kept_is_named(own):
    folder = own()
    (folder / "LICENSE").write_bytes(bytes(5 << 20))
    opened = open_checkpoint(str(folder))
    assert set(opened.card.files) == {"README.md"}
    assert opened.notices[0].startswith("LICENSE is left out of the bundle")


def test_a_single_file_declares_a_licence(single_file, tmp_path):
    tensors = load_file(single_file("sd1"))
    save_file(tensors, tmp_path / "a.safetensors", {"modelspec.license": "CreativeML Open RAIL-M"})
    assert open_checkpoint(str(tmp_path / "a.safetensors")).card.license == "CreativeML Open RAIL-M"
    assert open_checkpoint(str(single_file("sd1"))).card.license is None
