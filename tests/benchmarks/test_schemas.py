"""The schemas in the repository are those of the code."""

import json

import pytest

from .schemas import KEPT, schema_of


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_the_schema_in_the_repository_is_that_of_the_code(path):
    assert json.loads(path.read_text()) == schema_of(KEPT[path])


def test_only_titles_are_left_out():
    """A field may be called so."""
    (model,) = (one for path, one in KEPT.items() if path.name == "records.schema.json")
    whole = model.model_json_schema(mode="serialization")
    assert schema_of(model)["properties"].keys() == whole["properties"].keys()
    assert schema_of(model)["$defs"].keys() == whole["$defs"].keys()
    assert "title" in whole
    assert "title" not in schema_of(model)
