"""Textual inversions that an export adds are those of diffusers' `load_textual_inversion`, and faults are refused."""

import json
import re
import shutil

import numpy as np
import pytest

from latentc.checkpoints import open_checkpoint
from latentc.compiler.build import build
from latentc.core.bundle import open_bundle
from latentc.core.errors import CheckpointError, RequestError
from latentc.core.files import sha256
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.embedded import about_rounding
from latentc.export.export import export
from latentc.export.fused import fuse
from latentc.pipelines.a1111 import parse
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.sampling.prompt import tokenize
from latentc.sampling.vocabulary import load_vocabularies

WIDTH = 32
"""Of the tiny text encoders."""


def vectors(count, width=WIDTH, seed=0):
    import torch

    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.5


def save(path, tensors):
    from safetensors.torch import save_file

    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(shared):
    """One of three vectors in diffusers' form, and one in the web UI's, named by its file."""

    def make(folder):
        folder.mkdir()
        save(folder / "learned.safetensors", {"<toy>": vectors(3)})
        save(folder / "BadFog.safetensors", {"emb_params": vectors(1, seed=1)})

    folder = shared("embeddings", make)
    return folder / "learned.safetensors", folder / "BadFog.safetensors"


@pytest.fixture(scope="module")
def enlarged(shared, checkpoint, files):
    return open_bundle(shared("embeddings.bundle", lambda folder: export(checkpoint("sd1"), folder, embeddings=files)))


PROMPT = Request(prompt="a <toy> on a cliff", negative_prompt="BadFog", width=64, height=64, steps=3, seed=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_pictures_are_those_of_diffusers(enlarged, checkpoint, files, tmp_path_factory, tmp_path, command):
    import torch
    from diffusers import StableDiffusionPipeline

    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint("sd1"), local_files_only=True, **unchecked)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(str(files[0]))
    pipeline.load_textual_inversion(str(files[1]), token="BadFog")
    latents = np.random.default_rng(5).standard_normal((1, 4, 8, 8), dtype=np.float32)
    requests = (PROMPT, PROMPT.model_copy(update={"prompt": "a on a cliff", "negative_prompt": "fog"}))
    expected = [
        pipeline(
            one.prompt,
            negative_prompt=one.negative_prompt,
            latents=torch.from_numpy(latents),
            width=64,
            height=64,
            num_inference_steps=3,
            guidance_scale=one.guidance,
            output_type="np",
        ).images
        for one in requests
    ]
    assert psnr_db(*expected) < 40
    opened = open_bundle(shutil.copytree(enlarged.folder, tmp_path_factory.mktemp("embeddings") / "a.bundle"))
    profile = load_profile("cpu-onnxruntime")
    assert build(opened, profile).step_psnr_db > 90
    with Pipeline.open(opened, profile) as drawing:
        results = [drawing(one, latents=latents) for one in requests]
    for result, wanted in zip(results, expected, strict=True):
        assert psnr_db((wanted * 255).round(), result.images.astype(np.float64)) > 60
    shown = [read(result.save(tmp_path / f"{number}.png")[0]) for number, result in enumerate(results)]
    digests = {"<toy>": sha256(files[0]), "BadFog": sha256(files[1])}
    assert shown[0].drawing.embeddings == digests
    assert parse(shown[0].text).rest["TI hashes"] == ", ".join(f"{key}: {one[:12]}" for key, one in digests.items())
    assert "TI hashes" not in shown[1].text
    assert "embeddings" not in shown[1].drawing.model_dump_json()
    code, said, _ = command("show", tmp_path / "0.png")
    assert code == 0
    assert f'TI hashes: "<toy>: {digests["<toy>"][:12]}, BadFog' in said


