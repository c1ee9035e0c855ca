"""Weights and pictures of fixed random numbers, for the published implementations and for ours."""

import numpy as np
import torch

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG_WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, **dict.fromkeys((10, 12, 14), 256), **dict.fromkeys((17, 19, 21), 512)}
VGG_WIDTHS |= dict.fromkeys((24, 26, 28), 512)


def fill(state, seed=3):
    """Weights in place: small, positive where a variance must be."""
    rng = np.random.default_rng(seed)
    for name in sorted(state):
        value = state[name]
        if not value.dtype.is_floating_point:
            continue
        spread = 1.4 / max(1.0, float(np.prod(value.shape[1:]))) ** 0.5 if value.ndim > 1 else 0.1
        drawn = rng.normal(0.0, spread, value.shape)
        if name.endswith(("running_var", "bn.weight")):
            drawn = 1 + np.abs(drawn)
        value.copy_(torch.from_numpy(drawn).float())
    return state


def alex_state():
    return _trunk(ALEX)


def vgg_state():
    before, layers = 3, {}
    for place, width in VGG_WIDTHS.items():
        layers[place], before = (width, before, 3), width
    return _trunk(layers)


def linear_state(net):
    """The calibrated layers, none of whose weights is negative."""
    widths = (64, 192, 384, 256, 256) if net == "alex" else (64, 128, 256, 512, 512)
    state = fill({f"lin{stage}.model.1.weight": torch.zeros(1, width, 1, 1) for stage, width in enumerate(widths)}, 4)
    return {name: weight.abs() for name, weight in state.items()}


def _trunk(layers):
    state = {}
    for place, (width, before, kernel) in layers.items():
        state[f"features.{place}.weight"] = torch.zeros(width, before, kernel, kernel)
        state[f"features.{place}.bias"] = torch.zeros(width)
    return fill(state)


def pictures(side):
    """Two pairs of pictures, uint8 [2, side, side, 3] each: smooth, and with noise of two strengths."""
    rng = np.random.default_rng(1)
    ramp = np.linspace(0, 255, side)
    one = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1, None]), -1)
    first = np.stack([one, one])
    second = first + rng.normal(0, 1, first.shape) * np.array([8, 60])[:, None, None, None]
    return tuple(np.clip(each, 0, 255).astype(np.uint8) for each in (first, second))
