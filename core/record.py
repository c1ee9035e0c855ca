"""The base class of everything that is stored on disk as JSON or TOML."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

MOST = 5
"""Most problems listed for one file."""
LONGEST = 80


def in_a_line(exc: BaseException) -> str:
    """A library's error message as one line of limited length, because it may quote the input file."""
    words = " ".join(str(exc).split()) or type(exc).__name__
    return words if len(words) <= 5 * LONGEST else f"{words[: 5 * LONGEST]}..."


class Record(BaseModel):
    """A frozen value; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    other_names: ClassVar[Mapping[str, str]] = {}
    """Names of fields in other tools, in lower case without underscores, mapped to the name here, or to a hint if there
    is no such field. They take precedence over similar names: `guidance_scale` is `guidance`, not `guidance_rescale`.
    """


def unless(default: object) -> Callable[[object], bool]:
    """Leave a field out of the manifest if it has its default, so that digests of older bundles stay as they are."""
    return lambda value: value == default


def complaints(exc: ValidationError, model: type[BaseModel]) -> str:
    """Describe a validation error: each key, the value found, and a similar name for an unknown key."""
    errors = sorted(exc.errors(), key=lambda error: error["type"] != "extra_forbidden")  # typos explain the others
    wrong = [error["loc"] for error in errors]
    errors = [one for one in errors if one["type"] != "too_short" or not _is_explained(one["loc"], wrong)]
    more = [f"and {len(errors) - MOST} more"] if len(errors) > MOST else []
    return "; ".join([*(_complaint(error, model) for error in errors[:MOST]), *more])


def _is_explained(place: tuple[int | str, ...], wrong: Sequence[tuple[int | str, ...]]) -> bool:
    """Whether an element of a list is wrong, which also makes the validated list too short."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in wrong)


def shown(value: object) -> str:
    """A value from a file, formatted for an error message: in Python's notation, at most one line."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number with more than 40 digits"
    text = reprlib.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _complaint(error: ErrorDetails, model: type[BaseModel]) -> str:
    location, message, found = error["loc"], error["msg"], error["input"]
    where = ".".join(str(step)[:LONGEST] for step in location)
    if error["type"] != "extra_forbidden":
        message = f"{message[:1].lower()}{message[1:]}"
        if isinstance(found, int | float) and message.startswith("input should "):
            message = f"{shown(found)} {message.removeprefix('input ')}"
        return f"{where}: {message}" if where else error["msg"]
    holder = _holder(model, location[:-1])
    known = sorted(holder.model_fields)
    if meant := other_name(str(location[-1]), holder):
        hint = f"did you mean {meant!r}" if meant in known else meant
    else:
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}" if close else f"known keys: {', '.join(known)}"
    return f"unknown key {where!r}: {hint}"


def other_name(name: str, model: type[Record]) -> str | None:
    """The field that other tools call by this name, or a hint if there is no such field; None for an unknown name."""
    return model.other_names.get(name.replace("_", "").replace("-", "").lower())


def _holder(model: type[BaseModel], path: tuple[int | str, ...]) -> type[Record]:
    """The record class at this path."""
    for step in path:
        field = model.model_fields.get(str(step))
        if field is None:
            continue
        inner = [
            kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)
        ]
        model = next((kind for kind in inner if issubclass(kind, BaseModel)), model)
    return cast("type[Record]", model)


def suggest(name: str, known: list[str]) -> str:
    """The end of an error message about an unknown name: a similar name, and the complete list."""
    return f"{near(name, known)}Known: {', '.join(sorted(known))}."


def near(name: str, known: list[str]) -> str:
    """A "Did you mean" question with the most similar known name and a trailing space; empty if none is similar."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {found[0]!r}? " if found else ""
