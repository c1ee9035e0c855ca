"""How what is known becomes the denoiser's inputs: the families that are here, and Stable Diffusion 3's on paper."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.core.errors import BundleError
from latentc.core.manifest import TensorInfo
from latentc.core.model import Model, TextEncoder
from latentc.core.request import Request
from latentc.core.wires import Wire, complaint
from latentc.sampling import wires as sources
from latentc.sampling.host import load_host
from latentc.sampling.wires import resized, wired

REQUEST = Request(prompt="a", negative_prompt="b", width=128, height=64, count=2)


def floats(name, *shape):
    return TensorInfo(name=name, dtype="float32", shape=shape)


def model(*wires):
    return Model(
        text_encoders=(TextEncoder(part="text_encoder", tokenizer="tokenizer"),),
        latent_channels=16,
        downscale=8,
        scaling_factor=1.0,
        default_size=64,
        wires=(Wire(input="hidden_states", source="step.latents"), *wires),
    )


def encoded(**widths):
    random = np.random.default_rng(1)
    return {
        part: {
            "hidden_states.1": random.standard_normal((2, 77, width), np.float32),
            "text_embeds": random.standard_normal((2, width), np.float32),
            "last_hidden_state": random.standard_normal((2, 256, 40), np.float32),
        }
        for part, width in widths.items()
    }


SD3 = (
    Wire(input="encoder_hidden_states", source="text_encoder.hidden_states.1"),
    Wire(input="encoder_hidden_states", source="text_encoder_2.hidden_states.1", axis="width", pad=40),
    Wire(input="encoder_hidden_states", source="text_encoder_3.last_hidden_state", axis="length"),
    Wire(input="pooled_projections", source="text_encoder.text_embeds"),
    Wire(input="pooled_projections", source="text_encoder_2.text_embeds", axis="width"),
)
SD3_INPUTS = (
    floats("hidden_states", "batch", 16, "height", "width"),
    floats("timestep", 1),
    floats("encoder_hidden_states", "batch", "length", 40),
    floats("pooled_projections", "batch", 20),
)


def test_stable_diffusion_3_is_five_wires():
    """CLIP's states side by side, filled up with zeros, then T5's after them; pooled ones side by side."""
    known = encoded(text_encoder=8, text_encoder_2=12, text_encoder_3=4)
    found = wired(model(*SD3), SD3_INPUTS, REQUEST, known, guided=True)
    assert found.keys() == {"encoder_hidden_states", "pooled_projections"}
    states = found["encoder_hidden_states"]
    assert states.shape == (4, 77 + 256, 40)
    for row, prompt in enumerate((0, 0, 1, 1)):
        one, two, three = known.values()
        assert (states[row, :77, :8] == one["hidden_states.1"][prompt]).all()
        assert (states[row, :77, 8:20] == two["hidden_states.1"][prompt]).all()
        assert not states[row, :77, 20:].any()
        assert (states[row, 77:] == three["last_hidden_state"][prompt]).all()
        pooled = np.concatenate([one["text_embeds"][prompt], two["text_embeds"][prompt]])
        assert (found["pooled_projections"][row] == pooled).all()


@pytest.mark.parametrize(("negative", "zeros"), [("", (True, False)), ("b", (False, False))])
def test_an_empty_negative_prompt_is_what_each_wire_says(negative, zeros):
    made = model(SD3[0].model_copy(update={"empty": "zeros"}), SD3[3])
    known = encoded(text_encoder=40)
    found = wired(made, SD3_INPUTS, Request(prompt="a", negative_prompt=negative), known, guided=True)
    assert [not found[name][0].any() for name in ("encoder_hidden_states", "pooled_projections")] == list(zeros)
    assert found["encoder_hidden_states"][1].any()
    assert not made.zeros_for_empty, "one of them is encoded, so the negative prompt is read"


def test_a_part_is_fed_what_it_takes():
    known = encoded(text_encoder=8, text_encoder_2=12, text_encoder_3=4)
    assert wired(model(*SD3), SD3_INPUTS[:3], REQUEST, known, guided=True).keys() == {"encoder_hidden_states"}


def test_a_source_of_a_familys_own_is_a_function(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "request.steps", lambda request, width: np.full(width, request.steps))
    monkeypatch.setitem(sources.SOURCES, "request.area", lambda request, _: np.full(1, request.width * request.height))
    made = model(
        Wire(input="steps", source="request.steps"),
        Wire(input="extent", source="request.size"),
        Wire(input="said", source="request.area"),
        Wire(input="said", source="text_encoder.text_embeds", axis="width", pad=5),
        Wire(input="said", source="request.area", axis="width"),
    )
    inputs = (floats("steps", "batch", 3), floats("extent", "batch", 6), floats("said", "batch", 6))
    embeds = np.array([[7, 8], [1, 2]], np.float32)
    found = wired(made, inputs, REQUEST, {"text_encoder": {"text_embeds": embeds}}, guided=True)
    assert found["steps"].tolist() == [[20, 20, 20]] * 4
    assert found["extent"].tolist() == [[64, 128, 0, 0, 64, 128]] * 4
    assert found["said"].tolist() == [[8192, *text, 0, 0, 8192] for text in ((7, 8), (7, 8), (1, 2), (1, 2))]
    before = dict(found)
    outputs = (floats("text_embeds", "batch", 2),)
    parts = {"unet": SimpleNamespace(inputs=inputs), "text_encoder": SimpleNamespace(outputs=outputs)}
    resized(made, parts, "unet", found, REQUEST.model_copy(update={"height": 32, "width": 16}))
    assert found["extent"].tolist() == [[32, 16, 0, 0, 32, 16]] * 4
    assert found["steps"].tolist() == [[20, 20, 20]] * 4
    assert found["said"].tolist() == [[512, *text, 0, 0, 512] for text in ((7, 8), (7, 8), (1, 2), (1, 2))]
    assert [found[name].dtype for name in before] == [before[name].dtype for name in before]


def test_a_source_that_nothing_here_computes_is_refused_before_drawing(bundle):
    opened = bundle("sd1")
    found = opened.manifest.model
    for wire in (
        Wire(input="mask", source="request.depth"),
        Wire(input="mask", source="vae_encoder.latent_parameters"),
    ):
        other = opened.manifest.model_copy(update={"model": found.model_copy(update={"wires": (*found.wires, wire)})})
        with pytest.raises(
            BundleError, match=rf"wires {wire.source} to mask, a source that this version of latentc does not know"
        ):
            load_host(replace(opened, manifest=other))
    load_host(opened)


def test_a_control_is_fed_by_the_same_wires(bundle):
    """ControlNet takes the denoiser's own inputs, and more."""
    parts = dict(bundle("sd1").manifest.parts)
    wires = bundle("sd1").manifest.model.wires
    hint = floats("controlnet_cond", "batch", 3, "8*height", "8*width")
    parts["controlnet"] = parts["unet"].model_copy(
        update={"role": "control", "inputs": (*parts["unet"].inputs, hint), "outputs": parts["unet"].outputs * 2}
    )
    assert "has a part controlnet with an input 'controlnet_cond'" in str(complaint(wires, parts))
    assert complaint((*wires, Wire(input="controlnet_cond", source="request.control")), parts) is None


