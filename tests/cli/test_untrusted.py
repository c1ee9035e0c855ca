"""Every command that reads a file, and what may be there in its place: one line, code 1, no waiting, no trace."""

import json
import shutil
import struct
import zlib

import pytest

from latentc.checkpoints import open_checkpoint
from latentc.cli.text import plain
from latentc.compiler.build import build
from latentc.compiler.cache import artifacts
from latentc.core.bundle import open_bundle
from latentc.core.errors import LatentcError
from latentc.pipelines.png import read
from latentc.profiles import load_profile

pytestmark = pytest.mark.usefixtures("no_hang")

PLACES = ("fifo", "device", "folder", "loop", "sparse")
JSON = (
    *("deep list", "deep object", "twice", "surrogate", "no UTF-8", "a list", "a text", "a number", "null", "NaN"),
    *("too large a number", "digits", "nothing", "cut"),
)
SOME = ("fifo", "deep list")


@pytest.fixture(scope="module")
def victim(bundle, tmp_path_factory):
    """A bundle of this file's own, with an engine for each part."""
    folder = tmp_path_factory.mktemp("victim") / "victim.bundle"
    shutil.copytree(bundle("sd1").folder, folder, ignore=shutil.ignore_patterns("engines"))
    build(open_bundle(folder), load_profile("null"))
    return folder


@pytest.fixture(scope="module")
def source(checkpoint, tmp_path_factory):
    """A checkpoint of this file's own."""
    return shutil.copytree(checkpoint("sd1"), tmp_path_factory.mktemp("source") / "sd1")


@pytest.mark.parametrize("kind", [*PLACES, *JSON])
def test_a_manifest(kind, victim, place, refused):
    place(victim / "latentc.json", kind)
    assert "latentc.json" in refused("inspect", victim)


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize(
    "words",
    [
        ("verify", "{}"),
        ("why", "{}", "-p", "null"),
        ("plan", "{}", "-p", "null"),
        ("build", "{}", "-p", "null"),
        ("run", "{}", "a cat", "-p", "null"),
        ("score", "{}", "-p", "null"),
        ("bench", "{}", "-p", "null", "-o", "results.jsonl"),
    ],
    ids=lambda words: words[0],
)
def test_a_manifest_by_each_command(kind, words, victim, place, refused):
    place(victim / "latentc.json", kind)
    assert "latentc.json" in refused(*(word.format(victim) for word in words))


@pytest.mark.parametrize("kind", [*PLACES, *JSON])
def test_an_engines_header(kind, victim, place, command):
    engine = artifacts(open_bundle(victim))[0]
    place(victim / "engines" / engine.name / "key.json", kind)
    code, out, err = command("inspect", victim)
    assert (code, err) == (0, "")
    assert f"{engine.name} is damaged" in out
    code, _, err = command("verify", victim, "--quiet")
    assert code == 1
    assert engine.name in err


@pytest.mark.parametrize("kind", [*SOME, "folder", "a list", '{"a": "b"}'])
@pytest.mark.parametrize("name", ["memory.json", "placement.json", "engine.txt"])
def test_a_file_beside_an_engine(kind, name, victim, place, command):
    for engine in artifacts(open_bundle(victim)):
        place(victim / "engines" / engine.name / name, kind if kind != '{"a": "b"}' else "a text")
    for words in (("inspect", victim), ("plan", victim, "-p", "null"), ("why", victim, "-p", "null")):
        code, _, err = command(*words)
        assert code in (0, 1)
        assert err.count("\n") == code


@pytest.mark.parametrize("kind", [*PLACES, *JSON])
@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"]
)
def test_a_config_of_a_checkpoint(kind, file, source, place, refused, tmp_path):
    place(source / file, kind)
    assert file in refused("export", source, "-o", tmp_path / "out", "--quiet")


@pytest.mark.parametrize("kind", [*PLACES, *JSON])
def test_an_index_of_shards(kind, source, place, refused, tmp_path):
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".gone"))
    try:
        place(weights.with_name(f"{weights.name}.index.json"), kind)
        assert "index.json" in refused("export", source, "-o", tmp_path / "out", "--quiet")
    finally:
        weights.with_suffix(".gone").rename(weights)


@pytest.mark.parametrize("kind", PLACES)
def test_weights_of_a_checkpoint(kind, source, place, refused, tmp_path):
    place(source / "vae" / "diffusion_pytorch_model.safetensors", kind)
    assert "diffusion_pytorch_model" in refused("export", source, "-o", tmp_path / "out", "--quiet")


@pytest.mark.parametrize("kind", PLACES)
def test_a_single_file(kind, place, refused, tmp_path):
    place(tmp_path / "model.safetensors", kind)
    assert str(tmp_path / "model.safetensors") in refused("export", tmp_path / "model.safetensors", "-o", "out")


