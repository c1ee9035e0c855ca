"""What the tests of ONNX Runtime's providers share: a pretended device, and targets on other devices."""

from dataclasses import replace

from latentc.runtimes import onnxruntime as module
from latentc.runtimes import placement, provider_here, providers
from latentc.runtimes.providers import Provider


def stand_in(monkeypatch, **changes):
    """Let the CPU's provider pass for one of a device called DSP."""
    provider = replace(Provider("CPUExecutionProvider", "onnxruntime-dsp", precisions=("f32",)), **changes)
    for room in (module, placement, providers):
        monkeypatch.setitem(room.PROVIDERS, "DSP", provider)
    for room in (module, provider_here):
        monkeypatch.setattr(room, "fault", lambda device, precision: None)


def target_of(case, device, **changes):
    return replace(case.target, device=device, **changes)
