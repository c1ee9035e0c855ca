"""Values, headers and picture files that servers stumble over."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

MODEL = "tiny"
JOB = "{an old job}"
"""Stands in a path for the id of a job that the server knows."""
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PATCH", "get", "BREW", "G\0T", "")
VALUES = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53 + 1, -(2**63), 10**30, 1e308, -0.5, 1e-320, "", "x", "auto", "null"),
    *("64x64", "0x0", "99999x99999", "-1x5", "\0", "\ud7ff", "\u202e\u2028\x1b[2J", "é" * 100, "../../etc/passwd"),
    *("data:image/png;base64,AAAA", "http://127.0.0.1:1/x.png", "file:///etc/passwd", "<script>", "9" * 5000, "NaN"),
    *("(" * 3000, "((a:1e999), [b|c:d:e]", "<lora:x:nan>", "a AND b :-1", "A" * 40_000, "\r\nx-injected: 1"),
    *([], [1, 2], ["x"] * 100, [[]], {}, {"a": {"b": [None]}}, {"\n": "\r\n"}, {"none": 1.0}, [[[[[]]]]]),
)
RAW_JSON = (
    *(b"", b"null", b"[]", b"5", b'"text"', b"{", b'{"prompt": NaN}', b'{"prompt": "x", "seed": Infinity}'),
    *(b"[" * 100_000, b'{"a":' * 5000, b'{"prompt": 1, "prompt": 2}', b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}'),
    *(b'{"prompt": "x", "seed": 1e999}', b'{"seed": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b"\x00" * 100),
    *('{"prompt": "x"}'.encode("utf-16"), b'{"prompt": "x",}', b"{'prompt': 'x'}", b'{"prompt": "x"} {"prompt": "y"}'),
    *(b'{"\\u0000": 1}', b'{"a": [' + b"1," * 90_000 + b"1]}", b'{"a": [' + b"1," * 300_000 + b"1]}"),
)
TYPES = (
    *("application/json", "Application/JSON ; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", ""),
    *("application/json; charset=utf-16", "multipart/form-data", "multipart/form-data; boundary=", "x" * 3000, "\xff"),
    *('multipart/form-data; boundary="', "multipart/form-data; boundary=" + "b" * 500, "application/octet-stream"),
)
HEADERS = (
    *("X-Request-Id: \t\x7f", "X-Request-Id: a\tb", "X-Request-Id: " + "a" * 200, "Authorization: Basic ====="),
    *("Authorization: Bearer " + "x" * 5000, "Authorization: \xff\xfe", "Accept: image/png", "Accept: " + "," * 5000),
    *("Content-Encoding: gzip", "Expect: 100-continue", "Upgrade: websocket\r\nConnection: Upgrade", "Range: bytes=0-"),
    *("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Host: evil.example", "X-HTTP-Method-Override: DELETE", "Te: trailers"),
    *("Connection: close, host", "X-A: b\r\n c", "X-A: b\nX-Injected: 1", ": no name", "No colon", "X A: b"),
    *("X-\xe9: b", "X-Long: " + "a" * 70_000, "\r\n".join(f"X-{index}: a" for index in range(3000))),
    *("Cookie: " + "a=b; " * 2000, "If-None-Match: *", "If-None-Match: " + "W/" * 3000, "Last-Event-ID: -1"),
    "Accept-Encoding: gzip, br, " + "x" * 999,
)
HOSTS = (
    *("evil.example", "127.0.0.1.evil.example", "[", "[::1", "[::1]:99999", "localhost:", ":80", "", "a" * 300, "\xff"),
    *("user@localhost", "localhost/..", "LOCALHOST", "127.0.0.1 ", "127.0.0.1\tx", "0x7f000001", "127.0.0.1:-1"),
)
ORIGINS = (
    *("http://evil.example", "null", "http://[", "http://", "file://", "http://127.0.0.1", "x" * 3000, "http://\xff"),
)
SEGMENTS = (
    *("none", MODEL, JOB, "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cwin.ini", "%00", "%0d%0aX-Injected:%201"),
    *("%ff%fe", "..", "%252e%252e", "a" * 3000, "%e2%80%ae", "1.png", "0.png", "-1.png", "0.png%00", "app.js", "%2e"),
    *("%", "%zz", "0.jpeg", "999999999999.png", "٣.png", "'; DROP TABLE x;--", "${jndi:ldap://x}", "{{7*7}}"),
)
QUERIES = (
    *("", "?", "?a", "?previews=maybe", "?skip_current_image=2", "?id_task=" + "x" * 5000, "?id_task=%00", "?%ff=%ff"),
)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 64), **options: object) -> bytes:
    """A picture file of noise."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], bands), np.uint8)
    image = Image.fromarray(noise if bands > 1 else noise[..., 0], mode if mode in ("RGBA", "CMYK", "LA") else None)
    buffer = BytesIO()
    image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def hollow(width: int, height: int, data: bytes = b"\0", depth: int = 8) -> bytes:
    """A PNG that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@cache
def pictures() -> tuple[bytes, ...]:
    """Pictures that servers stumble over."""
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 90, 180)]
    moving: list[bytes] = []
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        buffer = BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        moving.append(buffer.getvalue())
    texts: list[bytes] = []
    for name, text in (("parameters", "x\nSteps: 1e99, Seed: NaN, Size: 0x0"), ("latentc", '{"schema_version": []}')):
        for more in (text, "{" * 5000, "\0" * 50, "é" * 50_000):
            info, buffer = PngInfo(), BytesIO()
            info.add_itxt(name, more, zip=True)
            Image.new("RGB", (64, 64)).save(buffer, "PNG", pnginfo=info)
            texts.append(buffer.getvalue())
    deep = BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(deep, "PNG")
    plain, photo = encoded("PNG"), encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    texted = plain[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 3_000_000))
    modes = (encoded("PNG", mode) for mode in ("LA", "1", "P", "RGBA"))
    return (
        *(plain, photo, plain[:200], photo[:300], plain[:40], b"", b"x", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"),
        *(b"BM", hollow(1, 1), hollow(65535, 65535), hollow(2**31 - 1, 2**31 - 1), hollow(0, 0)),
        *(hollow(64, 64, b"\0" * 9), hollow(8000, 8000, b"\0" * 1_000_000), hollow(64, 64, depth=3)),
        *(hollow(1, 60_000), hollow(60_000, 1), encoded("JPEG", "CMYK"), *modes),
        *(encoded("BMP"), encoded("ICO"), encoded("TIFF", "F")),
        *(encoded("PNG", size=(3, 5)), encoded("PNG", size=(1, 64)), deep.getvalue(), *moving, *texts, texted),
        *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a" + b"\xff" * 50),
        *(b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"%PDF-1"),
        b"".join(bytes([plain[index] ^ (index % 97 == 0)]) for index in range(len(plain))),
    )
