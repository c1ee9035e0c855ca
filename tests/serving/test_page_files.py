"""What the page consists of and asks for, without a browser."""

import numpy as np
import pytest

from latentc.pipelines.save import save
from latentc.serving.page import FOLDER, TYPES

from .conftest import asking

MOST_BYTES = 70_000


def test_every_file_is_served_with_its_type_and_a_policy(http):
    for path in FOLDER.iterdir():
        answer = http.get("/" if path.name == "index.html" else f"/web/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"] == TYPES[path.suffix]
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        again = http.get(f"/web/{path.name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("none.js", "..%2fpage.py", "%2e%2e/page.py"):
        assert http.get(f"/web/{name}").status_code == 404
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_the_request_inside_a_file_is_read(http, gate, tmp_path, suffix):
    (path,) = save(gate(asking("a boat", 2**62 + 1, count=1)), tmp_path / f"a{suffix}")
    content = path.read_bytes()
    found = http.post("/v1/read", content=content).json()
    assert found["request"]["prompt"] == "a boat"
    assert found["request"]["seed"] == str(2**62 + 1), "a text: JavaScript rounds it"
    assert found["text"].startswith("a boat\nSteps: 4")
    assert found["drawing"]["engines"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        noisy = bytearray(content)
        for place in rng.integers(0, min(2500, len(content)), 4):
            noisy[place] = rng.integers(256)
        answer = http.post("/v1/read", content=bytes(noisy))
        assert answer.status_code in (200, 400), answer.text


def test_a_file_without_a_request_is_refused(http):
    for content in (b"", b"x", b"\x89PNG\r\n\x1a\n"):
        answer = http.post("/v1/read", content=content)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("The file is")
