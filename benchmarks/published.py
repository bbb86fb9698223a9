"""ModelScope at its published size: arithmetic and memory beside the reference, traced without weights, not timed."""

from __future__ import annotations

from typing import Any

from .weights import VAE


def published() -> dict[str, Any]:
    """FLOPs and peak bytes (float16) of a guided step and of decoding, at 256×256."""
    import torch
    from diffusers import AutoencoderKL as TheirAutoencoder
    from diffusers import UNet3DConditionModel as TheirUNet

    from kinema.families.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
    from kinema.families.modelscope import TextConditions, UNet3DConditionModel, UNet3DConfig
    from kinema.memory.needs import trace

    def empty(*shape: int) -> Any:
        return torch.empty(shape, device="meta", dtype=torch.float16)

    with torch.device("meta"):
        ours = UNet3DConditionModel(UNet3DConfig(cross_attention_dim=1024)).half()
        theirs = TheirUNet(cross_attention_dim=1024, attention_head_dim=64).half().eval()
        our_vae, their_vae = AutoencoderKL(AutoencoderKLConfig(**VAE)).half(), TheirAutoencoder(**VAE).half().eval()

    def row(mine: Any, reference: Any) -> dict[str, float]:
        return {
            "kinema_tflop": mine.flops / 1e12,
            "reference_tflop": reference.flops / 1e12,
            "arithmetic": mine.flops / reference.flops,
            "kinema_bytes": mine.peak,
            "reference_bytes": reference.peak,
            "memory": mine.peak / reference.peak,
        }

    rows = {}
    for frames in (16, 200):
        signal = ours.prepare(torch.empty(25, device="meta"), TextConditions(empty(2, 77, 1024), frames)).at(0)
        mine = trace(lambda s=signal, f=frames: ours(empty(1, f, 4, 32, 32), s), resident=[ours])
        time = torch.empty(2, device="meta")
        other = trace(lambda t=time, f=frames: theirs(empty(2, 4, f, 32, 32), t, empty(2, 77, 1024)).sample)
        rows[f"step, {frames} frames"] = row(mine, other)
        mine = trace(lambda f=frames: [our_vae.decode(empty(1, 4, 32, 32)) and None for _ in range(f)])
        other = trace(lambda f=frames: their_vae.decode(empty(f, 4, 32, 32)).sample)
        rows[f"decode, {frames} frames"] = row(mine, other)
    return rows
