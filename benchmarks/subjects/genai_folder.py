"""The graphs of a Stable Diffusion 1 bundle in optimum-intel's layout, which OpenVINO GenAI opens.

    python -P genai_folder.py BUNDLE CHECKPOINT FOLDER

needs openvino, openvino-tokenizers and transformers, and imports nothing of latentc. Weights are kept in f32.
"""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PARTS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}
"""Parts of a bundle, and the folders of the checkpoint that have their configs."""


def main(bundle: Path, checkpoint: Path, folder: Path) -> None:
    """Convert each graph and the tokenizer, and name a scheduler that the library knows."""
    import transformers

    library: Any = import_module("openvino")
    tokenizers: Any = import_module("openvino_tokenizers")
    hub: Any = transformers
    for part, source in PARTS.items():
        (folder / part).mkdir(parents=True)
        graph: Any = library.convert_model(bundle / part / "model.onnx")
        if part == "unet":
            typed: Any = library.preprocess.PrePostProcessor(graph)
            typed.input("timestep").tensor().set_element_type(library.Type.i64)
            graph = typed.build()
        library.save_model(graph, folder / part / "openvino_model.xml", compress_to_fp16=False)
        shutil.copyfile(checkpoint / source / "config.json", folder / part / "config.json")
    shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
    converted: Any = tokenizers.convert_tokenizer(hub.CLIPTokenizer.from_pretrained(str(checkpoint / "tokenizer")))
    library.save_model(converted, folder / "tokenizer" / "openvino_tokenizer.xml")
    shutil.copytree(checkpoint / "scheduler", folder / "scheduler")
    for name, key in (("scheduler/scheduler_config.json", "_class_name"), ("model_index.json", "scheduler")):
        value: dict[str, Any] = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        value[key] = "DDIMScheduler" if key == "_class_name" else ["diffusers", "DDIMScheduler"]
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
