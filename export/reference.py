"""References: fixed inputs and PyTorch's outputs for them, with which every engine is compared.

Prompts become embeddings, and embeddings become images, in diffusers' own pipeline; every call of a part is recorded
on the way (`core.references` defines the format). None of latentc's own sampling takes part.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints import SHIPPED
from ..checkpoints.families import IMAGE_ENCODER, IP_ADAPTER, REFINED, REFINER, REFINER_TEXT, T2I_ADAPTER, TINY_VAE
from ..checkpoints.families import SCORES as SCORED
from ..checkpoints.parts import PartSpec, as_part, model_facts, part_specs
from ..checkpoints.parts.ip_adapter import SCALE
from ..core.errors import CompileError
from ..core.images import pixels_sha256
from ..core.install import in_tested_versions
from ..core.model import ControlNet
from ..core.references import (
    CONTROL_ARRAY,
    ENDS,
    OF_REFINER,
    STYLE_ARRAY,
    TABLE,
    Case,
    Drawings,
    ReferenceDrawing,
    ReferenceTokens,
    pack,
    stated,
)
from ..core.request import IMAGE_GUIDANCE, SCORES, TINY
from ..core.tensors import Array
from ..core.wires import CONTROL, IMAGE_TOKENS, STEP, TIMESTEP
from ..sampling.scaling import scaled, unscaled
from .asked import (
    ARGUMENTS,
    AT_SHARES,
    BROWNIAN,
    COSTLY_PARAMETERS,
    COSTLY_SHARES,
    DRAWS_INSTEAD,
    MAX_COSTLY_PIXELS,
    MAX_PIXELS,
    OTHER_SCALES,
    OTHER_TEXT_EACH,
    REFINED_FROM,
    REFINED_STEPS,
    SEED,
    STRENGTH,
    WRONG_FROM_AN_IMAGE,
    Asked,
    exact,
)
from .control import CONTROLS, AskedControl, colouring, drawn_image, read_as, recorded_controls
from .hooks import arguments_of, calling, first, keeping, one_timestep, unhooked
from .pictures import synthetic_image, synthetic_mask
from .scheduler import least_steps
from .style import STYLES, USUAL, Styled, encoded, encoder_parts, recorded_style
from .texts import WORLDS, Frame, check_hidden, full_chunk, read_tokens, spread
from .trace import muted
from .video import VideoReferences
from .weights import beside, computing

if TYPE_CHECKING:
    import torch

    from ..checkpoints.open import Checkpoint


LOGGERS = ("diffusers", "transformers")
"""Loggers that are muted: they warn about long prompts, repaired configs and a missing torchvision."""


@dataclass(frozen=True)
class Embedded:
    """The result of diffusers' `encode_prompt` for a reference image."""

    given: dict[str, Any]
    """Arguments of the pipeline's call."""
    rows: dict[str, list[dict[str, Array]]]
    """The inputs of each text encoder by name, row by row."""


