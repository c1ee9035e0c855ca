"""`latentc run`: several prompts, a file of them, a picture's own request, and where the pictures go."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentc.cli.ask import differences
from latentc.compiler.build import build
from latentc.core.manifest import AdapterSource, Embedding
from latentc.core.request import Fused
from latentc.pipelines import save
from latentc.pipelines.a1111 import parse
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import Shown, origin, read
from latentc.profiles import load_profile


@pytest.fixture(scope="module")
def folder(bundle):
    """Of a bundle with engines of the null runtime."""
    opened = bundle("sd1")
    build(opened, load_profile("null"))
    return opened.folder


@pytest.fixture
def run(folder, command, tmp_path, monkeypatch):
    """`run(*words)`: `latentc run` in an empty folder; gives code, output, error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *words: command("run", folder, *words, "-p", "null", "--steps", "1", "-q")


def files():
    return sorted(path.name for path in Path().iterdir())


def test_without_a_name_the_next_free_one_is_taken(run):
    for expected in (["out.png"], ["out-1.png", "out.png"]):
        assert run("a cat")[0] == 0
        assert files() == expected
    (seeds,) = {tuple(read(name).request.prompt for name in files())}
    assert seeds == ("a cat", "a cat")
    code, out, _ = run("a dog", "--count", 2)
    assert code == 0
    assert out.startswith("out-2.png, out-3.png ")


def test_a_name_that_is_there_is_refused_before_anything_is_loaded(run, monkeypatch):
    assert run("a cat", "-o", "x.png")[0] == 0
    before = read("x.png").request
    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("it loads"))
        code, _, err = run("a dog", "-o", "x.png")
        assert (code, err.count("\n")) == (1, 1)
        assert "x.png already exists" in err
        assert "--overwrite" in err
        Path("x.png").rename("y-2.png")
        assert "y-2.png already exists" in run("a dog", "-o", "y.png", "--count", 3)[2], "a numbered neighbour"
    assert files() == ["y-2.png"]
    assert read("y-2.png").request == before
    assert run("a dog", "-o", "y.png", "--count", 3, "--overwrite")[0] == 0
    assert [read(f"y{end}.png").request.prompt for end in ("", "-1", "-2")] == ["a dog"] * 3


@pytest.mark.parametrize("end", ["jpg", "webp"])
def test_other_formats_and_show(run, command, end):
    assert run("a cat", "-o", f"x.{end}", "--seed", 5)[0] == 0
    with Image.open(f"x.{end}") as image:
        assert image.format == {"jpg": "JPEG", "webp": "WEBP"}[end]
    code, out, _ = command("show", f"x.{end}", "--json")
    assert code == 0
    assert json.loads(out)["request"]["seed"] == 5


@pytest.mark.slow
def test_standard_output_gets_the_picture_alone(folder, tmp_path):
    words = [sys.executable, "-m", "latentc", "run", folder, "a cat", "-p", "null", "--steps", "1", "-o", "-"]
    done = subprocess.run(words, capture_output=True, check=True, cwd=tmp_path)
    (tmp_path / "x.png").write_bytes(done.stdout)
    assert read(tmp_path / "x.png").request.prompt == "a cat"
    with Image.open(io.BytesIO(done.stdout)) as image:
        image.load()
    assert b"standard output   null, seed" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a cat", "--count", "2"), "takes one image, and 2 were requested"),
        (("a cat", "a dog"), "takes one image, and 2 were requested"),
        (("a cat", "--json"), "both go to standard output"),
    ],
)
def test_what_one_stream_cant_take(run, words, says):
    code, _, err = run(*words, "-o", "-")
    assert (code, says in err) == (1, True)


def test_several_prompts_are_drawn_for_one_load(run, monkeypatch):
    loads, real = [], Pipeline.open
    monkeypatch.setattr(Pipeline, "open", lambda *args, **more: loads.append(args) or real(*args, **more))
    code, out, _ = run("a cat", "a dog", "a cow", "-o", "x.png", "--seed", 7, "--count", 2, "--json")
    assert (code, len(loads)) == (0, 1)
    records = json.loads(out)
    assert [record["files"] for record in records] == [
        ["x.png", "x-1.png"], ["x-2.png", "x-3.png"], ["x-4.png", "x-5.png"],
    ]  # fmt: skip
    assert [read(f"x-{number}.png").request.prompt for number in (1, 3, 5)] == ["a cat", "a dog", "a cow"]
    assert [read(f"x-{number}.png").request.seed for number in (1, 2, 3, 4)] == [8, 7, 8, 7]


