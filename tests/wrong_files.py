"""What may be where a file should be, and what may be in it."""

import os

DEEP = 1_000_000


def _fifo(path):
    os.mkfifo(path)


def _loop(path):
    path.symlink_to(path)


def _sparse(path):
    with path.open("wb") as file:
        file.truncate(2 << 30)


PLACES = {
    "fifo": _fifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": _loop,
    "sparse": _sparse,
}
"""What may be where a file should be."""

JSON = {
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP,
    "twice": b'{"a": 1, "a": 2}',
    "surrogate": b'{"a": "\\ud800"}',
    "no UTF-8": b'{"a": "\xff"}',
    "a list": b"[1, 2]",
    "a text": b'"text"',
    "a number": b"5",
    "null": b"null",
    "NaN": b'{"a": NaN}',
    "too large a number": b'{"a": 1e999}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "nothing": b"",
    "cut": b'{"a": ',
}
"""JSON that no command takes for an object."""
