"""What makes tests faster: quarantines in this process, and traces that are made once."""

import hashlib
import importlib
import json
import os
import shutil
from functools import cache
from importlib import metadata
from pathlib import Path

from filelock import FileLock

import latentc
from latentc.core import quarantine
from latentc.core.external import TRANSPOSED

TRACES = "LATENTC_TRACES"
"""Variable that names a folder in which traces are kept between runs."""
SOURCES = ("checkpoints", "core", "export")
LIBRARIES = ("torch", "diffusers", "transformers", "onnxscript", "onnx-ir")


class Here:
    """Stands in for a quarantine's child process: calls the function in this one, with JSON in and out."""

    def __init__(self, order):
        self.order = json.loads(order)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def answer(self, _, on_progress):
        """As the child's side does. What `on_progress` raises is raised."""
        raised = []

        def tell(*progress):
            try:
                on_progress(*progress)
            except BaseException as exc:
                raised.append(exc)
                raise

        module, _, name = self.order["function"].partition(":")
        try:
            call = getattr(importlib.import_module(module), name)
            return json.loads(json.dumps({"ok": call(**self.order["arguments"], on_progress=tell)}))
        except Exception as exc:
            if raised:
                raise
            return {"error": quarantine._name(exc), "message": str(exc)}


def refill(model, state):
    """Give the weights that a graph names the values of another module of the same layers."""
    import onnx_ir

    for name, value in model.graph.initializers.items():
        owner, _, leaf = name.removesuffix(TRANSPOSED).rpartition(".")
        known = (f"{owner}.{leaf}", f"{owner}.parametrizations.{leaf}.original")
        tensor = next((state[one] for one in known if one in state), None)
        if tensor is not None:
            values = (tensor.T if name.endswith(TRANSPOSED) else tensor).contiguous()
            value.const_value = onnx_ir.tensor(values.float().numpy().astype(value.dtype.numpy()), name=name)


@cache
def sources():
    """Digest of what a trace depends on beside the part itself."""
    digest = hashlib.sha256(" ".join(map(metadata.version, LIBRARIES)).encode())
    for room in SOURCES:
        for path in sorted((Path(latentc.__file__).parent / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept(shared, name, make):
    """`shared(name, make)`; with `TRACES`, in a folder that later runs of the same sources read too."""
    if TRACES not in os.environ:
        return shared(name, make)
    folder = Path(os.environ[TRACES]) / sources() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_suffix(".new")
            shutil.rmtree(made, ignore_errors=True)
            make(made)
            made.rename(folder)
    return folder
