"""A folder that OpenVINO GenAI opens: each part as OpenVINO IR, in the layout of diffusers.

    <folder>/<part>/openvino_model.xml, .bin       text encoder, denoiser and decoder
    <folder>/tokenizer/openvino_tokenizer.xml      beside the tokenizer's own files
    <folder>/scheduler/, model_index.json          as `Text2ImagePipeline` reads them

Source: https://github.com/openvinotoolkit/openvino.genai, `src/cpp/src/image_generation`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, check_whole, checked_graph, open_bundle, verify_files
from ..core.errors import BundleError, CompileError, RuntimeMissing
from ..core.files import fresh_folder
from ..core.install import install
from ..core.progress import Progress, quiet
from ..core.record import in_a_line, shown
from ..core.wires import TIMESTEP
from ..sampling.schedulers import FEW_STEPS, schedule
from ..sampling.schedulers.settings import Settings
from ..sampling.vocabulary import load_vocabularies
from .export import write_json

KEPT = ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler")
"""Schedulers whose images in GenAI agree with latentc's, if what GenAI ignores has its usual value."""
INSTEAD = "DDIMScheduler"
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
AUTOENCODER = ["diffusers", "AutoencoderKL"]
STATED = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("timestep_spacing", "steps_offset", "set_alpha_to_one"),
)
"""Settings that GenAI follows. Each is written, because some of its defaults differ from diffusers'."""
USUAL = dict(Settings())
PNDM = "PNDMScheduler"
PNDM_USUAL = {**USUAL, "skip_prk_steps": True, "timestep_spacing": "leading"}
PNDM_IGNORES = ("prediction_type", "timestep_spacing")

LEVEL = 1 / 255
"""Half a level of an 8-bit image, of values from -1 to 1: GenAI cuts fractions of levels off, and latentc rounds."""

ABOUT = """# {location}, for OpenVINO GenAI

    pip install openvino-genai

    import openvino_genai
    pipeline = openvino_genai.Text2ImagePipeline(FOLDER, "CPU", INFERENCE_PRECISION_HINT="f32")
    image = pipeline.generate("a lighthouse at sunset", num_inference_steps=20, guidance_scale=4.0)

Without the precision hint, OpenVINO computes in bf16 on CPUs that have it, which is faster and less accurate. The
decoder adds half a level to its output, because GenAI cuts fractions of levels off. Scheduler: {scheduler}.

GenAI reads the first {tokens} tokens of a prompt and ignores the others, without a warning; a longer prompt loses its
end token too. latentc reads longer prompts in several chunks.

latentc did not compare what GenAI computes with PyTorch: nothing here is proved. Only text to image is supported. The
licence of the model is unchanged; its model card and licence files, if it has them, are beside this file.
"""


@dataclass(frozen=True)
class Converted:
    """A folder for OpenVINO GenAI that was written."""

    folder: Path
    parts: tuple[str, ...]
    scheduler: str
    notices: tuple[str, ...]
    """What differs from the bundle, in sentences."""


def convert(bundle: Bundle | Path | str, folder: Path | str, on_progress: Progress = quiet) -> Converted:
    """Write a bundle's graphs as OpenVINO IR to a folder that GenAI's `Text2ImagePipeline` opens.

    Weights keep f16 if the checkpoint has them in f16, and f32 otherwise. Raises `BundleError` for a model that GenAI
    can't run from this folder and for a package, `CompileError` for a graph that can't be converted, and
    `RuntimeMissing`.
    """
    bundle, folder = open_bundle(bundle), Path(folder).absolute()
    check_whole(bundle, "it cannot be converted")
    parts = plain_parts(bundle, "OpenVINO GenAI")
    ov, tokenizers, transformers = map(_library, ("openvino", "openvino_tokenizers", "transformers"))
    config, notices = genai_scheduler(bundle.json(SCHEDULER), bundle.folder)
    manifest = bundle.manifest
    encoder = manifest.model.text_encoders[0]
    tokens, read = manifest.model.length, bundle.json(f"{encoder.part}/config.json").get("max_position_embeddings")
    if read != tokens:
        raise BundleError(
            f"{bundle.folder} cannot be packaged for OpenVINO GenAI: prompts have {tokens} tokens, and GenAI passes "
            f"{read} (max_position_embeddings of {encoder.part}). Use --for dir."
        )
    kept = [name for name in manifest.files if _is_kept(name, (encoder.tokenizer, *parts))]
    with fresh_folder(folder, BundleError) as fresh:
        verify_files(bundle, [*kept, *(name for part in parts for name in bundle.files(part))])
        for name in kept:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / name, fresh / name)
        for part in parts:
            on_progress(f"{part}: convert", None)
            try:
                _write(ov, bundle, part, fresh / part)
            except RuntimeError as exc:
                raise CompileError(f"OpenVINO cannot convert {part}: {in_a_line(exc)}") from exc
        on_progress("tokenizer: convert", None)
        own = transformers.AutoTokenizer.from_pretrained(fresh / encoder.tokenizer)
        made = tokenizers.convert_tokenizer(own)
        ov.save_model(made, fresh / encoder.tokenizer / "openvino_tokenizer.xml", compress_to_fp16=False)
        (fresh / SCHEDULER).parent.mkdir(exist_ok=True)
        write_json(fresh / SCHEDULER, config)
        index = bundle.json(INDEX)
        write_json(fresh / INDEX, {**index, "vae": AUTOENCODER, "scheduler": ["diffusers", config["_class_name"]]})
        about = ABOUT.format(location=manifest.source.location, scheduler=config["_class_name"], tokens=tokens)
        (fresh / "OPENVINO.md").write_text(about, encoding="utf-8", newline="\n")
    return Converted(folder, parts, config["_class_name"], notices)


