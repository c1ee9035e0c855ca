"""A folder that generates images in a browser: the bundle's graphs unmodified, onnxruntime-web, and a page.

index.html, *.js, style.css        the page, of plain modules; `sw.js` keeps it for visits without a network
ort/*.js                           onnxruntime-web; servers such as nginx have no type for its own names, *.mjs
model.json                         what the page knows about the model, and the pieces of every large file
data/*.bin                         these pieces: graphs, weights, tokenizer, WebAssembly, the reference image
serve.py, WEB.md                   a server for the folder, and what is in it
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, check_whole, checked_graph, open_bundle, verify_files
from ..core.engine import Run
from ..core.errors import BundleError, RuntimeMissing
from ..core.files import fresh_folder, sha256, sha256_json, write_text
from ..core.manifest import WEIGHTS
from ..core.progress import Progress, quiet
from ..core.recipes import RECIPES
from ..core.request import Request, Step
from ..core.tensors import Array
from ..core.units import sized
from ..core.version import __version__
from ..export.genai import plain_parts
from ..export.sessions import CpuSession
from ..pipelines.png import origin
from ..runtimes import runtime
from ..runtimes.chromium import PAGES
from ..runtimes.web_library import BACKENDS, FOLDER, VERSION, library_files
from ..sampling.draw import draw
from ..sampling.host import SCHEDULER, latent_shape, load_host
from ..sampling.noise import added_noise, initial_noise
from .folder import bytes_in
from .web_parts import INSTEAD, preset_data, scheduler_data, tokenizer_data

PAGE = Path(__file__).parent / "web"
SERVED = Path(__file__).parent.parent / "serving" / "web"
SHARED = ((SERVED, ("dom.js", "style.css", "icon.svg")), (PAGES, ("sessions.js",)))
"""Files that are used here too: of the server's page, and of the runtime adapter."""

MANIFEST, WORKER = "model.json", "sw.js"
SMALL = (".html", ".js", ".css", ".svg")
"""Suffixes of the files that the service worker keeps."""

PIECE_BYTES = 16 << 20
"""Size of a piece: several static hosts take files of up to 25 MB."""
MOST_BYTES = (1 << 31) - 1
"""Largest file that a browser holds in one array."""

ROLES = ("text_encoder", "denoiser", "decoder")
STEPS, SEED, PROMPT = 8, 1, "a lighthouse at sunset"
"""Of the reference image."""
FLOOR_DB = RECIPES["f32"].gate.psnr_db

SERVE = '''"""Serve this folder to browsers on this machine: python serve.py [PORT]"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Adds the headers with which browsers allow threads."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=Path(__file__).parent))
print(f"http://localhost:{server.server_port}/", flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    pass
'''

ABOUT = """# {title}, for browsers

    python serve.py            # then open http://localhost:8080/

Any static server works. With the headers `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy:
require-corp`, WebAssembly uses threads; without them, the page computes in one thread at the first visit, and its
service worker adds them at the next. Other machines than this one need https. The page fetches nothing from elsewhere;
after the first visit it works without a network.

It was packaged by latentc {version} with onnxruntime-web {library}. A first visit loads {loads}. {proof}

The licence of the model is unchanged; its model card and licence files, if it has them, are beside this file.
onnxruntime-web has the MIT licence.
"""


@dataclass(frozen=True)
class WebPage:
    """A page that was written."""

    folder: Path
    bytes: int
    first_visit_bytes: Mapping[str, int]
    """What a browser loads at its first visit, by backend."""
    onnxruntime_web: str
    schedulers: tuple[str, ...]
    parts: tuple[str, ...]


