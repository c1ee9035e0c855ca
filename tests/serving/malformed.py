"""Malformed HTTP requests as bytes for a socket, drawn from a seed: the generators of `fuzz.py`."""

from __future__ import annotations

import ast
import base64
import json
import random
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import quote

from latentc import serving
from latentc.core.request import Request
from latentc.serving.kserve import INPUTS, LENGTH

from .values import HEADERS, HOSTS, JOB, METHODS, MODEL, ORIGINS, QUERIES, RAW_JSON, SEGMENTS, TYPES, VALUES, pictures


@dataclass(frozen=True)
class Case:
    """A request as its parts; `raw` is what goes over the socket."""

    method: str = "GET"
    path: str = "/"
    headers: tuple[str, ...] = ()
    body: bytes = b""
    host: str | None = None
    framing: tuple[str, ...] | None = None
    """Headers of the body's length; None for the right one."""
    version: str = "HTTP/1.1"
    whole: bytes | None = None
    """Instead of all that."""
    unfinished: bool = False
    """Whether the client sends nothing more although the server may wait for it."""
    leaves: bool = False
    """Whether the client resets the connection right after sending."""
    kind: str = ""

    def raw(self, host: str) -> bytes:
        """The bytes; `host` is the server's, for the header."""
        if self.whole is not None:
            return self.whole
        length = (f"Content-Length: {len(self.body)}",) if self.framing is None else self.framing
        named = self.host if self.host is not None else host
        lines = [f"{self.method} {self.path} {self.version}", f"Host: {named}", "Connection: close", *self.headers]
        return "\r\n".join([*lines, *length, "", ""]).encode("latin-1", "replace") + self.body


