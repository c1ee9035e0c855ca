"""Training: courses that resume to the step, words, and labels."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from latentc.scenes.caption import EACH, WHOLE, attributes
from latentc.scenes.judge import unpacked
from latentc.scenes.train import judge, pictures, save, text
from latentc.scenes.train.course import Course, run_course, share_at, trained
from latentc.scenes.train.pictures import Pictures, picture_of, scene_of
from latentc.scenes.train.words import END, LENGTH, START, Words, described
from latentc.scenes.world import KINDS

COOL = 6


def course(steps):
    return Course(
        "line",
        steps,
        matrix_rate=0.01,
        other_rate=0.01,
        warm_up=2,
        cool_down=COOL,
        ema=0.9,
        save_every=3,
        weight_decay=0.1,
    )


def model():
    torch.manual_seed(0)
    last = (nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 1, 2), nn.Flatten())
    return nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4), *last)


def loss(model, step):
    numbers = torch.randint(4, (8,))
    wanted = numbers.float() + 0.01 * step
    squared = (model(numbers)[:, 0] - wanted).square().mean()
    return squared, {"squared": squared.item()}


def run(steps, folder):
    return run_course(course(steps), model(), loss, folder, lambda model, step: {"weight": model[3].bias.item()})


def test_a_course_taken_up_again_ends_where_one_in_a_single_go_does(tmp_path):
    def broken_off(model, step):
        if step == 7:
            raise KeyboardInterrupt
        return loss(model, step)

    whole = run(9, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_course(course(9), model(), broken_off, tmp_path / "parts", lambda model, step: {})
    resumed = run(9, tmp_path / "parts")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[1].weight, model()[1].weight)


def test_what_was_trained_is_loaded_averaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="Train line first"):
        trained(model(), tmp_path / "line")
    averaged = run(6, tmp_path / "line")
    loaded = trained(model(), tmp_path / "line")
    assert all(torch.equal(one, other) for one, other in zip(averaged.parameters(), loaded.parameters(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "line" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 6]
    assert {"loss", "squared", "steps_per_second", "seconds"} <= lines[1].keys()


def test_a_loss_that_is_not_finite_stops_the_course(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 0"):
        run_course(course(3), model(), lambda model, step: (model[3].bias.sum() / 0, {}), tmp_path, lambda *_: {})


def test_rates_rise_stay_and_fall():
    planned = Course("any", 10, 1.0, 1.0, warm_up=2, cool_down=4, ema=0.9, save_every=5)
    assert [share_at(planned, step) for step in (0, 1, 5, 6, 8, 9)] == [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]


def test_pictures_are_rendered_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SHARD", 2)
    made = Pictures(tmp_path, 32, 3, "held-out")
    assert made.count == 4
    assert np.array_equal(made[3], picture_of(3, 32, "held-out"))
    monkeypatch.setattr(pictures, "_write_shard", None)
    assert np.array_equal(Pictures(tmp_path, 32, 4, "held-out")[2], made[2])


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return Words(tmp_path_factory.mktemp("words"))


def test_a_word_of_the_world_is_one_token(words):
    names = [*KINDS, *EACH["colour"], "lighthouses", "toadstool", "skyline", "aurora"]
    for name, ids in zip(names, words.ids(names), strict=True):
        assert ids[:3] == [words.vocabulary[START], words.vocabulary[f"{name}</w>"], words.vocabulary[END]]
        assert len(ids) == LENGTH


def test_any_text_has_tokens_of_its_own(words):
    for ids in words.ids(["zxqvü, 12%", "\N{GRINNING FACE} 猫", "UPPER case"]):
        inner = ids[1 : ids.index(words.vocabulary[END])]
        assert inner
        assert words.vocabulary[START] not in inner
    assert words.ids(["A RED  House"]) == words.ids(["a red house"])


def test_ids_are_those_of_transformers(words, tmp_path):
    from transformers import CLIPTokenizer

    from latentc.scenes.train.save import write_tokenizer

    write_tokenizer(tmp_path / "tokenizer", words.folder)
    theirs = CLIPTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    prompts = [described(number, 1).text for number in range(50)] + ["it's a zxqvü house, 12% café!", ""]
    found = theirs(prompts, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    assert found == words.ids(prompts)


def test_captions_are_drawn_by_step_and_stay_the_same():
    assert described(5, 3) == described(5, 3)
    assert len({described(5, step).text for step in range(40)}) > 10


def test_labels_say_what_the_caption_said():
    told = [described(number, 0) for number in range(60)]
    said = text.told(list(range(60)), told)
    for number, caption in enumerate(told):
        truth = attributes(scene_of(number))
        for name, values in WHOLE.items():
            found = int(said[name][number])
            assert (found != text.UNSAID) == (name in caption.said)
            assert found == text.UNSAID or values[found - 1] == truth[name]
        for k, kind in enumerate(KINDS):
            for name, values in EACH.items():
                found = int(said[name][number, k])
                assert found == text.UNSAID or values[found - 1] == truth[f"{kind}.{name}"]
                assert (found != text.UNSAID) == (f"{kind}.{name}" in caption.said)


def test_the_judge_is_told_where_things_are():
    for number in range(20):
        scene = scene_of(number, "any")
        for mirrored in (False, True):
            wanted, maps = judge.labels(number, mirrored)
            for thing in scene.things:
                k = KINDS.index(thing.kind)
                assert wanted["count"][k] == thing.count
                assert float(maps[k].sum()) == pytest.approx(thing.count, abs=1e-4)
                place = EACH["position"].index(thing.position)
                assert wanted["position"][k] == (2 - place if mirrored else place)
            assert sum(count > 0 for count in wanted["count"]) == len(scene.things)


def test_a_judge_answers_for_each_picture():
    outputs = judge.Judge().eval()(torch.rand(2, 3, 128, 128))
    assert outputs["place"].shape == (2, len(WHOLE["place"]))
    assert outputs["count"].shape == (2, len(KINDS), 1 + len(EACH["count"]))
    assert outputs["maps"].shape == (2, len(KINDS), judge.GRID, judge.GRID)
    assert judge.accuracy(outputs, [0, 1]).keys() == {*WHOLE, *EACH, "absent"}


@pytest.mark.slow
def test_a_saved_judge_answers_as_it_was_trained_for_any_number_of_pictures(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = judge.Judge().eval()
    monkeypatch.setattr(judge, "load", lambda folder: model)
    path = tmp_path / "judge.onnx.xz"
    save.save_judge(tmp_path, path)
    assert path.stat().st_size < 750_000, "weights in int8, compressed"
    session = onnxruntime.InferenceSession(unpacked(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for count in (1, 3):
        image = torch.rand(count, 3, 128, 128)
        with torch.no_grad():
            wanted = model(image)
        for name, found in zip(names, session.run(None, {"image": image.numpy()}), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted[name], rtol=0.02, atol=0.02)


def test_a_wider_autoencoder_begins_as_the_narrow_one():
    from diffusers import AutoencoderKL

    from latentc.scenes.train import vae, wider

    torch.manual_seed(0)
    narrow, wide = AutoencoderKL(**vae.CONFIG).eval(), AutoencoderKL(**vae.WIDE).eval()
    for parameter in narrow.parameters():  # norms and biases of new ones are alike
        torch.nn.init.normal_(parameter, std=0.2)
    wider.widened(narrow, wide)
    pictures, latents = torch.rand(2, 3, 32, 32), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(wide.encode(pictures).latent_dist.mean, narrow.encode(pictures).latent_dist.mean)
        torch.testing.assert_close(wide.decode(latents).sample, narrow.decode(latents).sample, rtol=1e-4, atol=1e-4)
    last = wide.decoder.conv_out.weight.unflatten(1, (16, 3))
    assert not torch.allclose(last[:, :, 0], last[:, :, 1]), "copies count for different things"
