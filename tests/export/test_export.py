"""What an export leaves, and what it refuses."""

import json
import logging
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from latentc.checkpoints import parts
from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.parts import as_part, part_spec
from latentc.checkpoints.random import new_checkpoint
from latentc.core import files
from latentc.core.bundle import verify_files
from latentc.core.errors import BundleError, CheckpointError, ParityError
from latentc.core.model import Model
from latentc.core.references import hide
from latentc.core.shapes import shape_of
from latentc.core.tensors import psnr_db
from latentc.export import export as exporting
from latentc.export import reference
from latentc.export.export import export as run_export
from latentc.export.sessions import CpuSession
from latentc.sampling.host import drawing_digest

FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_what_pytorch_computes(bundle, family):
    manifest = bundle(family).manifest
    assert manifest.family == family
    for part in manifest.parts.values():
        assert part.psnr_db >= 100
        assert part.weights == "f32"


@pytest.mark.parametrize(("family", "part"), [("sd1", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_negative_ids_are_those_that_transformers_masks(exported, checkpoint, family, part):
    opened = exported(family)
    random = np.random.default_rng(0)
    ids = random.integers(0, 49406, (3, 77))
    ids[:, 0], ids[:, 60:] = 49406, 49407
    hidden = random.random(ids.shape) < 0.3
    hidden[:, [0, -1]] = False
    module = open_checkpoint(str(checkpoint(family))).module(part)
    with torch.no_grad():
        mask = torch.from_numpy((~hidden).astype(np.int64))
        expected = module(torch.from_numpy(ids), attention_mask=mask, output_hidden_states=True)
    with CpuSession(opened.graph(part)) as session:
        found = session.answer({"input_ids": hide(ids, hidden)})
        plain = session.answer({"input_ids": ids})
    wanted = {name: expected[name] for name in found if "." not in name}
    wanted |= {name: expected.hidden_states[int(name[-1])] for name in found if name.startswith("hidden_states.")}
    assert len(wanted) == (2 if family == "sd1" else 2 + len(expected.hidden_states) - 1)
    for name, tensor in wanted.items():
        assert psnr_db(tensor.numpy(), found[name]) > 115, name
        assert name == "hidden_states.0" or psnr_db(tensor.numpy(), plain[name]) < 30, name
    assert [value.name for value in opened.part(part).inputs] == ["input_ids"], "which is all that optimum passes"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_free(bundle, checkpoint, family):
    """At sizes that no example had: one latent row more or less than any multiple, other batches, longer prompts."""
    import onnxruntime as ort

    opened = open_checkpoint(str(checkpoint(family)))
    random = np.random.default_rng(0)
    for name in ("unet", "vae_decoder", "vae_encoder"):
        spec = part_spec(opened, name)
        module = as_part(opened, spec)
        session = ort.InferenceSession(str(bundle(family).graph(name)), providers=["CPUExecutionProvider"])
        for batch, height, width, length in ((1, 16, 16, 77), (3, 17, 9, 231)):
            sizes = {"batch": batch, "height": height, "width": width, "length": length}
            feeds = {
                tensor.name: random.standard_normal(shape_of(tensor.shape, sizes)).astype(np.float32)
                for tensor in spec.inputs
            }
            expected = reference.run(module, spec, feeds)
            found = session.run(list(expected), feeds)
            for (output, wanted), got in zip(expected.items(), found, strict=True):
                assert got.shape == wanted.shape
                assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max(), (name, output)


def test_the_layout_is_diffusers_and_optimums(bundle):
    opened = bundle("sdxl")
    index = opened.json("model_index.json")
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    for part in ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"):
        assert part in index
        assert (opened.folder / part / "model.onnx").is_file()
        assert (opened.folder / part / "config.json").is_file()
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (opened.folder / "tokenizer_2" / name).is_file()
    assert (opened.folder / "scheduler" / "scheduler_config.json").is_file()
    unet = ir.load(opened.graph("unet"))
    assert [value.name for value in unet.graph.inputs] == [
        "sample",
        "timestep",
        "encoder_hidden_states",
        "text_embeds",
        "time_ids",
    ]
    assert [value.name for value in unet.graph.outputs] == ["out_sample"]


def test_every_file_has_a_digest(bundle):
    opened = bundle("sd1")
    files = {str(path.relative_to(opened.folder)) for path in opened.folder.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith(("engines/", "adapters/"))}  # which builds make
    assert files == set(opened.manifest.files) | {"latentc.json"}
    assert {"torch", "diffusers", "onnx", "onnxruntime"} <= opened.manifest.versions.keys()


@pytest.mark.slow
def test_each_file_is_hashed_once_and_parts_are_asked_for_once(checkpoint, tmp_path, monkeypatch):
    hashed, asked = [], []

    def sha256(path):
        hashed.append(path.name if path.parent.name == "reference" else f"{path.parent.name}/{path.name}")
        return files.sha256(path)

    def part_specs(opened):
        asked.append(opened)
        return parts.part_specs(opened)

    monkeypatch.setattr(exporting, "sha256", sha256)
    monkeypatch.setattr(exporting, "part_specs", part_specs)
    made = run_export(checkpoint("sd1"), tmp_path / "bundle")
    assert len(asked) == 1
    assert {"unet/model.onnx", "unet/model.onnx_data", "unet.npz"} <= set(hashed)
    assert len(hashed) == len(set(hashed)) == len(made.manifest.files)
    verify_files(made, list(made.manifest.files))


@pytest.mark.slow
def test_half_weights_stay_half_and_compute_in_f32(tmp_path, caplog):
    new_checkpoint("sd1", "tiny", 1, tmp_path / "half", dtype="f16")
    stages = []
    caplog.set_level(logging.INFO, "latentc.export")
    opened = run_export(str(tmp_path / "half"), tmp_path / "out", on_progress=lambda what, share: stages.append(what))
    assert {part.weights for part in opened.manifest.parts.values()} == {"f16"}
    assert all(part.psnr_db > 100 for part in opened.manifest.parts.values())
    unet = ir.load(opened.graph("unet"))
    kinds = {
        value.const_value.dtype.name for value in unet.graph.initializers.values() if value.const_value.nbytes > 1024
    }
    assert kinds == {"FLOAT16"}
    assert {value.dtype.name for value in unet.graph.inputs} == {"FLOAT"}
    assert stages[:2] == ["prompts: reference", "text_encoder: read"]
    assert "unet: check" in stages
    assert [record.getMessage() for record in caplog.records if record.name == "latentc.export"] == stages


@pytest.mark.slow
def test_an_export_that_differs_names_the_part_and_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    taken = reference.References.take

    def wrong(self, spec, component, module):
        stored = taken(self, spec, component, module)
        if spec.name == "text_encoder":
            stored["prompts/out.last_hidden_state"] = stored["prompts/out.last_hidden_state"] * 1.01
        return stored

    monkeypatch.setattr(reference.References, "take", wrong)
    with pytest.raises(
        ParityError, match=r"exported text_encoder .* last_hidden_state of prompts agrees to 4\d\.\d dB"
    ):
        run_export(str(checkpoint("sd1")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_refusals_come_before_any_work(checkpoint, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(BundleError, match="already exists"):
        run_export(str(checkpoint("sd1")), tmp_path / "taken")
    with pytest.raises(CheckpointError):
        run_export(str(tmp_path / "nowhere"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_the_manifest_is_json_that_others_can_read(bundle):
    value = json.loads((bundle("sd1").folder / "latentc.json").read_text())
    assert value["schema_version"] == 4
    assert value["parts"]["unet"]["inputs"][0] == {
        "name": "sample",
        "dtype": "float32",
        "shape": ["batch", 4, "height", "width"],
    }


def test_previews_are_fitted_and_change_no_image(bundle):
    opened = bundle("sd1")
    model = opened.manifest.model
    assert [len(row) for row in model.preview] == [model.latent_channels + 1] * 3
    without = opened.manifest.model_copy(update={"model": model.model_copy(update={"preview": None})})
    assert drawing_digest(replace(opened, manifest=without)) == drawing_digest(opened)
    stored = model.model_dump(mode="json")
    stored["preview"][1].pop()
    with pytest.raises(ValueError, match="each row of preview should have 5 numbers"):
        Model.model_validate(stored)
    assert "preview" not in model.model_copy(update={"preview": None}).model_dump(mode="json")
