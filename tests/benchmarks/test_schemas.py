"""The schemas in the repository are those of the code."""

import json
import re

import pytest
from pydantic import BaseModel

from .schemas import KEPT, schema_of, schemas


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_the_schema_in_the_repository_is_that_of_the_code(path):
    kept = json.loads(path.read_text())
    assert kept == schemas()[path]
    for name, each in kept["$defs"].items():  # of the model itself, in whichever file
        file, _, place = each.get("$ref", "").partition("#/$defs/")
        found = json.loads(path.with_name(file).read_text())["$defs"][place] if file else each
        assert found == schema_of(KEPT[path])["$defs"][name]
        inside = re.findall(r"\"#/\$defs/(\w+)", json.dumps(found)) if file else ()
        assert all("$ref" in kept["$defs"][one] for one in inside), "what it refers to is in that file too"


def test_only_titles_are_left_out():
    class Book(BaseModel):
        title: str
        pages: list[int] | None

    string, pages = {"type": "string"}, {"type": ["array", "null"], "items": {"type": "integer"}}
    assert schema_of(Book) == {
        "properties": {"title": string, "pages": pages}, "required": ["title", "pages"], "type": "object",
    }  # fmt: skip
