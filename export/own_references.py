"""References of a bundle without PyTorch's: what its own graphs and latentc's own sampling make of fixed inputs.

They have the form of those that PyTorch and diffusers compute (`reference`), so that every engine is compared in the
same way. They show that engines compute what the graphs do. Whether graphs and sampling are right, they cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.parts.clip import VOCABULARY
from ..core.bundle import Bundle, checked_graph
from ..core.errors import CheckpointError
from ..core.manifest import Part
from ..core.model import Model
from ..core.progress import Progress
from ..core.references import (
    DRAWINGS,
    DRAWN,
    ENDS,
    IDS,
    Case,
    Drawings,
    ReferenceDrawing,
    ReferenceTokens,
    pack,
    stated,
    stored_at,
)
from ..core.shapes import embedding_length, shape_of
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from ..sampling.denoise import feeds, is_guided, step
from ..sampling.draw import constants
from ..sampling.host import Host, latent_shape, load_host
from ..sampling.pixels import quantized
from ..sampling.reading import Text, read_text
from ..sampling.scaling import unscaled
from ..sampling.vocabulary import Vocabulary, ids_of
from ..sampling.walks import walk_of
from .asked import AT_SHARES, MAX_PIXELS, OTHER_TEXT_EACH, SEED, Asked, exact
from .export import write_json
from .scheduler import least_steps
from .sessions import CpuSession
from .texts import MOST_WORDS, ODD_TEXTS, WORLDS, Frame, full_chunk, spread

PATCHES = (1, 2, 4, 8, 16, 32)
"""Numbers that the sides of latents may have to be multiples of. Graphs traced at one size double the sides of their
lower levels, so each level halves the sizes that they can run at."""

LEAST_SIDE = 9


@dataclass(frozen=True)
class _Words:
    """A vocabulary with the interface that `full_chunk` reads."""

    vocabulary: Vocabulary

    @property
    def model_max_length(self) -> int:
        return self.vocabulary.length

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": ids_of(self.vocabulary, text)}


class OwnReferences:
    """Computes the references of a bundle whose graphs, tokenizers and scheduler are written already."""

    def __init__(self, bundle: Bundle, on_progress: Progress) -> None:
        self.bundle = bundle
        self.on_progress = on_progress
        self.random = np.random.default_rng(SEED)
        self.drawings: list[ReferenceDrawing] = []
        self.drawn: dict[str, Array] = {}
        self.samples: dict[str, list[Case]] = {}
        """A few cases of each part, to compare the rewritten graph with the file's."""
        self._tokens: dict[str, ReferenceTokens] = {}
        self._scheduler: dict[str, Any] = {}

    def measure_patch(self, model: Model) -> Model:
        """The model with the number that sides of its latents must be multiples of.

        Raises CheckpointError for a graph that runs at none of the sizes that its inputs state.
        """
        part = self.bundle.one("denoiser")
        info = self.bundle.part(part)
        last: CheckpointError | None = None
        with CpuSession(checked_graph(self.bundle, part)) as session:
            for patch in PATCHES if model.patch == 1 else (model.patch,):
                odd = -(-LEAST_SIDE // patch) // 2 * 2 + 1
                height, width = odd * patch, (odd + 2) * patch
                given = self._random_feeds(info, model, height, width)
                try:
                    (output,) = session.answer(given).values()
                except CheckpointError as exc:
                    last = exc
                    continue
                if output.shape == given[model.latents_input].shape:
                    return model.model_copy(update={"patch": patch})
        raise CheckpointError(
            f"The graph of {part} states free sizes, but runs at none of those that latentc tried. The last error: "
            f"{last or 'its output has another shape than its latents'}"
        )

    def _random_feeds(self, info: Part, model: Model, height: int, width: int) -> dict[str, Array]:
        sizes = {"batch": 2, "height": height, "width": width, "length": embedding_length(model, 1)}
        return {
            tensor.name: np.array([500.0], np.float32)
            if tensor.name == TIMESTEP
            else self.random.standard_normal(shape_of(tensor.shape, sizes), dtype=np.float32)
            for tensor in info.inputs
        }

    def compute(self) -> dict[str, dict[str, Array]]:
        """The references of each part, as arrays to be stored. Parts are loaded one after another."""
        host = load_host(self.bundle)
        self._scheduler = dict(host.scheduler)
        stored: dict[str, dict[str, Array]] = {}
        asked = self._wishes(host)
        self.on_progress("prompts: run", None)
        texts = self._read_prompts(host, asked, stored)
        (denoiser,) = (part for part in host.denoisers.values())
        ended: dict[str, Array] = {}
        self.on_progress(f"{denoiser}: run", None)
        with CpuSession(checked_graph(self.bundle, denoiser)) as session:
            stored[denoiser] = self._draw(host, session, denoiser, asked, texts, ended)
        self.on_progress(f"{host.decoders[None]}: run", None)
        with CpuSession(checked_graph(self.bundle, host.decoders[None])) as session:
            stored[host.decoders[None]] = self._decode(host, session, ended)
        for name, part in self.bundle.manifest.parts.items():
            if part.role == "encoder":
                self.on_progress(f"{name}: run", None)
                with CpuSession(checked_graph(self.bundle, name)) as session:
                    stored[name] = self._encode(host.model, session, name)
        return stored

    def write(self, place: Path) -> None:
        """Compute the references, and write them into the folder of the bundle."""
        (place / "reference").mkdir(exist_ok=True)
        for name, arrays in self.compute().items():
            np.savez(place / stored_at(name), allow_pickle=False, **arrays)
        np.savez(place / DRAWN, allow_pickle=False, **self.drawn)
        write_json(place / DRAWINGS, self.made().model_dump(mode="json"))

    def made(self) -> Drawings:
        """The record of all reference images, after `compute`."""
        return Drawings(
            **stated(self.bundle.manifest.model),
            scheduler=self._scheduler,
            tokens=self._tokens,
            drawings=tuple(self.drawings),
        )

    def _wishes(self, host: Host) -> tuple[Asked, ...]:
        """The reference images of `reference`: two sizes, one to four rows, one chunk and two."""
        (first, second, third, *_), negative = WORLDS[""]
        side, wide, own, more = self._square(host.model), self._wide(host.model), self._own(host.model), self._more()
        whole = full_chunk(_Words(host.vocabularies[0]), first)
        wishes = [
            Asked("whole", (first,), negative, (side, side), 5 + more),
            Asked("wide", (second,), "", wide, 2 + more, count=2),
            Asked("single", (third,), "", (side, side), 3 + more, count=3, guidance=1.0, calls=3),
            Asked("long", (whole, second), negative, (side, side), 2 + more, calls=2),
        ]
        if own != (side, side):
            wishes.append(Asked("own", (first,), negative, own, 2 + more, calls=1))
        return tuple(wishes)

    def _own(self, model: Model) -> tuple[int, int]:
        width, height = model.own_size
        return height // model.downscale, width // model.downscale

    def _square(self, model: Model) -> int:
        return _multiple(min(*model.own_size, MAX_PIXELS) // model.downscale, model.patch)

    def _wide(self, model: Model) -> tuple[int, int]:
        side = self._square(model)
        low, broad = max(LEAST_SIDE, side // 2 + 1), max(LEAST_SIDE, side - 1)
        return _multiple(low, model.patch), _multiple(broad, model.patch)

    def _more(self) -> int:
        return max(0, least_steps(self._scheduler) - 2)

    def _read_prompts(
        self, host: Host, asked: tuple[Asked, ...], stored: dict[str, dict[str, Array]]
    ) -> dict[str, Text]:
        """Encode every prompt; adds the references of the text encoders to `stored`."""
        rows: dict[str, dict[bytes, dict[str, Array]]] = {one.part: {} for one in host.model.text_encoders}
        with ExitStack() as stack:
            sessions = {name: stack.enter_context(CpuSession(checked_graph(self.bundle, name))) for name in rows}

            def call(part: str, given: Mapping[str, Array]) -> dict[str, Array]:
                for row in range(len(next(iter(given.values())))):
                    one = {name: array[row] for name, array in given.items()}
                    rows[part][b"".join(array.tobytes() for array in one.values())] = one
                return sessions[part].answer(given)

            texts = {one.name: read_text(host, one.request(host.model.downscale), call, {}) for one in asked}
            for encoder, vocabulary in zip(host.model.text_encoders, host.vocabularies, strict=True):
                self._tokens[encoder.part] = _tokens(vocabulary)
                unique = list(rows[encoder.part].values())
                names = list(unique[0])
                frame = Frame(vocabulary.start, vocabulary.end, vocabulary.pad, vocabulary.length)
                cases: list[Case] = []
                for name, given in {
                    "pair": unique[:2],
                    "prompts": unique,
                    "vocabulary": spread(frame, encoder.vocabulary or VOCABULARY, hides=encoder.hides),
                }.items():
                    fed = {key: np.stack([row[key] for row in given]) for key in names}
                    outputs = sessions[encoder.part].answer(fed)
                    kept = outputs if name == "pair" else host.model.read_of(encoder.part)
                    cases.append(Case(name, fed, {key: outputs[key] for key in kept}))
                self.samples[encoder.part] = cases[:1]
                stored[encoder.part] = pack(cases, {})
                first, second = ({key: array[row : row + 1] for key, array in cases[0].feeds.items()} for row in (0, 1))
                check_effects(sessions[encoder.part], encoder.part, first, {IDS: second[IDS]})
        return texts

    def _draw(
        self,
        host: Host,
        session: CpuSession,
        part: str,
        wishes: tuple[Asked, ...],
        texts: Mapping[str, Text],
        ended: dict[str, Array],
    ) -> dict[str, Array]:
        """Run every step of the reference images; adds the latents of complete ones, for the decoder, to `ended`."""
        (output,) = (tensor.name for tensor in self.bundle.part(part).outputs)
        shared: dict[str, dict[str, Array]] = {}
        cases: list[Case] = []
        for asked in wishes:
            request, text = asked.request(host.model.downscale), texts[asked.name]
            shape = latent_shape(host.model, request)
            start = self.random.standard_normal(shape, dtype=np.float32)
            fixed = shared[asked.name] = constants(host, request, text)
            noises = iter(lambda s=shape: self.random.standard_normal(s, dtype=np.float32), None)
            used: list[Array] = []

            def noise(source: Any = noises, into: list[Array] = used) -> Array:
                into.append(next(source))
                return into[-1]

            guided = is_guided(host.model, request)
            walk = walk_of(host, request, guided=guided, noise=noise, engine="its graph")
            latents, steps = start * np.float32(walk.schedule.init_noise_sigma), list[Array]()
            total = len(walk.schedule.timesteps)
            for index in range(total if asked.calls is None else min(asked.calls, total)):
                given = {**fixed, **feeds(walk, index, latents)}
                (answer,) = session.run([output], given)
                cases.append(Case(f"{asked.name}.{index}", given, {output: answer}))
                latents = step(lambda _given, one=answer: {output: one}, walk, index, latents)
                steps.append(latents)
            if not used:
                used.append(self.random.standard_normal(shape, dtype=np.float32))
            self.drawn |= {
                f"{asked.name}/start": start,
                f"{asked.name}/sigma": np.array(float(walk.schedule.init_noise_sigma)),
                f"{asked.name}/steps": np.stack(steps),
                f"{asked.name}/noise": np.stack(used),
            }
            whole = asked.calls is None
            if whole:
                ended[asked.name] = unscaled(host.model, latents)
            self.drawings.append(ReferenceDrawing(name=asked.name, request=request, calls=len(steps), complete=whole))
        firsts = [case for case in cases if case.name.endswith(".0")]
        ends = self._at_ends(host, session, part, cases, output)
        self.samples[part] = [*firsts, *ends[:2], *ends[-2:]]
        return pack([*cases, *ends], shared)

    def _at_ends(self, host: Host, session: CpuSession, part: str, cases: list[Case], output: str) -> list[Case]:
        """The additional calls of `reference`: timesteps over the whole range, other texts, and other shapes."""
        model = host.model
        like = cases[0]
        other, long = (next(case for case in cases if case.drawing == name) for name in ("wide", "long"))
        last = int(self._scheduler.get("num_train_timesteps", 1000)) - 1
        side, (low, broad) = self._square(model), self._wide(model)
        large = _multiple(side * 3 // 2, model.patch)
        once = {name: array[-1:] for name, array in like.feeds.items() if name not in (model.latents_input, TIMESTEP)}
        longer = once | {
            tensor.name: np.concatenate([once[tensor.name], long.feeds[tensor.name][-1:]], axis=1)
            for tensor in self.bundle.part(part).inputs
            if "length" in tensor.shape
        }
        wishes = [(share, 1, (side, side), once) for share in AT_SHARES]
        wishes += [(0.7, 6, (low, broad), once), (0.6, 1, (broad, low), once)]
        wishes += [(0.4, 1, (large, large), once), (0.3, 1, (low, broad), longer)]
        made: list[Case] = []

        def add(given: dict[str, Array]) -> None:
            made.append(Case(f"{ENDS}.{len(made)}", given, {output: session.run([output], given)[0]}))

        for share, rows, size, fixed in wishes:
            given = {name: array.repeat(rows, axis=0) for name, array in fixed.items()}
            add(
                given
                | {
                    model.latents_input: self.random.standard_normal(model.latents(rows, *size), dtype=np.float32),
                    TIMESTEP: np.array([exact(last * share) if share < 1 else last], np.float32),
                }
            )
        texts = dict.fromkeys(wire.input for wire in model.wires if wire.of_part)
        others = {name: other.feeds[name][-1:] for name in texts if name in other.feeds}
        check_effects(session, part, made[0].feeds, {**made[1].feeds, **others})
        for case in made[: len(AT_SHARES) : OTHER_TEXT_EACH]:
            add({**case.feeds, **others})
        return made

    def _decode(self, host: Host, session: CpuSession, ended: Mapping[str, Array]) -> dict[str, Array]:
        (output,) = (tensor.name for tensor in self.bundle.part(host.decoders[None]).outputs)
        given = {name: latents.astype(np.float32) for name, latents in ended.items()}
        for name, size in self._sizes(host.model, own_only=True).items():
            latents = self.random.standard_normal(host.model.latents(1, *size), dtype=np.float32)
            given[name] = unscaled(host.model, latents).astype(np.float32)
        cases: list[Case] = []
        for name, latents in given.items():
            (images,) = session.run([output], {"latent_sample": latents})
            cases.append(Case(name, {"latent_sample": latents}, {output: images}))
            if name in ended:
                self.drawn[f"{name}/images"] = np.stack([quantized(image) for image in images])
        check_effects(session, host.decoders[None], cases[0].feeds, {"latent_sample": -cases[0].feeds["latent_sample"]})
        self.samples[host.decoders[None]] = cases[:2]
        return pack(cases, {})

    def _encode(self, model: Model, session: CpuSession, part: str) -> dict[str, Array]:
        (output,) = (tensor.name for tensor in self.bundle.part(part).outputs)
        cases: list[Case] = []
        for name, (height, width) in self._sizes(model, own_only=False).items():
            coarse = self.random.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
            given = {"sample": coarse.repeat(model.downscale, axis=2).repeat(model.downscale, axis=3)}
            cases.append(Case(name, given, {output: session.run([output], given)[0]}))
        check_effects(session, part, cases[0].feeds, {"sample": -cases[0].feeds["sample"]})
        self.samples[part] = cases[:2]
        return pack(cases, {})

    def _sizes(self, model: Model, *, own_only: bool) -> dict[str, tuple[int, int]]:
        side, own, (low, broad) = self._square(model), self._own(model), self._wide(model)
        large = _multiple(side * 3 // 2, model.patch)
        more = {} if own_only else {"square": (side, side), "other": (low, broad)}
        more |= {"portrait": (broad, low), "large": (large, large)}
        return more | ({"own": own} if own != (side, side) else {})


def check_effects(session: CpuSession, part: str, feeds: Mapping[str, Array], others: Mapping[str, Array]) -> None:
    """Raise CheckpointError for an input whose other values leave every output as it was.

    Weights of zeros do that, for example. No comparison of an engine with its graph can show it.
    """
    outputs = session.answer(feeds)
    for name, array in others.items():
        if np.array_equal(array, feeds[name]):
            continue
        changed = session.answer({**feeds, name: array})
        if all(np.array_equal(outputs[key], changed[key]) for key in outputs):
            raise CheckpointError(
                f"The graph of {part} does not depend on its input {name}: other values give the same outputs. Its "
                "weights may be missing or zeros: check the files that the bundle is made of."
            )


def _multiple(side: int, patch: int) -> int:
    """The smallest multiple of `patch` that is not below `side`."""
    return -(-side // patch) * patch


def _tokens(vocabulary: Vocabulary) -> ReferenceTokens:
    """Token ids of unusual texts and of words of the whole vocabulary."""
    found = vocabulary.tokenizer.get_vocab()
    marked = [word.replace("\u2581", " ") for word in found]  # T5 marks the start of a word
    words = sorted(
        word.removesuffix("</w>").strip()
        for word in marked
        if (word.endswith("</w>") or word.startswith(" ")) and word.isascii()
    )
    chosen = words[:: max(1, len(words) // MOST_WORDS)]
    texts = (*ODD_TEXTS, *(" ".join(chosen[index : index + 20]) for index in range(0, len(chosen), 20)))
    return ReferenceTokens(
        start=vocabulary.start,
        end=vocabulary.end,
        pad=vocabulary.pad,
        length=vocabulary.length,
        texts=texts,
        ids=tuple(tuple(ids_of(vocabulary, text)) for text in texts),
    )
