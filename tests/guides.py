"""Tiny ControlNets and IP-Adapters with random weights, in the layouts that are published."""

IP_ADAPTER = "ip-adapter.safetensors"


def write_controlnet(checkpoint, seed, folder, *, pooled=False):
    """A ControlNet of diffusers for a checkpoint's UNet, whose residuals aren't zero."""
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet", local_files_only=True)
    net = diffusers.ControlNetModel.from_unet(unet)
    net.register_to_config(global_pool_conditions=pooled)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if name.startswith("controlnet_"):  # zero, or so small that the image has no effect
                gain = 0.4 if "blocks" in name.partition(".")[0] or "mid" in name else 1.6
                spread = gain / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.02
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    net.save_pretrained(folder)


def write_ip_adapter(checkpoint, kind, folder):
    """An IP-Adapter for a checkpoint's UNet, `plain` or `plus`, beside its image encoder."""
    import diffusers
    import torch
    import transformers
    from diffusers.models.embeddings import IPAdapterPlusImageProjection
    from safetensors.torch import save_file

    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet", local_files_only=True)
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32,
        patch_size=8, projection_dim=20, hidden_act="gelu",
    )  # fmt: skip
    encoder = transformers.CLIPVisionModelWithProjection(config)
    with torch.no_grad():
        for tensor in encoder.parameters():
            tensor.add_(torch.randn(tensor.shape) * 0.15)
    encoder.save_pretrained(folder / "image_encoder")
    width = unet.config.cross_attention_dim
    if kind == "plain":
        tensors = {
            "image_proj.proj.weight": torch.randn(4 * width, 20) * 0.3,
            "image_proj.proj.bias": torch.randn(4 * width) * 0.3,
            "image_proj.norm.weight": 1 + torch.randn(width) * 0.2,
            "image_proj.norm.bias": torch.randn(width) * 0.2,
        }
    else:
        resampler = IPAdapterPlusImageProjection(
            embed_dims=24, output_dims=width, hidden_dims=32, depth=4, heads=2, num_queries=6
        )
        with torch.no_grad():
            for tensor in resampler.parameters():
                tensor.add_(torch.randn(tensor.shape) * 0.1)
        tensors = {f"image_proj.{_published(name)}": one for name, one in resampler.state_dict().items()}
        for layer in (f"image_proj.layers.{place}.0" for place in range(4)):
            both = [tensors.pop(f"{layer}.to_{one}.weight") for one in "kv"]
            tensors[f"{layer}.to_kv.weight"] = torch.cat(both)
    processors = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for place, name in enumerate(processors):
        own = unet.get_submodule(name.removesuffix(".processor")).to_k
        for one in "kv":
            spread = 2 / own.in_features**0.5
            weight = torch.randn(own.weight.shape) * spread
            tensors[f"ip_adapter.{2 * place + 1}.to_{one}_ip.weight"] = weight
    save_file({name: one.detach().contiguous() for name, one in tensors.items()}, folder / IP_ADAPTER)


def _published(name):
    """The published name of a tensor of diffusers' resampler."""
    for new, old in (
        (".ln0.", ".0.norm1."), (".ln1.", ".0.norm2."), (".attn.to_out.0.", ".0.to_out."), (".attn.", ".0."),
        (".ff.0.", ".1.0."), (".ff.1.net.0.proj.", ".1.1."), (".ff.1.net.2.", ".1.3."),
    ):  # fmt: skip
        name = name.replace(new, old)
    return name
