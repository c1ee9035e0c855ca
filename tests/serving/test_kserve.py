"""The Open Inference Protocol, by tritonclient, unmodified."""

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from latentc.serving import kserve

from .conftest import MODEL, asking

FIELDS = {"steps": 4, "width": 64, "height": 64, "seed": 5}


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.removeprefix("http://")) as one:
        yield one


def tensors(binary, **fields):
    made = []
    for name, value in fields.items():
        kind, dtype = {str: ("BYTES", np.object_), float: ("FP32", np.float32), int: ("INT64", np.int64)}[type(value)]
        tensor = triton.InferInput(name, [1], kind)
        made.append(tensor.set_data_from_numpy(np.array([value], dtype), binary_data=binary))
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_its_client_gets_the_pictures_of_the_pipeline(client, gate, binary):
    inputs = tensors(binary, prompt="a hut", scheduler="euler", guidance=5.0, count=2, **FIELDS)
    output = triton.InferRequestedOutput("image", binary_data=binary)
    found = client.infer(MODEL, inputs, outputs=[output], request_id="mine")
    alone = gate(asking("a hut", 5, count=2))
    assert np.array_equal(found.as_numpy("image"), alone.images)
    assert found.get_response()["id"] == "mine"
    assert found.get_response()["parameters"]["seed"] == 5


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL, "1")
    about = client.get_model_metadata(MODEL)
    assert {"name": "prompt", "datatype": "BYTES", "shape": [1]} in about["inputs"]
    assert about["outputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert client.get_server_metadata()["name"] == "latentc"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("fields", "said"),
    [({"steps": 0}, "steps"), ({"width": 65}, "width"), ({"nothing": 1}, "There is no input 'nothing'")],
)
def test_a_wrong_input_is_named(client, fields, said, binary):
    with pytest.raises(InferenceServerException, match=said):
        client.infer(MODEL, tensors(binary, prompt="a hut", **{**FIELDS, **fields}))


@pytest.mark.parametrize(
    ("header", "body", "said"),
    [
        ("400", b'{"inputs":[]}', "Inference-Header|the body has"),
        ("-1", b"{}", "the body has"),
        ("0" * 5000, b"{}", "the body has"),
        (None, b"[]", "must be a JSON object"),
        (None, b"{}", "The inputs are missing"),
        (None, b'{"inputs":[3]}', "must be an object"),
        (None, b'{"inputs":[{"name":"prompt","data":["a","b"]}]}', "must have one element"),
        (None, b'{"inputs":[{"name":"seed","datatype":"INT64","parameters":{"binary_data_size":8}}]}', "beyond the"),
        (None, b'{"inputs":[{"name":"prompt","data":["a"]}],"outputs":[{"name":"other"}]}', "The only output"),
        (None, b'{"inputs":[{"name":"prompt","data":["a"]}],"outputs":["image"]}', "The only output"),
    ],
)
def test_damaged_bodies_are_refused(http, header, body, said):
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    found = http.post(f"/v2/models/{MODEL}/infer", content=body, headers=headers)
    assert found.status_code == 400
    assert any(part in found.json()["error"] for part in said.split("|"))


def test_json_of_many_numbers_is_refused_before_work(client, gate, monkeypatch):
    monkeypatch.setattr(kserve, "MOST_VALUES", 64 * 64 * 3 - 1)
    gate.batches.clear()
    as_json = [triton.InferRequestedOutput("image", binary_data=False)]
    with pytest.raises(InferenceServerException, match="12,288 numbers.* Ask for the output with binary_data"):
        client.infer(MODEL, tensors(True, prompt="a hut", **FIELDS), outputs=as_json)
    assert not gate.batches
