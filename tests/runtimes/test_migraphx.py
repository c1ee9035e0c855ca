"""MIGraphX: the arguments of its driver and its module. Both are stand-ins; no device and no ROCm was seen."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.compiler.build import build
from latentc.compiler.cache import Parity
from latentc.compiler.engines import load
from latentc.core.errors import CompileError, ProfileError, RuntimeMissing
from latentc.core.progress import quiet
from latentc.profiles import load_profile
from latentc.runtimes import Job, hip
from latentc.runtimes import migraphx as module
from latentc.runtimes.base import files_in
from latentc.runtimes.machine import Gpu, machine
from latentc.runtimes.migraphx import MIGraphX

from .conftest import OUTPUTS, lower, write_graph

DRIVER_OPTIONS = (Path(__file__).parent / "migraphx_driver_options.txt").read_text().splitlines()
OPTIONS = [line for line in DRIVER_OPTIONS if line != "--help" and not line.startswith("#")]
DRIVER = f"""#!{sys.executable}
import json, os, shutil, sys
from pathlib import Path
if "--help" in sys.argv:  # as src/driver/argument_parser.hpp of its repository writes it
    lacks = Path(__file__).with_name("lacks")
    lacks = lacks.read_text().split() if lacks.exists() else []
    print("FLAGS:\\n\\n    -h, --help                     Show help\\n\\nOPTIONS:")
    for option in {OPTIONS!r}:
        if option not in lacks:
            print(f"\\n    {{option}}, -x [std::string]\\n        only used when --gpu-arch is set")
    sys.exit()
if sys.argv[1] == "--version":
    print("MIGraphX Version: 2.15.0.20250912-17-195-g1afd1b89c")
    sys.exit()
out = Path(sys.argv[sys.argv.index("--output") + 1])
graph = Path(sys.argv[sys.argv.index("--onnx") + 1])
Path(__file__).with_name("received.json").write_text(json.dumps([*sys.argv[1:], os.environ.get("HIP_VISIBLE_DEVICES")]))
if "REFUSED" in graph.name:
    print("MIGraphX Version: 2.14.0\\n\x1b[31mError: \x1b[0mFound argument '--gpu-arch' which wasn't expected\\nUSAGE:")
    sys.exit()
if "FAIL" in graph.name:
    print("[ERROR] /AMDMIGraphX/src/onnx: error: PARSE_MATMUL: tensor dimension mismatch", file=sys.stderr)
    sys.exit(1)
if "SILENT" not in graph.name:
    shutil.copy(graph, out)
"""


@pytest.fixture
def received(tmp_path, monkeypatch):
    """Put the driver on the path; gives what it was received last."""
    folder = tmp_path / "rocm"
    folder.mkdir()
    driver = folder / "migraphx-driver"
    driver.write_text(DRIVER)
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return lambda: json.loads((folder / "received.json").read_text())


def lacking(*options):
    """Take options away from the driver on the path."""
    module._options.cache_clear()
    Path(shutil.which("migraphx-driver")).with_name("lacks").write_text(" ".join(options))


@pytest.fixture
def here(monkeypatch):
    """A GPU and a module, which computes by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    gpu = Gpu(name="MI300X", vendor="AMD", architecture="gfx942")
    with_gpu = machine().model_copy(update={"gpus": (gpu,)})

    def load_program(path):
        evaluator = ReferenceEvaluator(path)
        return SimpleNamespace(run=lambda given: evaluator.run(None, given))

    library = SimpleNamespace(load=load_program, argument=np.array, __version__="dev")
    monkeypatch.setattr(module, "machine", lambda: with_gpu)
    monkeypatch.setattr(module, "_module", lambda: library)
    monkeypatch.setattr(hip, "denied", lambda architecture: None)
    monkeypatch.setattr(hip, "number_of", lambda architecture, number=None: 2 if number is None else number)
    monkeypatch.setattr(hip, "addresses", lambda: ("0000:03:00.0", "0000:0d:00.0", "0000:0e:00.0"))
    used = []
    monkeypatch.setattr(hip, "use", used.append)
    return used


