"""What `latentc prune` removes, and what it never does."""

import json
import os
import shutil
import time

import pytest

from latentc.compiler.build import build
from latentc.compiler.cache import artifacts, is_old, locked
from latentc.compiler.prune import leftovers, lost, prune
from latentc.core.bundle import open_bundle
from latentc.core.files import read_sealed, sha256_json, write_sealed
from latentc.profiles import load_profile
from latentc.runtimes.iree import IREE

OLD = time.time() - 3600


def aged(path, content=b"x" * 1000):
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    assert is_old(path)
    return path


def key_of(fields):
    return sha256_json(fields)[:16]


def remade(opened, artifact, **fields):
    """The artifact of other fields, whole, beside it."""
    changed = {**artifact.fields.plain, **fields}
    folder = opened.engines / f"{artifact.part}-{key_of(changed)}"
    shutil.copytree(opened.engines / artifact.name, folder)
    header = read_sealed(folder / "key.json")
    write_sealed(folder / "key.json", {**header, "fields": changed, "key": key_of(changed)})
    return folder


@pytest.fixture
def built(own_bundle):
    """Engines of ONNX Runtime, made out of `null`'s: their headers are what counts."""
    opened = own_bundle()
    build(opened, load_profile("null"))
    from latentc.compiler.targets import wanted

    _, engines = wanted(opened, load_profile("cpu-onnxruntime"), to_run=True)
    for want, artifact in zip(engines, artifacts(opened), strict=False):
        by_part = next(one for one in artifacts(opened) if one.part == want.part)
        remade(opened, by_part, **want.fields.plain)
        del artifact
    for one in artifacts(opened):
        if one.fields.runtime == "null":
            shutil.rmtree(opened.engines / one.name)
    return opened


def names(found):
    return {one.path.name for one in found}


def test_a_sound_bundle_has_nothing_to_prune(built):
    assert len(artifacts(built)) == 4
    assert leftovers(built) == lost(built) == ()
    found = prune(built)
    assert (found.removed, found.busy, found.unknown) == ((), (), ())
    assert len(artifacts(built)) == 4


def test_what_killed_work_leaves_is_removed(built):
    engines = built.engines
    key = "unet-0123456789abcdef"
    (engines / f".{key}.tmp").mkdir()
    (engines / f".{key}.tmp" / "engine.data").write_bytes(bytes(5000))
    (engines / f".{key}.lock").touch()
    (engines / f".{key}.build.lock").touch()
    (engines / ".latentc-scratch-abc").mkdir()
    (engines / ".latentc-scratch-abc" / ".lock").touch()
    aged(engines / ".0123456789abcdef.tmp")
    aged(built.folder / ".0123456789abcdef.tmp")
    export = built.folder.with_name(f".{built.folder.name}.tmp")
    export.mkdir()
    before = artifacts(built)
    expected = {f".{key}.tmp", f".{key}.lock", f".{key}.build.lock", ".latentc-scratch-abc", ".0123456789abcdef.tmp"}
    assert names(prune(built, dry_run=True).removed) == {*expected, export.name}
    assert (engines / f".{key}.tmp").exists(), "--dry-run removes nothing"
    assert (engines / f".{key}.lock").exists()
    found = prune(built)
    assert found.bytes == 7000
    assert leftovers(built) == ()
    assert artifacts(built) == before
    assert not export.exists()
    assert [path for path in engines.iterdir() if path.name.startswith(".")] == []


def test_engines_that_nothing_loads_are_removed_with_the_reason(built):
    one = next(artifact for artifact in artifacts(built) if artifact.part == "unet")
    other = {"onnxruntime": "0.1"}
    wrong = {
        remade(built, one, versions=other).name: "built with onnxruntime 0.1; installed: onnxruntime ",
        remade(built, one, adapter=0).name: "by another version of latentc",
        remade(built, one, lowering=0).name: "by another version of latentc",
        remade(built, one, **{"part digest": "0"}).name: "built from the graph of another export",
        remade(built, one, options={"intra_op_num_threads": 4}).name: "had load-time options",
        remade(built, one, runtime="null").name: "computes nothing",
    }
    damaged = remade(built, one, versions={"onnxruntime": "0.2"})
    (damaged / "engine.txt").write_bytes(b"")
    wrong[damaged.name] = "damaged"
    found = {each.path.name: each.why for each in lost(built)}
    assert found.keys() == wrong.keys()
    assert all(words in found[name] for name, words in wrong.items())
    assert len(prune(built).removed) == len(wrong)
    assert len(artifacts(built)) == 4


def test_engines_for_elsewhere_and_what_isnt_known_stay(built):
    one = next(artifact for artifact in artifacts(built) if artifact.part == "unet")
    remade(built, one, device={"name": "CPU", "architecture": "aarch64"})
    remade(built, one, device={"name": "CUDA", "gpu": "another"}, versions={"onnxruntime": "0.1"})
    remade(built, one, runtime="iree", device={"name": "gfx942"}, versions={"iree": "0.1"}, adapter=IREE.facts.revision)
    remade(built, one, runtime="somebody's")
    hidden = built.engines / "unet-00000000000000bb"
    hidden.mkdir()
    (hidden / "key.json").mkdir()  # can't be read as a file, whoever asks
    headless = built.engines / "unet-00000000000000aa"
    headless.mkdir()
    (headless / "precious").write_text("mine")
    (built.engines / "notes.txt").write_text("mine")
    (built.engines / ".timing").mkdir()  # TensorRT's
    (built.engines / ".mine.tmp").mkdir()
    (built.engines / ".0123.tmp").write_text("mine")
    (built.engines / ".mine.lock").touch()
    (built.engines / "unet-link").symlink_to(built.folder)
    young = built.engines / ".fedcba9876543210.tmp"
    young.write_bytes(b"being written")
    found = prune(built)
    assert found.removed == ()
    assert {path.name for path in found.unknown} == {
        *(headless.name, hidden.name, "notes.txt", ".mine.tmp", ".0123.tmp", ".mine.lock", "unet-link"),
    }
    assert young.exists()
    assert len(artifacts(built)) == 8


