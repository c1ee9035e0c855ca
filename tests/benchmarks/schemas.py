"""The JSON schemas of result files: `python -m tests.benchmarks.schemas` writes them, and tests compare them."""

import json
from pathlib import Path

from latentc.benchmarks import records, served_records

KEPT = {
    Path(records.__file__).with_name("records.schema.json"): records.Measurement,
    Path(served_records.__file__).with_name("served.schema.json"): served_records.ServedMeasurement,
}


def schema_of(model) -> dict:
    """A model's schema without titles, which repeat the names of fields; `null` is one of several types."""
    return _shortened(model.model_json_schema(mode="serialization"))


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


def _shortened(given):
    if isinstance(given, list):
        return [_shortened(one) for one in given]
    if not isinstance(given, dict):
        return given
    made = {key: _shortened(one) for key, one in given.items() if key != "title" or not isinstance(one, str)}
    match made.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}] if not {"const", "enum"} & rest.keys():
            del made["anyOf"]
            made |= {**rest, "type": [kind, "null"]}
    return made


if __name__ == "__main__":
    for path, schema in schemas().items():
        path.write_text(json.dumps(schema, separators=(",", ":")) + "\n", encoding="utf-8", newline="\n")
