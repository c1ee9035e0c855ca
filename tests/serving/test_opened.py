"""The first image that a server generates of each model."""

import pytest

from latentc.compiler.build import build
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.serving.opened import first_request, fixed_rows


@pytest.mark.parametrize(("images", "guided"), [(2, True), (1, False)])
def test_the_first_images_are_those_that_engines_are_built_for(bundle, images, guided):
    """Engines of fixed rows take no others."""
    profile = load_profile("cpu-onnxruntime")
    shapes = profile.shapes.model_copy(update={"sizes": ("64x64",), "images": images, "guided": guided})
    profile = profile.model_copy(update={"name": "rows", "shapes": shapes})
    build(bundle("sd1"), profile)
    with Pipeline.open(bundle("sd1"), profile) as pipeline:
        assert fixed_rows(pipeline) == (images, guided)
        request, inputs = first_request(pipeline)
        assert pipeline(request, **inputs).images.shape == (images, 64, 64, 3)
