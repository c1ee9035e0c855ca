"""Names of modules at full size: those of the original layout are what diffusers' own conversions give."""

from types import SimpleNamespace

import pytest
import torch

from latentc.checkpoints.adapters.slots import split
from latentc.checkpoints.adapters.spellings import Place, spellings
from latentc.checkpoints.families import find_family
from latentc.checkpoints.mmdit_names import original_modules
from latentc.checkpoints.modules import build

from ..conftest import mmdit_names, unet_name

COUNTS = {"sd1": 282, "sdxl": 794}
"""Linear layers and convolutions."""


def layers(module):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, one in module.named_modules() if isinstance(one, kinds)]


@pytest.fixture(scope="module")
def full():
    """`full(family)`: the denoiser at its published size, without memory."""
    held = {}

    def make(name):
        if name not in held:
            family = find_family(name)
            held[name] = build(family.component(family.denoiser), family.config(family.denoiser))
        return held[name]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_unet_in_both_layouts(full, family):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    module, facts = full(family), find_family(family)
    names = layers(module)
    assert len(names) == COUNTS.get(family, len(names))
    known = spellings(facts, "unet", names)
    config = dict(module.config)
    original = {name: unet_name(f"{name}.weight", config).removesuffix(".weight") for name in names}
    stand_ins = {f"model.diffusion_model.{unet_name(key, config)}": key for key in module.state_dict()}
    theirs = convert_ldm_unet_checkpoint(stand_ins, config)
    assert theirs == {key: key for key in module.state_dict()}
    for name in names:
        for spelled in (name, original[name]):
            assert known[f"lora_unet_{spelled.replace('.', '_')}"] == Place((name,))
            assert known[f"diffusion_model.{spelled}"] == Place((name,))
        assert known[f"unet.{name}"] == Place((name,))


@pytest.mark.slow
def test_diffusers_renames_kohyas_files_alike(full):
    """All of SDXL's layers, by the two steps in which diffusers renames kohya's keys."""
    from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers

    module = full("sdxl")
    known = spellings(find_family("sdxl"), "unet", layers(module))
    originals = [unet_name(f"{name}.weight", dict(module.config)).removesuffix(".weight") for name in layers(module)]
    given = {f"{key}.lora_down.weight": key for key in (f"lora_unet_{one.replace('.', '_')}" for one in originals)}
    mapped = _maybe_map_sgm_blocks_to_diffusers(given, SimpleNamespace(layers_per_block=2))
    assert len(mapped) == COUNTS["sdxl"]
    for theirs, key in mapped.items():
        found = split(_convert_unet_lora_key(theirs))
        assert found is not None, theirs
        assert found[1] == "down"
        assert known[key] == known[found[0]], (key, found)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3", "sd35m"])
def test_a_transformer_in_both_layouts(full, family):
    module = full(family)
    tensors = {f"{name}.weight": torch.zeros(2, 1) + index for index, name in enumerate(layers(module))}
    places = original_modules(layers(module))
    named = {name.removesuffix(".weight"): tensor for name, tensor in mmdit_names(tensors).items()}
    assert places.keys() == named.keys()
    for name, tensor in named.items():
        modules, _ = places[name]
        assert torch.equal(tensor, torch.cat([tensors[f"{one}.weight"] for one in modules]))
    swaps = {name for name, (_, swapped) in places.items() if swapped}
    last = len(module.transformer_blocks) - 1
    assert swaps == {"final_layer.adaLN_modulation.1", f"joint_blocks.{last}.context_block.adaLN_modulation.1"}
