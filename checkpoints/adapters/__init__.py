"""Adapters: LoRA and its relatives in `.safetensors` files, and weights that are fused with them.

Supported are LoRA, LoCon, LoHa, LoKr and DoRA, and full differences, with the keys of kohya's scripts, LyCORIS, PEFT
and diffusers. `fuse` is numpy alone.
"""
