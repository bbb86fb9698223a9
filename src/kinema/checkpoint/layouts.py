"""How original files name and shape what diffusers publishes: rules both ways.

"Published" is here the original file's side and "ours" the diffusers spelling, so `read` converts to diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .keys import Drop, Rename, Rule, Split, Squeeze, Table, Transpose

Pair = tuple[str, str]
Places = Callable[[str, str, int], Iterator[Pair]]  # (original block, published stage, layer) -> names in it

RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_QKV = ("to_q", "to_k", "to_v")


def modelscope_unet(levels: int, layers: int, cross: Sequence[bool]) -> tuple[Rule, ...]:
    """`text2video_pytorch_model.pth` (UNetSD) -> UNet3DConditionModel.

    Args:
        levels: how many resolutions. layers: blocks at each. cross: which levels attend to the text, finest first.
    """
    return _modelscope(levels, layers, cross, ())


def i2vgen_unet(levels: int, layers: int, cross: Sequence[bool]) -> tuple[Rule, ...]:
    """`i2vgen_xl_00854500.pth` (UNetSD_I2VGen) -> I2VGenXLUNet: ModelScope's, and what reads the picture."""
    encoder, theirs = "image_latents_temporal_encoder", "local_temporal_encoder.layers.0"
    picture = (
        ("local_image_concat", "image_latents_proj_in"),
        ("local_image_embedding", "image_latents_context_embedding"),
        (f"{theirs}.0.norm", f"{encoder}.norm1"),
        (f"{theirs}.0.fn", f"{encoder}.attn1"),
        (f"{theirs}.1.net.0.0", f"{encoder}.ff.net.0.proj"),
        (f"{theirs}.1.net.2", f"{encoder}.ff.net.2"),
    )
    apart = Split(f"{encoder}.attn1.to_qkv.", tuple(f"{encoder}.attn1.{name}." for name in _QKV))
    return (*_modelscope(levels, layers, cross, picture), apart)


def svd_unet(levels: int, layers: int, cross: Sequence[bool]) -> tuple[Rule, ...]:
    """`model.diffusion_model.` of `svd*.safetensors` (VideoUNet) -> UNetSpatioTemporalConditionModel."""
    pairs: list[Pair] = [
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        *unet_names(levels, layers, cross, _svd_resnet, (_svd_attention,), "0.op"),
    ]
    return (Table(tuple(pairs)),)


def _modelscope(levels: int, layers: int, cross: Sequence[bool], more: Sequence[Pair]) -> tuple[Rule, ...]:
    attentions = (named("attentions"), named("temp_attentions"))
    pairs = unet_names(levels, layers, cross, _modelscope_resnet, attentions, "op")
    return (
        Table((*pairs, ("input_blocks.0.1", "transformer_in"), *more)),
        Squeeze(r"^(transformer_in|.*\.temp_attentions\.\d+)\.proj_(in|out)\.weight$", axes=1),
    )


def unet_names(
    levels: int, layers: int, cross: Sequence[bool], resnet: Places, attentions: Sequence[Places], op: str
) -> Iterator[Pair]:
    """The names of every U-Net that descends from latent diffusion's: a row is a resnet and then its attentions."""
    yield from encoder_names(levels, layers, cross, resnet, attentions, op)
    yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    i = 0
    for up, level in enumerate(reversed(range(levels))):
        for layer in range(layers + 1):
            attends = attentions if cross[level] else ()
            yield from _row(f"output_blocks.{i}", f"up_blocks.{up}", layer, resnet, attends)
            if layer == layers and level > 0:
                place = 1 + len(attentions) * cross[level]
                yield f"output_blocks.{i}.{place}.conv", f"up_blocks.{up}.upsamplers.0.conv"
            i += 1


def encoder_names(
    levels: int, layers: int, cross: Sequence[bool], resnet: Places, attentions: Sequence[Places], op: str
) -> Iterator[Pair]:
    """Those of its way down and its middle."""
    for theirs, ours in (("0", "linear_1"), ("2", "linear_2")):
        yield f"time_embed.{theirs}", f"time_embedding.{ours}"
    yield "input_blocks.0.0", "conv_in"
    i = 1
    for level in range(levels):
        for layer in range(layers):
            yield from _row(
                f"input_blocks.{i}", f"down_blocks.{level}", layer, resnet, attentions if cross[level] else ()
            )
            i += 1
        if level < levels - 1:
            yield f"input_blocks.{i}.{op}", f"down_blocks.{level}.downsamplers.0.conv"
            i += 1
    yield from _row("middle_block", "mid_block", 0, resnet, attentions)
    yield from resnet(f"middle_block.{1 + len(attentions)}", "mid_block", 1)


def _row(original: str, stage: str, layer: int, resnet: Places, attentions: Sequence[Places]) -> Iterator[Pair]:
    yield from resnet(f"{original}.0", stage, layer)
    for place, attention in enumerate(attentions, 1):
        yield from attention(f"{original}.{place}", stage, layer)


def named(name: str) -> Places:
    def places(original: str, stage: str, layer: int) -> Iterator[Pair]:
        yield original, f"{stage}.{name}.{layer}"

    return places


def _modelscope_resnet(original: str, stage: str, layer: int) -> Iterator[Pair]:
    for theirs, ours in RESNET:
        yield f"{original}.{theirs}", f"{stage}.resnets.{layer}.{ours}"
    yield f"{original}.temopral_conv", f"{stage}.temp_convs.{layer}"  # spelt so in the files


