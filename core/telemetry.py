"""Telemetry of the libraries that latentc loads: off before they are imported.

`latentc/__init__` calls `switch_off` once. That is the only place that is passed before every import of such a library:
by the adapters, by the export, by other libraries on their own (`torch.compile` loads OpenVINO's backend), and by every
process that latentc starts, as each of them imports latentc first. It is the one side effect of `import latentc`.
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
"""Environment variables, and the value that means off. Processes that latentc starts inherit them.

- `ORT_DISABLE_TELEMETRY`: ONNX Runtime 1.29 or later, read when it is imported (docs/Privacy.md in its repository:
  neither an uploader, nor events, nor a device id). Without it, `import onnxruntime` writes a device id and a database
  with the CPU's model under `~/.cache/Microsoft`, and sends it within seconds.
- `HF_HUB_DISABLE_TELEMETRY`: huggingface_hub, read when it is imported (`constants.py`), and what asks it before it
  sends: transformers, diffusers, accelerate, optimum.
- `DO_NOT_TRACK`: what libraries agreed on (donottrack.sh). huggingface_hub reads it too.

PyTorch, onnx, onnxscript, IREE, TensorRT and NVML were found to send nothing (traced, and read).
"""

MODULES = ("openvino_telemetry",)
"""Modules that only send, and that the libraries can do without: importing one raises ImportError.

`import openvino` sends an event and writes a client id under `~/intel`, unless the home folder holds a file that
declines. There is no variable for it. Where `openvino_telemetry` can't be imported, OpenVINO takes its own
`tools/ovc/telemetry_stub.py`, and NNCF a stub (`nncf/telemetry/wrapper.py`): nothing is sent, and nothing written.
"""


def switch_off() -> None:
    """Switch the libraries' telemetry off for this process and those that it starts.

    A variable that is already set is overwritten: `ORT_DISABLE_TELEMETRY=0` sends nothing either. A library that was
    imported before isn't reached.
    """
    os.environ.update(VARIABLES)
    for name in MODULES:
        sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType]  None: it can't be imported


def switch_off_events(onnxruntime: Any) -> None:
    """Switch off the events of ONNX Runtime's builds for Windows that don't read the variable (docs/Privacy.md)."""
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
