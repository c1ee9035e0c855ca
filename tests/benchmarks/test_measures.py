"""LPIPS and FID beside their published implementations, on the same weights and pictures.

`published.json.xz` is what lpips 0.1.4, torch-fidelity 0.4.0 and pytorch-fid 0.3.0 make of them: see
`make_published.py`.
"""

import hashlib
import json
import lzma
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.benchmarks import weights
from latentc.benchmarks.frechet import frechet_distance
from latentc.benchmarks.page import page
from latentc.benchmarks.reading import sections
from latentc.benchmarks.records import ClipScore, Fid, Likeness, Lpips
from latentc.benchmarks.weights import find
from latentc.cli.bench import print_rows
from latentc.core.errors import RequestError

PUBLISHED = json.loads(lzma.decompress(Path(__file__).with_name("published.json.xz").read_bytes()))
CALM = (2.0, 2.01, 2.02, 2.0, 2.01, 2.02)


@pytest.fixture
def published():
    """Weights and pictures of `published.py`, which `make_published.py` shares."""
    return SimpleNamespace(**run_path(str(Path(__file__).with_name("published.py"))))


def tensor(pictures):
    import torch

    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_that_of_its_package(published, net):
    from latentc.benchmarks.subjects.lpips import distances

    trunk = published.alex_state() if net == "alex" else published.vgg_state()
    first, second = map(tensor, published.pictures(64))
    found = distances(net, trunk, published.linear_state(net), first, second)
    assert found == pytest.approx(PUBLISHED["lpips"][net], rel=1e-4)
    assert distances(net, trunk, published.linear_state(net), first, first) == [0.0, 0.0]


@pytest.mark.slow
def test_inception_s_features_are_those_of_the_published_network(published):
    import torch

    from latentc.benchmarks.subjects.inception import _network, features

    state = {name: torch.zeros(shape) for name, shape in PUBLISHED["inception"]["shapes"].items()}
    state = {name: value.long() if name.endswith("tracked") else value for name, value in state.items()}
    published.fill(state)
    wanted = zip(PUBLISHED["inception"]["features"], PUBLISHED["inception"]["sums"], strict=True)
    for drawn, (some, whole) in zip(map(tensor, published.pictures(299)), wanted, strict=True):
        with torch.inference_mode():
            found = _network(state, (drawn.float() - 128) / 128).numpy()  # the scale of torch-fidelity
            same = _network(state, 2 * (drawn.float() / 255) - 1).numpy()  # and that of pytorch-fid
        assert found.shape == (2, 2048)
        np.testing.assert_allclose(found[:, :16].ravel(), some, rtol=1e-3, atol=1e-4)
        assert found.astype(np.float64).sum() == pytest.approx(whole, rel=1e-4)
        np.testing.assert_allclose(features(state, drawn).numpy(), same, rtol=1e-4, atol=1e-5)


def test_the_frechet_distance_is_pytorch_fid_s():
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(40, 12)), rng.normal(0.5, 1.5, size=(50, 12))
    assert frechet_distance(one, other) == pytest.approx(PUBLISHED["frechet"], rel=1e-9)