@pytest.fixture
def case(make_case, tmp_path):
    """The small part with fixed shapes, in f32, for gfx942."""
    pytest.importorskip("onnx")
    other = make_case("onnxruntime")
    feeds = other.feeds(2, 8, 8)
    shape = {name: array.shape for name, array in feeds.items()}
    graph = write_graph(tmp_path / "graph" / "model.onnx", shape)
    shutil.copy(graph.with_name("model.onnx_data"), tmp_path / "model.onnx_data")
    lower(MIGraphX(), "gfx942", graph, shape)
    target = replace(other.target, runtime="migraphx", device="gfx942", shape=shape)
    return SimpleNamespace(bundle=other.bundle, graph=graph, target=target, feeds=feeds, expected=other.expected)


def compile_to(case, out, **options):
    out.mkdir()
    MIGraphX().compile(Job("unet", case.graph, case.graph.parent, replace(case.target, options=options)), out, quiet)
    return out


PARAMS = load_profile("mi300x-mxr").options


def test_without_the_gpu_the_driver_receives_the_architecture_and_its_parameters(case, received, tmp_path):
    compile_to(case, tmp_path / "out", **PARAMS)
    given = received()
    assert given[:3] == ["compile", "--onnx", str(case.graph)]
    assert given[given.index("--gpu-arch") + 1] == "gfx942"
    assert given[given.index("--gpu-arch-params") + 1] == "{num_cu:304, num_chiplets:8}"
    assert {"--enable-offload-copy", "--disable-fast-math", "--binary"} <= set(given)
    assert MIGraphX().versions() == {"migraphx": "2.15.0"}, "it is in the key"
    assert "--disable-fast-math" not in (compile_to(case, tmp_path / "fast", fast_math=True), received())[1]
    with pytest.raises(CompileError, match="exhaustive_tune measures kernels on the GPU, and this machine has no gfx"):
        compile_to(case, tmp_path / "tuned", exhaustive_tune=True)


def test_every_flag_is_an_option_of_amds_driver(case, received, here, tmp_path, monkeypatch):
    """A list of names from its source and documentation; an unknown one would print a refusal, and exit with 0."""
    known = {"--help", *OPTIONS}
    assert "--gpu" in known
    commands = []
    for number, (options, crossed) in enumerate(
        [({}, False), ({"exhaustive_tune": True}, False), ({"fast_math": True}, False), (PARAMS, True)]
    ):
        if crossed:
            monkeypatch.setattr(module, "machine", lambda: machine().model_copy(update={"gpus": ()}))
        compile_to(case, tmp_path / str(number), **options)
        commands.append({word for word in received()[1:-1] if word.startswith("-")})
    given = set[str]().union(*commands)
    assert given == {
        *("--onnx", "--enable-offload-copy", "--disable-fast-math", "--exhaustive-tune", "--gpu-arch"),
        *("--gpu-arch-params", "--binary", "--output"),
    }
    assert given <= known


@pytest.mark.parametrize(
    ("params", "device", "message"),
    [
        ("num_cu=304", "gfx942", r"'num_cu=304'; it must have the form \{num_cu:304, num_chiplets:8\}"),
        ("{num_cu:many}", "gfx942", "it must have the form"),
        ('{"num_cu":304}', "gfx942", "it must have the form"),
        ("{}", "gfx942", "it must have the form"),
        ("{num_cus:304}", "gfx942", "has no 'num_cus'. Did you mean 'num_cu'"),
        ("{arch:gfx1100}", "gfx942", "it must have the form"),
        ("{num_cu:304, num_chiplets:8}", "gfx1100", "has num_cu:304, but no gfx1100 has more than 96"),
        ("{num_cu:304, num_chiplets:8}", "gfx950", "has num_cu:304, but no gfx950 has more than 256"),
        ("{num_cu:60, num_chiplets:8}", "gfx1101", "has num_chiplets:8, but no gfx1101 has more than 1"),
        ("{num_cu:0}", "gfx942", "has num_cu:0, but"),
    ],
)
def test_parameters_of_another_device_or_form_are_refused(params, device, message):
    assert set(module.LARGEST) == set(module.GFX)
    with pytest.raises(ProfileError, match=message):
        MIGraphX().check({"gpu_arch_params": params}, device)