def _svd_resnet(original: str, stage: str, layer: int) -> Iterator[Pair]:
    block = f"{stage}.resnets.{layer}"
    for theirs, ours in RESNET:
        yield f"{original}.{theirs}", f"{block}.spatial_res_block.{ours}"
        yield f"{original}.time_stack.{theirs}", f"{block}.temporal_res_block.{ours}"
    yield f"{original}.time_mixer", f"{block}.time_mixer"


def _svd_attention(original: str, stage: str, layer: int) -> Iterator[Pair]:
    block = f"{stage}.attentions.{layer}"
    yield original, block
    yield f"{original}.time_stack", f"{block}.temporal_transformer_blocks"
    yield f"{original}.time_pos_embed.0", f"{block}.time_pos_embed.linear_1"
    yield f"{original}.time_pos_embed.2", f"{block}.time_pos_embed.linear_2"


def ldm_vae(levels: int, layers: int) -> tuple[Rule, ...]:
    """The autoencoder of latent diffusion (`VQGAN_autoencoder.pth`, `first_stage_model.`) -> AutoencoderKL."""
    pairs = [*_vae_half("encoder", levels, layers), *_vae_half("decoder", levels, layers + 1)]
    return (Drop(r"^(loss|model_ema)\b"), *_vae(pairs))


def temporal_vae(levels: int, layers: int) -> tuple[Rule, ...]:
    """The same encoder, and the decoder of `svd*.safetensors` (VideoDecoder) -> AutoencoderKLTemporalDecoder."""
    pairs = [*_vae_half("encoder", levels, layers)]
    for theirs, ours in _vae_half("decoder", levels, layers + 1):
        if ".resnets." not in ours:
            pairs.append((theirs, ours))
            continue
        pairs += [(theirs, f"{ours}.spatial_res_block"), (f"{theirs}.mix_factor", f"{ours}.time_mixer.mix_factor")]
        pairs += [(f"{theirs}.time_stack.{a}", f"{ours}.temporal_res_block.{b}") for a, b in RESNET]
    pairs.append(("decoder.conv_out.time_mix_conv", "decoder.time_conv_out"))
    return _vae(pairs)


def _vae_half(side: str, levels: int, layers: int) -> Iterator[Pair]:
    """The names of an encoder or a decoder, whose levels are counted from the other end."""
    theirs, ours, sampler = (
        ("down", "down_blocks", "downsample") if side == "encoder" else ("up", "up_blocks", "upsample")
    )
    for level in range(levels):
        here = level if side == "encoder" else levels - 1 - level
        for layer in range(layers):
            yield f"{side}.{theirs}.{here}.block.{layer}", f"{side}.{ours}.{level}.resnets.{layer}"
        yield f"{side}.{theirs}.{here}.{sampler}.conv", f"{side}.{ours}.{level}.{sampler}rs.0.conv"
    for i in range(2):
        yield f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}"
    attention = f"{side}.mid_block.attentions.0"
    for a, b in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield f"{side}.mid.attn_1.{a}", f"{attention}.{b}"
    yield f"{side}.norm_out", f"{side}.conv_norm_out"


def _vae(pairs: Sequence[Pair]) -> tuple[Rule, ...]:
    return (
        Table(tuple(pairs)),
        Rename(".nin_shortcut.", ".conv_shortcut."),
        Squeeze(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", axes=2),
    )


def open_clip_text(layers: int, projected: bool = False) -> tuple[Rule, ...]:
    """`open_clip_pytorch_model.bin` -> the first `layers` layers of a CLIPTextModel; pictures' half is left out.

    With `projected`, -> CLIPTextModelWithProjection, as SDXL's second encoder is.
    """
    pairs: list[Pair] = [
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("ln_final", "text_model.final_layer_norm"),
    ]
    if not projected:
        return (Drop(r"^(visual\.|text_projection$|logit_scale$|attn_mask$)"), *_open_clip(pairs, "text_model", layers))
    pairs.append(("text_projection", "text_projection.weight"))
    towers = _open_clip(pairs, "text_model", layers)
    return (Drop(r"^(visual\.|logit_scale$|attn_mask$)"), *towers, Transpose(r"^text_projection\.weight$"))


def open_clip_vision(layers: int) -> tuple[Rule, ...]:
    """OpenCLIP's `visual.` -> CLIPVisionModelWithProjection."""
    pairs: list[Pair] = [
        ("class_embedding", "vision_model.embeddings.class_embedding"),
        ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("conv1", "vision_model.embeddings.patch_embedding"),
        ("ln_pre", "vision_model.pre_layrnorm"),  # spelt so in the published files
        ("ln_post", "vision_model.post_layernorm"),
        ("proj", "visual_projection.weight"),
    ]
    return (*_open_clip(pairs, "vision_model", layers), Transpose(r"^visual_projection\.weight$"))


def _open_clip(pairs: list[Pair], tower: str, layers: int) -> tuple[Rule, ...]:
    """The names of a tower of OpenCLIP: `pairs`, and those of its transformer."""
    for i in range(layers):
        theirs, ours = f"transformer.resblocks.{i}", f"{tower}.encoder.layers.{i}"
        pairs += [
            (f"{theirs}.ln_1", f"{ours}.layer_norm1"),
            (f"{theirs}.ln_2", f"{ours}.layer_norm2"),
            (f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1"),
            (f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2"),
            (f"{theirs}.attn", f"{ours}.self_attn"),
        ]
    parts = ("q_proj", "k_proj", "v_proj")
    return (
        Table(tuple(pairs)),
        Drop(r"^transformer\.resblocks\."),  # layers behind the last one that is used
        Split(".self_attn.in_proj_weight", tuple(f".self_attn.{part}.weight" for part in parts)),
        Split(".self_attn.in_proj_bias", tuple(f".self_attn.{part}.bias" for part in parts)),
    )