def test_when_one_cant_be_written_the_prompts_behind_it_are_drawn(run, monkeypatch):
    real = save.write_bytes

    def full(path, content, **how):
        if path.name == "x-1.png":
            raise OSError(28, "No space left on device")
        real(path, content, **how)

    monkeypatch.setattr(save, "write_bytes", full)
    code, out, err = run("a cat", "a dog", "-o", "x.png", "--count", 2)
    assert (code, files()) == (1, ["x-2.png", "x-3.png", "x.png"])
    assert "x-1.png (No space left on device: " in err
    assert " free) cannot be written" in err
    assert "Written: x.png, x-2.png, x-3.png." in err
    assert out.splitlines()[0].startswith("x.png   null")


def test_a_file_of_prompts(run, monkeypatch, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\r\n  {a|b} dog, Ünïcode\r\n# not a comment".encode())
    code, out, _ = run("--prompts", tmp_path / "prompts.txt", "--json")
    assert code == 0
    prompts = [record["request"]["prompt"] for record in json.loads(out)]
    assert prompts == ["a cat", "{a|b} dog, Ünïcode", "# not a comment"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "seed": 1, "steps": 9}\n{"prompt": "b", "size": 3}\n')
    code, _, err = run("--prompts", tmp_path / "prompts.jsonl")
    assert code == 1
    assert "prompts.jsonl, line 2: Invalid request: unknown key 'size': did you mean 'width' and 'height'" in err
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "seed": 1, "steps": 9}\n{"prompt": "b", "seed": 2}\n')
    asked = [record["request"] for record in json.loads(run("--prompts", tmp_path / "prompts.jsonl", "--json")[1])]
    assert [(one["prompt"], one["seed"], one["steps"]) for one in asked] == [("a", 1, 1), ("b", 2, 1)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", None, "cannot be read"),
        ("empty.txt", b"\n \n", "contains no prompt"),
        ("bytes.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("list.jsonl", b"[1]", "line 1, is [1]; a JSON object was expected"),
        ("cut.jsonl", b'{"prompt": ', "line 1, is not valid JSON"),
        ("none.jsonl", b'{"seed": 1}', "none.jsonl, line 1: Invalid request: prompt: field required"),
    ],
)
def test_a_file_that_has_no_prompts(run, tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = run("--prompts", tmp_path / name)
    assert (code, err.count("\n")) == (1, 1)
    assert says in err
    assert files() == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that looks as if it could be written")
def test_a_folder_that_takes_no_file_is_refused_before_anything_is_drawn(run, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("it draws"))
    assert "/proc/x.png" in run("a cat", "-o", "/proc/x.png")[2]


def test_a_scheduler_that_isnt_there_is_refused_before_anything_is_loaded(run, monkeypatch):
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("it loads"))
    assert "Did you mean 'euler-ancestral'?" in run("a cat", "--scheduler", "Euler a")[2]


def test_a_variant_that_isnt_there_is_refused_before_anything_is_loaded(run, monkeypatch):
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("it loads"))
    Path("prompts.jsonl").write_text('{"prompt": "a cat", "variant": "shallow"}\n')
    code, _, error = run("--prompts", "prompts.jsonl")
    assert code == 1
    assert "no denoiser variant 'shallow'. It has none; leave it out." in error


@pytest.mark.parametrize("end", ["png", "jpg", "webp"])
def test_a_pictures_request_is_drawn_again(run, end):
    words = ("a cat", "--negative", "dog", "--size", "64x72", "--seed", 5, "--scheduler", "euler-ancestral")
    assert run(*words, "--guidance", 3, "--guidance-rescale", 0.5, "--count", 2, "-o", f"x.{end}")[0] == 0
    code, out, _ = run("--from", f"x-1.{end}", "-o", "y.png", "--json")
    assert code == 0
    assert read("y.png").request == read(f"x-1.{end}").request
    assert not any(f"x-1.{end}" in notice for notice in json.loads(out)["notices"]), "all of it was taken over"
    if end != "jpg":
        with Image.open("y.png") as again, Image.open(f"x-1.{end}") as first:
            assert again.convert("RGB").tobytes() == first.convert("RGB").tobytes()
    assert run("a cow", "--from", f"x.{end}", "-o", "z.png", "--seed", 6, "--size", "72x64")[0] == 0
    over = {"prompt": "a cow", "seed": 6, "width": 72, "height": 64}
    assert read("z.png").request == read(f"x.{end}").request.model_copy(update=over)


