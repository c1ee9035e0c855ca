"""The web UI's API, by webuiapi, unmodified."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Thread
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image

from latentc.core.errors import RequestError
from latentc.pipelines.png import read
from latentc.serving.guard import Access
from latentc.serving.limits import Limits
from latentc.serving.service import serve
from latentc.serving.webui import Img2Img, Txt2Img, pictures, sent_files, translated

from .conftest import MODEL, asking, running, wait_for

SIZE = {"width": 64, "height": 64, "steps": 4}


@pytest.fixture(scope="module")
def webui(server):
    where = urlsplit(server)
    return webuiapi.WebUIApi(host=where.hostname, port=where.port, sampler="Euler", scheduler="uniform", steps=4)


def photo(side=64):
    down, across = np.mgrid[0:side, 0:side]
    return Image.fromarray(np.stack([down * 3 % 256, across * 2 % 256, (down + across) % 256], -1).astype(np.uint8))


def text_of(image):
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_its_client_gets_the_pictures_of_the_pipeline(webui, gate, tmp_path):
    found = webui.txt2img(prompt="a (red:1.2) hut", seed=7, cfg_scale=5, batch_size=1, n_iter=2, **SIZE)
    alone = gate(asking("a (red:1.2) hut", 7, count=2, prompt_syntax="a1111"))
    assert [np.array_equal(np.asarray(one), own) for one, own in zip(found.images, alone.images, strict=True)] == [1, 1]
    about = found.info
    assert (about["seed"], about["all_seeds"], about["sampler_name"]) == (7, [7, 8], "Euler")
    assert about["infotexts"][1].startswith("a (red:1.2) hut\nSteps: 4, Sampler: Euler")
    found.images[1].save(tmp_path / "one.png", pnginfo=None)
    (tmp_path / "one.png").write_bytes(base64.b64decode(found.json["images"][1]))
    shown = read(tmp_path / "one.png").request
    assert (shown.seed, shown.prompt_syntax, shown.guidance) == (8, "a1111", 5)
    assert webui.png_info(found.images[0]).info.startswith("a (red:1.2) hut")


def test_image_to_image_and_inpainting(webui, gate):
    image = photo()
    found = webui.img2img(images=[image], prompt="a hut", seed=3, cfg_scale=5, denoising_strength=0.5, **SIZE)
    alone = gate(asking("a hut", 3, strength=0.5, prompt_syntax="a1111"), image=image)
    assert np.array_equal(np.asarray(found.image), alone.images[0])
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    common = {"images": [image], "prompt": "a hut", "seed": 3, "cfg_scale": 5, "denoising_strength": 0.5, **SIZE}
    masked = {"mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": False}
    found = webui.img2img(mask_image=Image.fromarray(mask), **common, **masked)
    alone = gate(asking("a hut", 3, strength=0.5, mask_blur=4, prompt_syntax="a1111"), image=image, mask=mask)
    assert np.array_equal(np.asarray(found.image), alone.images[0])
    other = webui.img2img(mask_image=Image.fromarray(255 - mask), inpainting_mask_invert=1, **common, **masked)
    assert np.array_equal(np.asarray(other.image), alone.images[0])
    with pytest.raises(RuntimeError, match="Init image not found"):
        webui.img2img(images=[], prompt="a hut")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"styles": ["anime"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"seed_resize_from_h": 64}, "seed_resize_from_h"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"s_churn": 4}, "s_churn"),
        ({"s_noise": 1.1}, "s_noise"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}}, "ADetailer"),
        ({"override_settings": {"sd_vae": "other.safetensors"}}, "sd_vae"),
        ({"override_settings": {"sd_model_checkpoint": "unknown"}}, "There is no model 'unknown'"),
        ({"sampler_name": "Euler q"}, "sampler_name 'Euler q'"),
        ({"sampler_name": "Euler a", "eta": 0.5}, "eta is 0.5"),
        ({"width": 65}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 61}, "steps"),
        ({"batch_size": 8, "n_iter": 8}, "64 images"),
        ({"enable_hr": True}, "hr_upscaler is 'Latent'"),
        ({"enable_hr": True, "hr_upscaler": None}, "hr_upscaler is not given"),
        ({"sampler_name": "DPM++ 2M SDE", "eta": 0.5}, "eta is 0.5"),
        ({"batch_size": -2, "n_iter": -3}, "batch_size is -2"),
        ({"prompt": "a <hypernet:x:1> hut"}, "hypernetwork"),
        ({"prompt": "a hut <lora:nobody:0.5>"}, "adapter nobody"),
        ({"prompt": "a hut <lora:ink:0.5:0.7>"}, "<lora:ink:0.5:0.7> has no single strength"),
    ],
)
def test_what_would_change_the_picture_and_cannot_be_done_is_refused(webui, given, name):
    with pytest.raises(RuntimeError) as failed:
        webui.txt2img(**{"prompt": "a hut", **SIZE, **given})
    status, text = failed.value.args
    assert status in (400, 422)
    assert name in json.loads(text)["detail"]


def test_a_parameter_of_a_path_is_refused_in_the_apis_form(http):
    refused = http.get("/sdapi/v1/progress?skip_current_image=2")
    assert (refused.status_code, refused.json()["error"]) == (422, "invalid_value")
    assert refused.json()["detail"].startswith("skip_current_image is '2'. Input should be a valid boolean")


def test_fields_become_a_request():
    def request(kind=Txt2Img, **fields):
        return translated(kind.model_validate(fields))

    asked = request(prompt="x", sampler_name="DPM++ 2M", scheduler="Karras", eta=1.0, odd=3, seed=-1)
    assert (asked.request.scheduler, asked.request.eta, asked.request.seed) == ("dpm++2m-karras", None, None)
    assert (asked.request.steps, asked.request.guidance) == (50, 7)
    assert asked.notices == ("The fields odd are not known, and were ignored.",)
    assert request(sampler_name="DDIM", eta=1.0).request.eta == 1
    skipping = Txt2Img(override_settings={"CLIP_stop_at_last_layers": 2})
    asked = translated(skipping)
    assert (asked.request.clip_skip, "to the negative prompt too" in asked.notices[0]) == (1, True)
    asked = translated(skipping, skips=lambda: False)
    assert (asked.request.clip_skip, "the web UI ignores it" in asked.notices[0]) == (None, True)
    asked = request(prompt="a # b\nc <x:y> d", negative_prompt="e #f")
    assert (asked.request.prompt, asked.request.negative_prompt) == ("a \nc  d", "e ")
    tags, comments = asked.notices
    assert ("tags ('<x:y>')" in tags, "comments ('# b')" in comments) == (True, True)
    lora = request(prompt="a <lora:one:0.5> <lora:two> <lora:one:0.25:0.25>b").request
    assert (lora.prompt, lora.adapters) == ("a   b", {"one": 0.75, "two": 1})
    plain = Txt2Img(prompt="a hut")
    assert (translated(plain).request.adapters, translated(plain, strengths=True).request.adapters) == (None, {})
    second = request(enable_hr=True, hr_upscaler="Lanczos", hr_scale=1.5, denoising_strength=0.4).request
    assert (second.hires, second.hires_steps, second.hires_strength) == (1.5, None, 0.4)
    for name, value in {"infotext": "a hut\nSteps: 4", "s_min_uncond": 1}.items():
        with pytest.raises(RequestError, match=name):
            request(**{name: value})
    off = {"ADetailer": {"args": [False, False, {"ad_model": "face"}]}}
    assert request(alwayson_scripts=off).notices == ()


def test_images_are_decoded_last():
    """Nothing is decoded, and no image is made of a size, that the request or the server's limits refuse."""

    def read(**fields):
        body = Img2Img.model_validate(fields)
        asked = translated(body)
        return asked.request, pictures(body, asked, sent_files(body))

    picture = text_of(photo())
    tall = {"init_images": [f"data:image/png;base64,{picture}"], "resize_mode": 1, "width": 64, "height": 128}
    asked, found = read(**tall)
    assert found["image"].pixels.shape == (128, 64, 3)
    assert asked.strength == 0.75
    for blurs, wanted in (({"mask_blur_x": 2, "mask_blur_y": 2}, 2), ({"mask_blur": 1, "mask_blur_x": 2}, 1), ({}, 4)):
        assert read(**tall, mask=picture, **blurs)[0].mask_blur == wanted
    for wrong in ({"mask_blur_x": 2}, {"mask_round": False}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            read(**tall, mask=picture, **wrong)
    only, found = read(**tall, mask=picture, inpaint_full_res_padding=8)
    assert (only.crop, only.fill) == (8, "edge")
    assert found["image"].pixels.shape == (64, 64, 3), "the whole image is kept, of which an area is generated"
    alpha = np.repeat(np.arange(97, 161, dtype=np.uint8)[None], 64, 0)
    painted, table = Image.fromarray(np.dstack([alpha * 0] * 3 + [alpha])), Image.fromarray(alpha).convert("P")
    table.info["transparency"] = bytes(range(256))
    for mask in (painted, painted.convert("LA"), table):  # the web UI's create_binary_mask
        _, found = read(**tall, mask=text_of(mask), inpaint_full_res_padding=8)
        assert (found["mask"].pixels == (0 if mask.mode == "LA" else (alpha > 128) * 255)).all(), mask.mode
    for side in (-8, 40_000):
        with pytest.raises(RequestError, match="width"):
            read(**{**tall, "width": side, "init_images": ["!"]})
    for wrong in ("http://localhost/x.png", "!!!!", base64.b64encode(b"no picture").decode()):
        with pytest.raises(RequestError, match=r"init_images|image is"):
            read(init_images=[wrong])


def test_lists_and_options(webui, http):
    assert [one["model_name"] for one in webui.get_sd_models()] == [MODEL]
    options = webui.get_options()
    assert options["sd_model_checkpoint"].startswith(f"{MODEL} [")
    webui.set_options(options)  # as Open WebUI does
    webui.util_set_model(MODEL)
    assert webui.util_get_current_model() == options["sd_model_checkpoint"]
    for unknown in ({"sd_vae": "other"}, {"eta_noise_seed_delta": 31337}):
        assert http.post("/sdapi/v1/options", json=unknown).status_code == 422
    assert "Euler a" in webui.util_get_sampler_names()
    assert "karras" in webui.util_get_scheduler_names()
    for ask in (
        webui.get_sd_vae, webui.get_upscalers, webui.get_latent_upscale_modes, webui.get_loras, webui.get_embeddings,
        webui.get_prompt_styles, webui.get_hypernetworks, webui.get_face_restorers, webui.get_scripts, webui.get_memory,
        webui.get_cmd_flags, webui.refresh_checkpoints,
    ):  # fmt: skip
        ask()


def test_progress_by_task_and_an_interrupt_of_the_clients_own_job(gate):
    errors, tokens = [], ("one:secret", "other:secret")

    def draw():
        try:
            fields = {"prompt": "a hut", "seed": 1, "force_task_id": "mine", **SIZE, "steps": 60}
            mine.session.post(f"{mine.baseurl}/txt2img", json=fields).raise_for_status()
        except requests.HTTPError as exc:
            errors.append(exc.response.status_code)

    with running(serve({MODEL: gate}, Limits(steps=60)), Access(tokens=tokens)) as address:
        where = urlsplit(address)
        mine, others = (webuiapi.WebUIApi(host=where.hostname, port=where.port) for _ in range(2))
        mine.set_auth("one", "secret")
        others.set_auth("other", "secret")
        assert mine.get_progress()["state"]["job_count"] == 0
        with gate.closed():
            thread = Thread(target=draw)
            thread.start()
            wait_for(lambda: mine.get_progress()["state"]["job_count"])
            assert mine.get_progress()["state"]["sampling_steps"] == 60
            assert others.get_progress()["state"]["job_count"] == 0
            who = {"auth": ("other", "secret"), "params": {"id_task": "mine"}}
            assert httpx2.get(f"{address}/sdapi/v1/progress", **who).json()["state"]["job_count"] == 0
            others.interrupt()
            assert mine.get_progress()["state"]["job_count"] == 1
            mine.interrupt()
        thread.join(60)
        assert errors == [409]
        assert mine.get_progress()["state"]["job_count"] == 0


def test_an_interrupt_answers_the_unfinished_images(server, webui, gate):
    """As the web UI: those that the denoiser estimates at the last step."""
    fields = {"prompt": "a hut", "seed": 1, "cfg_scale": 5, "batch_size": 2, **SIZE, "steps": 20}
    steps = []
    request = asking("a hut", 1, steps=20, count=2, prompt_syntax="a1111")
    gate._pipeline(request, on_step=steps.append)
    with ThreadPoolExecutor() as pool:
        with gate.held_at(10):
            asked = pool.submit(webui.txt2img, **fields)
            assert gate.held.wait(60)
            webui.interrupt()
        found = asked.result()
    expected = gate._pipeline.decode_step(request, steps[8])
    assert all(np.array_equal(np.asarray(one), own) for one, own in zip(found.images, expected, strict=True))
    assert found.info["notices"] == ["The image is unfinished: it was interrupted after step 9 of 20."]
    assert found.info["infotexts"][1].startswith("a hut\nSteps: 20, Sampler: Euler")