@pytest.mark.parametrize("roles", [("denoiser", "control"), ("control", "denoiser")])
@pytest.mark.parametrize("axes", [("length", 48), (48,)])
def test_each_part_is_held_to_the_width_of_its_own_input(bundle, roles, axes):
    """Whichever of two parts comes first, what one takes doesn't hide what the other does."""
    parts, wires = bundle("sd1").manifest.parts, bundle("sd1").manifest.model.wires
    other = floats("encoder_hidden_states", "batch", *axes)
    inputs = tuple(other if each.name == other.name else each for each in parts["unet"].inputs)
    each = {
        "denoiser": parts["unet"],
        "control": parts["unet"].model_copy(update={"role": "control", "inputs": inputs}),
    }
    texts = {name: part for name, part in parts.items() if part.role == "text_encoder"}
    says = "whose width is 48" if len(axes) == 2 else "of 3 axes to encoder_hidden_states, which has 2"
    assert says in str(complaint(wires, {**texts, **{role: each[role] for role in roles}}))


def test_a_bundle_without_a_denoiser_says_so(bundle):
    found = bundle("sd1").manifest
    parts = {name: part for name, part in found.parts.items() if name != "unet"}
    assert complaint(found.model.wires, parts) == "wires step.latents to 'sample', but has no denoiser"
