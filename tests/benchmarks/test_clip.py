"""CLIP's score, with a model of random weights: what is asked of it, not what it knows."""

import json

import numpy as np
import pytest

from latentc.benchmarks.plan import Plan
from latentc.benchmarks.referee import check_suite
from latentc.benchmarks.subjects.clip import DEVIATION, MEAN, Clip
from latentc.core.errors import LatentcError, RequestError

PROMPTS = ["a lighthouse on a cliff, sunset", "two red apples"]


@pytest.fixture
def pictures(tmp_path):
    """A square one of the model's own size, and a wide one."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((32, 32, 3), (64, 96, 3))]
    np.savez(tmp_path / "drawn.npz", *images)
    return tmp_path / "drawn.npz", images


def test_scores_are_cosines_of_embeddings(clip_model, pictures):
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    path, images = pictures
    clip = Clip()
    clip.load(str(clip_model))
    found = clip.score(str(path), PROMPTS).clip
    model, tokenizer = CLIPModel.from_pretrained(clip_model).eval(), CLIPTokenizer.from_pretrained(clip_model)
    normal = (images[0].astype(np.float32) / 255 - np.array(MEAN)) / np.array(DEVIATION)
    pixels = torch.tensor(normal.transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels).pooler_output
        said = model.text_model(**tokenizer(PROMPTS[:1], return_tensors="pt")).pooler_output
        seen, said = model.visual_projection(seen), model.text_projection(said)
        cosine = float((seen @ said.T) / (seen.norm() * said.norm()))
    assert found[0] == pytest.approx(100 * max(0.0, cosine), abs=1e-3)
    assert len(found) == 2
    assert all(0 <= score <= 100 for score in found)


def test_pictures_are_prepared_as_the_model_s_own_processor_does(clip_model):
    from transformers import CLIPImageProcessorPil

    clip = Clip()
    clip.load(str(clip_model))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    rng = np.random.default_rng(2)
    for shape in ((64, 96, 3), (101, 67, 3), (32, 32, 3), (77, 131, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        wanted = processor(images=image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(clip._prepared(image), wanted, atol=1e-5)


def test_random_weights_are_refused(clip_model, tmp_path):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_model)
    model.logit_scale.data.fill_(model.config.logit_scale_init_value)
    model.save_pretrained(tmp_path / "fresh")
    with pytest.raises(LatentcError, match="The CLIP model in fresh has random weights"):
        Clip().load(str(tmp_path / "fresh"))


def test_a_wide_picture_is_cut_in_the_middle(clip_model):
    clip = Clip()
    clip.load(str(clip_model))
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    seen = clip._prepared(wide)
    assert seen.shape == (3, 32, 32)
    white = (1 - np.array(MEAN)) / np.array(DEVIATION)
    np.testing.assert_allclose(seen[:, 16, 16], white, rtol=1e-5)
    np.testing.assert_allclose(seen[:, 16, 2], white, rtol=1e-5)


@pytest.mark.slow
def test_what_is_no_clip_model_is_refused(tmp_path, bundle, trained, clip_model):
    def check(clip, **more):
        check_suite([trained(bundle("sd1"))], Plan((), clip=clip, **more), ())

    check(clip_model, suite=True)
    with pytest.raises(RequestError, match="add --suite"):
        check(clip_model)
    with pytest.raises(RequestError, match=r"config\.json cannot be read \(.*--clip needs a folder with a CLIPModel"):
        check(tmp_path, suite=True)
    damaged = r"config\.json is not valid JSON \(.*--clip needs a folder with a CLIPModel"
    for text, says in (("{", damaged), (json.dumps({"model_type": "bert"}), "a model of type 'bert'")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RequestError, match=says):
            check(tmp_path, suite=True)