@pytest.mark.parametrize("kind", ["fifo", "device", "loop"])
def test_a_name_like_a_hub_id(kind, place, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "owner" / "name", kind)
    assert "owner/name" in refused("export", "owner/name", "-o", "out")


@pytest.mark.parametrize("header", ["deep list", "deep object", "twice", "surrogate", "no UTF-8", "a list", "digits"])
def test_a_header_of_safetensors(header, place, refused, tmp_path):
    place(tmp_path / "header", header)
    raw = (tmp_path / "header").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert "is not a valid .safetensors file" in refused("export", path, "-o", tmp_path / "out", "--quiet")


@pytest.mark.parametrize("kind", [*PLACES, "no UTF-8"])
def test_a_profile(kind, victim, place, refused, tmp_path):
    place(tmp_path / "mine.toml", kind)
    for words in (("plan", victim), ("run", victim, "a cat")):
        assert "mine.toml" in refused(*words, "-p", tmp_path / "mine.toml")


@pytest.mark.parametrize(
    "line",
    [
        "sizes = " + "[" * 5000,
        "a" + ".a" * 20_000 + " = 1",
        "memory_gb = inf",
        "rank = 0x" + "f" * 9000,
        "rank = 9" + "9" * 5000,
        "parity_db = {f32 = nan}",
        "options = 5",
        "title = [1]",
        'precision = {default = "f64"}',
    ],
    ids=lambda line: line[:12],
)
def test_lines_of_a_profile(line, victim, refused, tmp_path):
    (tmp_path / "mine.toml").write_text(f'runtime = "null"\n{line}\n')
    assert "mine.toml" in refused("plan", victim, "-p", tmp_path / "mine.toml")


@pytest.mark.parametrize("name", ["a" * 300, "x" * 1500 + ".toml", "~nobody-of-this-name/x"])
def test_names_that_no_file_has(name, victim, refused):
    for words in (("inspect", name), ("export", name, "-o", "out"), ("show", name), ("report", name)):
        refused(*words)
    refused("plan", victim, "-p", name)


def test_names_with_a_nul():
    for use in (open_bundle, open_checkpoint, load_profile, read):
        for name in ("a\0b", "a\0b.toml"):
            with pytest.raises(LatentcError):
                use(name)


@pytest.mark.parametrize("kind", [*PLACES, "deep list", "nothing"])
def test_a_picture(kind, place, refused, tmp_path):
    place(tmp_path / "a.png", kind)
    assert "a.png" in refused("show", tmp_path / "a.png")


@pytest.mark.parametrize("kind", [*PLACES, *JSON])
def test_a_file_of_results(kind, place, refused, tmp_path):
    place(tmp_path / "a.jsonl", kind)
    assert "a.jsonl" in refused("report", tmp_path / "a.jsonl", "-o", tmp_path / "report")
    assert "a.jsonl" in refused("compare", tmp_path / "a.jsonl", tmp_path / "a.jsonl")


@pytest.mark.parametrize("kind", SOME)
def test_a_clip_model(kind, victim, place, refused, tmp_path):
    place(tmp_path / "clip" / "config.json", kind)
    words = ("bench", victim, "-p", "null", "-o", tmp_path / "a.jsonl", "--suite", "--clip", tmp_path / "clip")
    assert "config.json" in refused(*words)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_control_characters_stay_in_the_file(command, tmp_path):
    text = "\x1b]0;owned\x07\x1b[2J\x9b31m a cat\u202e\r\nSteps: 3, Model: \x1b[31mred, Seed: 1"
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    body = chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode())
    (tmp_path / "a.png").write_bytes(head + body + chunk(b"IEND", b""))
    for words in ((), ("--json",)):
        code, out, _ = command("show", tmp_path / "a.png", *words)
        assert code == 0
        assert not set(out) & {*map(chr, (*range(10), *range(11, 32), *range(0x7F, 0xA0))), "\u202e"}
        assert "\\u001b[2J" in out
    assert json.loads(out)["request"]["steps"] == 3
    assert json.loads(out)["rest"]["Model"] == "\x1b[31mred"


@pytest.mark.parametrize("key", ["location", "revision"])
def test_control_characters_stay_in_the_manifest(key, victim, command, edit_manifest):
    opened = open_bundle(victim)
    before = (victim / "latentc.json").read_bytes()
    edit_manifest(opened, lambda manifest: manifest["source"].update({key: "\x1b[2J here"}))
    try:
        for words in ((), ("--json",)):
            code, out, _ = command("inspect", victim, *words)
            assert code == 0
            assert "\x1b" not in out
    finally:
        (victim / "latentc.json").write_bytes(before)


def test_errors_show_no_control_characters(refused, tmp_path):
    assert "\\u001b[2J" in refused("show", tmp_path / "\x1b[2J.png")
    assert plain("a\tb\nc é 猫 \udc80") == "a\tb\nc é 猫 \\udc80"
