"""How the files of image models, ControlNets and motion modules that people share name what diffusers publishes.

"Published" is here the shared file's side and "ours" the diffusers spelling, so `read` converts to diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .keys import Again, Alias, Rule, Table
from .layouts import RESNET, Pair, encoder_names, named, unet_names

_ADDED: tuple[Pair, ...] = (
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
)


def image_unet(levels: int, layers: int, cross: Sequence[bool]) -> tuple[Rule, ...]:
    """`model.diffusion_model.` of Stable Diffusion 1.x, 2.x and SDXL -> UNet2DConditionModel.

    Args:
        levels: how many resolutions. layers: blocks at each. cross: which levels attend to the text, finest first.
    """
    names = unet_names(levels, layers, cross, _resnet, (named("attentions"),), "0.op")
    return (Table((*_ADDED, *names)),)


def control_net(levels: int, layers: int, cross: Sequence[bool], hints: int = 8) -> tuple[Rule, ...]:
    """`control_model.` of ControlNet's own files -> ControlNetModel; `hints` is how many convolutions read pictures."""
    zero = "controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding"
    names = encoder_names(levels, layers, cross, _resnet, (named("attentions"),), "0.op")
    added = [(f"zero_convs.{i}.0", f"{zero[0]}.{i}") for i in range(levels * (layers + 1))]
    read = ["conv_in", *(f"blocks.{i}" for i in range(hints - 2)), "conv_out"]
    pictures = [(f"input_hint_block.{2 * i}", f"{zero[2]}.{name}") for i, name in enumerate(read)]
    return (Table((*_ADDED, *names, *added, ("middle_block_out.0", zero[1]), *pictures)),)


def motion_module(
    levels: int, layers: int, middle: int, depth: int = 1, hotshot: bool = False, attentions: int = 2
) -> tuple[Rule, ...]:
    """`mm_sd_v15_v2.ckpt` and its kin, also inside SparseCtrl -> MotionAdapter, SparseControlNetModel.

    Args:
        levels: how many resolutions. layers: modules at each, on the way down. middle: modules in the middle.
        depth: transformer blocks in a module. hotshot: HotshotXL's names rather than AnimateDiff's.
        attentions: in a transformer block; SparseCtrl has one.
    """
    stages = [(f"down_blocks.{i}", layers) for i in range(levels)]
    stages += [("mid_block", middle), *((f"up_blocks.{i}", layers + 1) for i in range(levels))]
    pairs = (pair for stage, n in stages for j in range(n) for pair in _module(stage, j, depth, hotshot))
    position = _HOTSHOT if hotshot else _POSITIONS
    twice = (Again(f".attention_blocks.0.{position}", f".attention_blocks.1.{position}"),) if attentions > 1 else ()
    return (Alias(r"^module\.", ""), *twice, Table(tuple(pairs)))


_POSITIONS, _HOTSHOT = "pos_encoder.pe", "pos_encoder.positional_encoding"


def _module(stage: str, place: int, depth: int, hotshot: bool) -> Iterator[Pair]:
    ours = f"{stage}.motion_modules.{place}"
    theirs = f"{stage}.temporal_attentions.{place}" if hotshot else f"{ours}.temporal_transformer"
    yield theirs, ours
    for i in range(depth):
        a, b = f"{theirs}.transformer_blocks.{i}", f"{ours}.transformer_blocks.{i}"
        yield f"{a}.attention_blocks.0.{_HOTSHOT if hotshot else _POSITIONS}", f"{b}.pos_embed.pe"
        yield from ((f"{a}.attention_blocks.{n}", f"{b}.attn{n + 1}") for n in range(2))
        yield from ((f"{a}.norms.{n}", f"{b}.norm{n + 1}") for n in range(2))
        yield f"{a}.ff_norm", f"{b}.norm3"


def _resnet(original: str, stage: str, layer: int) -> Iterator[Pair]:
    for theirs, ours in RESNET:
        yield f"{original}.{theirs}", f"{stage}.resnets.{layer}.{ours}"
