"""The schemas in the repository are those of the code."""

import json

import pytest
from pydantic import BaseModel

from .schemas import KEPT, schema_of


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_the_schema_in_the_repository_is_that_of_the_code(path):
    assert json.loads(path.read_text()) == schema_of(KEPT[path])


def test_only_titles_are_left_out():
    class Book(BaseModel):
        title: str
        pages: list[int]

    string, pages = {"type": "string"}, {"type": "array", "items": {"type": "integer"}}
    assert schema_of(Book) == {
        "properties": {"title": string, "pages": pages}, "required": ["title", "pages"], "type": "object",
    }  # fmt: skip