def test_what_another_process_uses_stays(built):
    one = next(artifact for artifact in artifacts(built) if artifact.part == "unet")
    null = remade(built, one, runtime="null")
    with locked(built, null.name):
        found = prune(built)
        assert names(found.busy) == {null.name}
        assert found.removed == ()
        assert names(prune(built, dry_run=True).busy) == {null.name}
        assert null.exists()
    assert names(prune(built).removed) == {null.name}


def test_files_with_other_names_free_nothing_until_the_last_goes(built):
    one = next(artifact for artifact in artifacts(built) if artifact.part == "unet")
    first, second = remade(built, one, runtime="null"), remade(built, one, runtime="null", adapter=9)
    for folder in (first, second):
        shutil.rmtree(folder / "data", ignore_errors=True)
    size = sum(path.stat().st_size for folder in (first, second) for path in folder.iterdir())
    assert sum(each.bytes for each in lost(built)) == size
    kept = first / "engine.txt"
    os.link(kept, built.folder.with_name("backup"))
    assert sum(each.bytes for each in lost(built)) == size - kept.stat().st_size


@pytest.mark.slow
def test_the_commands_say_what_and_how_much(latentc, own_bundle):
    folder = own_bundle().folder
    latentc("build", folder, "--profile", "null", "--quiet")
    aged(folder / "engines" / ".0123456789abcdef.tmp", bytes(2_500_000))
    for command in ("inspect", "verify"):
        said = latentc(command, folder)
        assert said.returncode == 0
        assert "Damaged or no longer needed: .0123456789abcdef.tmp (2.5 MB). To remove" in said.stdout, (
            "null engines are left out"
        )
        assert len(json.loads(latentc(command, folder, "--json").stdout)["leftovers"]) == 5
    listed = latentc("prune", folder, "--dry-run").stdout
    assert "engines/.0123456789abcdef.tmp: a file that was being written, 2.5 MB" in listed
    assert "built with the null runtime, which computes nothing" in listed
    assert "5 would be removed, 2.5 MB." in listed
    assert json.loads(latentc("prune", folder, "--json").stdout)["bytes"] > 2_500_000
    assert "nothing to remove" in latentc("prune", folder).stdout
    assert artifacts(open_bundle(folder)) == []


@pytest.mark.parametrize("part", ["../../victim/engines/unet", "", "x/../unet", "vae_decoder"])
def test_a_header_of_another_place_is_no_engine(built, tmp_path, part):
    """What a bundle says of itself never names what is removed."""
    victim = tmp_path / "victim" / "engines"
    one = next(artifact for artifact in artifacts(built) if artifact.part == "unet")
    shutil.copytree(built.engines / one.name, victim / one.name)
    header = built.engines / one.name / "key.json"
    write_sealed(header, {**read_sealed(header), "part": part})
    assert one.key not in {artifact.key for artifact in artifacts(built)}
    assert {each.path.parent for each in prune(built).removed} == {built.engines}
    assert (victim / one.name / "key.json").is_file()


@pytest.mark.parametrize(
    "fields", [{}, {"device": "CPU"}, {"device": {"name": ["CPU"]}}, {"runtime": ["openvino"]}, {"shape": 5}]
)
def test_a_header_that_lacks_something_is_no_engine(latentc, built, fields):
    one = next(artifact for artifact in artifacts(built) if artifact.part == "unet")
    whole = {} if not fields else {**one.fields.plain, **fields}
    folder = built.engines / f"unet-{key_of(whole)}"
    shutil.copytree(built.engines / one.name, folder)
    write_sealed(folder / "key.json", {**read_sealed(folder / "key.json"), "fields": whole, "key": key_of(whole)})
    done = latentc("inspect", built.folder)
    assert done.returncode == 0, done.stderr
    assert f"{folder.name} is damaged" in done.stdout
    assert len(artifacts(built)) == 4


def test_bundles_made_with_adapters_are_verified_and_pruned(own_bundle, command):
    opened = own_bundle()
    build(opened, load_profile("null"))
    place = opened.folder / "adapters" / "0123456789abcdef"
    shutil.copytree(opened.folder, place, ignore=shutil.ignore_patterns("adapters"))
    idle = place / "engines" / artifacts(opened)[0].name
    assert idle in [one.path for one in prune(opened, dry_run=True).removed]
    assert command("verify", opened.folder, "-q")[0] == 0
    graph = place / "unet" / "model.onnx"
    content = graph.read_bytes()
    graph.unlink()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, err = command("verify", opened.folder, "-q")
    assert (code, str(graph.parent.parent) in err) == (1, True)
    prune(opened)
    assert not idle.exists()
    (place / "latentc.json").write_text("{")
    code, _, err = command("verify", opened.folder, "-q")
    assert (code, "was made with adapters, and may be removed" in err) == (1, True)