def plain_parts(bundle: Bundle, target: str) -> tuple[str, str, str]:
    """The text encoder, the denoiser and the decoder of Stable Diffusion 1 or 2, text to image.

    Raises `BundleError` for any other model, which names the `target` of the package.
    """
    model = bundle.manifest.model
    encoder = model.text_encoders[0].part if len(model.text_encoders) == 1 else ""
    sources = {"step.latents", f"{encoder}.last_hidden_state"}
    if {wire.source for wire in model.wires} != sources or model.controls or model.refiner or model.takes_style:
        raise BundleError(
            f"{bundle.folder} cannot be packaged for {target}: only Stable Diffusion 1 and 2 are supported, "
            "without ControlNets, IP-Adapters and inputs of images. Use --for dir."
        )
    if model.text_encoders[0].masked:
        raise BundleError(
            f"{bundle.folder} cannot be packaged for {target}: its text encoder hides padding (use_attention_mask), "
            "and no attention mask is passed there. Use --for dir."
        )
    if load_vocabularies(bundle)[0].several:
        raise BundleError(
            f"{bundle.folder} cannot be packaged for {target}: it has textual inversions of several vectors, of which "
            "only the first would be read there. Use --for dir."
        )
    return encoder, bundle.one("denoiser"), bundle.one("decoder")


def genai_scheduler(own: Mapping[str, Any], where: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config of a scheduler that GenAI has, and a notice if it doesn't do what `own`, diffusers' config, does.

    Raises `BundleError` for a training schedule that GenAI lacks, and names `where` it is from.
    """
    settings = schedule(own, FEW_STEPS, "ddim").settings
    if settings.rescale_betas_zero_snr:
        raise BundleError(f"{where} was trained with zero terminal SNR, which OpenVINO GenAI does not support.")
    if settings.beta_schedule == "squaredcos_cap_v2" and settings.trained_betas is None:
        raise BundleError(f"{where} has the beta_schedule squaredcos_cap_v2, which OpenVINO GenAI lacks.")
    name = str(own.get("_class_name"))
    given = schedule(own, FEW_STEPS).settings
    ignored = _ignored(name, given) if name in KEPT else []
    if name in KEPT and not ignored:
        return _config(name, given), ()
    found, without = (f" with {' and '.join(ignored)}", " without that") if ignored else ("", "")
    notice = f"OpenVINO GenAI cannot run {name}{found}; the folder has {INSTEAD}{without} instead: other images."
    return _config(INSTEAD, settings), (notice,)


def _config(name: str, settings: Settings) -> dict[str, Any]:
    """A config of one of `KEPT`."""
    stated = {field: getattr(settings, field) for field in STATED}
    return {"_class_name": name, **stated, "clip_sample": False, "skip_prk_steps": True}


def _ignored(name: str, settings: Settings) -> list[str]:
    """The settings of one of `KEPT` that GenAI ignores or refuses."""
    usual, ignored = (PNDM_USUAL, PNDM_IGNORES) if name == PNDM else (USUAL, ())
    fields = [field for field in usual if field not in STATED or field in ignored]
    return [
        f"{field} = {shown(getattr(settings, field))}" for field in fields if getattr(settings, field) != usual[field]
    ]


def _is_kept(name: str, folders: tuple[str, ...]) -> bool:
    """Whether a file of the bundle is in the folder too: configs of parts, tokenizers, model card and licence."""
    place, _, file = name.rpartition("/")
    return name != INDEX if not place else place in folders and ".onnx" not in file


def _write(ov: Any, bundle: Bundle, part: str, folder: Path) -> None:
    """Convert one part."""
    info = bundle.part(part)
    model = ov.convert_model(checked_graph(bundle, part))
    if info.role == "denoiser":
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input(TIMESTEP).tensor().set_element_type(ov.Type.i64)
        model = steps.build()
    elif info.role == "decoder":
        model = _rounding(ov, model, info.outputs[0].name)
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=info.weights == "f16")


def _rounding(ov: Any, model: Any, name: str) -> Any:
    """A decoder whose images are rounded by cutting fractions of levels off."""
    operators = import_module("openvino.opset13")
    last = model.outputs[0].get_node().input_value(0)
    result = operators.result(operators.add(last, operators.constant(LEVEL, ov.Type.f32)))
    result.output(0).get_tensor().set_names({name})
    return ov.Model([result], model.get_parameters(), model.get_friendly_name())


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as exc:
        raise RuntimeMissing(
            f"Packaging for OpenVINO GenAI needs {name}, which is not installed. {install('genai')}"
        ) from exc
