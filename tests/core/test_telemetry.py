"""Telemetry of other libraries is off before they are imported."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from latentc.benchmarks.line import command
from latentc.core.telemetry import MODULES, VARIABLES, switch_off_events

STATE = f"""
import os, sys
print([os.environ.get(name) for name in {tuple(VARIABLES)!r}], [sys.modules.get(name, 0) for name in {MODULES!r}])
"""
OFF = f"{['1'] * len(VARIABLES)} {[None] * len(MODULES)}\n"


def said(*arguments: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    return subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout


def test_every_library_has_a_switch():
    """Named here as well, so that none is lost by chance."""
    assert set(VARIABLES) == {"ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    assert MODULES == ("openvino_telemetry",)


def test_the_tests_send_nothing():
    assert VARIABLES.items() <= os.environ.items()
    for name in MODULES:
        with pytest.raises(ImportError):
            import_module(name)


@pytest.mark.parametrize("value", [None, "0", "", "false", "2"])
def test_importing_latentc_switches_off_what_was_unset_or_on(value):
    set_before = {} if value is None else dict.fromkeys(VARIABLES, value)
    assert said(sys.executable, "-c", f"import latentc\n{STATE}", **set_before) == OFF
    assert said(sys.executable, "-c", f"import latentc.runtimes.machine\n{STATE}", **set_before) == OFF


def test_what_was_imported_before_stays():
    """Such as a stand-in of the user's own."""
    code = "import sys; sys.modules['openvino_telemetry'] = sys; import latentc; import openvino_telemetry as it"
    assert said(sys.executable, "-c", f"{code}\nprint(it is sys)") == "True\n"


def test_a_process_under_another_python_switches_off_too(tmp_path):
    """Baselines run where latentc isn't installed, and optimum's command line is started by one of them."""
    library = tmp_path / "optimum" / "commands"
    library.mkdir(parents=True)
    (library / "optimum_cli.py").write_text(f"{STATE}\nprint(sys.argv[1:], __name__)")
    line = command(sys.executable, "benchmarks.subjects.optimum_cli")
    assert said(*line, "export", "openvino", PYTHONPATH=str(tmp_path)) == f"{OFF}['export', 'openvino'] __main__\n"


def test_the_libraries_heed_the_switches():
    """Each by what it says of itself, in a process that hasn't imported it."""
    code = (
        "import latentc, huggingface_hub.constants as hub, openvino\n"
        "from openvino.tools.ovc.telemetry_utils import tm\n"
        "print(hub.HF_HUB_DISABLE_TELEMETRY, tm.__name__)"
    )
    assert said(sys.executable, "-c", code) == "True openvino.tools.ovc.telemetry_stub\n"


@pytest.mark.parametrize("room", ["runtimes.placement", "runtimes.onnxruntime"])
def test_events_of_builds_that_read_no_variable_are_switched_off(room, monkeypatch):
    library = import_module("onnxruntime")
    calls = []
    monkeypatch.setattr(library, "disable_telemetry_events", lambda: calls.append(room))
    assert import_module(f"latentc.{room}")._library() is library
    assert calls == [room]
    switch_off_events(os)  # a library without them
