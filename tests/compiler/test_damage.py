"""Builds over damage, leftovers, bundles that can't be written, and other builds at the same time."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from latentc.compiler import cache, cases, states
from latentc.compiler.build import build, why
from latentc.compiler.cache import Miss, artifacts, verify
from latentc.compiler.engines import Engines, load
from latentc.compiler.faults import faults
from latentc.core.errors import BundleError, CompileError, ParityError
from latentc.core.files import sha256
from latentc.core.manifest import FileInfo
from latentc.core.progress import quiet

from .builds import NULL, ONNXRUNTIME, copied, of, static


@pytest.mark.slow
def test_a_forged_header_proves_nothing(own_bundle, monkeypatch, tmp_path):
    """An engine of other weights under the header of a sound one, in a bundle that came from elsewhere."""
    opened = own_bundle()
    built = build(opened, ONNXRUNTIME).engines
    decoder = next(one.artifact for one in built if one.artifact.part == "vae_decoder")
    data = opened.engines / decoder.name / "engine.data"
    values = np.frombuffer(data.read_bytes(), np.float32) * np.float32(1.02)
    data.write_bytes(values.tobytes())
    files = {**decoder.files, data.name: FileInfo(sha256=sha256(data), bytes=data.stat().st_size)}
    cache.keep(opened.engines / decoder.name / "key.json", decoder.model_copy(update={"files": files}))
    with pytest.raises(ParityError, match="vae_decoder in f32 through onnxruntime agrees with the reference to"):
        load(opened, ONNXRUNTIME)
    with pytest.raises(ParityError, match="vae_decoder"):
        build(opened, ONNXRUNTIME)
    other = copied(opened, "other")
    shutil.rmtree(other.engines)
    with pytest.raises(ParityError, match="vae_decoder"):
        build(other, ONNXRUNTIME, like=opened)
    assert "vae_decoder" not in {one.part for one in artifacts(other)}, "what was taken and isn't sound goes again"


def test_what_killed_builds_left_goes(own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    sound = sorted(path.name for path in opened.engines.iterdir())
    (opened.engines / ".0123456789abcdef.tmp").write_text("half a header")
    (opened.engines / ".unet-0123456789abcdef.build.lock").touch()
    (opened.engines / ".unet-0123456789abcdef.lock").touch()
    (opened.engines / ".unet-0123456789abcdef.tmp").mkdir()
    for path in opened.engines.glob(".*"):
        os.utime(path, (0, 0))
    (opened.engines / ".fedcba9876543210.tmp").write_text("being written")
    build(opened, NULL)
    assert sorted(path.name for path in opened.engines.iterdir()) == sorted([*sound, ".fedcba9876543210.tmp"])


def test_a_build_reads_engines_again_only_if_they_changed(own_bundle, monkeypatch):
    opened, read = own_bundle(), []
    whole = cache.is_whole
    monkeypatch.setattr(cache, "is_whole", lambda path, info: read.append(path.name) or whole(path, info))
    build(opened, NULL)
    monkeypatch.setattr(states, "SETTLED_SECONDS", 1e9)
    for _ in range(2):
        read.clear()
        build(opened, NULL)
        assert read, "they were written just now, so their times say nothing"
    monkeypatch.setattr(states, "SETTLED_SECONDS", -1)
    for unread in (False, True):
        read.clear()
        build(opened, NULL)
        assert (read == []) == unread
    file = next(opened.engines.glob("unet-*/[!k]*"))
    before, kept = file.stat(), file.read_bytes()
    file.write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    build(opened, NULL)
    assert file.read_bytes() == kept, "it was built again"


@pytest.mark.slow
def test_an_artifact_that_names_files_elsewhere_is_none(own_bundle):
    opened = own_bundle()
    other = copied(opened, "other")
    built = build(opened, ONNXRUNTIME).engines[0].artifact
    header = opened.engines / built.name / "key.json"
    manifest = opened.folder / "latentc.json"
    stray = FileInfo(sha256=sha256(manifest), bytes=manifest.stat().st_size)
    files = {**built.files, "../../latentc.json": stray}
    cache.keep(header, built.model_copy(update={"files": files}))
    before = (other.folder / "latentc.json").read_bytes()
    assert build(other, ONNXRUNTIME, like=opened).engines[0].how == "compiled"
    assert (other.folder / "latentc.json").read_bytes() == before
    assert built.key not in {one.key for one in artifacts(opened)}


def test_damaged_weights_are_found_before_anything_is_compiled(own_bundle):
    opened = own_bundle()
    data = opened.folder / "unet" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[5000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="onnx_data was modified"):
        build(opened, NULL)
    assert [artifact.part for artifact in artifacts(opened)] == ["text_encoder"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "folder", "header", "figure"])
def test_a_damaged_artifact_is_never_loaded(own_bundle, damage):
    opened = own_bundle()
    built = build(opened, NULL)
    folder = opened.engines / built.engines[1].artifact.name
    name = next(iter(built.engines[1].artifact.files))
    content = (folder / name).read_bytes()
    if damage == "truncate":
        (folder / name).write_bytes(content[:-1])
    elif damage == "empty":
        (folder / name).write_bytes(b"")
    elif damage == "flip":
        (folder / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "folder":
        (folder / name).unlink()
        (folder / name).mkdir()
    elif damage == "figure":
        header = (folder / "key.json").read_text()
        assert json.loads(header.replace('"seconds": ', '"seconds": 1')) != json.loads(header)
        (folder / "key.json").write_text(header.replace('"seconds": ', '"seconds": 1'))
    else:
        (folder / "key.json").write_text("{")
    if damage == "flip":  # of the right size: only its digest tells
        with pytest.raises(BundleError, match="is damaged"), Engines(opened, NULL) as engines:
            engines.preload(["unet"])
        with pytest.raises(BundleError, match="is damaged"):
            verify(opened, built.engines[1].artifact)
    else:
        with pytest.raises(BundleError, match="is damaged.*Run: latentc build .* --profile null"):
            load(opened, NULL)
        outcomes = {want.part: outcome for want, outcome in why(opened, NULL)}
        assert outcomes["unet"] == Miss(built.engines[1].artifact.name, {}), "it is there, and not whole"
    (said,) = faults(opened)
    assert built.engines[1].artifact.name in said
    assert "is damaged" in said
    again = build(opened, NULL)
    assert [one.hit for one in again.engines] == [True, False, True, True]
    assert "was damaged" in again.engines[1].note
    assert faults(opened) == []
    load(opened, NULL).close()


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["sha256", "read_sealed"])
def test_what_cannot_be_read_is_not_replaced(own_bundle, monkeypatch, reader):
    opened = own_bundle()
    build(opened, NULL)

    def broken(path, *_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(f"latentc.compiler.cache.{reader}", broken)
    with pytest.raises(BundleError, match="cannot be read \\(Input/output error\\)"):
        build(opened, NULL)
    assert sum("cannot be read (Input/output error)" in said for said in faults(opened)) == 4
    monkeypatch.undo()
    assert all(one.hit for one in build(opened, NULL).engines)


def test_what_another_process_is_removing_is_no_fault_of_the_disk(own_bundle, monkeypatch):
    opened = own_bundle()
    built = build(opened, NULL).engines[0].artifact

    def gone(path, *_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("latentc.compiler.cache.sha256", gone)
    with pytest.raises(BundleError, match="is damaged"):
        verify(opened, built)


@pytest.mark.slow
def test_what_replaces_a_damaged_engine_has_to_fit_too(own_bundle):
    opened = own_bundle()
    unet = build(opened, ONNXRUNTIME).engines[1].artifact
    path = opened.engines / unet.name / next(name for name, info in unet.files.items() if info.bytes > 1000)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CompileError, match="is predicted not to fit"):
        build(opened, of(ONNXRUNTIME, memory_gb=0.001))


def test_profiles_that_claim_an_engine_meanwhile_are_kept(own_bundle, monkeypatch):
    """Between looking for an engine and noting a profile with it, another build notes its own."""
    opened = own_bundle()
    build(opened, NULL)
    locked = cache.locked

    @contextmanager
    def late(bundle, name, on_progress=quiet):
        monkeypatch.setattr("latentc.compiler.build.locked", locked)
        build(opened, of(NULL, name="first"))
        with locked(bundle, name, on_progress):
            yield

    monkeypatch.setattr("latentc.compiler.build.locked", late)
    build(opened, of(NULL, name="second"))
    assert {frozenset(found.profiles) for found in artifacts(opened)} == {frozenset(("null", "first", "second"))}


def test_engines_of_a_bundle_that_cannot_be_written_are_found(own_bundle, monkeypatch):
    opened = own_bundle()
    build(opened, NULL)

    def refuse(*_):
        raise BundleError("It can't be written.")

    monkeypatch.setattr("latentc.compiler.build.locked", refuse)
    found = build(opened, of(NULL, name="other"))
    assert all(one.hit for one in found.engines)
    assert {one.artifact.profiles for one in found.engines} == {("null",)}


def test_every_fault_of_a_bundle_is_told(own_bundle):
    opened = own_bundle()
    built = build(opened, NULL)
    for one in built.engines[:2]:
        (opened.engines / one.artifact.name / next(iter(one.artifact.files))).unlink()
    (opened.folder / "vae_decoder" / "model.onnx").write_bytes(b"no graph")
    (opened.engines / "notes-1.txt").touch()
    shutil.copytree(opened.engines / built.engines[2].artifact.name, opened.engines / "vae_decoder-old")
    said = faults(opened)
    assert len(said) == 3
    assert "vae_decoder/model.onnx" in said[0]
    assert [any(one.artifact.name in fault for fault in said) for one in built.engines] == [True, True, False, False]


def test_garbage_among_the_engines_is_passed_over(own_bundle):
    opened = own_bundle()
    built = build(opened, NULL)
    (opened.engines / "garbage").touch()
    (opened.engines / "unet-0123").mkdir()
    (opened.engines / "unet-0123" / "key.json").write_text(json.dumps({"part": "unet"}))
    target = opened.engines / built.engines[1].artifact.name
    shutil.rmtree(target)
    target.touch()
    assert len(artifacts(opened)) == 3
    assert not build(opened, NULL).engines[1].hit
    assert len(artifacts(opened)) == 4


BUILD = """
import json, sys
from latentc.compiler.build import build
from latentc.core.bundle import digest, open_bundle
from latentc.core.manifest import FileInfo
from latentc.core.files import sha256
from latentc.profiles import load_profile
built = build(open_bundle(sys.argv[1]), load_profile("null"))
print(json.dumps([one.hit for one in built.engines]))
"""

HOLD = """
import sys, time
from latentc.compiler.cache import locked
from latentc.core.bundle import digest, open_bundle
from latentc.core.manifest import FileInfo
with locked(open_bundle(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def started(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_several_builds_at_once_one_builds(own_bundle):
    opened = own_bundle()
    builders = [started(BUILD, opened.folder) for _ in range(4)]
    hits = [json.loads(builder.communicate(timeout=120)[0]) for builder in builders]
    assert [sum(not hit[part] for hit in hits) for part in range(4)] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_dead_owners_lock_is_free(own_bundle):
    opened = own_bundle()
    owner = started(HOLD, opened.folder, folder_of_unet(opened))
    assert owner.stdout.readline() == "held\n"
    builder = started(BUILD, opened.folder)
    with pytest.raises(subprocess.TimeoutExpired):
        builder.wait(timeout=3)  # it waits for the lock
    owner.kill()
    owner.communicate()
    assert json.loads(builder.communicate(timeout=120)[0]) == [False] * 4


def folder_of_unet(opened):
    from latentc.compiler.cache import folder_name

    return next(folder_name(want.part, want.key) for want, _ in why(opened, NULL) if want.part == "unet")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda raw: raw[:1000], lambda raw: raw[:-600] + bytes(600), lambda raw: b""])
def test_a_damaged_reference_is_named_or_made_again(own_bundle, monkeypatch, damage):
    opened = own_bundle()
    build(opened, static(NULL, "192x64"))
    (path,) = opened.engines.glob("reference-unet-*.npz")
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    (said,) = faults(opened)
    assert said.startswith(f"{path} is damaged. Remove it")
    shutil.rmtree(opened.engines / next(one for one in artifacts(opened) if one.part == "unet").name)
    with monkeypatch.context() as patch:
        patch.setattr(cases, "REFEREES", {})
        with pytest.raises(BundleError, match="Remove .*reference-unet"):
            build(opened, static(NULL, "192x64"))
    build(opened, static(NULL, "192x64"))
    assert faults(opened) == []


@pytest.mark.parametrize("name", ["reference/drawings.npz", "tokenizer/tokenizer.json", "unet/model.onnx_data"])
def test_a_damaged_file_is_named_though_every_engine_is_there(name, own_bundle):
    opened = own_bundle()
    build(opened, NULL)
    path = opened.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{path} has .* bytes; the manifest lists"):
        build(opened, NULL)
