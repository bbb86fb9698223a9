"""How the original files of the first latent video models name and shape what diffusers publishes: rules both ways.

"Published" is here the original file's side and "ours" the diffusers spelling, so `read` converts to diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .keys import Drop, Rename, Rule, Split, Squeeze, Table

Pair = tuple[str, str]

_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def modelscope_unet(levels: int, layers: int, cross: Sequence[bool]) -> tuple[Rule, ...]:
    """`text2video_pytorch_model.pth` (UNetSD) -> UNet3DConditionModel.

    Args:
        levels: how many resolutions. layers: blocks at each. cross: which levels attend to the text, finest first.
    """
    pairs: list[Pair] = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("input_blocks.0.1", "transformer_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ]
    i = 1
    for level in range(levels):
        for layer in range(layers):
            pairs += _row(f"input_blocks.{i}", f"down_blocks.{level}", layer, cross[level])
            i += 1
        if level < levels - 1:
            pairs.append((f"input_blocks.{i}.op", f"down_blocks.{level}.downsamplers.0.conv"))
            i += 1
    pairs += _row("middle_block", "mid_block", 0, True)
    pairs += _resnet("middle_block.3", "mid_block", 1)
    i = 0
    for up, level in enumerate(reversed(range(levels))):
        for layer in range(layers + 1):
            pairs += _row(f"output_blocks.{i}", f"up_blocks.{up}", layer, cross[level])
            if layer == layers and level > 0:
                place = 3 if cross[level] else 1
                pairs.append((f"output_blocks.{i}.{place}.conv", f"up_blocks.{up}.upsamplers.0.conv"))
            i += 1
    return (
        Table(tuple(pairs)),
        Squeeze(r"^(transformer_in|.*\.temp_attentions\.\d+)\.proj_(in|out)\.weight$", axes=1),
    )


def _row(original: str, stage: str, layer: int, cross: bool) -> Iterator[Pair]:
    yield from _resnet(f"{original}.0", stage, layer)
    if cross:
        yield f"{original}.1", f"{stage}.attentions.{layer}"
        yield f"{original}.2", f"{stage}.temp_attentions.{layer}"


def _resnet(original: str, stage: str, layer: int) -> Iterator[Pair]:
    for theirs, ours in _RESNET:
        yield f"{original}.{theirs}", f"{stage}.resnets.{layer}.{ours}"
    yield f"{original}.temopral_conv", f"{stage}.temp_convs.{layer}"  # spelt so in the files


def ldm_vae(levels: int, layers: int) -> tuple[Rule, ...]:
    """The autoencoder of latent diffusion (`VQGAN_autoencoder.pth`, `first_stage_model.`) -> AutoencoderKL."""
    pairs: list[Pair] = []
    for level in range(levels):
        here, up = levels - 1 - level, f"decoder.up_blocks.{level}"
        down = f"encoder.down_blocks.{level}"
        for layer in range(layers):
            pairs.append((f"encoder.down.{level}.block.{layer}", f"{down}.resnets.{layer}"))
        for layer in range(layers + 1):
            pairs.append((f"decoder.up.{here}.block.{layer}", f"{up}.resnets.{layer}"))
        pairs.append((f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"))
        pairs.append((f"decoder.up.{here}.upsample.conv", f"{up}.upsamplers.0.conv"))
    for side in ("encoder", "decoder"):
        middle, attention = f"{side}.mid_block", f"{side}.mid_block.attentions.0"
        pairs += [
            (f"{side}.mid.block_1", f"{middle}.resnets.0"),
            (f"{side}.mid.block_2", f"{middle}.resnets.1"),
            (f"{side}.mid.attn_1.norm", f"{attention}.group_norm"),
            (f"{side}.mid.attn_1.q", f"{attention}.to_q"),
            (f"{side}.mid.attn_1.k", f"{attention}.to_k"),
            (f"{side}.mid.attn_1.v", f"{attention}.to_v"),
            (f"{side}.mid.attn_1.proj_out", f"{attention}.to_out.0"),
            (f"{side}.norm_out", f"{side}.conv_norm_out"),
        ]
    return (
        Drop(r"^(loss|model_ema)\b"),
        Table(tuple(pairs)),
        Rename(".nin_shortcut.", ".conv_shortcut."),
        Squeeze(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", axes=2),
    )


def open_clip_text(layers: int) -> tuple[Rule, ...]:
    """`open_clip_pytorch_model.bin` -> the first `layers` layers of a CLIPTextModel; pictures' half is left out."""
    pairs: list[Pair] = [
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("ln_final", "text_model.final_layer_norm"),
    ]
    for i in range(layers):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        pairs += [
            (f"{theirs}.ln_1", f"{ours}.layer_norm1"),
            (f"{theirs}.ln_2", f"{ours}.layer_norm2"),
            (f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1"),
            (f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2"),
            (f"{theirs}.attn", f"{ours}.self_attn"),
        ]
    parts = ("q_proj", "k_proj", "v_proj")
    return (
        Drop(r"^(visual\.|text_projection$|logit_scale$|attn_mask$)"),
        Table(tuple(pairs)),
        Drop(r"^transformer\.resblocks\."),  # layers behind the last one that is used
        Split(".self_attn.in_proj_weight", tuple(f".self_attn.{part}.weight" for part in parts)),
        Split(".self_attn.in_proj_bias", tuple(f".self_attn.{part}.bias" for part in parts)),
    )
