"""CLIP score, LPIPS and FID, from local weights. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..frechet import frechet_distance
from ..line import Checked, Scored, serve
from ..weights import FoundWeights, find
from .clip import Clip
from .inception import features
from .lpips import distances

AT_ONCE = 8


class Measures:
    """The requested measures among CLIP score, LPIPS and FID."""

    def check(self, folders: Mapping[str, str]) -> Checked:
        """Load all weights. Raises what loading raises, and `LatentcError` for an untrained CLIP model."""
        self._clip = Clip() if "clip" in folders else None
        if self._clip is not None:
            self._clip.load(folders["clip"])
        self._lpips = _loaded(find("lpips", Path(folders["lpips"]))) if "lpips" in folders else None
        self._fid = _loaded(find("fid", Path(folders["fid"]))) if "fid" in folders else None
        return Checked(self._lpips[0] if self._lpips else "")

    def score(self, pictures: str, reference: str, prompts: list[str]) -> Scored:
        """Score images, also against the reference's: both `.npz` of uint8 [h, w, 3], in the order of prompts."""
        mine, theirs = _pictures(pictures), _pictures(reference)
        return Scored(
            clip=self._clip.score(pictures, prompts).clip if self._clip else (),
            lpips=self._distances(mine, theirs) if self._lpips else (),
            fid=frechet_distance(self._features(mine), self._features(theirs)) if self._fid else None,
        )

    def _distances(self, mine: Any, theirs: Any) -> tuple[float, ...]:
        assert self._lpips is not None
        net, states = self._lpips
        parts = zip(mine.split(AT_ONCE), theirs.split(AT_ONCE), strict=True)
        return tuple(one for pair in parts for one in distances(net, states["trunk"], states["linear"], *pair))

    def _features(self, pictures: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        assert self._fid is not None
        state = self._fid[1]["inception"]
        torch: Any = import_module("torch")
        return torch.cat([features(state, part) for part in pictures.split(AT_ONCE)]).double().numpy()


def _loaded(found: FoundWeights) -> tuple[str, dict[str, dict[str, Any]]]:
    """State dicts by part. The files are verified by digest, and only tensors are unpickled."""
    torch: Any = import_module("torch")
    states = {part: torch.load(path, map_location="cpu", weights_only=True) for part, path in found.files.items()}
    return found.net, {part: {name: value.float() for name, value in state.items()} for part, state in states.items()}


def _pictures(path: str) -> Any:
    torch: Any = import_module("torch")
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(np.stack([file[name] for name in file.files])).permute(0, 3, 1, 2).contiguous()


if __name__ == "__main__":
    measures = Measures()
    serve({"check": lambda what: measures.check(what["folders"]), "score": lambda what: measures.score(**what)})
