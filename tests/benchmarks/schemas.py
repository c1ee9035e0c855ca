"""The JSON schemas of result files: `python -m tests.benchmarks.schemas` writes them, and tests compare them."""

import json
from pathlib import Path

from latentc.benchmarks import records, served_records

KEPT = {
    Path(records.__file__).with_name("records.schema.json"): records.Measurement,
    Path(served_records.__file__).with_name("served.schema.json"): served_records.ServedMeasurement,
}


def schema_of(model) -> dict:
    """A model's schema without titles, which repeat the names of fields."""
    return _untitled(model.model_json_schema(mode="serialization"))


def schemas() -> dict[Path, dict]:
    """The schema of each file. What an earlier file defines too is a reference to that file, in the same folder."""
    made: dict[Path, dict] = {}
    for path, model in KEPT.items():
        made[path] = schema = schema_of(model)
        for before in list(made)[:-1]:
            for name, known in made[before]["$defs"].items():
                if schema["$defs"].get(name) == known:
                    schema["$defs"][name] = {"$ref": f"{before.name}#/$defs/{name}"}
    return made


def _untitled(given):
    if isinstance(given, list):
        return [_untitled(one) for one in given]
    if isinstance(given, dict):
        return {key: _untitled(one) for key, one in given.items() if key != "title" or not isinstance(one, str)}
    return given


if __name__ == "__main__":
    for path, schema in schemas().items():
        path.write_text(json.dumps(schema, separators=(",", ":")) + "\n", encoding="utf-8", newline="\n")
