"""Pipelines and the processes that they are used in: forks, and engines that change under one that has them loaded."""

import os
import re
import subprocess
import sys

import pytest

from latentc.compiler.build import build
from latentc.core.errors import BundleError
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

FORK = """
import os, sys, latentc
folder, profile, how = sys.argv[1:]
pipeline = latentc.Pipeline.open(folder, profile)
request = latentc.Request(prompt="x", steps=1, seed=1)
first = pipeline(request).images
child = os.fork()
if not child:
    try:
        if how == "draw":
            pipeline(request)
        elif how == "describe":
            print(len(pipeline.describe()))
        elif how == "close":
            pipeline.close()
        elif how == "open":
            with latentc.Pipeline.open(folder, profile) as own:
                print((own(request).images == first).all())
    except latentc.LatentcError as exc:
        print(f"{type(exc).__name__}: {exc}")
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert (pipeline(request).images == first).all()
pipeline.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32"])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("draw", r"RuntimeMissing: This pipeline was opened in process \d+, but this is process \d+, a fork.*spawn.*"),
        ("nothing", ""),
        ("close", ""),
        ("describe", r"RuntimeMissing: These engines were opened in process .*"),
        ("open", "True"),
    ],
)
def test_a_fork(bundle, name, how, says):
    """It ends in its own way, with its own exit code, and its parent draws on."""
    opened = bundle("sd1")
    build(opened, load_profile(name))
    command = [sys.executable, "-c", FORK, str(opened.folder), name, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 7, done.stderr
    assert re.fullmatch(says, done.stdout.strip())


def opened_and_drawn(bundle, name):
    profile = load_profile(name)
    build(bundle, profile)
    pipeline = Pipeline.open(bundle, profile)
    pipeline(Request(prompt="x", steps=1, seed=1))
    engine = next(bundle.engines.glob("unet-*"))
    return pipeline, max((path for path in engine.iterdir() if path.name != "key.json"), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", ["null", pytest.param("cpu-onnxruntime", marks=pytest.mark.slow)])
def test_an_engine_written_to_while_it_is_loaded_draws_no_more(own_bundle, name):
    pipeline, file = opened_and_drawn(own_bundle(), name)
    request = Request(prompt="x", steps=1, seed=1)
    content = file.read_bytes()
    with pipeline:
        os.utime(file)  # touched, and as it was
        pipeline(request)
        with file.open("r+b") as opened:
            opened.write(bytes([content[0] ^ 1]))
        with pytest.raises(BundleError, match=r"was written to while its engine was loaded.*rename the copy"):
            pipeline(request)


@pytest.mark.parametrize("name", ["null", pytest.param("cpu-onnxruntime", marks=pytest.mark.slow)])
def test_an_engine_replaced_by_rename_draws_on(own_bundle, name):
    pipeline, file = opened_and_drawn(own_bundle(), name)
    request = Request(prompt="x", steps=1, seed=1)
    with pipeline:
        before = pipeline(request).images
        (file.parent / "new").write_bytes(bytes(10))
        (file.parent / "new").replace(file)
        assert (pipeline(request).images == before).all()
        file.unlink()
        assert (pipeline(request).images == before).all()
