"""OpenAI's Images API, through its unmodified client over a socket."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from latentc.core.errors import NotFiniteError
from latentc.pipelines.png import read
from latentc.serving.bodies import ALIVE
from latentc.serving.errors import ApiError
from latentc.serving.limits import Limits
from latentc.serving.openai import asked
from latentc.serving.service import serve

from .conftest import MODEL, asking, running, wait_for
from .guided import pixels, png
from .test_checks import SOURCE_TYPE

EXTRA = {"steps": 4, "scheduler": "euler", "guidance": 5.0}


def test_an_image_is_that_of_the_pipeline(client, gate):
    answer = client.images.generate(prompt="a red cube", size="64x64", extra_body={**EXTRA, "seed": 7})
    assert np.array_equal(pixels(answer.data[0].b64_json), gate(asking("a red cube", 7)).images[0])
    assert (answer.size, answer.output_format) == ("64x64", "png")
    assert answer.model_extra["seed"] == 7
    assert answer.model_extra["engines"]["unet"].startswith("onnxruntime")


def test_several_images(client, gate):
    answer = client.images.generate(prompt="x", n=3, size="64x64", extra_body={**EXTRA, "seed": 1})
    assert np.array_equal([pixels(one.b64_json) for one in answer.data], gate(asking("x", 1, count=3)).images)


def test_null_is_absent(http):
    """As some clients send what is not set."""
    fields = {"prompt": "x", "steps": 2, "seed": 1}
    nulls = dict.fromkeys(("n", "size", "model", "quality", "response_format", "stream", "user", "background"))
    answers = [http.post("/v1/images/generations", json=one).json() for one in (fields, fields | nulls)]
    assert len({one["data"][0]["b64_json"] for one in map(without_seconds, answers)}) == 1


def without_seconds(answer):
    """The pixels alone: the record in the file has times."""
    return {"data": [{"b64_json": pixels(one["b64_json"]).tobytes()} for one in answer["data"]]}


def test_a_stream_has_partial_images(client, gate):
    options = {"prompt": "x", "size": "64x64", "extra_body": {**EXTRA, "seed": 1}}
    events = list(client.images.generate(stream=True, partial_images=2, **options))
    assert [one.type for one in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [one.partial_image_index for one in events[:2]] == [0, 1]
    final, expected = pixels(events[-1].b64_json), gate(asking("x", 1)).images[0]
    assert np.array_equal(final, expected)
    errors = [np.abs(pixels(one.b64_json) - expected.astype(float)).mean() for one in events[:2]]
    assert errors[1] < errors[0], "previews come closer"
    assert events[-1].usage.total_tokens == 0


def test_partial_images_are_of_the_first_image_only(client, gate, monkeypatch):
    counts, decode = [], gate._pipeline.decode_step

    def counted(request, step):
        counts.append(len(step.estimate))
        return decode(request, step)

    monkeypatch.setattr(gate._pipeline, "decode_step", counted)
    more = {"n": 2, "size": "64x64", "extra_body": {**EXTRA, "hires": 1.5}}
    events = list(client.images.generate(prompt="x", stream=True, partial_images=3, **more))
    assert sum("partial" in one.type for one in events) == 3
    assert counts == [1, 1, 1]


@pytest.mark.parametrize(("steps", "partial"), [(1, 0), (2, 1), (3, 2), (4, 3)])
def test_no_partial_image_is_the_finished_one(http, steps, partial):
    fields = {"prompt": "x", **EXTRA, "steps": steps, "size": "64x64", "stream": True, "partial_images": 3}
    text = http.post("/v1/images/generations", json=fields).text
    assert text.count("event: image_generation.partial_image\n") == partial
    assert text.count("event: image_generation.completed\n") == 1


def test_no_partial_images_where_parts_are_loaded_one_at_a_time(client, gate, monkeypatch):
    monkeypatch.setattr(gate._pipeline, "profile", gate.profile.model_copy(update={"sequential": True}))
    with pytest.raises(openai.BadRequestError, match="leave no room"):
        client.images.generate(prompt="x", stream=True, partial_images=1)


def test_an_edit_is_refused_before_its_mask_is_read(http, monkeypatch):
    read = []
    monkeypatch.setattr("latentc.serving.openai.load_clear", read.append)
    files = {"image": b"not read", "mask": b"not read"}
    refused = http.post("/v1/images/edits", data={"prompt": "x", "steps": "61"}, files=files)
    assert (refused.json()["error"]["code"], read) == ("limit_exceeded", [])


def test_an_error_in_a_stream(client, http, gate, monkeypatch):
    monkeypatch.setattr(gate._pipeline, "draw_many", failing, raising=False)
    with pytest.raises(openai.APIError, match="NaN"):
        list(client.images.generate(prompt="x", stream=True))
    assert http.post("/v1/images/generations", json={"prompt": "x", "stream": True}).text.startswith(ALIVE)


def failing(requests, *_, **__):
    return [NotFiniteError("NaN in image 0.") for _ in requests]


def test_a_fault_of_the_server_is_not_computed_again(client, gate, monkeypatch):
    monkeypatch.setattr(gate._pipeline, "draw_many", failing, raising=False)
    gate.batches.clear()
    with pytest.raises(openai.InternalServerError) as error:
        client.with_options(max_retries=2).images.generate(prompt="x")
    assert gate.batches == [1]
    assert error.value.code == "NotFiniteError"


@pytest.mark.parametrize(("seconds", "headers"), [(0.3, {}), (600, {"x-stainless-read-timeout": "0.3"})])
def test_a_slow_image_is_computed_once(gate, seconds, headers):
    """The answer comes before the client would ask again, and doesn't wait for the engine."""
    sent = []
    with (
        running(serve({MODEL: gate}, Limits(job_seconds=seconds))) as address,
        httpx2.Client(event_hooks={"request": [lambda request: sent.append(request.url.path)]}) as http,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", http_client=http) as one,
        gate.held_at(1),
    ):
        with pytest.raises(openai.InternalServerError) as error:
            one.images.generate(prompt="x", extra_headers=headers)
        assert (error.value.status_code, error.value.code) == (504, "deadline")
        assert sent == ["/v1/images/generations"], "it doesn't ask again"
    stated = error.value.request.headers["x-stainless-read-timeout"]
    assert float(stated) == float(headers.get("x-stainless-read-timeout", Limits().job_seconds / 0.9))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"size": "65x64"}, "size"),
        ({"size": "256x256"}, "size"),
        ({"size": "64x64", "extra_body": {"width": 96}}, "size"),
        ({"n": 11}, "n"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"steps": 61}}, "steps"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
        ({"extra_body": {"steps": 2, "num_inference_steps": 3}}, "num_inference_steps"),
        ({"extra_body": {"adapters": {"none": 1.0}}}, None),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"output_format": "jpeg", "response_format": "url", "output_compression": 50}, "output_compression"),
        ({"output_format": "jpeg", "extra_body": {"negative_prompt": "long " * 6000}}, None),
    ],
)
def test_a_wrong_request_is_refused_before_work(client, gate, options, param):
    gate.batches.clear()
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt="x", **options)
    assert error.value.param == param
    assert error.value.code
    assert error.value.type == "invalid_request_error"
    assert gate.batches == []


