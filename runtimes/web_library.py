"""onnxruntime-web, from npm: its pinned version, and the files of it that a page needs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import BundleError, RuntimeMissing
from ..core.progress import Progress
from ..core.record import in_a_line

NAME, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Digest of the package's archive, as npm's registry and lock files have it."""

PLACE = "LATENTC_ONNXRUNTIME_WEB"
"""Environment variable with the folder or archive of the npm package, if it is not in `web` of Python's environment."""

FOLDER = "ort"
"""Folder of these files in a page."""
SECONDS = 900.0
"""Limit for npm, which downloads about 30 MB."""

FILES: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""Files in `dist/` of the package, and their SHA-256."""

BACKENDS: Mapping[str, tuple[str, str, str]] = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""For WebAssembly on the CPU, and for WebGPU: the module, the module that starts WebAssembly, and that."""


def installed() -> Path | None:
    """The npm package's folder or archive on this machine; None where it is not there."""
    named = os.environ.get(PLACE)
    found = Path(named) if named else _place() / f"{NAME}-{VERSION}.tgz"
    return found if found.exists() else None


def why_not_installed() -> str | None:
    """How to install the library where it is not there; None where it is."""
    if installed() is not None:
        return None
    if named := os.environ.get(PLACE):
        return f"{PLACE} names {named}, which does not exist. {_advice()}"
    place = shlex.quote(str(_place()))
    return (
        f"{NAME} {VERSION} is not installed. Install it with: mkdir -p {place} && npm pack {NAME}@{VERSION} "
        f"--pack-destination {place}."
    )


def _place() -> Path:
    return Path(sys.prefix) / "web"


def library_files(source: Path | None, on_progress: Progress) -> dict[str, bytes]:
    """The contents of `FILES` by name, compared with their digests.

    `source` is the folder of the npm package, or its archive; None is the installed one, or else downloads it with npm.
    Raises `BundleError` for another version, and `RuntimeMissing` without npm.
    """
    if source is None:
        source = installed()
    if source is None:
        on_progress(f"{NAME} {VERSION}: download", None)
        archive = _downloaded()
        found = _unpacked(archive, "npm's archive")
    elif source.is_file():
        found = _unpacked(source.read_bytes(), str(source))
    else:
        place = source / "dist"
        if not place.is_dir():
            raise BundleError(f"{source} is not the npm package {NAME}: it has no folder dist. {_advice()}")
        found = {name: (place / name).read_bytes() for name in FILES if (place / name).is_file()}
    for name, digest in FILES.items():
        if name not in found:
            raise BundleError(f"{source or NAME} has no file dist/{name}, as {NAME} {VERSION} has. {_advice()}")
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise BundleError(f"{name} of {source or NAME} is not that of {NAME} {VERSION}. {_advice()}")
    return found


def _advice() -> str:
    return f"Run `npm pack {NAME}@{VERSION}`, and set {PLACE}, or --onnxruntime-web of `package`, to what it writes."


def _unpacked(archive: bytes, where: str) -> dict[str, bytes]:
    """The files of an archive whose digest is `INTEGRITY`."""
    if f"sha512-{b64encode(hashlib.sha512(archive).digest()).decode()}" != INTEGRITY:
        raise BundleError(f"{where} is not the archive of {NAME} {VERSION}: its digest differs. {_advice()}")
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        for name in FILES:
            if (file := packed.extractfile(f"package/dist/{name}")) is not None:
                found[name] = file.read()
    return found


def _downloaded() -> bytes:
    """The archive, from the registry that npm is configured for."""
    if (npm := shutil.which("npm")) is None:
        raise RuntimeMissing(
            f"{NAME} is downloaded with npm, which is not installed. Install Node.js, or pass the npm package with "
            "--onnxruntime-web."
        )
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", f"{NAME}@{VERSION}", "--json", "--ignore-scripts", "--pack-destination", place]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS, cwd=place)
            return (Path(place) / json.loads(done.stdout)[0]["filename"]).read_bytes()
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as exc:
            said = (getattr(exc, "stderr", None) or str(exc)).strip()
            raise RuntimeMissing(
                f"npm cannot download {NAME} {VERSION} ({in_a_line(Exception(said))}). Check its registry, or pass "
                "the npm package with --onnxruntime-web."
            ) from exc