def test_what_of_another_tools_picture_isnt_drawn_is_said(run):
    info = PngInfo()
    info.add_text(
        "parameters",
        "cat\nSteps: 9, Sampler: Restart, Schedule type: Karras, CFG scale: 3, Seed: 4, Size: 64x64, Model hash: "
        "31e35c80fc, Model: sd, Clip skip: 2, Hires upscale: 2\x1b[31m, Version: v1.9.4",
    )
    Image.new("RGB", (8, 8)).save("web.png", pnginfo=info)
    code, out, _ = run("--from", "web.png", "--json")
    assert code == 0
    record = json.loads(out)
    assert (record["request"]["guidance"], record["request"]["seed"], record["request"]["steps"]) == (3, 4, 1)
    assert (record["request"]["prompt_syntax"], record["request"]["clip_skip"]) == ("a1111", 1)
    foreign, _, left = record["notices"][:3]
    assert foreign.startswith("web.png was made by another tool")
    assert left.startswith("web.png has settings that latentc ignores: Sampler: Restart, Schedule type: Karras, Hires")
    assert "\x1b" not in left
    assert "hash" not in left
    code, out, _ = run("--from", "web.png")
    assert "note: web.png has settings" in out


def test_a_picture_of_another_bundle_says_so(run, folder, monkeypatch):
    assert run("a cat", "-o", "x.png")[0] == 0
    text = read("x.png").drawing.model_copy(update={"bundle": "0" * 64, "model": "other"}).model_dump_json()
    info = PngInfo()
    info.add_text("latentc", text)
    Image.new("RGB", (8, 8)).save("y.png", pnginfo=info)
    assert "note: y.png was generated from another bundle, of other. This bundle is of" in run("--from", "y.png")[1]


def test_adapters_are_the_same_in_another_order_and_in_the_bundle_itself(run, exported):
    assert run("a cat", "-o", "x.png")[0] == 0
    shown, opened = read("x.png"), exported("sd1")
    ink, fog = (Fused(name=name, sha256=digit * 64, strength=0.5) for name, digit in (("ink", "1"), ("fog", "2")))
    about = {"location": "ink", "kind": "LoRA"}
    own = AdapterSource(name="ink.safetensors", sha256=ink.sha256, strength=0.5, **about)
    source = opened.manifest.source.model_copy(update={"adapters": (own,)})
    with_own = replace(opened, manifest=opened.manifest.model_copy(update={"source": source}))

    def said(bundle, made, passed=()):
        drawing = shown.drawing.model_copy(update={"adapters": made, "model": origin(bundle).model})
        found = differences(Path("x.png"), replace(shown, drawing=drawing), bundle, passed)
        return [one for one in found if "other adapters" in one]

    assert not said(opened, (ink, fog), (fog, ink))
    assert not said(with_own, (ink,)), "the bundle's own"
    assert not said(with_own, (fog, ink), (fog,)), "its own, and one that is swapped in"
    assert not said(with_own, (ink,), (ink,)), "fused with it"
    assert said(with_own, (ink,), (fog,))
    assert said(opened, (ink, fog), (ink, fog.model_copy(update={"strength": 0.4})))
    assert "(ink:0.5) than those here (none)" in said(opened, (ink,))[0]


def test_adapters_of_other_tools_are_asked_for_and_their_files_compared(run, exported):
    text = 'a cat <lora:ink:0.5>\nSteps: 1, Seed: 1, Size: 64x64, Lora hashes: "ink: {}", Version: v1.10.1'
    ink = Fused(name="ink", sha256="1" * 64, strength=0.5, weights_sha256="ab" * 32)
    earlier = ink.model_copy(update={"weights_sha256": None})
    for digest, file, files in (("abababababab", ink, 0), ("cdabababab", ink, 1), ("cdabababab", earlier, 0)):
        info = PngInfo()
        info.add_text("parameters", text.format(digest))
        Image.new("RGB", (8, 8)).save("web.png", pnginfo=info)
        remarks = differences(Path("web.png"), read("web.png"), exported("sd1"), [file])
        assert sum("was generated with another file than the ink here" in one for one in remarks) == files
        assert "hashes" not in "".join(remarks)
    assert "Pass the file (--lora ink.safetensors:0.5" in run("--from", "web.png")[2]
    assert run("--from", "web.png", "--without", "adapters")[0] == 0