def test_a_full_queue_is_waited_for_by_the_client(gate):
    """A 429 with Retry-After, that the client's user doesn't see."""
    service = serve({MODEL: gate}, replace_limits(queue=1))
    with (
        running(service) as address,
        ThreadPoolExecutor() as pool,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5) as client,
        httpx2.Client(base_url=address, timeout=60) as raw,
    ):
        with gate.closed():
            first = pool.submit(client.images.generate, prompt="first", extra_body=EXTRA)
            wait_for(lambda: service.models[MODEL].queue._running)
            refused = raw.post("/v1/images/generations", json={"prompt": "x"})
            second = pool.submit(client.images.generate, prompt="second", extra_body=EXTRA)
            wait_for(lambda: 'latentc_requests_total{api="openai",status="429"} 2.0' in raw.get("/metrics").text)
        assert first.result(60).data
        assert second.result(60).data
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "x-should-retry" not in refused.headers
    assert refused.json()["error"]["code"] == "queue_full"


def replace_limits(**changes):
    from latentc.serving.limits import Limits

    return replace(Limits(), **changes)


def test_an_image_as_a_url(client, gate, tmp_path):
    answer = client.images.generate(
        prompt="a boat", size="64x64", response_format="url", n=2, extra_body={**EXTRA, "seed": 3}
    )
    fetched = [httpx2.get(one.url) for one in answer.data]
    assert [one.headers["content-type"] for one in fetched] == ["image/png"] * 2
    images = [np.asarray(Image.open(BytesIO(one.content))) for one in fetched]
    assert np.array_equal(images, gate(asking("a boat", 3, count=2)).images)
    (tmp_path / "boat.png").write_bytes(fetched[1].content)
    assert read(tmp_path / "boat.png").request.seed == 4
    wrong = httpx2.get(answer.data[0].url.replace("0.png", "2.png"))
    assert wrong.status_code == 404


