"""Adapters made for tests: the tensors of one module, and what they change a weight to, in PyTorch in f64.

Written from the papers and the libraries' documentation, apart from the code under test: every entry is summed or
indexed in another way there.
"""

import math

import torch

RANK = 3


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) / max(shape[-1], 1) ** 0.5


def flat(weight):
    return weight.double().flatten(1)


def lora(weight, seed, alpha=2.0):
    """LoRA, or LoCon for a convolution: the function is applied to the product, entry by entry."""
    down = random(RANK, *weight.shape[1:], seed=seed)
    up = random(weight.shape[0], RANK, *[1] * (weight.ndim - 2), seed=seed + 1)
    change = torch.einsum("or,ri->oi", flat(up), flat(down)).reshape(weight.shape)
    scale = (alpha or RANK) / RANK if alpha is not None else 1.0
    slots = {"lora_down.weight": down, "lora_up.weight": up}
    return slots | ({} if alpha is None else {"alpha": torch.tensor(alpha)}), weight.double() + scale * change


def lora_without_alpha(weight, seed):
    return lora(weight, seed, None)


def lora_of_alpha_0(weight, seed):
    return lora(weight, seed, 0.0)


def pointwise(weight, seed):
    """A linear layer's LoRA, stored as 1x1 convolutions."""
    slots, wanted = lora(weight, seed)
    return {k: v[..., None, None] if k != "alpha" else v for k, v in slots.items()}, wanted


def squeezed(weight, seed):
    """A 1x1 convolution's LoRA, stored as matrices."""
    slots, wanted = lora(weight, seed)
    return {name: value.flatten(1) if name != "alpha" else value for name, value in slots.items()}, wanted


def tucker(weight, seed):
    """LoCon with a core: three convolutions in a row, applied to unit impulses."""
    out, inside, *kernel = weight.shape
    down = random(RANK, inside, 1, 1, seed=seed)
    mid = random(RANK + 1, RANK, *kernel, seed=seed + 1)
    up = random(out, RANK + 1, 1, 1, seed=seed + 2)
    size = kernel[0]
    impulses = torch.eye(inside, dtype=torch.float64)[:, :, None, None]
    impulses = torch.nn.functional.pad(impulses, [size - 1] * 4)
    conv = torch.nn.functional.conv2d
    seen = conv(conv(conv(impulses, down.double()), mid.double()), up.double())
    change = seen.transpose(0, 1).flip(-1, -2)  # the answer to an impulse is the flipped kernel
    slots = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    return slots, weight.double() + 2.0 / RANK * change


def loha(weight, seed):
    shapes = [(weight.shape[0], RANK), (RANK, math.prod(weight.shape[1:]))]
    one, two, three, four = (random(*shapes[i % 2], seed=seed + i) for i in range(4))
    change = (flat(one) @ flat(two)) * (flat(three) @ flat(four))
    slots = {"hada_w1_a": one, "hada_w1_b": two, "hada_w2_a": three, "hada_w2_b": four, "alpha": torch.tensor(2.0)}
    return slots, weight.double() + 2.0 / RANK * change.reshape(weight.shape)


def factors(size):
    return next((one, size // one) for one in (4, 3, 2, 1) if size % one == 0)


def kron(weight, one, two):
    """By PyTorch's own kron, one place of the kernel at a time."""
    two = two.double().reshape(weight.shape[0] // len(one), weight.shape[1] // one.shape[1], -1)
    places = [torch.kron(one.double(), two[..., index].contiguous()) for index in range(two.shape[-1])]
    return torch.stack(places, -1).reshape(weight.shape)


def lokr(weight, seed):
    """Neither factor is a product: alpha is ignored."""
    (a, b), (c, d) = factors(weight.shape[0]), factors(weight.shape[1])
    one, two = random(a, c, seed=seed), random(b, d, *weight.shape[2:], seed=seed + 1)
    return {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(7.0)}, weight.double() + kron(weight, one, two)


def lokr_second(weight, seed):
    (a, b), (c, d) = factors(weight.shape[0]), factors(weight.shape[1])
    one, left = random(a, c, seed=seed), random(b, RANK, seed=seed + 1)
    right = random(RANK, d * math.prod(weight.shape[2:]), seed=seed + 2)
    slots = {"lokr_w1": one, "lokr_w2_a": left, "lokr_w2_b": right, "alpha": torch.tensor(2.0)}
    return slots, weight.double() + 2.0 / RANK * kron(weight, one, left.double() @ right.double())


def lokr_both(weight, seed):
    (a, _b), (c, _d) = factors(weight.shape[0]), factors(weight.shape[1])
    slots, _ = lokr_second(weight, seed)
    first = {"lokr_w1_a": random(a, RANK, seed=seed + 3), "lokr_w1_b": random(RANK, c, seed=seed + 4)}
    one = first["lokr_w1_a"].double() @ first["lokr_w1_b"].double()
    two = slots["lokr_w2_a"].double() @ slots["lokr_w2_b"].double()
    del slots["lokr_w1"]
    return slots | first, weight.double() + 2.0 / RANK * kron(weight, one, two)


def dora(weight, seed, along=0):
    """LyCORIS's DoRA: each row (or each input) of the changed weight gets its own norm."""
    slots, changed = lora(weight, seed)
    rows = changed.transpose(0, along)
    norms = random(len(rows), seed=seed + 5).abs() + 0.5
    wanted = torch.stack([row / row.norm() * norm for row, norm in zip(rows, norms.double(), strict=True)])
    shape = [1] * weight.ndim
    shape[along] = -1
    return slots | {"dora_scale": norms.reshape(shape)}, wanted.transpose(0, along)


def dora_of_inputs(weight, seed):
    return dora(weight, seed, 1)


def diff(weight, seed):
    change = random(*weight.shape, seed=seed)
    return {"diff": change}, weight.double() + change.double()


KOHYA_TO_PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
KOHYA_TO_OLD = {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}