def test_parameters_that_fit_are_accepted_and_an_architecture_of_one_size_needs_none(case, received, tmp_path):
    for device in module.GFX:
        profile = load_profile("mi300x-mxr").model_copy(update={"device": device})
        if device != "gfx942":
            with pytest.raises(ProfileError, match=f"but no {device} has more than"):
                MIGraphX().check(profile.options, profile.device)
    MIGraphX().check(PARAMS, "gfx942")
    MIGraphX().check({"gpu_arch_params": "{ num_cu : 228,num_chiplets:6, wavefront_size:64 }"}, "gfx942")
    for device, params in (("gfx950", "{num_cu:256, num_chiplets:8}"), ("gfx90a", None)):
        case.target = replace(case.target, device=device)
        compile_to(case, tmp_path / device)
        given = received()
        assert ("--gpu-arch-params" in given) == (params is not None)
        assert params is None or given[given.index("--gpu-arch-params") + 1] == params


def test_an_engine_that_was_compiled_without_the_gpu_is_remarked(case, received, tmp_path, monkeypatch):
    out = compile_to(case, tmp_path / "crossed")
    elsewhere = MIGraphX().remark([out, out], "gfx942")
    assert elsewhere is not None
    assert elsewhere.startswith(
        "2 engines for gfx942 compiled on a machine without that GPU: kernels were not measured"
    )
    assert elsewhere.endswith("A build on a machine with the GPU makes faster ones.")
    monkeypatch.setattr(module, "_architectures", lambda: ["gfx942"])
    monkeypatch.setattr(hip, "number_of", lambda *_: 0)
    monkeypatch.setattr(hip, "denied", lambda architecture: None)
    measured = compile_to(case, tmp_path / "measured")
    here = MIGraphX().remark([measured, out], "gfx942")
    assert (here or "").endswith(f"For faster ones, remove {out} and build again on this machine.")
    assert MIGraphX().remark([measured], "gfx942") is None


def test_variables_that_change_the_code_are_in_the_key(monkeypatch):
    monkeypatch.setattr(hip, "versions", lambda: {"rocm": "7.2.4"})
    assert MIGraphX().device("gfx942") == {"rocm": "7.2.4"}
    monkeypatch.setenv("MIGRAPHX_DISABLE_MLIR", "1")
    assert MIGraphX().device("gfx942") == {"rocm": "7.2.4", "MIGRAPHX_DISABLE_MLIR": "1"}


def test_with_the_gpu_it_is_compiled_for_that_one_and_measured(case, received, here, tmp_path, monkeypatch):
    compile_to(case, tmp_path / "out", exhaustive_tune=True, **PARAMS)
    given = received()
    assert not {"--gpu-arch", "--gpu-arch-params"} & set(given)
    assert {"--exhaustive-tune", "--disable-fast-math"} <= set(given)
    assert given[-1] == "2", "the driver sees the GPU of this architecture only"
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "4,5,7")
    compile_to(case, tmp_path / "visible")
    assert received()[-1] == "7", "the third of those that this process sees"
    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    second = replace(case.target, number=1)
    out = tmp_path / "second"
    out.mkdir()
    MIGraphX().compile(Job("unet", case.graph, case.graph.parent, second), out, quiet)
    assert received()[-1] == "1"
    shutil.copy(case.graph.with_name("model.onnx_data"), out)
    MIGraphX().load(out, second, files_in(out)).run(case.feeds)
    assert here == [1, 1], "it is loaded and called on the profile's GPU"
    MIGraphX().check(PARAMS, "gfx942:1")
    with pytest.raises(ProfileError, match="no gfx942 has more than 8"):
        MIGraphX().check({"gpu_arch_params": "{num_chiplets:9}"}, "gfx942:1")


def test_a_driver_that_cannot_do_without_the_gpu_is_not_asked_to(received, here):
    lacking("--gpu-arch", "--gpu-arch-params")
    assert MIGraphX().unbuildable("gfx942") is None
    assert "it has no --gpu-arch, which was added in June 2026" in MIGraphX().unbuildable("gfx1100")