def test_the_frechet_distance_of_gaussians_is_their_formula():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    plain = rng.standard_normal((20000, 3)).astype(np.float32)
    wide = plain * np.array([2, 1, 1], np.float32) + np.array([0, 3, 0], np.float32)
    assert frechet_distance(plain, plain) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(plain, wide) == pytest.approx(9 + 1, rel=0.03)
    assert frechet_distance(wide, plain) == pytest.approx(frechet_distance(plain, wide))
    few, others = rng.standard_normal((5, 9)), rng.standard_normal((7, 9)) + 1  # fewer pictures than features
    spreads = [np.cov(each, rowvar=False) + 1e-12 * np.eye(9) for each in (few, others)]
    wanted = ((few.mean(0) - others.mean(0)) ** 2).sum() + np.trace(sum(spreads))
    wanted -= 2 * np.trace(sqrtm(spreads[0] @ spreads[1])).real
    assert frechet_distance(few, others) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="too few"):
        frechet_distance(few[:1], others)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with files that pass for the published ones, by their digests."""

    def digest(name):
        (tmp_path / name).write_bytes(name.encode())
        return hashlib.sha256(name.encode()).hexdigest()

    table = {
        "lpips": {
            "alex": {"trunk": (digest("alexnet-x.pth")[:8],), "linear": (digest("alex.pth"),)},
            "vgg": {"trunk": (digest("vgg16-x.pth")[:8],), "linear": (digest("vgg.pth"),)},
        },
        "fid": {"inception": {"inception": (digest("pt_inception-x.pth")[:8],)}},
    }
    monkeypatch.setattr(weights, "PUBLISHED", table)
    return tmp_path


def test_published_weights_are_known_by_their_digests(folder):
    assert find("lpips", folder).net == "alex"
    assert find("fid", folder).files == {"inception": folder / "pt_inception-x.pth"}
    (folder / "alexnet-x.pth").rename(folder / "any name.pth")
    assert find("lpips", folder).files["trunk"] == folder / "any name.pth"
    (folder / "alex.pth").unlink()
    assert find("lpips", folder).net == "vgg"


def test_other_weights_are_never_taken(folder):
    for name in ("alexnet-x.pth", "vgg16-x.pth", "pt_inception-x.pth"):
        (folder / name).write_bytes(b"random")
    for measure, says in (("lpips", r"torchvision's alexnet-owt-7be5be79\.pth"), ("fid", "pt_inception-2015-12-05")):
        with pytest.raises(
            RequestError, match=rf"weights of {measure.upper()}\. These files differ from the published ones: .*{says}"
        ):
            find(measure, folder)
    with pytest.raises(RequestError, match="gone is not a folder"):
        find("fid", folder / "gone")


@pytest.mark.slow
def test_the_program_measures_what_is_asked_for(published, clip_model, tmp_path, monkeypatch):
    import torch

    from latentc.benchmarks.subjects.inception import features
    from latentc.benchmarks.subjects.lpips import distances
    from latentc.benchmarks.subjects.pictures import Measures

    states = {"alexnet": published.alex_state(), "alex": published.linear_state("alex")}
    shapes = PUBLISHED["inception"]["shapes"]
    states["inception"] = published.fill({name: torch.zeros(shape) for name, shape in shapes.items()})
    digests = {}
    for name, state in states.items():
        torch.save(state, tmp_path / f"{name}.pth")
        digests[name] = (hashlib.sha256((tmp_path / f"{name}.pth").read_bytes()).hexdigest(),)
    nets = {"lpips": {"alex": {"trunk": digests["alexnet"], "linear": digests["alex"]}}}
    monkeypatch.setattr(weights, "PUBLISHED", nets | {"fid": {"inception": {"inception": digests["inception"]}}})
    first, second = published.pictures(64)
    for name, images in (("mine", first), ("reference", second)):
        np.savez(tmp_path / f"{name}.npz", *images)
    measures, folders = Measures(), {"lpips": str(tmp_path), "fid": str(tmp_path), "clip": str(clip_model)}
    files = {"pictures": str(tmp_path / "mine.npz"), "reference": str(tmp_path / "reference.npz")}
    assert measures.check(folders).lpips == "alex"
    found = measures.score(**files, prompts=["a cat", "a dog"])
    one, other = map(tensor, (first, second))
    assert found.lpips == pytest.approx(distances("alex", states["alexnet"], states["alex"], one, other))
    inception = [features(states["inception"], each).numpy() for each in (one, other)]
    assert found.fid == pytest.approx(frechet_distance(*inception), rel=1e-4)
    assert len(found.clip) == 2
    assert measures.check({"lpips": str(tmp_path)}).lpips == "alex"
    alone = measures.score(**files, prompts=["a cat", "a dog"])
    assert (alone.clip, alone.fid, alone.lpips) == ((), None, found.lpips)


def quality(random, measured):
    parity = Likeness(
        reference="r",
        clip=ClipScore(model="clip", median=31.4, worst=20, reference=30, mean=32.1, reference_mean=33.3),
        lpips=Lpips(network="alex", mean=0.123, worst=0.4),
        fid=Fid(distance=45.6, pictures=16, against="16 pictures of torch"),
    )
    row = measured("mine", CALM, parity=parity)
    return row.model_copy(update={"model": row.model.model_copy(update={"random": random})})


@pytest.mark.parametrize("random", [False, True])
def test_quality_is_in_every_table_but_never_of_random_weights(measured, tmp_path, capsys, random):
    row = quality(random, measured)
    print_rows([row], tmp_path / "results.jsonl")
    shown, text = capsys.readouterr().out, page(sections([row]), "title")
    for said in ("32.1", "0.123", "45.6"):
        assert (said in shown) is not random
        assert (said in text) is not random
    assert ("alex 0.123 (0.400)" in text) is not random
    assert ("45.6 (16 images)" in text) is not random