@pytest.mark.slow
def test_the_bundle_has_them(enlarged, files, command):
    found = [(one.token, one.vectors, one.location, one.sha256) for one in enlarged.manifest.embeddings]
    assert found == [("<toy>", 3, str(files[0]), sha256(files[0])), ("BadFog", 1, str(files[1]), sha256(files[1]))]
    (encoder,) = enlarged.manifest.model.text_encoders
    assert encoder.vocabulary == 49408 + 4
    code, said, _ = command("inspect", enlarged.folder)
    assert code == 0
    assert f"embedding <toy> (3 vectors) from {files[0]}" in " ".join(said.split())
    code, said, _ = command("inspect", enlarged.folder, "--json")
    assert [one["token"] for one in json.loads(said)["embeddings"]] == ["<toy>", "BadFog"]


@pytest.mark.slow
def test_a_bundle_takes_embeddings_without_the_checkpoint(enlarged, exported, files, tmp_path):
    base = exported("sd1")
    made = fuse(base, tmp_path / "fused", embeddings=[str(one) for one in files])
    for name in ("text_encoder/model.onnx", "text_encoder/config.json", "tokenizer/tokenizer.json"):
        assert (made.folder / name).read_bytes() == (enlarged.folder / name).read_bytes(), name
    assert made.part("text_encoder").digest == enlarged.part("text_encoder").digest
    assert (made.manifest.embeddings, made.manifest.model) == (enlarged.manifest.embeddings, enlarged.manifest.model)
    assert made.manifest.standing.word == "self-consistent"
    assert made.manifest.source.fused.base == base.digest
    assert made.part("unet").digest == base.part("unet").digest
    prompts = ("BadFog", "a <toy> on a cliff")
    found, wanted = (tokenize(load_vocabularies(one), prompts).rows[0] for one in (made, enlarged))
    assert (found == wanted).all()
    with pytest.raises(CheckpointError, match="'BadFog' of .* is already in the vocabulary"):
        fuse(made, tmp_path / "again", embeddings=[str(files[1])])
    wide = save(tmp_path / "wide.safetensors", {"<x>": vectors(2, 768)})
    with pytest.raises(CheckpointError, match="vectors of width 768"):
        fuse(base, tmp_path / "again", embeddings=[wide])
    nan = save(tmp_path / "nan.safetensors", {"<nan>": vectors(1) * float("nan")})
    with pytest.raises(CheckpointError, match="'<nan>' holds NaN or Inf"):
        fuse(base, tmp_path / "again", embeddings=[nan])
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_embeddings_are_options_of_a_run(bundle, files, command, tmp_path):
    folder, profile = bundle("sd1").folder, ("-p", "null", "--steps", 1, "-q")
    toy, fog = files
    before = {*(folder / "adapters").glob("[!.]*")}  # those of other tests
    said = command("run", folder, "a <toy>", "--embedding", toy, "-o", tmp_path / "a.png", *profile)
    assert said[0] == 0, said
    assert read(tmp_path / "a.png").drawing.embeddings == {"<toy>": sha256(toy)}
    assert read(tmp_path / "a.png").drawing.standing == "self-consistent"
    (place,) = {*(folder / "adapters").glob("[!.]*")} - before
    assert command("run", folder, "<toy>", "--embedding", toy, "-o", tmp_path / "b.png", *profile)[0] == 0
    assert {*(folder / "adapters").glob("[!.]*")} - before == {place}, "it is made once"
    code, _, err = command("run", folder, "a", "--embedding", f"{fog}:cat", "-o", tmp_path / "c.png", *profile)
    assert (code, "'cat' of" in err) == (1, True)


@pytest.mark.slow
def test_several_vectors_stay_in_one_chunk(enlarged):
    vocabularies = load_vocabularies(enlarged)
    start = 49408
    for words in (72, 73, 74, 75):
        tokens = tokenize(vocabularies, ("word " * words + "<toy> end",))
        rows = [row[1 : used - 1].tolist() for row, used in zip(tokens.rows[0][0], tokens.used[0][0], strict=True)]
        assert len(rows[0]) == (75 if words in (72, 75) else words)
        assert [start, start + 1, start + 2] in [row[at : at + 3] for row in rows for at in range(len(row))], words
    (row,) = tokenize(vocabularies, ("(a <toy>:1.3) end",), "a1111").weights[0][0]
    assert row[:7] == pytest.approx([1, 1.3, 1.3, 1.3, 1.3, 1, 1])
    hidden = tokenize(vocabularies, ("a (<toy>)0.5 end",), "compel", "mask").rows[0][0]
    assert [-1 - start, -2 - start, -3 - start] in hidden[:, 2:5].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["both", "padded"])
