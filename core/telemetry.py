"""Switch off the telemetry of the libraries that latentc loads, before they are imported.

`latentc/__init__` calls `switch_off` once. It is the only code that always runs before such a library is imported: by
the adapters, by the export, by other libraries (`torch.compile` loads OpenVINO's backend), and in every process that
latentc starts, because each of them imports latentc first. It is the only side effect of `import latentc`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment variables, with the value that means off. Processes that latentc starts inherit them.

- `ORT_DISABLE_TELEMETRY`: ONNX Runtime 1.29 or later, read when it is imported (docs/Privacy.md in its repository:
  neither an uploader, nor events, nor a device id). Without it, `import onnxruntime` writes a device id and a database
  with the CPU's model under `~/.cache/Microsoft`, and sends it within seconds.
- `HF_HUB_DISABLE_TELEMETRY`: huggingface_hub, read when it is imported (`constants.py`), and libraries that check it
  before sending: transformers, diffusers, accelerate, optimum.
- `DO_NOT_TRACK`: a convention between libraries (donottrack.sh). huggingface_hub reads it too.

PyTorch, onnx, onnxscript, IREE, TensorRT and NVML send nothing, according to traces and their sources.
"""

MODULES = ("openvino_telemetry",)
"""Modules that only send telemetry, and that the libraries work without: importing one raises ImportError.

`import openvino` sends an event and writes a client id under `~/intel`, unless an opt-out file exists in the home
folder. There is no variable for it. If `openvino_telemetry` cannot be imported, OpenVINO uses its own
`tools/ovc/telemetry_stub.py`, and NNCF a stub (`nncf/telemetry/wrapper.py`): nothing is sent or written.
"""


def switch_off() -> None:
    """Switch off the libraries' telemetry for this process and the processes it starts.

    A variable that is already set is overwritten, so `ORT_DISABLE_TELEMETRY=0` has no effect. A library that was
    imported before is not affected.
    """
    os.environ.update(VARIABLES)
    for name in MODULES:
        sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType]  None: importing it fails


def switch_off_events(onnxruntime: Any) -> None:
    """Switch off events in ONNX Runtime's Windows builds that ignore the variable (docs/Privacy.md)."""
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
