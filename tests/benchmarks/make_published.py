"""Writes `published.json.xz`: what the published implementations of LPIPS and FID make of fixed weights and pictures.

    python -m venv published && published/bin/pip install torch && published/bin/pip install --no-deps lpips \
        torch-fidelity pytorch-fid && published/bin/pip install numpy scipy pillow tqdm
    published/bin/python tests/benchmarks/make_published.py

Not a test: the packages import torchvision, of which they use the layout of two networks alone. It is given here as a
stand-in of plain layers, so that everything that is computed is theirs.
"""

import json
import lzma
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from published import alex_state, fill, linear_state, pictures, vgg_state
from torch import nn

HERE = Path(__file__).parent


def sequence(*channels, kernels=None):
    layers, before = [], 3
    for wanted in channels:
        if wanted == "pool":
            layers.append(nn.MaxPool2d(*kernels["pool"]))
            continue
        layers += [nn.Conv2d(before, wanted, *kernels.get(len(layers), kernels[None])), nn.ReLU()]
        before = wanted
    return nn.Sequential(*layers)


def alexnet():
    kernels = {0: (11, 4, 2), 3: (5, 1, 2), None: (3, 1, 1), "pool": (3, 2)}
    return sequence(64, "pool", 192, "pool", 384, 256, 256, "pool", kernels=kernels)


def vgg16():
    kernels = {None: (3, 1, 1), "pool": (2, 2)}
    wide = [64, 64, "pool", 128, 128, "pool", *[256] * 3, "pool", *[512] * 3, "pool", *[512] * 3, "pool"]
    return sequence(*wide, kernels=kernels)


def stand_in():
    vision = ModuleType("torchvision")
    vision.models = ModuleType("torchvision.models")
    made = {"alex": alexnet(), "vgg": vgg16()}
    vision.models.alexnet = lambda pretrained: SimpleNamespace(features=made["alex"])
    vision.models.vgg16 = lambda pretrained: SimpleNamespace(features=made["vgg"])
    vision.transforms = ModuleType("torchvision.transforms")
    vision.__version__ = "0.0"
    names = ("InceptionA", "InceptionC", "InceptionE")
    vision.models.inception = SimpleNamespace(**dict.fromkeys(names, nn.Module))
    for name in ("", ".models", ".transforms"):
        sys.modules[f"torchvision{name}"] = vision if not name else getattr(vision, name[1:])
    return made


def main():
    made = stand_in()
    import lpips

    found = {"lpips": {}}
    first, second = (torch.from_numpy(each).permute(0, 3, 1, 2).float() / 127.5 - 1 for each in pictures(64))
    for net, state in (("alex", alex_state()), ("vgg", vgg_state())):
        made[net].load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
        metric = lpips.LPIPS(net=net, verbose=False)
        metric.load_state_dict(linear_state(net), strict=False)
        with torch.no_grad():
            found["lpips"][net] = [float(value) for value in metric(first, second)]
    package = ModuleType("torch_fidelity")  # without what its own __init__ imports
    package.__path__ = [f"{path}/torch_fidelity" for path in sys.path if Path(path, "torch_fidelity").is_dir()]
    sys.modules["torch_fidelity"] = package
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    real, torch.load = torch.load, lambda *args, **more: None
    loads, nn.Module.load_state_dict = nn.Module.load_state_dict, lambda self, state: None
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
    torch.load, nn.Module.load_state_dict = real, loads
    fill(network.state_dict())
    both = [network(torch.from_numpy(each).permute(0, 3, 1, 2).contiguous())[0].numpy() for each in pictures(299)]
    found["inception"] = {"shapes": {k: list(v.shape) for k, v in network.state_dict().items()}}
    found["inception"]["features"] = [[float(v) for v in each[:, :16].ravel()] for each in both]
    found["inception"]["sums"] = [float(each.astype(np.float64).sum()) for each in both]
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(40, 12)), rng.normal(0.5, 1.5, size=(50, 12))
    gaussians = [each for part in (one, other) for each in (part.mean(axis=0), np.cov(part, rowvar=False))]
    found["frechet"] = float(calculate_frechet_distance(*gaussians))
    (HERE / "published.json.xz").write_bytes(lzma.compress(json.dumps(found).encode(), preset=9))


if __name__ == "__main__":
    main()