@pytest.mark.parametrize(
    ("lacks", "crossed", "options", "said"),
    [
        ("--gpu-arch-params", True, PARAMS, r"has no --gpu-arch-params. Update ROCm, or remove gpu_arch_params from"),
        ("--gpu-arch-params", True, {}, None),
        ("--gpu-arch --gpu-arch-params", False, PARAMS, None),
        ("--exhaustive-tune", False, {"exhaustive_tune": True}, "has no --exhaustive-tune. Update ROCm, and build"),
        ("--binary --disable-fast-math", True, {}, "has no --disable-fast-math and no --binary. Update"),
        ("", True, {"exhaustive_tune": True}, "measures kernels on the GPU, and this machine has no gfx942"),
    ],
)
def test_a_driver_without_an_option_is_found_out_before_any_work(
    case, received, here, monkeypatch, lacks, crossed, options, said
):
    """A build asks before it lowers or compares a graph."""
    lacking(*lacks.split())
    if crossed:
        monkeypatch.setattr(module, "machine", lambda: machine().model_copy(update={"gpus": ()}))
    found = MIGraphX().uncompilable(replace(case.target, options=options))
    assert found is None if said is None else said in found


def test_it_computes_what_it_was_given(case, received, here, tmp_path):
    out = compile_to(case, tmp_path / "out")
    shutil.copy(case.graph.with_name("model.onnx_data"), out)  # the stand-in's program is the graph
    engine = MIGraphX().load(out, case.target, files_in(out))
    assert here == [2], "it is loaded onto the GPU that is current"
    for name, wanted in case.expected(case.feeds).items():
        np.testing.assert_allclose(engine.run(case.feeds)[name], wanted, rtol=0, atol=1e-4)
    one = replace(case.target, outputs=OUTPUTS[:1])
    assert list(MIGraphX().load(out, one, files_in(out)).run(case.feeds)) == ["out_sample"]
    engine.close()
    with pytest.raises(RuntimeMissing, match="closed"):
        engine.run(case.feeds)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FAIL", "PARSE_MATMUL: tensor"),
        ("SILENT", "it wrote no file and no message"),
        ("REFUSED", "Error: Found argument '--gpu-arch' which wasn't expected. Try"),  # and the exit status is 0
    ],
)
def test_what_the_driver_refuses(case, received, tmp_path, name, message):
    case.graph = case.graph.rename(case.graph.with_name(f"{name}.onnx"))
    with pytest.raises(CompileError, match=f"MIGraphX cannot compile unet for gfx942: .*{message}"):
        compile_to(case, tmp_path / "out")


def test_without_rocm_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    adapter = MIGraphX()
    assert "migraphx-driver was not found. Install it from ROCm's packages" in adapter.unbuildable("gfx942")
    assert "Python module cannot be loaded" in adapter.missing("gfx942")
    assert adapter.devices() == ()


def test_devices_and_options(received, here):
    adapter = MIGraphX()
    assert adapter.devices() == ("gfx942",)
    assert "This machine has no gfx1100 GPU; AMD GPUs found: gfx942" in adapter.missing("gfx1100")
    assert "Did you mean 'gfx942'" in adapter.unbuildable("gfx941")
    with pytest.raises(ProfileError, match="Did you mean 'exhaustive_tune'"):
        adapter.check({"exhaustiv_tune": True})
    with pytest.raises(ProfileError, match="must be true or false"):
        adapter.check({"exhaustive_tune": 1})


def test_free_sizes_are_refused(received, bundle):
    free = load_profile("mi300x-mxr").model_copy(update={"shapes": load_profile("cpu-openvino").shapes})
    with pytest.raises(
        ProfileError,
        match=r'On gfx942 with these options, migraphx compiles for fixed sizes only. Write sizes = \["own"\]',
    ):
        build(bundle("sd1"), free)


@pytest.mark.slow
def test_a_bundle_is_built_without_the_device_and_not_run(received, own_bundle, monkeypatch):
    opened, profile = own_bundle("sd1"), load_profile("mi300x-mxr")
    proved = Parity(psnr_db=99.0, cosine=1.0, reference="PyTorch, at export", graph_run_by="iree 3.13.0 CPU")
    monkeypatch.setattr("latentc.compiler.make.measure_typed", lambda *_: proved)
    built = build(opened, profile)
    assert f"{len(built.engines)} engines for gfx942 compiled on a machine without that GPU" in built.notes[-1]
    alone, both, *others = (one.artifact for one in built.engines)
    assert alone.fields.shape == {"input_ids": (1, 77)}
    assert both.fields.shape == {"input_ids": (2, 77)}, "the prompt and the negative one"
    assert {one.fields.precision for one in others} == {"f16", "f32"}
    with pytest.raises(RuntimeMissing, match="Python module cannot be loaded"):
        load(opened, profile)
