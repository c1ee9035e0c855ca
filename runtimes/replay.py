"""Whether ONNX Runtime replays a recorded call, or runs its nodes one by one, from its own profile.

`InferenceSession::Run` replays a recorded call without the executor, so that its profile has a `model_run` without any
`..._kernel_time` inside (core/session/inference_session.cc). Its builds for pip don't list the GPU's own kernels
(`onnxruntime_ENABLE_CUDA_PROFILING` is off): which kernels a replay launched can't be seen there.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import CompileError
from ..core.shapes import sizes_of
from .base import Target
from .host import zeros
from .placement import DeviceCall, Placement, open_session
from .providers import PROVIDERS

CALLS = 3
"""A call is recorded during the first one at the latest; the others may replay it."""


def last_call(
    graph: Path, options: Any, target: Target, settings: Mapping[str, str], usual: Mapping[str, int]
) -> Placement:
    """Nodes that were run one by one in the last of several calls with zeros, by provider and operator; empty where a
    recorded call was replayed. Free sizes have their `usual` values. Raises `CompileError` where the profile doesn't
    list the calls.
    """
    feeds = zeros(target, usual)
    sizes = sizes_of(target.inputs, {name: array.shape for name, array in feeds.items()})
    with tempfile.TemporaryDirectory() as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "calls")
        session = open_session(str(graph), options, target.device, settings)
        memory = PROVIDERS[target.device].memory
        call = DeviceCall(session, target, memory) if memory else None
        try:
            for _ in range(CALLS):
                call(feeds, sizes) if call else session.run([tensor.name for tensor in target.outputs], feeds)
            events = json.loads(Path(session.end_profiling()).read_bytes())
        finally:
            if call:
                call.release()
    return nodes_of_last(events)


def nodes_of_last(events: list[dict[str, Any]]) -> Placement:
    """The nodes of the last call in a profile of `CALLS` calls, as in `last_call`."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    if len(starts) < CALLS:
        raise CompileError(
            f"ONNX Runtime's profile lists {len(starts)} of {CALLS} calls, so it does not show whether a call was "
            "replayed. Compare the times of the profile with its recorded graph switched off."
        )
    counts: dict[str, Counter[str]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= starts[-1]:
            counts.setdefault(event["args"]["provider"], Counter())[event["args"]["op_name"]] += 1
    return {name: dict(operators.most_common()) for name, operators in counts.items()}