@pytest.mark.parametrize(("kind", "form"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_are_marked_and_hold_the_request(client, tmp_path, kind, form):
    answer = client.images.generate(prompt="a boat", output_format=kind, extra_body={**EXTRA, "seed": 3})
    content = base64.b64decode(answer.data[0].b64_json)
    image = Image.open(BytesIO(content))
    assert image.format == form
    (path := tmp_path / f"boat.{kind}").write_bytes(content)
    assert read(path).request.prompt == "a boat"
    held = image.info["xmp"]
    assert f'DigitalSourceType="{SOURCE_TYPE}"' in (held if isinstance(held, str) else held.decode())


def test_compression_makes_smaller_files(client):
    def size(**options):
        answer = client.images.generate(prompt="x", output_format="jpeg", extra_body={**EXTRA, "seed": 3}, **options)
        return len(base64.b64decode(answer.data[0].b64_json))

    assert size(output_compression=10) < size(output_compression=95)


def test_an_edit(client, gate):
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (64, 64, 3), np.uint8)
    answer = client.images.edit(
        image=("image.png", png(image)),
        prompt="a red cube",
        n=1,
        size="64x64",
        extra_body={**EXTRA, "seed": 5, "strength": 0.5},
    )
    expected = gate(asking("a red cube", 5, strength=0.5), image=image)
    assert np.array_equal(pixels(answer.data[0].b64_json), expected.images[0])


def test_an_edit_of_the_transparent_area(client, gate):
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[16:48, 16:48] = 0
    mask = np.dstack([np.zeros_like(image), alpha])
    answer = client.images.edit(
        image=("image.png", png(image)),
        mask=png(mask),
        prompt="a red cube",
        size="64x64",
        extra_body={**EXTRA, "seed": 5},
    )
    expected = gate(asking("a red cube", 5), image=image, mask=255 - alpha).images[0]
    found = pixels(answer.data[0].b64_json)
    assert np.array_equal(found, expected)
    assert np.array_equal(found[alpha == 255], image[alpha == 255])


def test_lists_and_maps_in_a_form(client, http, gate):
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    answer = client.images.edit(
        image=("image.png", png(image)), prompt="x", extra_body={**EXTRA, "seed": 5, "outpaint": [0, 0, 32, 0]}
    )
    expected = gate(asking("x", 5, outpaint=(0, 0, 32, 0), width=None, height=None), image=image).images[0]
    assert np.array_equal(pixels(answer.data[0].b64_json), expected)
    with pytest.raises(openai.BadRequestError, match="adapters"):
        client.images.edit(image=png(image), prompt="x", extra_body={"adapters": {"none": 1.0}})
    wrong = http.post("/v1/images/edits", data={"prompt": "x", "steps[]": "2", "steps[a]": "2"}, files={"image": b""})
    assert "'steps' is given twice" in wrong.json()["error"]["message"]


def test_what_an_edit_cannot_take(client):
    image = png(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=[image, image], prompt="x")
    assert error.value.param == "image"
    assert "no IP-Adapter for a second image. Send fewer" in error.value.message
    with pytest.raises(openai.BadRequestError, match="no transparency"):
        client.images.edit(image=image, mask=image, prompt="x")
    with pytest.raises(openai.BadRequestError, match="not an image"):
        client.images.edit(image=b"not an image", prompt="x")


def test_models(client):
    (one,) = client.models.list().data
    assert (one.id, one.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_name_is_needed_only_to_choose(gate):
    request = {"prompt": "x", "model": "dall-e-2"}
    one, two = serve({"a": gate}), serve({"a": gate, "b": gate})
    assert one.model(request["model"]).name == "a"
    assert two.model("b").name == "b"
    with pytest.raises(ApiError, match="Known: a, b") as error:
        two.model(request["model"])
    assert (error.value.status, error.value.param, error.value.code) == (404, "model", "model_not_found")


def test_translation_of_fields():
    found = asked({"prompt": "x", "size": "64x96", "n": "2", "cfg_scale": 3, "num_inference_steps": 5, "user": "me"})
    request = found.request
    assert (request.width, request.height, request.count, request.guidance, request.steps) == (64, 96, 2, 3, 5)
    assert (found.kind, found.as_url, found.stream, found.partial_images) == ("png", False, False, 0)
    assert asked({"prompt": "x", "quality": "hd", "style": "vivid"}).notices == (
        "quality has no effect on this model.",
        "style has no effect on this model.",
    )
    assert json.dumps(found.model) == "null"