def test_text_encoders_are_those_of_diffusers(checkpoint, tmp_path, form):
    """SDXL's, of two files in one; and a table that has more rows than its tokenizer has tokens."""
    import torch
    from diffusers import DiffusionPipeline
    from transformers import CLIPTokenizer

    family = "sdxl" if form == "both" else "sd1"
    folder = checkpoint(family)
    names = ["text_encoder", "text_encoder_2"] if form == "both" else ["text_encoder"]
    if form == "padded":
        folder = shutil.copytree(folder, tmp_path / "checkpoint")
        pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
        pipeline.text_encoder.resize_token_embeddings(49408 + 64)
        pipeline.text_encoder.save_pretrained(folder / "text_encoder")
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    widths = [getattr(pipeline, name).config.hidden_size for name in names]
    keys = ("clip_l", "clip_g") if form == "both" else ("emb_params",)
    held = {key: vectors(2, width, seed) for seed, (key, width) in enumerate(zip(keys, widths, strict=True))}
    path = save(tmp_path / "toy.safetensors", held)
    opened = open_checkpoint(folder, embeddings=[f"{path}:<toy>"])
    for name, key in zip(names, keys, strict=True):
        tokenizer, encoder = getattr(pipeline, name.replace("text_encoder", "tokenizer")), getattr(pipeline, name)
        pipeline.load_textual_inversion(held[key], token="<toy>", text_encoder=encoder, tokenizer=tokenizer)
        text = pipeline.maybe_convert_prompt("a <toy>, here", tokenizer)
        ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for file, content in opened.tokenizer_files(name.replace("text_encoder", "tokenizer")).items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        ours = CLIPTokenizer.from_pretrained(tmp_path / name)
        assert ours(text, padding="max_length", max_length=77, return_tensors="pt").input_ids.equal(ids)
        module = opened.module(name)
        with torch.no_grad():
            found, wanted = module(input_ids=ids)[0], encoder(input_ids=ids)[0]
        assert psnr_db(wanted.numpy(), found.numpy()) > 100
        rows = module.get_input_embeddings().weight
        assert rows[int(ids[0, 2]) : int(ids[0, 2]) + 2].equal(held[key])
    again = open_checkpoint(opened, size=64)
    assert [one.tokens for one in again.embeddings] == [("<toy>", "<toy>_1")]
    assert again.digest(names[0]) == opened.digest(names[0]) != open_checkpoint(folder).digest(names[0])
    with pytest.raises(CheckpointError, match="is already open, and embeddings would change"):
        open_checkpoint(opened, embeddings=[f"{path}:<other>"])