def run(module: torch.nn.Module, spec: PartSpec, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Call a part in PyTorch, with numpy inputs and outputs."""
    import torch

    with torch.no_grad():
        outputs: Any = module(*(torch.as_tensor(feeds[tensor.name]) for tensor in spec.inputs))
    return {tensor.name: output.numpy() for tensor, output in zip(spec.outputs, outputs, strict=True)}


def references_of(checkpoint: Checkpoint) -> References | VideoReferences:
    """What computes a checkpoint's references: from prompts, or from images."""
    return References(checkpoint) if checkpoint.family.tokenizers else VideoReferences(checkpoint, SEED, run)


class References:
    """Computes the references of each part. All text encoders run first, then the denoiser.

    Those of a refiner that takes over the latents of another checkpoint have that one's scheduler and VAE, and their
    calls and images are kept `beside` its own.
    """

    def __init__(self, checkpoint: Checkpoint, beside: References | None = None) -> None:
        self.checkpoint = checkpoint
        self._takes_over = beside is not None
        self._owner = beside.checkpoint if beside else checkpoint
        """The checkpoint with the scheduler and the VAE."""
        self.facts = model_facts(checkpoint)
        self.random = np.random.default_rng(SEED)
        self.scheduler: dict[str, Any] = dict(self._owner.scheduler)
        self.drawings: list[ReferenceDrawing] = beside.drawings if beside else []
        self.drawn: dict[str, Array] = beside.drawn if beside else {}
        self.cases: dict[str, list[Case]] = beside.cases if beside else {}
        """Cases by part, of parts that are called while another part's references are computed."""
        self.tiny_share: float | None = None
        """Share of the variance of the VAE's image that the tiny decoder's has too, once it was taken."""
        self._refiner = References(checkpoint.refiner, self) if checkpoint.refiner is not None else None
        name = self.scheduler.get("_class_name")
        self._own = None if name in BROWNIAN else str(name)
        """The class of the checkpoint's own scheduler, if its noise comes from PyTorch; else None."""
        self._embedded: dict[str, Embedded] = {}
        self._frames: dict[str, Frame] = {}
        self._tokens: dict[str, ReferenceTokens] = {}
        self._asked: tuple[Asked, ...] = ()
        self._styles: dict[str, Styled] = {}
        """The style image of each reference image, if the checkpoint has an IP-Adapter."""
        denoiser = checkpoint.family.denoiser
        parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.weights[denoiser].values())
        cuts = bool(checkpoint.configs[denoiser].get("patch_size"))  # as transformers do
        self._costly = cuts and parameters > COSTLY_PARAMETERS

    def read_prompts(self) -> None:
        """Encode every prompt with diffusers' `encode_prompt`."""
        with muted(*LOGGERS):
            encoders = self.checkpoint.family.encoders
            modules = {name: computing(self.checkpoint, name) for name in encoders}
            tokenizers = {facts: self.checkpoint.tokenizer(facts.name) for facts in self.checkpoint.family.tokenizers}
            for facts, one in tokenizers.items():
                frame = (one.bos_token_id, one.eos_token_id, one.pad_token_id, one.model_max_length)
                self._frames[facts.encoder] = Frame(*frame)
            pipeline = self._pipeline(**modules, **{facts.name: one for facts, one in tokenizers.items()})
            self._stand_in(pipeline)
            for facts, one in tokenizers.items():
                self._tokens[facts.encoder] = read_tokens(pipeline, one, self._frames[facts.encoder])
            self._asked = self._wishes(next(iter(tokenizers.values())))
            for asked in self._asked:
                self._embedded[asked.name] = self._embed(pipeline, asked)
        if self._refiner is not None:
            self._refiner.read_prompts()
            self._share(self._refiner)
        if self.facts.takes_style:
            with muted(*LOGGERS):
                self._read_styles()

    def _share(self, refiner: References) -> None:
        """Add what a refiner reads by a text encoder, of its own or shared with the checkpoint."""
        own = REFINED[REFINER_TEXT.name]
        if REFINER_TEXT.name in self.checkpoint.weights:
            self._tokens[REFINER_TEXT.name] = refiner._tokens[own]
            return
        rows = [row for embedded in refiner._embedded.values() for row in embedded.rows[own]]
        every = {name: list[dict[str, Array]]() for name in self.checkpoint.family.encoders}
        self._embedded[REFINER.name] = Embedded({}, {**every, own: rows})

    def _read_styles(self) -> None:
        """Encode the style image of each reference image with diffusers' `encode_image`."""
        # The pipeline rounds the image to the stored type of the image encoder's first weight, so that is widened.
        parts = encoder_parts(self.checkpoint.module(IMAGE_ENCODER.name))
        pipeline, plus = self._pipeline(**parts), self.checkpoint.configs[IP_ADAPTER.name]["plus"]
        for name in (asked.name for asked in self._asked):
            style = STYLES.get(name, USUAL)
            image = synthetic_image(self.random, style.size)
            self._styles[name] = encoded(pipeline, image, style.strength, plus=plus)

    def take(self, spec: PartSpec, component: torch.nn.Module, module: torch.nn.Module) -> dict[str, Array]:
        """The references of a part, as arrays to be stored. `component` is the module that `module` calls."""
        if self._refiner is not None and spec.component in REFINED:
            own = REFINED[spec.component]
            return self._refiner.take(replace(spec, name=own, component=own), component, module)
        if spec.role == "text_encoder":
            return self._text(spec, component, module)
        if spec.role == "denoiser":
            return self._draw(spec, component)
        if spec.role == "image_encoder":
            given = {name: {"pixel_values": one.pixel_values} for name, one in self._styles.items()}
            return pack([Case(name, feeds, run(module, spec, feeds)) for name, feeds in given.items()], {})
        if spec.role == "decoder":
            cases = self.cases.setdefault(spec.name, [])
            decoder = TINY if spec.name == self.facts.tiny_decoder else None
            for name, (height, width) in self._sizes(own_only=True).items():
                latents = self.random.standard_normal(self.facts.latents(1, height, width), dtype=np.float32)
                feeds = {"latent_sample": unscaled(self.facts, latents, decoder).astype(np.float32)}
                cases.append(Case(name, feeds, run(module, spec, feeds)))
            if decoder == TINY:
                self.tiny_share = self._alike(spec, module)
            return pack(cases, {})
        return pack([*self.cases.get(spec.role, []), *self._pictures(spec, module)], {})

    def made(self) -> Drawings:
        """The record of all reference images, once `take` was called for every part."""
        return Drawings(
            **stated(self.facts),
            scheduler=self.scheduler,
            tokens=self._tokens,
            drawings=tuple(self.drawings),
        )

    def _alike(self, spec: PartSpec, module: torch.nn.Module) -> float:
        """`tiny_share`: 1 for the same image, 0 for one of the mean colours, and less for another one."""
        drawn = self.cases[self._decoders()[None]][0]
        feeds = {name: scaled(self.facts, array) for name, array in drawn.feeds.items()}
        (wanted,), (found,) = (one.values() for one in (drawn.outputs, run(module, spec, feeds)))
        wanted, found = wanted.clip(-1, 1), found.clip(-1, 1)
        return 1 - float(np.mean((found - wanted) ** 2) / max(float(wanted.var(axis=(2, 3)).mean()), 1e-12))

    def _pictures(self, spec: PartSpec, module: torch.nn.Module) -> list[Case]:
        """Cases of the VAE's encoder."""
        made: list[Case] = []
        factor = self.facts.downscale
        for name, (height, width) in self._sizes(own_only=False).items():
            coarse = self.random.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
            feeds = {"sample": coarse.repeat(factor, axis=2).repeat(factor, axis=3)}
            made.append(Case(name, feeds, run(module, spec, feeds)))
        return made

    def _text(self, spec: PartSpec, component: torch.nn.Module, module: torch.nn.Module) -> dict[str, Array]:
        """Cases of a text encoder: the first two prompts with every output; then all prompts, and ids spread over the
        vocabulary, with only those outputs that are read.
        """
        inputs = [tensor.name for tensor in spec.inputs]
        hides = next(encoder.hides for encoder in self.facts.every_text_encoder if encoder.part == spec.name)
        rows = [row for embedded in self._embedded.values() for row in embedded.rows[spec.name]]
        unique = list({b"".join(row[name].tobytes() for name in inputs): row for row in rows}.values())
        table = cast("Any", component).get_input_embeddings().weight.detach().float().numpy()
        cases: list[Case] = []
        for name, given in {
            "pair": unique[:2],
            "prompts": unique,
            "vocabulary": spread(self._frames[spec.name], len(table), hides=hides),
        }.items():
            feeds = {key: np.stack([row[key] for row in given]) for key in inputs}
            outputs = run(module, spec, feeds)
            if hides and name == "vocabulary":
                check_hidden(component, feeds, outputs)
            kept = outputs if name == "pair" else self.facts.read_of(spec.name)
            read = {key: outputs[key] for key in kept}
            cases.append(Case(name, feeds, read))
        digest = hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()
        return pack(cases, {}) | {TABLE: np.array(digest)}

    def _draw(self, spec: PartSpec, denoiser: torch.nn.Module) -> dict[str, Array]:
        """Generate all reference images, and record each call of the denoiser and of the VAE."""
        shared: dict[str, dict[str, Array]] = {}
        cases: list[Case] = []
        varying = {TIMESTEP, *(wire.input for wire in self.facts.wires if wire.owner == STEP)}
        fixed = [tensor.name for tensor in spec.inputs if tensor.name not in varying]
        at = OF_REFINER if self._takes_over else "".join(spec.name.partition("@")[1:])  # of a variant
        vae, load = self.checkpoint.family.vae, beside(self.checkpoint, spec)
        also = {name: load(name) for name in spec.also}
        nets = {name: one for name, one in also.items() if name != IP_ADAPTER.name}
        with muted(*LOGGERS):
            drawing = calling(spec, denoiser) if "@" in spec.name else denoiser
            pipeline = self._pipeline(nets, **{spec.component: drawing, vae: computing(self._owner, vae)})
            if self.facts.encodes_controls:
                colouring(pipeline, self.facts.controls)
            for asked in self._asked:
                if asked.decoder == TINY:
                    if at:  # the latents of any denoiser are decoded in the same way
                        continue
                    pipeline.register_modules(**{vae: computing(self.checkpoint, TINY_VAE.name)})
                style = recorded_style(pipeline, also[IP_ADAPTER.name]) if self._styles else nullcontext(dict)
                with style as styled:
                    calls = self._record(pipeline, spec, nets, asked, f"{asked.name}{at}", styled)
                shared[f"{asked.name}{at}"] = {name: calls[0].feeds[name] for name in fixed}
                cases += calls
            long = next(case for case in cases if case.drawing == f"long{at}")
            other = next(case for case in cases if case.drawing == f"wide{at}")
            module = as_part(self.checkpoint, spec, denoiser, also.__getitem__)
            cases += self._at_ends(spec, module, cases[0], other, long)
        return pack(cases, shared)

    def _at_ends(self, spec: PartSpec, module: torch.nn.Module, like: Case, other: Case, long: Case) -> list[Case]:
        """Additional calls: one row at timesteps over the whole range, some of them also with another text, or another
        image for each ControlNet, and shapes that the reference images don't have.
        """
        last = int(self.scheduler.get("num_train_timesteps", 1000)) - 1
        side, (low, broad) = self._square(), self._wide()
        latents = self.facts.latents_input
        more = like.feeds[latents].shape[1:-2]  # of what is beside the latents too
        once = {name: array[-1:] for name, array in like.feeds.items() if name not in (latents, TIMESTEP)}
        longer = once | {
            tensor.name: np.concatenate([once[tensor.name], long.feeds[tensor.name][-1:]], axis=1)
            for tensor in spec.inputs
            if "length" in tensor.shape
        }
        wires = [wire.input for wire in self.facts.wires if wire.source.startswith(CONTROL)]
        shown = dict(zip(wires, self.facts.controls, strict=True))
        rowed = {tensor.name for tensor in spec.inputs if tensor.shape[0] == "batch"}
        large = self._whole(side * 3 // 2)
        shares = COSTLY_SHARES if self._costly else AT_SHARES
        wishes = [(share, 1, (side, side), once) for share in shares]
        wishes += [
            (0.7, 2 if self._costly else 6, (low, broad), once),
            (0.6, 1, (broad, low), once),
            (0.4, 1, (large, large), once),
            (0.3, 1, (low, broad), longer),
        ]
        made: list[Case] = []
        for share, rows, size, fixed in wishes:
            feeds = {name: array.repeat(rows if name in rowed else 1, axis=0) for name, array in fixed.items()}
            feeds |= {
                latents: self.random.standard_normal((rows, *more, *size), dtype=np.float32),
                TIMESTEP: np.array([exact(last * share) if share < 1 else last], np.float32),
            }
            if rows > 1 and SCALE in feeds:
                feeds[SCALE] = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
            if size != (side, side):
                feeds |= {name: self._shown(fact, rows, size) for name, fact in shown.items()}
            made.append(Case(f"{ENDS}.{len(made)}", feeds, run(module, spec, feeds)))
        for case in made[: len(shares) : OTHER_TEXT_EACH]:
            texts = {name: other.feeds[name][-1:] for name in self._texts() if name in other.feeds}
            pictures = {name: self._shown(fact, 1, (side, side)) for name, fact in shown.items()}
            tokens = {name: other.feeds[name][-1:] for name in (IMAGE_TOKENS,) if name in other.feeds}
            changes = (texts, *({name: array} for name, array in (pictures | tokens).items()))
            for changed in changes:
                feeds = {**case.feeds, **changed}
                made.append(Case(f"{ENDS}.{len(made)}", feeds, run(module, spec, feeds)))
        return made

    def _shown(self, fact: ControlNet, rows: int, size: tuple[int, int]) -> Array:
        """What a ControlNet reads of a synthetic image for latents of this height and width, in the same rows each."""
        if fact.latent_shift is not None:
            return self.random.standard_normal(self.facts.latents(1, *size), dtype=np.float32).repeat(rows, axis=0)
        return read_as(fact, drawn_image(self.random, *(side * self.facts.downscale for side in size)), rows)

    def _texts(self) -> tuple[str, ...]:
        """Inputs of the denoiser that text encoders feed."""
        return tuple(
            dict.fromkeys(wire.input for wire in self.facts.wires if wire.owner in self.checkpoint.family.encoders)
        )

    def _record(
        self,
        pipeline: Any,
        spec: PartSpec,
        nets: Mapping[str, torch.nn.Module],
        asked: Asked,
        name: str,
        styled: Callable[[], dict[str, Array]],
    ) -> list[Case]:
        import torch

        from_numpy = cast("Any", torch).from_numpy

        height, width = asked.size
        shape = self.facts.latents(asked.count, height, width)
        start = self.random.standard_normal(shape, dtype=np.float32)
        takes = inspect.signature(pipeline.__call__).parameters
        control = CONTROLS.get(asked.name, AskedControl()).fitted(self.facts, takes)
        pictured = control.image or tuple(side * self.facts.downscale for side in asked.size)
        shown = [drawn_image(self.random, *pictured) for _ in nets]
        seed = int(self.random.integers(1 << 31))
        source = torch.Generator().manual_seed(seed)
        scheduler = self._scheduler_of(asked)
        given = dict(self._embedded[asked.name].given)
        given = {name: rows.repeat_interleave(asked.count, dim=0) for name, rows in given.items()}
        pictures = self._given(asked) if self.facts.needs_image and not self._takes_over else {}
        if self._takes_over:
            given["image"] = from_numpy(start.copy())  # not noised: they are taken for latents
        elif asked.strength is None:
            given["latents"] = from_numpy(start.copy())
        else:  # which isn't noised with latents that are passed in: they are drawn from the seed
            start = torch.randn(shape, generator=source).numpy()
            given["strength"] = asked.strength
        given |= self._arguments(asked, pictures)
        sides = {"height": height * self.facts.downscale, "width": width * self.facts.downscale}
        given |= {name: side for name, side in sides.items() if name in takes}
        calls: list[Case] = []
        steps: list[Array] = []
        turns = self.facts.edits and asked.guidance > 1

        def ordered(rows: Array) -> Array:
            """Rows in latentc's order: diffusers' pipeline has those of a model for editing in the reverse one."""
            return np.concatenate(np.split(rows, self.facts.guided_rows)[::-1]) if turns else rows

        def called(module: Any, arguments: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
            fed = arguments_of(module, arguments, given)
            fed[TIMESTEP] = one_timestep(fed[TIMESTEP])
            if len(calls) == asked.calls:  # T2I-Adapters' pipelines can't be interrupted
                return
            arrays = controlled(len(fed[self.facts.latents_input]), fed) | styled()
            fed = {one.name: fed[one.name].detach().float().numpy() for one in spec.inputs if one.name in fed}
            arrays |= {name: array if name == TIMESTEP else ordered(array) for name, array in fed.items()}
            answer = {spec.outputs[0].name: ordered(output[0].detach().numpy())}
            calls.append(Case(f"{name}.{len(calls)}", arrays, answer))

        def stepped(*arguments: Any, **more: Any) -> Any:
            answer = advance(*arguments, **more)
            if len(steps) < len(calls):
                steps.append(answer[0].detach().numpy().copy())
            return answer

        def ended(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if len(steps) < len(calls):  # that of InstructPix2Pix can't be interrupted either
                steps.append(tensors["latents"].detach().numpy().copy())
            if asked.calls is not None and index + 1 >= asked.calls:
                pipe._interrupt = True
            return {}

        pipeline.scheduler = self._new_scheduler(instead=scheduler is not None)  # with no history
        advance = pipeline.scheduler.step
        if "callback_on_step_end" not in takes:
            pipeline.scheduler.step = stepped
        whole = asked.calls is None
        vae = getattr(pipeline, self.checkpoint.family.vae)
        hook = getattr(pipeline, spec.component).register_forward_hook(called, with_kwargs=True)
        decode, decoded = vae.decode, list[Case]()
        reads = bool(pictures)
        encode, encoded = vae.encode if reads or self.facts.encodes_controls else None, list[Case]()
        prepare, begun = pipeline.prepare_latents if reads else None, list[Array]()

        def recorded(latents: torch.Tensor, **given: Any) -> Any:
            answer = decode(latents, **given)
            arrays = {"latent_sample": latents.detach().numpy().copy()}
            decoded.append(Case(name, arrays, {"sample": answer[0].detach().numpy()}))
            return answer

        def encoding(image: torch.Tensor, **more: Any) -> Any:
            assert encode is not None
            answer = encode(image, **more)
            found: Any = answer.latent_dist
            outputs = {"latent_parameters": found.parameters.detach().numpy()[:1]}  # all rows are alike
            encoded.append(Case(f"{name}.{len(encoded)}", {"sample": image.detach().numpy()[:1].copy()}, outputs))
            sampled = found.mean + found.std * from_numpy(pictures["image_noise"][:1]) if reads else found.mean

            def sample(_generator: Any = None) -> torch.Tensor:
                return sampled

            found.sample = sample
            return answer

        def prepared(*arguments: Any, **more: Any) -> Any:
            assert prepare is not None
            answer = prepare(*arguments, **more)
            begun.append(first(answer).detach().numpy().copy())
            return answer

        vae.decode = recorded
        if encode is not None:
            vae.encode = encoding
        if reads:
            pipeline.prepare_latents = prepared
        more: dict[str, Any] = control.given(shown, self.facts, takes, asked.count) if nets else {}
        if "callback_on_step_end" in takes:
            more["callback_on_step_end"] = ended
        style = self._styles.get(asked.name)
        if style is not None:
            pipeline.set_ip_adapter_scale(style.strength)
            more |= style.given(guided=asked.guidance > 1)
            self.drawn[f"{name}/{STYLE_ARRAY}"] = style.image
        with recorded_controls(nets, self.facts, control) as controlled, unhooked(hook, vae, pipeline):
            images = pipeline(
                num_inference_steps=asked.steps,
                guidance_scale=asked.guidance,
                num_images_per_prompt=1,
                generator=torch.Generator().manual_seed(seed),
                output_type="np" if whole else "latent",
                **given,
                **more,
            ).images
        noise = [torch.randn(shape, generator=source).numpy() for _ in calls]
        self.cases.setdefault(self._decoders()[asked.decoder], []).extend(decoded)
        self.cases.setdefault("encoder", []).extend(encoded)
        sigma = (
            1.0 if self._takes_over else float(getattr(pipeline.scheduler, "init_noise_sigma", 1))
        )  # flow matching: 1
        if asked.strength is not None and not (self.facts.inpaints and asked.strength == 1):
            pictures["before"] = begun[0]
        self.drawn |= {
            **{f"{name}/{key}": array for key, array in pictures.items()},
            f"{name}/start": start,
            f"{name}/sigma": np.array(sigma),
            f"{name}/steps": np.stack(steps),
            f"{name}/noise": np.stack(noise),
            **{f"{name}/{CONTROL_ARRAY}{number}": image for number, image in enumerate(shown, 1)},
        }
        if whole:
            self.drawn[f"{name}/images"] = (np.asarray(images) * 255).round().astype(np.uint8)
        request = asked.request(
            self.facts.downscale,
            scheduler=scheduler,
            variant=spec.name.partition("@")[2] or None,
            more=(control.asked(shown) if nets else {}) | (style.asked() if style else {}),
        )
        digests = {f"{one}_sha256": pixels_sha256(pictures[one]) for one in ("image", "mask") if one in pictures}
        request = request.model_copy(update=digests)
        self.drawings.append(ReferenceDrawing(name=name, request=request, calls=len(calls), complete=whole))
        return calls

    def _wishes(self, tokenizer: Any) -> tuple[Asked, ...]:
        """The reference images: timesteps over the whole range, two sizes, one to four rows, one chunk and two."""
        source = self.checkpoint.source
        named = source.location if source.kind == "shipped" and source.location in SHIPPED else ""
        (first, second, third, *_), negative = WORLDS.get(named, WORLDS[""])
        side, wide, own, more = self._square(), self._wide(), self._own_size(), self._more_steps()
        wishes = [
            Asked("whole", (first,), negative, (side, side), 5 + more),
            Asked("wide", (second,), "", wide, 2 + more, count=2),
            Asked(
                "single", (third,), "", (side, side), 3 + more, count=1 if self._costly else 3, guidance=1.0, calls=3
            ),
            Asked("long", (full_chunk(tokenizer, first), second), negative, (side, side), 2 + more, calls=2),
        ]
        if own != (side, side):
            wishes.append(Asked("own", (first,), negative, own, 2 + more, calls=1))
        if self.facts.tiny_decoder is not None:  # the last: the pipeline keeps this decoder
            wishes.append(Asked(TINY, (first,), negative, (side, side), 2 + more, decoder=TINY))
        if self._takes_over:
            return tuple(map(self._taking_over, wishes))
        if not self.facts.inpaints:
            return tuple(map(self._from_image, wishes)) if self.facts.needs_image else tuple(wishes)
        return tuple(
            replace(one, strength=STRENGTH, steps=one.steps + 2) if one.name == "wide" else replace(one, strength=1)
            for one in wishes
        )

    def _taking_over(self, asked: Asked) -> Asked:
        """The same of a refiner that takes over latents."""
        usual, other = REFINED_FROM
        share = {"refine_from": other if asked.name == "wide" else usual}
        more = share | dict(self._from_image(asked).more)
        return replace(asked, more=more, steps=asked.steps + REFINED_STEPS)

    def _from_image(self, asked: Asked) -> Asked:
        """The same of a model of image to image, or of editing, with its scales."""
        defaults = {"image_guidance": IMAGE_GUIDANCE} if self.facts.edits else SCORES
        more = {name: OTHER_SCALES[name] if asked.name == "wide" else value for name, value in defaults.items()}
        if self.facts.edits:
            return replace(asked, more=more)
        return replace(asked, more=more, strength=STRENGTH, steps=asked.steps + 2)

    def _arguments(self, asked: Asked, pictures: Mapping[str, Array]) -> dict[str, Any]:
        """Arguments of diffusers' pipeline: the image, its mask, and scales. Only inpainting resizes its image."""
        from PIL import Image

        given: dict[str, Any] = {ARGUMENTS.get(name, name): value for name, value in asked.more.items()}
        if self.facts.inpaints:
            image, mask = (Image.fromarray(pictures[one]) for one in ("image", "mask"))
            return given | {"image": image, "mask_image": mask}
        if pictures:
            height, width = (side * self.facts.downscale for side in asked.size)
            image = Image.fromarray(pictures["image"]).resize((width, height), Image.Resampling.LANCZOS)
            given["image"] = [image] * asked.count if self.facts.edits else image
        return given

    def _given(self, asked: Asked) -> dict[str, Array]:
        """The image of a reference image, larger than it, its mask for inpainting, and the noise of its latents."""
        height, width = (side * self.facts.downscale for side in asked.size)
        size = height * 5 // 4, width * 3 // 2
        noise = self.random.standard_normal(self.facts.latents(1, *asked.size), dtype=np.float32)
        image = synthetic_image(self.random, size)
        masked = {"mask": synthetic_mask(self.random, size)} if self.facts.inpaints else {}
        return {"image": image, **masked, "image_noise": noise.repeat(asked.count, axis=0)}

    def _decoders(self) -> dict[str | None, str]:
        """Names of the decoder parts, keyed as in `Request.decoder`."""
        tiny = self.facts.tiny_decoder
        names = [spec.name for spec in part_specs(self.checkpoint) if spec.role == "decoder"]
        return {TINY if name == tiny else None: name for name in names}

    def _own_size(self) -> tuple[int, int]:
        """Height and width in latents of the model's native size."""
        width, height = self.facts.own_size
        return height // self.facts.downscale, width // self.facts.downscale

    def _square(self) -> int:
        """Side of most references, in latents."""
        most = MAX_COSTLY_PIXELS if self._costly else MAX_PIXELS
        return min(*self.facts.own_size, most) // self.facts.downscale

    def _wide(self) -> tuple[int, int]:
        """Height and width of non-square ones: odd, so that no level of the UNet is exactly half of the one above."""
        side = self._square()
        return self._whole(max(9, side // 2 + 1)), self._whole(max(9, side - 1))

    def _whole(self, side: int) -> int:
        """The side, rounded up to a multiple of the denoiser's patch."""
        return -(-side // self.facts.patch) * self.facts.patch

    def _sizes(self, *, own_only: bool) -> dict[str, tuple[int, int]]:
        """Height and width in latents of the VAE's additional calls, by name."""
        side, own = self._square(), self._own_size()
        low, broad, large = *self._wide(), self._whole(side * 3 // 2)
        more = {} if own_only else {"square": (side, side), "other": (low, broad)}
        more |= {"portrait": (broad, low), "large": (large, large)}
        return more | ({"own": own} if own != (side, side) else {})

    def _embed(self, pipeline: Any, asked: Asked) -> Embedded:
        """Encode the chunks of an image's prompts, and join them along the sequence."""
        import torch

        embedded = Embedded({}, {name: [] for name in self.checkpoint.family.encoders})
        hooks = [
            getattr(pipeline, name).register_forward_pre_hook(keeping(rows), with_kwargs=True)
            for name, rows in embedded.rows.items()
        ]
        guided = asked.guidance > 1
        negatives = [asked.negative, *[""] * (len(asked.prompts) - 1)]
        chunks: list[tuple[Any, ...]] = []
        # T5 reads the whole prompts at once.
        thirds = {"prompt_3": " ".join(asked.prompts), "negative_prompt_3": asked.negative or None}
        encode_prompt = self._encode_prompt(pipeline)
        takes = inspect.signature(encode_prompt).parameters
        more = {name: thirds.get(name) for name, one in takes.items() if name in thirds or one.default is one.empty}
        more |= {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": guided}
        try:
            for prompt, negative in zip(asked.prompts, negatives, strict=True):
                texts = {"prompt": prompt, "negative_prompt": negative if asked.negative else None}
                with torch.no_grad():
                    chunks.append(encode_prompt(**more | texts))
        finally:
            for hook in hooks:
                hook.remove()
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        for name, values in zip(names, zip(*chunks, strict=True), strict=False):
            if values[0] is not None:
                embedded.given[name] = values[0] if "pooled" in name else self._joined(values)
        return embedded

    def _encode_prompt(self, pipeline: Any) -> Callable[..., Any]:
        """`encode_prompt` of a pipeline; InstructPix2Pix's has that of its family's first pipeline, as a part of it."""
        import diffusers

        plain = self.checkpoint.family.pipeline.replace("InstructPix2Pix", "")
        own = getattr(pipeline, "encode_prompt", None)
        return own if own is not None else partial(getattr(cast("Any", diffusers), plain).encode_prompt, pipeline)

    def _joined(self, chunks: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The chunks of a prompt along the sequence; after them T5's embeddings of all, which each of them has."""
        import torch

        own = self.checkpoint.length
        return torch.cat([*(chunk[:, :own] for chunk in chunks), chunks[0][:, own:]], dim=1)

    def _stand_in(self, pipeline: Any) -> None:
        """Give Stable Diffusion 3's pipeline the width of the zeros that it puts in the place of T5's embeddings."""
        config = self.checkpoint.configs[self.checkpoint.family.denoiser]
        if getattr(pipeline, "text_encoder_3", self) is None:
            pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**config))

    def _pipeline(self, nets: Mapping[str, torch.nn.Module] = {}, **parts: Any) -> Any:
        """Diffusers' pipeline of the family, with these ControlNets, these parts and the scheduler.

        It repairs old configs, as `checkpoints.scheduler` already did. Raises CompileError if it repairs anything else.
        """
        import diffusers

        library: Any = diffusers
        family = self.checkpoint.family
        kind = family.component(next(iter(nets))).cls if nets else None
        cls = getattr(import_module(family.library), family.controlled[kind] if kind else family.pipeline)
        if kind:
            name = "adapter" if kind == T2I_ADAPTER.cls else "controlnet"
            parts[name] = [*nets.values()] if len(nets) > 1 else next(iter(nets.values()))
        scheduler = self._new_scheduler()
        before = dict(scheduler.config)  # the pipeline changes it in place
        index = self.checkpoint.model_index
        given: dict[str, Any] = {
            "requires_safety_checker": False,
            "add_watermarker": False,
            "force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True),
            SCORED: self.checkpoint.family.scored,
            "scheduler": scheduler,
            **parts,
        }
        known = inspect.signature(cls.__init__).parameters
        needed = {name: None for name, one in known.items() if one.default is one.empty and name != "self"}
        pipeline = cls(**needed | {name: value for name, value in given.items() if name in known})
        pipeline.set_progress_bar_config(disable=True)
        after = dict(pipeline.scheduler.config)
        repaired = sorted(key for key in after if after[key] != before.get(key))
        if repaired and index.get("_class_name") == cls.__name__:
            raise CompileError(
                f"diffusers {library.__version__} changes {', '.join(repaired)} of the scheduler's config when it "
                f"loads it, which latentc does not expect. {in_tested_versions('diffusers')}"
            )
        return pipeline

    def _scheduler_of(self, asked: Asked) -> str | None:
        """The scheduler of a reference image; None for the checkpoint's own."""
        wrong = (self._takes_over or asked.strength not in (None, 1)) and self._own in WRONG_FROM_AN_IMAGE
        return DRAWS_INSTEAD if self._own is None or wrong else None

    def _new_scheduler(self, *, instead: bool = False) -> Any:
        """Diffusers' scheduler for the references: the checkpoint's own, or `DRAWS_INSTEAD`."""
        import diffusers

        library: Any = diffusers
        if self._own is not None and not instead:
            return getattr(library, self._own).from_config(self.scheduler)
        clips = bool(self.scheduler.get("clip_sample"))  # latentc's DDIM doesn't clip by default
        return library.DDIMScheduler.from_config(self.scheduler, clip_sample=clips)

    def _more_steps(self) -> int:
        """How many more than two steps the scheduler needs: PNDM starts with three Runge-Kutta steps."""
        return max(0, least_steps(self.scheduler, None if self._own else DRAWS_INSTEAD) - 2)