def test_what_an_image_states_can_be_left_out(run, monkeypatch):
    assert run("a cat", "--size", 64, "--hires", 2, "--hires-strength", 1, "--vae-tile", 160, "-o", "x.png")[0] == 0
    assert run("--from", "x.png", "--without", "hires", "--without", "vae-tile", "-o", "y.png")[0] == 0
    left = {"hires": None, "hires_strength": None, "hires_steps": None, "vae_tile": None, "strength": None}
    before, after = read("x.png").request, read("y.png").request
    assert after == before.model_copy(update=left)
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("it loads"))
    assert (
        "'steps' can't be left out with --without. Options that can: "
        in run("--from", "x.png", "--without", "steps")[2]
    )
    assert "leaves out what the image of --from states" in run("a cat", "--without", "hires")[2]


def test_notices_of_a_prompt_reach_the_terminal(run):
    code, out, _ = run("a (cat:1.2) <lora:x:1>", "--negative", "[dog]")
    assert code == 0
    for said in (
        "prompt has LoRA tags: <lora:x:1>",
        "prompt has weights: (cat:1.2)",
        "negative prompt has weights: [dog]",
    ):
        assert f"note: The {said}. Other tools support that syntax" in out


def test_a_prompts_syntax_and_clip_skip_are_options_and_are_drawn_again(run, monkeypatch):
    words = ("a (cat:1.4)", "--prompt-syntax", "a1111", "--clip-skip", 1, "--seed", 3, "--steps", 1)
    code, out, _ = run(*words, "-o", "x.png")
    assert (code, "has weights" in out) == (0, False)
    request = read("x.png").request
    assert (request.prompt_syntax, request.clip_skip) == ("a1111", 1)
    assert run("--from", "x.png", "-o", "y.png")[0] == 0
    assert read("y.png").request == request
    assert run("--from", "x.png", "--clip-skip", 0, "--prompt-syntax", "plain", "-o", "z.png")[0] == 0
    assert (read("z.png").request.prompt_syntax, read("z.png").request.clip_skip) == ("plain", 0)
    assert run("a (cat)0.4", "--prompt-syntax", "compel", "-o", "mask.png")[0] == 0
    assert run("--from", "mask.png", "--downweight", "remove", "-o", "remove.png")[0] == 0
    assert [read(f"{mode}.png").request.downweight for mode in ("mask", "remove")] == ["mask", "remove"]
    assert run("--from", "mask.png", "--prompt-syntax", "plain", "-o", "plain.png")[0] == 0
    assert read("plain.png").request.downweight is None
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("it loads"))
    assert "has alternation ('[a|b]')" in run("[a|b]", "--prompt-syntax", "a1111")[2]
    assert "prompt_syntax" in run("a", "--prompt-syntax", "comfy")[2]
    assert "downweight" in run("a-", "--prompt-syntax", "compel", "--downweight", "blur")[2]
    assert "--without downweight" in run("--from", "mask.png", "--prompt-syntax", "plain", "--downweight", "mask")[2]
    assert "can skip" in run("a", "--clip-skip", 9)[2]


def test_what_the_web_ui_means_by_other_models_and_embeddings_is_said(exported):
    opened = exported("sd1")
    model, digest = opened.manifest.model, "0123456789ab" + "0" * 52
    wires = [wire.model_copy(update={"source": "text_encoder.hidden_states.1"}) for wire in model.wires if wire.of_part]
    own = Embedding(token="bad", vectors=1, location="/bad.safetensors", sha256=digest)
    changes = {"model": model.model_copy(update={"wires": (*model.wires[:1], *wires)}), "embeddings": (own,)}
    like_sdxl = replace(opened, manifest=opened.manifest.model_copy(update=changes))
    parsed = parse('a bad cat\nSteps: 9, Clip skip: 2, TI hashes: "bad: 0123456789ab", Version: v1.9.4')
    shown = Shown(parsed.request, "", parsed.rest, None, 64, 64)
    _, skip, left = differences(Path("x.png"), shown, opened)
    assert skip.startswith("x.png has the clip skip 2, which the web UI applies to the negative prompt too")
    assert "ignores: TI hashes: bad: 0123456789ab" in left
    found = differences(Path("x.png"), shown, like_sdxl)
    assert len(found) == 2
    assert found[1].startswith("x.png has the clip skip 2, which the web UI ignores for models such as ")
