"""Decoding in tiles against diffusers' `AutoencoderKL.tiled_decode`."""

import numpy as np
import pytest

from latentc.core.tensors import psnr_db
from latentc.sampling.draw import decoded_shapes
from latentc.sampling.pixels import decode, quantized
from latentc.sampling.tiles import decode_tiles, is_tiled, tile_shapes


@pytest.fixture(scope="module")
def vae():
    import diffusers
    import torch

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    widths = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "latent_channels": 4}
    return diffusers.AutoencoderKL(**blocks, **widths).eval().requires_grad_(False)


SIZES = [(16, 16, 8), (9, 20, 8), (20, 7, 8), (13, 18, 12), (17, 12, 16)]


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
def test_tiles_are_blended_as_in_diffusers(vae, height, width, tile):
    import torch

    latents = np.random.default_rng(height).standard_normal((2, 4, height, width)).astype(np.float32)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 8 * tile, tile
    wanted = vae.decode(torch.from_numpy(latents)).sample.numpy()
    vae.disable_tiling()
    seen = []

    def run(feeds):
        seen.append(feeds["latent_sample"].shape)
        return {"sample": vae.decode(torch.from_numpy(feeds["latent_sample"])).sample.numpy()}

    found = decode_tiles(run, latents[:1], tile)
    assert found.shape == wanted.shape[1:]
    assert psnr_db(wanted[0], found) > 100
    assert set(seen) == set(tile_shapes(latents.shape, tile)) == set(decoded_shapes(latents.shape, None, tile))
    images = decode(run, latents, "vae_decoder", "its engine", tile=tile)
    assert np.abs(images.astype(int) - quantized(wanted).astype(int)).max() <= 1
    whole = run({"latent_sample": latents})["sample"]
    assert psnr_db(wanted, whole) < 60, "tiles make a difference"


def test_an_image_of_one_tile_is_decoded_as_a_whole():
    assert not is_tiled((8, 8), 8)
    assert is_tiled((8, 9), 8)
    assert decoded_shapes((2, 4, 8, 8), None, 8) == decoded_shapes((2, 4, 8, 8), None) == ((1, 4, 8, 8),)