def web_page(
    bundle: Bundle | Path | str,
    folder: Path | str,
    on_progress: Progress = quiet,
    *,
    onnxruntime_web: Path | None = None,
) -> WebPage:
    """Write a page that generates images with a bundle's graphs in a browser, and an image to compare with.

    `onnxruntime_web` is the npm package's folder or archive; None downloads it with npm. The bundle needs no engines.
    Raises `BundleError` for a model that the page can't run, for a package, and for another version of the library;
    `RuntimeMissing` without ONNX Runtime, which computes the reference image, or without npm.
    """
    bundle, folder = open_bundle(bundle), Path(folder).absolute()
    check_whole(bundle, "it cannot be packaged again")
    parts: dict[str, str] = dict(zip(ROLES, plain_parts(bundle, "browsers"), strict=True))
    if bundle.manifest.model.latents_mean is not None:
        raise BundleError(f"{bundle.folder} cannot be packaged for browsers: its latents have a mean. {INSTEAD}")
    tokenizer, schedulers = tokenizer_data(bundle), scheduler_data(bundle.json(SCHEDULER))
    files = {role: _files(bundle, part) for role, part in parts.items()}
    if reason := runtime("onnxruntime").missing("CPU"):
        raise RuntimeMissing(f"The reference image of a page is computed by ONNX Runtime. {reason}")
    library = library_files(onnxruntime_web, on_progress)
    with fresh_folder(folder, BundleError) as fresh:
        verify_files(bundle, [name for names in files.values() for name in names])
        large = _Large(fresh / "data")
        for name in sorted(name for names in files.values() for name in names):
            on_progress(f"{name}: copy", None)
            large.copy(name, bundle.folder / name)
        large.add("tokenizer.json", json.dumps(tokenizer, ensure_ascii=False).encode())
        _copy_page(fresh, library, large)
        manifest = _manifest(bundle, parts, files, schedulers)
        manifest["check"] = _reference(bundle, schedulers["scheduler"], large, on_progress)
        manifest["files"] = large.files
        _seal(fresh, manifest)
        for name in bundle.manifest.files:
            if "/" not in name and name != "model_index.json":
                shutil.copyfile(bundle.folder / name, fresh / name)
        loads = {name: _first_visit(fresh, manifest, name) for name in BACKENDS}
        listed = f"{sized(loads['wasm'])} with WebAssembly, {sized(loads['webgpu'])} with WebGPU"
        about = {"title": manifest["title"], "version": __version__, "library": VERSION, "proof": manifest["proof"]}
        write_text(fresh / "serve.py", SERVE)
        write_text(fresh / "WEB.md", ABOUT.format(**about, loads=listed))
    return WebPage(folder, bytes_in(folder), loads, VERSION, tuple(schedulers["schedulers"]), tuple(parts.values()))


