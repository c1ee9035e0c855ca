"""The schemas that the commands print are those of the files that they write."""

import json

import pytest

from latentc.benchmarks.records import Measurement
from latentc.benchmarks.served_records import ServedMeasurement


@pytest.mark.parametrize(
    ("words", "model", "field"), [("bench", Measurement, "draws"), ("bench-serve", ServedMeasurement, "rounds")]
)
def test_the_schema_is_printed_without_a_bundle(command, words, model, field):
    code, out, _ = command(words, "--schema")
    found = json.loads(out)
    assert (code, found) == (0, model.model_json_schema(mode="serialization"))
    assert field in found["properties"]