@cache
def words() -> tuple[str, ...]:
    """Every word in the source of the server and every field of a request: the names that any route may know."""
    found = {*Request.model_fields, *INPUTS}
    for path in sorted(Path(serving.__path__[0]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.value if isinstance(node, ast.Constant) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            if isinstance(name, str) and re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_-]{0,39}", name):
                found.add(name)
    return tuple(sorted(found))


def fields(chance: random.Random, path: str) -> dict[str, object]:
    """A body that the route might take, with some fields wrong."""
    found: dict[str, object] = {"prompt": "x", "steps": 1} if chance.random() < 0.8 else {}
    if "/v1/generation" in path:
        found = {"text_prompts": [{"text": "x", "weight": chance.choice(VALUES)}], "steps": 1}
    if "prompts/" in path and chance.random() < 0.9:
        return {"prompt": chance.choice(VALUES) if chance.random() < 0.5 else "x"}
    if "img2img" in path:
        found["init_images"] = [text_of(chance)]
    if "jobs" in path and chance.random() < 0.4:
        found["image"] = text_of(chance)
    if chance.random() < 0.2:
        found["control"] = chance.choice((text_of(chance), [text_of(chance) for _ in range(chance.randrange(3))]))
        found["style"] = text_of(chance)
    if "sdapi" in path and chance.random() < 0.3:
        unit = {"image": text_of(chance), chance.choice(words()): chance.choice(VALUES)}
        found["alwayson_scripts"] = {"controlnet": {"args": [chance.choice((unit, unit, *VALUES))]}}
    for _ in range(chance.randrange(4)):
        name = (
            chance.choice(words())
            if chance.random() < 0.9
            else chance.choice([v for v in VALUES if isinstance(v, str)])
        )
        found[name] = chance.choice((*VALUES, text_of(chance)))
    return found


def text_of(chance: random.Random) -> str:
    """A picture in base64, which may be damaged."""
    text = base64.b64encode(chance.choice(pictures())).decode()
    return chance.choice(
        (text, text, f"data:image/png;base64,{text}", text[:-3], f"{text}!", f" {text}", "data:,x", "=")
    )


def json_body(chance: random.Random, path: str) -> bytes:
    """A body of JSON, mostly with wrong values."""
    if "/v2/" in path and chance.random() < 0.8:
        return json.dumps(tensors(chance)[0]).encode()
    text = json.dumps(fields(chance, path)).encode()
    kind = chance.randrange(8)
    if kind == 0:
        return text[: chance.randrange(len(text) + 1)]
    if kind == 1:
        return chance.choice(RAW_JSON)
    return chance.randbytes(chance.randrange(60)) if kind == 2 else text


def tensors(chance: random.Random) -> tuple[dict[str, object], bytes]:
    """An inference of KServe's protocol, and binary data."""
    listed: list[object] = []
    data = b""
    for name in ("prompt", *chance.sample(sorted(INPUTS), chance.randrange(3))):
        value = chance.choice(
            (
                b"\1\0\0\0x",
                b"\xff\xff\xff\xff",
                b"",
                chance.randbytes(8),
                b"\2\0\0\0\xff\xfe",
                struct.pack("<d", float("nan")),
            )
        )
        size = chance.choice((len(value), len(value), len(value) + 1, -1, 2**70, "8", None, True, 1.0))
        kind = chance.choice((INPUTS[name], "BYTES", "FP64", "INT8", "FP16", "", None, [], "x" * 999))
        one: dict[str, object] = {
            "name": name,
            "datatype": kind,
            "shape": chance.choice(([1], [1, 1], [], [-1], "x", None)),
        }
        if chance.random() < 0.7:
            one["parameters"] = chance.choice(({"binary_data_size": size}, [], None, {"binary_data_size": {}}))
            data += value
        else:
            one["data"] = chance.choice(
                (["x"], [1], [[1]], [], [1, 2], "x", [float("nan")], [None], [10**30], [[[[]]]])
            )
        listed.append(chance.choice((one, one, one, one, None, [])))
    outputs = chance.choice(
        ([], [{"name": "image", "parameters": {"binary_data": True}}], [{}], ["image"], [None], "x")
    )
    return {
        "inputs": chance.choice((listed, listed, listed, {}, None, [])),
        "outputs": outputs,
        "id": chance.choice(VALUES),
    }, data


def form(chance: random.Random, path: str) -> tuple[str, bytes]:
    """The type and the bytes of a multipart form with something wrong."""
    parts: list[bytes] = []
    for name, value in fields(chance, path).items():
        head = f'Content-Disposition: form-data; name="{name}"'
        if name.startswith("data") or chance.random() < 0.2:
            head += chance.choice(
                ('; filename="a.png"', '; filename="../../x"', '; filename="', "; filename*=UTF-8''%ff")
            )
        parts.append(f"{head}\r\n\r\n{value}".encode("utf-8", "replace"))
    for name in chance.sample(
        ("image", "image[]", "mask", "init_image", "mask_image", "control[]", "style"), chance.randrange(3)
    ):
        head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        parts.append(head.encode() + chance.choice(pictures()))
    kind = chance.randrange(9)
    if kind == 0:
        parts *= 2000
    elif kind == 1:
        parts.append(b"X-Long: " + b"a" * chance.choice((9000, 200_000)) + b"\r\n\r\nx")
    elif kind == 2:
        parts.append(
            chance.choice((b"", b"\r\n\r\n", b"Content-Disposition: form-data\r\n\r\nx", b"no colon\r\n\r\nx"))
        )
    elif kind == 3:
        parts.append(b'Content-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * 1_100_000)
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    if kind == 4:
        body = body[: chance.randrange(len(body))]
    boundary = chance.choice(("", "; boundary=c", '; boundary="b', "; boundary=\xff")) if kind == 5 else "; boundary=b"
    return f"multipart/form-data{boundary}", body


def framed(chance: random.Random, case: Case) -> Case:
    """A request whose body has a wrong length, or ends before it should."""
    body = case.body or b'{"prompt": "x", "steps": 1}'
    lengths = (
        *(
            "-1",
            "+5",
            "5, 6",
            "x",
            "",
            "9" * 30,
            str(len(body) + 9),
            str(max(0, len(body) - 3)),
            "0x10",
            "\xb2",
            str(40 << 20),
        ),
        "1_0",
    )
    chunks = (
        *(
            b"zz\r\nx\r\n0\r\n\r\n",
            b"5\r\nab\r\n0\r\n\r\n",
            b"ffffffffffffffffff\r\nx",
            b"-1\r\n\r\n",
            b"5;x=" + b"y" * 70_000,
        ),
        *(b"1\r\n{\r\n" * 3000 + b"0\r\n\r\n", b"0\r\nX-Injected: 1\r\n\r\n", b"3\r\nabc\r\n", b"3\nabc\n0\n\n"),
        *(
            f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
            f"{len(body):X};a=b\r\n".encode() + body + b"\r\n0\r\n\r\n",
        ),
    )
    if chance.random() < 0.5:
        return replace(
            case,
            framing=(
                "Transfer-Encoding: " + chance.choice(("chunked", "chunked", "chunked", "gzip, chunked", "x")),
                *chance.choice(((), (), ("Content-Length: 5",))),
            ),
            body=chance.choice(chunks),
        )
    named = tuple(f"Content-Length: {chance.choice(lengths)}" for _ in range(chance.choice((1, 1, 1, 2))))
    return replace(case, framing=chance.choice((named, named, ())), body=body)


def broken(chance: random.Random) -> Case:
    """Bytes that are no HTTP."""
    target = chance.choice(
        ("*", "http://evil.example/v1/models", "//evil.example/v1/models", "/ x", "x", "", "/" * 3000, "?a")
    )
    lines = (
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode(),
        *(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /livez\r\n\r\n",
            b"GET /livez HTTP/9.9\r\nHost: a\r\n\r\n",
            b"\r\n\r\n\r\n",
        ),
        *(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            b"\0" * 5000,
            b"GET " + b"/" * 100_000,
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        ),
        *(
            b"GET /livez HTTP/1.1\r\n\r\n",
            b"GET /livez HTTP/1.0\r\n\r\n",
            chance.randbytes(300),
            b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        ),
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20 + b"x",
    )
    return Case(whole=chance.choice(lines), kind="broken", unfinished=True)


def case_of(seed: int, number: int, routes: Sequence[tuple[str, str]]) -> Case:
    """The request of a number; `routes` are methods and paths of the application, as in its table."""
    chance = random.Random(f"{seed} {number}")
    posts = [one for one in routes if one[0] != "GET"]
    method, template = routes[number // 4 % len(routes)] if number % 4 == 0 else chance.choice(posts)
    path = re.sub(r"\{[^}]*\}", lambda _: chance.choice(SEGMENTS) if chance.random() < 0.6 else MODEL, template)
    if "infer" not in template and "{" in template and chance.random() < 0.3:
        path = re.sub(r"\{[^}]*\}", JOB, template)
    if "history/{" in template and chance.random() < 0.5:
        path = re.sub(r"\{[^}]*\}", str(chance.randrange(5)), template)
    case = Case(method, quote(path, safe="/%{} ';$:*-"), kind="plain")
    headers: list[str] = []
    if method in ("POST", "PUT", "PATCH"):
        if "/v2/" in path and chance.random() < 0.7:
            header, data = tensors(chance)
            text = json.dumps(header).encode()
            length = chance.choice((len(text), len(text), len(text), len(text) + 1, -1, "x", 10**30, "²", ""))
            case, headers = replace(case, body=text + data, kind="tensors"), [f"{LENGTH}: {length}"]
        elif any(word in path for word in ("edits", "image-to-image", "v2beta")) or chance.random() < 0.1:
            kind, body = form(chance, path)
            case, headers = replace(case, body=body, kind="form"), [f"Content-Type: {kind}"]
        elif chance.random() < 0.1 or path == "/v1/read":
            case = replace(case, body=chance.choice(pictures()), kind="picture")
        else:
            case, headers = replace(case, body=json_body(chance, path), kind="json"), ["Content-Type: application/json"]
    twist = chance.randrange(20)
    if twist == 0:
        headers = [f"Content-Type: {chance.choice(TYPES)}"]
    elif twist == 1:
        headers += [chance.choice(HEADERS)]
    elif twist == 2:
        case = replace(case, host=chance.choice(HOSTS), kind="host")
    elif twist == 3:
        headers += [f"Origin: {chance.choice(ORIGINS)}"]
    elif twist == 4:
        case = replace(case, method=chance.choice(METHODS), kind="method")
    elif twist == 5:
        case = replace(case, path=case.path + chance.choice(QUERIES), kind="query")
    elif twist in (6, 7):
        case = replace(framed(chance, case), kind="framing", unfinished=True)
    elif twist == 8:
        case = broken(chance)
    elif twist == 9:
        case = replace(case, leaves=True, kind="leaves")
    elif twist == 10:
        slashes = (
            "/../../../etc/passwd",
            "/web/../../../../etc/passwd",
            "/web/%2e%2e/app.py",
            "/files/..%2f..%2fx/0.png",
            "//",
            "/web//etc/passwd",
        )
        case = replace(case, path=chance.choice(slashes), kind="traversal")
    return replace(case, headers=tuple(headers))