class _Large:
    """The large files of a page, in pieces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        """What `web/files.js` reads, by name."""
        folder.mkdir()

    def add(self, name: str, content: bytes) -> None:
        """Write a file, compressed."""
        whole = gzip.compress(content, 9, mtime=0)
        self._write(name, (whole[at : at + PIECE_BYTES] for at in range(0, len(whole), PIECE_BYTES)), packed=True)

    def copy(self, name: str, source: Path) -> None:
        """Write a file: weights as they are, since compression saves less than a tenth."""
        if not WEIGHTS.fullmatch(name):
            self.add(name, source.read_bytes())
            return
        with source.open("rb") as file:
            self._write(name, iter(lambda: file.read(PIECE_BYTES), b""), packed=False)

    def _write(self, name: str, pieces: Iterator[bytes], *, packed: bool) -> None:
        listed: list[dict[str, Any]] = []
        for index, piece in enumerate(pieces):
            path = self.folder / f"{name.replace('/', '-')}.{index}.bin"
            path.write_bytes(piece)
            digest = hashlib.sha256(piece).hexdigest()
            listed.append({"path": f"{self.folder.name}/{path.name}", "bytes": len(piece), "sha256": digest})
        self.files[name] = {"gzip": packed, "pieces": listed}


def _copy_page(folder: Path, library: Mapping[str, bytes], large: _Large) -> None:
    """Write the page's own files, and onnxruntime-web's."""
    for place, names in ((PAGE, sorted(path.name for path in PAGE.iterdir())), *SHARED):
        for name in names:
            shutil.copyfile(place / name, folder / name)
    (folder / FOLDER).mkdir()
    for name, content in library.items():
        if name.endswith(".wasm"):
            large.add(f"{FOLDER}/{name}", content)
        else:
            (folder / _script(name)).write_bytes(content)


def _script(name: str) -> str:
    """The place of one of onnxruntime-web's modules."""
    return f"{FOLDER}/{name.removesuffix('.mjs')}.js"


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `model.json`, and into `sw.js` the name that all files give this page and the list of the small ones."""
    small = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in SMALL)
    digests = {name: sha256(folder / name) for name in small}
    manifest["name"] = sha256_json([manifest, digests])[:16]
    write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False))
    kept = json.dumps(["./", MANIFEST, *(name for name in small if name != WORKER)])
    script = (folder / WORKER).read_text(encoding="utf-8")
    write_text(folder / WORKER, script.replace("@name@", manifest["name"]).replace('["@shell@"]', kept))


def _files(bundle: Bundle, part: str) -> tuple[str, ...]:
    """The graph of a part and its weights; raises `BundleError` for one that is too large."""
    graph = bundle.part(part).path
    files = bundle.files(part)
    weights = [name for name in files if name.startswith(f"{graph}_") and WEIGHTS.fullmatch(name)]
    for name in weights:
        if files[name].bytes > MOST_BYTES:
            raise BundleError(
                f"{name} has {sized(files[name].bytes)}, but browsers hold 2 GB in one array. Export the checkpoint "
                "with f16 weights (--variant fp16), or use --for dir."
            )
    return (graph, *weights)


def _manifest(
    bundle: Bundle, parts: Mapping[str, str], files: Mapping[str, tuple[str, ...]], schedulers: dict[str, Any]
) -> dict[str, Any]:
    """`model.json` without its files."""
    model, standing = bundle.manifest.model, bundle.standing
    width, height = model.own_size
    prompt = next(wire.input for wire in model.wires if wire.source != "step.latents")
    listed = {
        role: {
            "files": names,
            "external": [Path(name).name for name in names[1:]],
            "output": (*model.read_of(parts[role]), bundle.part(parts[role]).outputs[0].name)[0],
        }
        for role, names in files.items()
    }
    least = min(bundle.part(part).psnr_db for part in parts.values())
    agreed = f"{standing.when.capitalize()}, each graph agreed with {standing.reference} to {least:.0f} dB or more."
    return {
        "title": origin(bundle).model,
        "onnxruntime_web": VERSION,
        "backends": {
            name: {"module": _script(module), "glue": _script(glue), "wasm": f"{FOLDER}/{wasm}"}
            for name, (module, glue, wasm) in BACKENDS.items()
        },
        "proof": f"{standing.statement or agreed} What a browser computes with it is not proved: the page "
        "compares one image with that of ONNX Runtime on a CPU, on request.",
        "parts": listed,
        "model": {
            **schedulers,
            "latent_channels": model.latent_channels,
            "downscale": model.downscale,
            "multiple": model.downscale * model.patch,
            "scaling_factor": model.scaling_factor,
            "shift_factor": model.shift_factor,
            "preview": model.preview,
            "inputs": {"latents": model.latents_input, "prompt": prompt},
        },
        "presets": preset_data(schedulers),
        "defaults": {"width": width, "height": height, "steps": 20, "guidance": 7.5},
        "origin": {"bundle": origin(bundle).bundle, "versions": dict(origin(bundle).versions)},
    }


class _Graph:
    """A session as an engine."""

    def __init__(self, session: CpuSession) -> None:
        self.run = session.answer

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        return lambda given: self.run({**feeds, **given})

    def close(self) -> None:
        """The session is closed by its `with` block."""


def _reference(bundle: Bundle, scheduler: str, large: _Large, on_progress: Progress) -> dict[str, Any]:
    """Write an image of the unmodified graphs, and return what the page needs to compare its own with it."""
    host = load_host(bundle)
    width, height = host.model.own_size
    request = Request(prompt=PROMPT, seed=SEED, steps=STEPS, width=width, height=height)
    shape, graphs = latent_shape(host.model, request), dict[str, _Graph]()

    def report(step: Step) -> None:
        on_progress("reference image: run", step.index / step.total)

    with ExitStack() as stack:

        def engine(part: str, _shapes: Mapping[str, tuple[int, ...]]) -> _Graph:
            if part not in graphs:
                graphs[part] = _Graph(stack.enter_context(CpuSession(checked_graph(bundle, part))))
            return graphs[part]

        start, noise = initial_noise(SEED, shape), added_noise(SEED, shape)
        drawn = draw(host, request, engine, start=start, noise=noise, on_step=report)
    large.add("check.rgb", drawn.images[0].tobytes())
    large.add("check.f32", drawn.latents.astype("<f4").tobytes())
    asked = request.model_dump(include={"prompt", "negative_prompt", "width", "height", "steps", "guidance"})
    return {
        "request": {**asked, "scheduler": scheduler, "seed": str(SEED)},
        "pixels": "check.rgb",
        "latents": "check.f32",
        "by": f"ONNX Runtime {runtime('onnxruntime').versions()['onnxruntime']} on a CPU",
        "floor_db": FLOOR_DB,
    }


def _first_visit(folder: Path, manifest: Mapping[str, Any], backend: str) -> int:
    """Bytes that a browser loads before the first image: the page, and what a backend reads."""
    own = manifest["backends"][backend]
    others = {one[key] for one in manifest["backends"].values() for key in ("module", "glue")} - {*own.values()}
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (*SMALL, ".json"))
    read = [own["wasm"], "tokenizer.json", *(name for part in manifest["parts"].values() for name in part["files"])]
    small = sum((folder / name).stat().st_size for name in names if name not in others)
    return small + sum(piece["bytes"] for name in read for piece in manifest["files"][name]["pieces"])
