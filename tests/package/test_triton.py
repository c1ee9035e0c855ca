"""The model repository for NVIDIA Triton: its config by Triton's schema, its answers, and those of a real server."""

import os
import shutil
import socket
import subprocess
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient
import tritonclient.http as triton
from google.protobuf import text_format
from tritonclient.utils import InferenceServerException

from latentc.compiler.build import build
from latentc.core.request import Request
from latentc.package.triton import repository
from latentc.pipelines.pipeline import Pipeline
from latentc.serving.kserve import INPUTS
from latentc.serving.triton import answers

PROFILE = "cpu-onnxruntime"
FIELDS = {"steps": 2, "width": 64, "height": 64}
TYPES = {str: ("BYTES", np.object_), float: ("FP32", np.float32), int: ("INT64", np.int64)}
PATIENCE = 120
"""Seconds until a server has loaded the model."""


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    build(bundle("sd1"), PROFILE)
    folder = tmp_path_factory.mktemp("triton") / "models"
    repository(bundle("sd1"), PROFILE, folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(made):
    with Pipeline.open(made / "sd1" / "1" / "package") as one:
        yield one


class Error(Exception):
    INTERNAL, INVALID_ARG, CANCELLED = "internal", "invalid", "cancelled"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


BACKEND = SimpleNamespace(
    Tensor=Tensor,
    TritonError=Error,
    InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(tensors=output_tensors, error=error),
    get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
)
"""What Triton's `triton_python_backend_utils` has, which is importable in its own processes only."""


def asking(cancelled=False, **fields):
    rows = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    plain = {name: [one.encode() if isinstance(one, str) else one for one in each] for name, each in rows.items()}
    tensors = {
        name: Tensor(name, np.array([[one] for one in each], TYPES[type(rows[name][0])][1]))
        for name, each in plain.items()
    }
    return SimpleNamespace(tensors=tensors, is_cancelled=lambda: cancelled)


def alone(pipeline, prompt, seed, **more):
    return pipeline(Request(prompt=prompt, seed=seed, **FIELDS, **more)).images


def test_the_config_is_one_of_tritons_schema(made):
    place = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = spec_from_file_location("model_config_pb2", place)
    schema = module_from_spec(spec)
    spec.loader.exec_module(schema)
    found = text_format.Parse((made / "sd1" / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (found.name, found.backend, found.max_batch_size) == ("sd1", "python", 8)
    assert {one.name for one in found.input} == {*INPUTS}
    assert [one.name for one in found.input if not one.optional] == ["prompt"]
    kinds = {one.name: schema.DataType.Name(one.data_type).removeprefix("TYPE_") for one in found.input}
    assert kinds == {name: kind.replace("BYTES", "STRING") for name, kind in INPUTS.items()}
    assert found.dynamic_batching.default_queue_policy.max_queue_size == 32


def test_requests_of_a_batch_get_the_images_of_each_alone(pipeline):
    requests = [
        asking(prompt="a hut", seed=1, guidance=5.5, **FIELDS),
        asking(prompt=["a fox", "a hill"], seed=[2, 3], **{name: [value] * 2 for name, value in FIELDS.items()}),
        asking(prompt="a pond", seed=4, count=2, **FIELDS),
    ]
    first, rows, several = answers(pipeline, requests, BACKEND)
    image, seed = first.tensors
    assert (image.name, seed.name, seed.values.tolist()) == ("image", "seed", [[1]])
    assert np.array_equal(image.values, [alone(pipeline, "a hut", 1, guidance=5.5)])
    assert np.array_equal(rows.tensors[0].values, [alone(pipeline, "a fox", 2), alone(pipeline, "a hill", 3)])
    assert np.array_equal(several.tensors[0].values, [alone(pipeline, "a pond", 4, count=2)])


def test_a_wrong_request_of_a_batch_fails_alone(pipeline):
    wrong = asking(prompt="a hut", **FIELDS | {"steps": 0})
    latin = asking(prompt="a hut", **FIELDS)
    latin.tensors["prompt"].values[0, 0] = b"\xe9"
    sizes = asking(prompt=["a", "b"], steps=[2, 2], width=[64, 128], height=[64, 64])
    gone = asking(cancelled=True, prompt="a hut", **FIELDS)
    right = asking(prompt="a hut", seed=1, **FIELDS)
    found = answers(pipeline, [wrong, latin, sizes, gone, right], BACKEND)
    assert [one.error and one.error.code for one in found] == ["invalid", "invalid", "invalid", "cancelled", None]
    assert "steps" in str(found[0].error)
    assert "one count and size" in str(found[2].error)
    assert np.array_equal(found[4].tensors[0].values, [alone(pipeline, "a hut", 1)])


SERVER, BACKENDS, LIBRARIES = (
    shutil.which("tritonserver"),
    *map(os.environ.get, ("TRITON_BACKENDS", "TRITON_LIBRARIES")),
)


@pytest.mark.skipif(
    not (SERVER and BACKENDS and LIBRARIES),
    reason="needs tritonserver on PATH, its folder of backends in TRITON_BACKENDS, and latentc with what it requires "
    "installed into the folder TRITON_LIBRARIES",
)
def test_a_real_server_answers_its_client(made, pipeline, tmp_path):
    (made / "sd1" / "1" / "site-packages").symlink_to(LIBRARIES)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = (SERVER, "--model-repository", made, "--backend-directory", BACKENDS, "--http-port", port)
    words = map(str, (*words, "--allow-grpc=false", "--allow-metrics=false"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([*words], stdout=log, stderr=log, env=environment) as server,
    ):
        try:
            with triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4, network_timeout=PATIENCE) as client:
                _wait_for(client, server)
                waiting = [client.async_infer("sd1", _tensors(prompt=f"hut {n}", seed=n, **FIELDS)) for n in range(4)]
                for number, one in enumerate(waiting):
                    assert np.array_equal(
                        one.get_result().as_numpy("image"), [alone(pipeline, f"hut {number}", number)]
                    )
                with pytest.raises(InferenceServerException, match="steps: 0"):
                    client.infer("sd1", _tensors(prompt="a hut", **FIELDS | {"steps": 0}))
        finally:
            server.terminate()


def _tensors(**fields):
    made = []
    for name, value in fields.items():
        kind, dtype = TYPES[type(value)]
        made.append(triton.InferInput(name, [1, 1], kind).set_data_from_numpy(np.array([[value]], dtype)))
    return made


def _wait_for(client, server):
    until = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < until:
        try:
            if client.is_model_ready("sd1"):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not load the model")
