"""The base of everything that is read from or written to disk as JSON or TOML."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """A frozen value; an unknown key is an error, not a shrug."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def complaints(exc: ValidationError, model: type[BaseModel]) -> str:
    """Say what is wrong with a record in words: each key, what was found, and the near name if it is a slip."""
    return "; ".join(_complaint(error["loc"], error["type"], error["msg"], model) for error in exc.errors())


def _complaint(location: tuple[int | str, ...], kind: str, message: str, model: type[BaseModel]) -> str:
    where = ".".join(str(step) for step in location)
    if kind != "extra_forbidden":
        return f"{where}: {message[:1].lower()}{message[1:]}" if where else message
    known = _keys(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {where!r}: {hint}"


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for step in path:
        field = model.model_fields.get(str(step))
        if field is None:
            continue
        inner = [
            kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)
        ]
        model = next((kind for kind in inner if issubclass(kind, BaseModel)), model)
    return sorted(model.model_fields)


def suggest(name: str, known: list[str]) -> str:
    """End of an error about an unknown name: the near one, and the whole list."""
    near = difflib.get_close_matches(name, known, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(sorted(known))}."
