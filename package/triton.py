"""A model repository for NVIDIA Triton, whose Python backend generates images with a package of engines."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.bundle import Bundle, open_bundle
from ..core.errors import BundleError
from ..core.files import fresh_folder, write_text
from ..core.progress import Progress, quiet
from ..core.version import __version__
from ..profiles import Profile
from ..serving.kserve import INPUTS, OUTPUT
from ..serving.triton import PACKAGE, SEED
from .folder import Package, bytes_in, package

BATCH, DELAY_MICROSECONDS, QUEUE = 8, 5000, 32
"""Requests that are generated together at most, how long Triton waits for others, and how many wait."""

LIBRARIES = "site-packages"
"""Folder beside `model.py` for libraries that the server's Python does not have."""

MODEL = f'''"""Generate images with the engines in {PACKAGE}/, for Triton's Python backend."""

import os
import sys
from pathlib import Path

libraries = Path(__file__).resolve().parent / "{LIBRARIES}"
if libraries.is_dir():
    sys.path.insert(0, str(libraries))
    os.environ["PYTHONPATH"] = str(libraries)  # for the process in which engines are first compared

from latentc.serving.triton import model

TritonPythonModel = model(__file__)
'''

ABOUT = """# {name}: a model repository for NVIDIA Triton

    tritonserver --model-repository THIS_FOLDER

Its Python backend needs Python 3.11 or a later one, latentc {version} and the libraries in
`{name}/1/{package}/requirements.txt`. Install them for the server's Python, or beside the model:

    pip install --target {name}/1/{libraries} -r {name}/1/{package}/requirements.txt
    pip install --target {name}/1/{libraries} --no-deps LATENTC        # the wheel or the source folder of latentc

The Python backend of tritonserver 2.51 crashes on text with numpy 2: there, put numpy 1.26 into that folder instead.

Inputs are those of `latentc serve` at `/v2`, with the axis of the batch before them, [rows, 1]; all but `prompt` are
optional. Outputs are `{output}`, uint8 [rows, count, height, width, 3], and `{seed}`, int64 [rows, 1]. Up to {batch}
requests are generated together. `{name}/1/{package}/PACKAGE.md` describes the engines.
"""


def repository(
    bundle: Bundle | Path | str, profile: Profile | Path | str, folder: Path | str, on_progress: Progress = quiet
) -> Package:
    """Write a model repository with one model, named after the bundle's folder. Raises what `package` raises."""
    bundle, folder = open_bundle(bundle), Path(folder).absolute()
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.folder.name.removesuffix(".bundle"))
    with fresh_folder(folder, BundleError) as fresh:
        version = fresh / name / "1"
        version.mkdir(parents=True)
        made = package(bundle, profile, version / PACKAGE, on_progress)
        write_text(fresh / name / "config.pbtxt", config(name))
        write_text(version / "model.py", MODEL)
        facts = {"name": name, "version": __version__, "package": PACKAGE, "libraries": LIBRARIES}
        write_text(fresh / "README.md", ABOUT.format(**facts, output=OUTPUT, seed=SEED, batch=BATCH))
    return Package(folder, made.profile, made.engines, bytes_in(folder), made.bundle_bytes, made.reference_bytes)


def config(name: str) -> str:
    """The model's `config.pbtxt`. The device is the profile's: Triton places nothing on a GPU itself."""
    inputs = ",\n".join(
        f'  {{ name: "{field}" data_type: TYPE_{"STRING" if kind == "BYTES" else kind} dims: [ 1 ]'
        f"{'' if field == 'prompt' else ' optional: true'} }}"
        for field, kind in INPUTS.items()
    )
    return f"""name: "{name}"
backend: "python"
max_batch_size: {BATCH}
input [
{inputs}
]
output [
  {{ name: "{OUTPUT}" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ] }},
  {{ name: "{SEED}" data_type: TYPE_INT64 dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {DELAY_MICROSECONDS}
  default_queue_policy {{ max_queue_size: {QUEUE} timeout_action: REJECT }}
}}
"""
