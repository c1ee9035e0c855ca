"""Write the planned rows of docs/memory.md: `python tests/memory.py FAMILY PROFILE... | gzip > FILE`.

Each row is the answer of `latentc plan --memory GB --size SIDExSIDE` to one size and budget, with the published sizes
of a family (`sd35m-t5` is Stable Diffusion 3.5 Medium without T5). Its graphs are traced without weights, in a few
minutes and in little memory, and its weights count as f16, as those of published checkpoints.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common.initializer_deduplication import DeduplicateInitializersPass
from onnxscript.optimizer import _constant_folding
from torch.onnx._internal.exporter import _core

from latentc import __version__
from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.checkpoint import Checkpoint
from latentc.checkpoints.modules import build
from latentc.checkpoints.parts import as_part, model_facts, part_specs
from latentc.checkpoints.random import new_checkpoint
from latentc.compiler import priced
from latentc.compiler.budget import budget_bytes, plan_budget, typical_request
from latentc.core.bundle import Bundle
from latentc.core.errors import RequestError
from latentc.core.manifest import Manifest, Part, Source
from latentc.export import trace
from latentc.profiles import ANY, Profile, load_profile

SIDES = (512, 768, 1024)
BUDGETS_GB = (4, 4.5, 6, 8, 10, 12, 24)


def weightless(family: str, folder: Path) -> Bundle:
    """A bundle of graphs in the published sizes of a family, without weights and other files."""
    name, _, without = family.partition("-")
    left_out = ("text_encoder_3",) if without == "t5" else ()
    opened = open_checkpoint(str(new_checkpoint(name, "tiny", 0, folder / "tiny", without=left_out)))
    configs = {one.name: opened.family.config(one.name) for one in opened.family.components}
    full = replace(opened, configs={**opened.configs, **configs})
    manifest = Manifest(
        latentc=__version__,
        family=family,
        source=Source(kind="folder", location=family, random=True),
        model=model_facts(full),
        parts={spec.name: _traced(full, spec, folder) for spec in part_specs(full)},
        files={},
        versions={},
    )
    return Bundle(folder, manifest)


def _traced(checkpoint: Checkpoint, spec, folder: Path) -> Part:
    """Trace a part on the meta device, and write its graph; the digest of a part is its name."""
    (component,) = (one for one in checkpoint.family.components if one.name == spec.component)
    module = as_part(checkpoint, spec, build(component, checkpoint.configs[spec.component]).eval())
    example, fold, read = trace._example, _constant_folding._get_numpy_value, _core.TorchTensor.numpy

    def folded(value, *args, **more):
        constant = None if value is None else value.const_value
        return None if _is_weight(constant) else fold(value, *args, **more)

    def numbers(tensor):
        return np.broadcast_to(np.nan, tuple(tensor.raw.shape)) if _is_weight(tensor) else read(tensor)

    with (
        patch.object(trace, "_example", lambda tensor, sizes: example(tensor, sizes).to("meta")),
        patch.object(trace, "_name_weights", lambda *_: None),
        patch.object(_constant_folding, "_get_numpy_value", folded),
        patch.object(_core.TorchTensor, "numpy", numbers),
        patch.object(DeduplicateInitializersPass, "call", lambda _, model: ir.passes.PassResult(model, modified=False)),
    ):
        model = trace.trace(spec, module)
    parameters = 0
    for name, value in model.graph.initializers.items():
        if _is_weight(tensor := value.const_value):
            parameters += tensor.size
            value.const_value = ir.ExternalTensor(
                "none", 0, 0, tensor.dtype, shape=tensor.shape, name=name, base_dir=folder
            )
    path = folder / f"{spec.name}.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return Part(
        path=path.name,
        role=spec.role,
        opset=trace.OPSET,
        weights="f16",
        parameters=parameters,
        inputs=spec.inputs,
        outputs=spec.outputs,
        digest=spec.name,
        psnr_db=0,
        proved=spec.name,
        bf16_db=0,
    )


def of_size(profile: Profile, side: int) -> Profile:
    """The profile, with engines of this size where it has engines of fixed sizes."""
    if ANY in (profile.shapes.sizes or (ANY,)):
        return profile
    return profile.model_copy(update={"shapes": profile.shapes.model_copy(update={"sizes": (f"{side}x{side}",)})})


def _is_weight(tensor: object) -> bool:
    """Whether a constant of a graph has no values."""
    return isinstance(getattr(tensor, "raw", None), torch.Tensor) and tensor.raw.is_meta


def main(family: str, names: list[str]) -> None:
    rows: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.no_grad(),
        patch.object(priced, "checked_graph", lambda bundle, part: bundle.folder / bundle.part(part).path),
    ):
        bundle = weightless(family, Path(folder))
        for name in names:
            for side in SIDES:
                profile = of_size(load_profile(name), side)
                request = typical_request(bundle.manifest.model, side, side)
                for budget in BUDGETS_GB:
                    row = {"family": family, "profile": name, "side": side, "budget_gb": budget}
                    try:
                        fitted = plan_budget(bundle, profile, budget_bytes(budget), request)
                        row["fitted"] = fitted and fitted.model_dump()
                    except RequestError as exc:
                        row["refused"] = str(exc)
                    rows.append(json.dumps(row))
    sys.stdout.write("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
