from __future__ import annotations

import numpy as np
import pytest

from latentc.sampling.guidance import guidance_embedding, guide, rescaled


def _rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 4, 8, 8), dtype=np.float32)


def test_guidance_goes_from_negative_through_positive():
    negative, positive = _rows(4)[:2], _rows(4)[2:]
    output = np.concatenate([negative, positive])
    assert np.allclose(guide(output, 1.0, 0.0), positive, atol=1e-6)
    assert np.allclose(guide(output, 3.0, 0.0), negative + 3 * (positive - negative))
    assert guide(output, 7.5, 0.5).dtype == np.float32


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    combined, positive = 5 * _rows(4)[:2], _rows(4)[2:]
    expected = rescale_noise_cfg(torch.from_numpy(combined), torch.from_numpy(positive), rescale).numpy()
    assert np.allclose(rescaled(combined, positive, rescale), expected, rtol=1e-6, atol=1e-6)


def test_rescaling_keeps_an_answer_without_deviation():
    flat = np.ones((2, 4, 8, 8), np.float32)
    assert (rescaled(flat, _rows(2), 0.7) == flat).all()


@pytest.mark.parametrize(("guidance", "width"), [(7.5, 256), (1.0, 32), (8.0, 33)])
def test_the_embedding_of_guidance_is_that_of_diffusers(guidance, width):
    import torch
    from diffusers import StableDiffusionPipeline

    expected = StableDiffusionPipeline.get_guidance_scale_embedding(
        None, torch.tensor(guidance - 1).repeat(3), embedding_dim=width
    ).numpy()
    found = guidance_embedding(guidance, width, 3)
    assert found.dtype == np.float32
    assert found.shape == (3, width)
    assert np.allclose(found, expected, atol=2e-3)  # angles of 6500 radians in float32
