"""CLIP score of images and prompts, with a local CLIP model. Nothing is downloaded."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import LatentcError
from ..line import Scored

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of CLIP's training images by channel: the default of its preprocessing."""

UNTOUCHED = 1e-6
"""Largest rounding error of a value that training hasn't changed."""


class Clip:
    """A CLIP model in transformers' layout."""

    def load(self, folder: str) -> None:
        """Read model, tokenizer and preprocessing. Raises `LatentcError` for a model that was never trained."""
        transformers: Any = import_module("transformers")
        path = Path(folder)
        self._model: Any = transformers.CLIPModel.from_pretrained(path, local_files_only=True).eval()
        begun = float(self._model.config.logit_scale_init_value)
        if abs(self._model.logit_scale.item() - begun) < UNTOUCHED:  # training changes it from the first step
            raise LatentcError(
                f"The CLIP model in {path.name} has random weights: its temperature has the initial value. Its scores "
                "would mean nothing. Choose a folder with a trained model."
            )
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        said = path / "preprocessor_config.json"
        facts: dict[str, Any] = json.loads(said.read_text(encoding="utf-8")) if said.is_file() else {}
        self._mean, self._deviation = facts.get("image_mean", MEAN), facts.get("image_std", DEVIATION)

    def score(self, pictures: str, prompts: list[str]) -> Scored:
        """100 times the cosine of each picture's embedding with its prompt's, or 0 where that is negative.

        `pictures` is an `.npz` of uint8 [h, w, 3] in the prompts' order. Source: arXiv 2104.08718, in the scale of
        torchmetrics.
        """
        torch: Any = import_module("torch")
        with np.load(pictures, allow_pickle=False) as file:
            images = [file[name] for name in file.files]
        found: list[float] = []
        with torch.inference_mode():
            for image, prompt in zip(images, prompts, strict=True):
                tokens = self._tokenizer([prompt], padding=True, truncation=True, return_tensors="pt")
                seen = self._model(pixel_values=torch.from_numpy(self._prepared(image)[None]), **tokens)
                cosine = torch.nn.functional.cosine_similarity(seen.image_embeds, seen.text_embeds)
                found.append(100 * max(0.0, float(cosine)))
        return Scored(clip=tuple(found))

    def _prepared(self, image: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """CLIP's preprocessing: scale the shorter side to the model's, crop the centre, normalize; f32 [3, n, n]."""
        side = int(self._model.config.vision_config.image_size)
        height, width = image.shape[:2]
        scale = side / min(height, width)
        size = max(side, int(width * scale)), max(side, int(height * scale))  # not rounded, as in CLIP's code
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        cut = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255
        normal = (cut - np.array(self._mean)) / np.array(self._deviation)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)