BAD = {
    "width of SD 1": (
        {"<x>": (2, 768)},
        "",
        "vectors of width 768 (Stable Diffusion 1), but Stable Diffusion 1 needs 32",
    ),
    "width of SDXL": ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "", "width 768 and 1280 (Stable Diffusion XL)"),
    "no family's width": ({"<x>": (2, 5)}, "", "vectors of width 5, but"),
    "several tensors": ({"a": (1, WIDTH), "b": (1, WIDTH)}, "", "it holds 'a', 'b'"),
    "an ordinary word": ({"emb_params": (1, WIDTH)}, ":lighthouse", "'lighthouse' of"),
    "in other letters": ({"emb_params": (1, WIDTH)}, ":LightHouse", "is already in the vocabulary of tokenizer"),
    "a special token": ({"emb_params": (1, WIDTH)}, ":<|endoftext|>", "is already in the vocabulary of tokenizer"),
    "two words": ({"emb_params": (1, WIDTH)}, ":two words", "has the token 'two words'"),
    "no token": ({"emb_params": (1, WIDTH)}, ":", "has an empty token"),
    "too many vectors": ({"<x>": (76, WIDTH)}, "", "has 76 vectors; the same number, at most 75"),
    "three axes": ({"<x>": (1, 1, WIDTH)}, "", "of F32 [1, 1, 32], but [vectors, width]"),
    "no file": (None, "", "was not found"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_is_no_embedding_of_this_checkpoint_is_refused(checkpoint, tmp_path, case):
    import torch

    shapes, token, message = case
    path = tmp_path / "x.safetensors"
    if shapes is not None:
        save(path, {name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_checkpoint(checkpoint("sd1"), embeddings=[f"{path}{token}"])


@pytest.mark.slow
def test_other_faults_are_refused(checkpoint, tmp_path):
    import torch

    folder = checkpoint("sd1")
    path = save(tmp_path / "x.safetensors", {"emb_params": vectors(2)})
    with pytest.raises(CheckpointError, match="'<x>_1' of .* belongs to another embedding"):
        open_checkpoint(folder, embeddings=[f"{path}:<x>", f"{path}:<x>_1"])
    with pytest.raises(CheckpointError, match="'<x>_2' of .* belongs to another embedding"):
        open_checkpoint(folder, embeddings=[f"{path}:<x>", f"{path}:<x>_2"])
    pickled = tmp_path / "x.pt"
    torch.save({"string_to_param": {"*": vectors(1)}}, pickled)
    with pytest.raises(CheckpointError, match=r"x\.pt is a pickle"):
        open_checkpoint(folder, embeddings=[str(pickled)])
    pickled.rename(renamed := tmp_path / "renamed.safetensors")
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(folder, embeddings=[str(renamed)])
    damaged = save(tmp_path / "nan.safetensors", {"<nan>": vectors(1) * float("nan")})
    with pytest.raises(CheckpointError, match=r"nan\.safetensors holds NaN or Inf in '<nan>'"):
        open_checkpoint(folder, embeddings=[str(damaged)]).check_modules()
    with pytest.raises(CheckpointError, match="Stable Diffusion 3.5 Medium takes no textual inversions"):
        open_checkpoint(checkpoint("sd35m"), embeddings=[str(path)])


def test_vectors_that_a_type_rounds_are_said_and_too_large_ones_refused(checkpoint, tmp_path):
    def said(values, kept):
        path = save(tmp_path / "x.safetensors", {"<x>": values})
        return about_rounding(open_checkpoint(checkpoint("sd1"), embeddings=[path]).embeddings, {"text_encoder": kept})

    assert said(vectors(2), "f32") == []
    assert said(vectors(2).half(), "f16") == said(vectors(2).bfloat16(), "bf16") == []
    assert said(vectors(2), "f16") == ["The vectors of <x> are rounded to f16, as text_encoder is stored in it."]
    assert len(said(vectors(2).half(), "bf16")) == len(said(vectors(2) * 1e6, "bf16")) == 1
    with pytest.raises(CheckpointError, match="The vectors of <x> .* are too large for f16"):
        said(vectors(2) * 1e6, "f16")


@pytest.mark.slow
def test_a_token_in_other_letters_is_refused(enlarged):
    vocabularies = load_vocabularies(enlarged)
    assert tokenize(vocabularies, ("a <toy>",)).counts == (4,)
    with pytest.raises(RequestError, match="writes the token '<toy>' of a textual inversion with other letters"):
        tokenize(vocabularies, ("a <Toy>",))


def test_tokens_that_contain_one_another_are_refused(checkpoint, tmp_path):
    files = [save(tmp_path / f"{name}.safetensors", {name: vectors(2)}) for name in ("toy2", "Toy2shop")]
    with pytest.raises(CheckpointError, match="The token 'toy2' is a part of 'Toy2shop'"):
        open_checkpoint(str(checkpoint("sd1")), embeddings=files)
