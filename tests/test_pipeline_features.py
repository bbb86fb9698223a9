"""What pipelines offer around a clip: streams, outputs, LoRAs, learned words, files, and sharing of parts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.pipelines_tiny import SIZE, as_video_pipe, gen, off, ours, theirs

import kinema

CALL = {**SIZE, "num_inference_steps": 3, "num_frames": 2, "generator": 3}
LATENT = {**CALL, "output_type": "latent"}


@cache
def pipe() -> Any:
    """One for tests that only read it."""
    return ours()


@pytest.fixture
def own() -> Any:
    return ours()


def latents(pipe: Any, prompt: str = "a cat", **call: Any) -> torch.Tensor:
    made: torch.Tensor = pipe(prompt, **{**LATENT, **call}).frames
    return made


# ------------------------------------------------------------------ streams and callbacks


def test_a_stream_says_what_is_done_in_order_with_totals() -> None:
    events = list(pipe().stream("a", **CALL))
    said = [(e.stage, e.step, e.total) for e in events]
    assert said == [
        ("encode", 0, 1),
        ("encode", 1, 1),
        *[("denoise", i, 3) for i in (1, 2, 3)],
        *[("decode", i, 2) for i in (0, 1, 2)],
        ("done", 1, 1),
    ]
    assert [e.output is None for e in events] == [True] * (len(events) - 1) + [False]
    times = [e.time for e in events if e.stage == "denoise"]
    assert times == sorted(times, reverse=True)
    assert np.array_equal(events[-1].output.frames, pipe()("a", **CALL).frames)


def test_a_stream_of_latents_has_nothing_to_decode() -> None:
    stages = [e.stage for e in pipe().stream("a", **LATENT)]
    assert "decode" not in stages and stages[-1] == "done"


def test_latents_of_a_stream_are_the_clip_s_at_the_end() -> None:
    steps = [e for e in pipe().stream("a", **LATENT) if e.stage == "denoise"]
    assert steps[-1].latents.shape == steps[-1].clean.shape == (1, 4, 2, 8, 12)
    assert torch.equal(steps[-1].latents, latents(pipe(), "a"))


@pytest.mark.parametrize("mode", ["resident", "model"])
def test_stopping_early_leaves_the_pipeline_as_it_was(mode: str, own: Any) -> None:
    from dataclasses import replace

    own._residency = replace(own._residency, mode=mode, bring=lambda t: t.clone())
    before = latents(own)
    weights = {n: p.data_ptr() for n, p in own.unet.named_parameters()}
    for stop in ("encode", "denoise"):
        events = own.stream("a cat", **LATENT)
        next(e for e in events if e.stage == stop)
        events.close()
        assert {n: p.data_ptr() for n, p in own.unet.named_parameters()} == weights
        assert torch.equal(latents(own), before)


def test_latents_sent_to_a_stream_are_gone_on_with() -> None:
    sent = torch.randn(1, 4, 2, 8, 12, generator=gen(9))
    results = []
    for start in (3, 4):  # whatever came before is forgotten
        events = pipe().stream("a cat", **{**LATENT, "generator": start})
        event = next(e for e in events if e.stage == "denoise")
        event = events.send(sent)
        while event.output is None:
            event = next(events)
        results.append(event.output.frames)
    assert torch.equal(*results) and off(results[0], latents(pipe())) > 0.01


def test_callbacks_hear_of_every_step_and_may_change_latents() -> None:
    heard: list[tuple[int, float, tuple[str, ...]]] = []
    sent = torch.randn(1, 4, 2, 8, 12, generator=gen(9))

    def hear(p: Any, step: int, time: float, given: dict[str, Any]) -> dict[str, Any]:
        assert p is pipe()
        heard.append((step, time, tuple(given)))
        return given

    def change(p: Any, step: int, time: float, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": sent} if step == 0 else given

    plain = latents(pipe())
    assert torch.equal(latents(pipe(), callback_on_step_end=hear), plain)
    assert [h[0] for h in heard] == [0, 1, 2] and {h[2] for h in heard} == {("latents",)}
    changed = [latents(pipe(), callback_on_step_end=change, generator=g) for g in (3, 4)]
    assert torch.equal(*changed) and off(changed[0], plain) > 0.01
    assert torch.equal(latents(pipe(), callback_on_step_end=lambda *_: None), plain)


def test_latents_changed_after_the_last_step_are_the_result() -> None:
    def last(p: Any, step: int, time: float, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(given["latents"])} if step == 2 else {}

    assert not latents(pipe(), callback_on_step_end=last).any()


# ------------------------------------------------------------------ outputs


@pytest.mark.parametrize("return_dict", [True, False])
def test_an_output_is_a_tuple_and_has_frames(return_dict: bool) -> None:
    output = pipe()(["a", "b"], **{**CALL, "generator": [3, 4]}, return_dict=return_dict)
    (frames,) = output
    assert frames is output.frames is output[0] and len(output) == 1
    assert frames.shape == (2, 2, 16, 24, 3) and output[0][0].shape == (2, 16, 24, 3)
    assert isinstance(output, tuple)


def test_each_output_type_has_its_shape_and_shows_the_same() -> None:
    made = {t: pipe()("a", **CALL, output_type=t).frames for t in ("np", "pt", "pil", "latent")}
    assert made["np"].shape == (1, 2, 16, 24, 3) and made["np"].dtype == np.float32
    assert made["pt"].shape == (1, 2, 3, 16, 24) and made["pt"].dtype == torch.float32
    assert made["latent"].shape == (1, 4, 2, 8, 12)
    assert isinstance(made["pil"][0][0], Image.Image) and made["pil"][0][0].size == (24, 16)
    assert np.array_equal(made["np"], made["pt"].movedim(2, -1).numpy())
    assert made["np"].min() >= 0 and made["np"].max() <= 1
    pictures = np.stack([np.array(f) for f in made["pil"][0]])
    assert np.array_equal(pictures, np.round(made["np"][0] * 255).astype(np.uint8))


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_an_output_saves_itself_with_what_made_it(output_type: str, tmp_path: Path) -> None:
    import av

    output = pipe()("a red circle", negative_prompt="bad", **CALL, output_type=output_type)
    path = output.save(tmp_path / "clip.mp4", fps=8)
    with av.open(path) as file:
        frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    assert len(frames) == 2 and frames[0].shape == (16, 24, 3)
    said = json.dumps(kinema.read_info(path), default=str)
    for word in ("a red circle", "bad", "TextToVideoSDPipeline", "DDIMScheduler", kinema.__version__):
        assert word in said
    assert output.receipt["seed"] == 3 and output.receipt["num_inference_steps"] == 3


def test_guidance_rescale_is_lin_et_al_s_formula() -> None:
    from kinema.sampling.guidance import guidance_of

    both = torch.randn(4, 3, 4, 5, 6, generator=gen(0))
    without, within = both.chunk(2)
    guided = without + 7.5 * (within - without)
    got = guidance_of(7.5, 0.7)(both, 0)
    for i in range(2):
        fitted = guided[i] * within[i].std() / guided[i].std()
        assert torch.allclose(got[i], 0.7 * fitted + 0.3 * guided[i], atol=1e-5)
    assert off(latents(pipe(), guidance_rescale=0.7), latents(pipe())) > 1e-3


# ------------------------------------------------------------------ LoRA


def lora(pipe: Any, seed: int = 0, text: bool = True, style: str = "diffusers") -> dict[str, torch.Tensor]:
    """Random pairs for some of the networks' layers."""
    g, made = gen(seed), {}
    for part in ("unet", "text_encoder") if text else ("unet",):
        for key, weight in getattr(pipe, part).state_dict().items():
            if not key.endswith(("to_q.weight", "to_out.0.weight", "q_proj.weight")):
                continue
            out, into = weight.shape[:2]
            pair = 0.3 * torch.randn(2, into, generator=g), 0.3 * torch.randn(out, 2, generator=g)
            name = key.removesuffix(".weight").removeprefix("text_model.")
            if style == "kohya":
                name = f"text_model.{name}" if part == "text_encoder" else name
                stem = f"lora_{'unet' if part == 'unet' else 'te'}_{name.replace('.', '_')}"
                made |= {f"{stem}.lora_down.weight": pair[0], f"{stem}.lora_up.weight": pair[1]}
                made[f"{stem}.alpha"] = torch.tensor(2.0)
            else:
                stem = {"diffusers": f"{part}.{name}", "peft": f"base_model.model.{part}.{name}"}[style]
                made |= {f"{stem}.lora_A.weight": pair[0], f"{stem}.lora_B.weight": pair[1]}
    return made


@cache
def base() -> torch.Tensor:
    return latents(pipe())


def state(pipe: Any) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in pipe.modules().items() for k, v in m.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_loras_come_go_and_add_up_to_the_bit(own: Any) -> None:
    weights = state(own)
    own.load_lora_weights(lora(own, 1), adapter_name="one")
    first = latents(own)
    assert off(first, base()) > 0.01
    own.load_lora_weights(lora(own, 2), adapter_name="two")
    assert own.get_active_adapters() == ["one", "two"]
    assert own.get_list_adapters() == {"unet": ["one", "two"], "text_encoder": ["one", "two"]}
    own.set_adapters(["one", "two"], [1.0, 0.0])
    assert torch.equal(latents(own), first)
    own.set_adapters(["one", "two"], 0.0)
    assert same(state(own), weights) and torch.equal(latents(own), base())
    own.set_adapters("two", 0.5)
    second = latents(own)
    assert off(second, first) > 0.01
    own.disable_lora()
    assert torch.equal(latents(own), base())
    own.enable_lora()
    assert torch.equal(latents(own), second)
    own.delete_adapters("two")
    assert same(state(own), weights)
    own.set_adapters("one")
    assert torch.equal(latents(own), first)
    own.fuse_lora()
    own.set_adapters([])
    assert torch.equal(latents(own), first)
    own.unfuse_lora()
    own.unload_lora_weights()
    assert same(state(own), weights) and torch.equal(latents(own), base())


def test_loras_taken_off_twice_come_back_and_so_do_those_loaded_meanwhile(own: Any) -> None:
    own.load_lora_weights(lora(own, 1), adapter_name="one")
    first = latents(own)
    own.disable_lora()
    own.disable_lora()
    own.enable_lora()
    assert torch.equal(latents(own), first)
    own.disable_lora()
    own.load_lora_weights(lora(own, 2), adapter_name="two")
    own.enable_lora()
    assert own.get_active_adapters() == ["one", "two"]
    own.disable_lora()
    own.delete_adapters("one")
    own.enable_lora()
    assert own.get_active_adapters() == ["two"]


def test_a_lora_is_fused_in_the_networks_named_and_stays_ordinary_in_others(own: Any) -> None:
    weights = state(own)
    own.load_lora_weights(lora(own), adapter_name="one")
    changed = state(own)
    own.fuse_lora(components=["unet"])
    assert same(state(own), changed)
    own.set_adapters([])
    now = state(own)
    for part, kept in (("unet", changed), ("text_encoder", weights)):
        assert all(torch.equal(now[k], kept[k]) for k in now if k.startswith(part))
    own.unfuse_lora()
    own.set_adapters("one")
    assert same(state(own), changed)
    with pytest.raises(kinema.InputError, match="no part 'vae'"):
        own.fuse_lora(components=["vae"])
    own.unload_lora_weights()
    assert same(state(own), weights)


def test_pipelines_of_the_same_parts_say_the_same_model(own: Any) -> None:
    own.name_or_path = "some/model"
    assert kinema.VideoToVideoSDPipeline.from_pipe(own).name_or_path == "some/model"


def test_a_pipeline_made_of_another_knows_its_loras_and_takes_them_off(own: Any) -> None:
    weights = state(own)
    own.load_lora_weights(lora(own), adapter_name="one")
    other = kinema.VideoToVideoSDPipeline.from_pipe(own)
    assert other.get_active_adapters() == ["one"]
    other.unload_lora_weights()
    assert same(state(own), weights)


def test_a_receipt_holds_numbers_of_numpy(own: Any) -> None:
    told = own(
        "a cat", generator=np.int64(3), guidance_scale=np.float32(4), **{**SIZE, "num_inference_steps": 1}
    ).receipt
    assert (told["seed"], told["guidance_scale"]) == (3, 4.0)


def test_a_lora_of_the_text_encoder_changes_what_is_read(own: Any) -> None:
    words = {k: v for k, v in lora(own).items() if k.startswith("text_encoder")}
    before = own.encode_prompt("a cat")[0]
    own.load_lora_weights(words)
    after = own.encode_prompt("a cat")[0]
    assert off(after, before) > 0.01
    own.set_adapters("default_0", {"text_encoder": 0.0})
    assert torch.equal(own.encode_prompt("a cat")[0], before)


def test_the_scale_of_one_call_is_the_weight_and_leaves_shared_weights_alone(own: Any) -> None:
    own.load_lora_weights(lora(own), adapter_name="one")
    own.set_adapters("one", 0.5)
    half = latents(own)
    own.set_adapters("one", 1.0)
    pointers = {n: p.data_ptr() for m in own.modules().values() for n, p in m.named_parameters()}
    weights = state(own)
    assert torch.equal(latents(own, cross_attention_kwargs={"scale": 0.5}), half)
    assert torch.equal(latents(own, cross_attention_kwargs={"scale": 0.0}), base())
    assert {n: p.data_ptr() for m in own.modules().values() for n, p in m.named_parameters()} == pointers
    assert same(state(own), weights)


@pytest.mark.parametrize("style", ["diffusers", "kohya", "peft"])
def test_lora_files_of_all_kinds_mean_the_same(style: str, own: Any, tmp_path: Path) -> None:
    save_file(lora(own, style=style), tmp_path / "a.safetensors")
    own.load_lora_weights(tmp_path, weight_name="a.safetensors")
    made = latents(own)
    own.unload_lora_weights()
    own.load_lora_weights(lora(own))
    assert torch.equal(made, latents(own))
    assert "loras" in own("a", **LATENT).receipt


# ------------------------------------------------------------------ learned words


@pytest.mark.parametrize("form", ["pt", "safetensors", "dict", "diffusers"])
def test_learned_words_come_from_all_kinds_of_files(form: str, own: Any, tmp_path: Path) -> None:
    vectors = torch.randn(2, 32, generator=gen(4))
    if form == "pt":
        torch.save({"string_to_param": {"*": vectors}, "name": "<thing>"}, tmp_path / "a.pt")
        own.load_textual_inversion(tmp_path / "a.pt")
    elif form == "safetensors":
        save_file({"emb_params": vectors}, tmp_path / "thing.safetensors")
        own.load_textual_inversion(tmp_path / "thing.safetensors", token="<thing>")
    elif form == "diffusers":
        torch.save({"<thing>": vectors}, tmp_path / "learned_embeds.bin")
        own.load_textual_inversion(tmp_path)
    else:
        own.load_textual_inversion({"<thing>": vectors})
    got = latents(own, "a <thing> moves")
    assert off(got, latents(pipe(), "a <thing> moves")) > 0.001
    other = ours()
    other.load_textual_inversion({"<thing>": vectors})
    assert torch.equal(got, latents(other, "a <thing> moves"))
    own.unload_textual_inversion()
    assert torch.equal(latents(own, "a <thing> moves"), latents(pipe(), "a <thing> moves"))


# ------------------------------------------------------------------ files and parts


def test_what_is_saved_the_reference_reads_and_gives_the_same_clip(tmp_path: Path) -> None:
    pipe().save_pretrained(tmp_path / "m")
    other = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "m")
    other.set_progress_bar_config(disable=True)
    call = {**LATENT, "generator": gen(3)}
    assert off(base(), other("a cat", **call).frames) < 1e-4
    mine = kinema.DiffusionPipeline.from_pretrained(tmp_path / "m")
    assert torch.equal(latents(mine), base())


@pytest.mark.parametrize("form", ["variant", "sharded", "bin"])
def test_what_the_reference_writes_is_read(form: str, tmp_path: Path) -> None:
    other = theirs()
    options: dict[str, dict[str, Any]] = {
        "variant": {"variant": "fp16"},
        "sharded": {"max_shard_size": "100KB"},
        "bin": {"safe_serialization": False},
    }
    if form == "variant":
        other.to(torch.float16)
    other.save_pretrained(tmp_path, **options[form])
    call = {"variant": "fp16", "torch_dtype": "float16"} if form == "variant" else {}
    mine = kinema.DiffusionPipeline.from_pretrained(tmp_path, **call)
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(other, name).state_dict()
        got = getattr(mine, name).state_dict()
        assert got.keys() == expected.keys() and same(expected, got)
    if form == "sharded":
        assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert type(mine) is kinema.TextToVideoSDPipeline


def test_one_class_loads_all_and_the_older_name_is_known(tmp_path: Path) -> None:
    pipe().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for name, cls in (
        ("TextToVideoSDPipeline", kinema.TextToVideoSDPipeline),
        ("TextToVideoMSPipeline", kinema.TextToVideoSDPipeline),
        ("VideoToVideoSDPipeline", kinema.VideoToVideoSDPipeline),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        assert type(kinema.DiffusionPipeline.from_pretrained(tmp_path)) is cls
        assert type(kinema.VideoToVideoSDPipeline.from_pretrained(tmp_path)) is kinema.VideoToVideoSDPipeline
    assert kinema.TextToVideoMSPipeline is kinema.TextToVideoSDPipeline


def test_given_parts_are_used_instead_of_the_folder_s(tmp_path: Path) -> None:
    pipe().save_pretrained(tmp_path)
    (tmp_path / "unet" / "config.json").unlink()
    scheduler = kinema.EulerDiscreteScheduler()
    made = kinema.DiffusionPipeline.from_pretrained(tmp_path, scheduler=scheduler, unet=pipe().unet)
    assert made.scheduler is scheduler and made.unet is pipe().unet


def test_a_pipeline_made_from_another_shares_its_parts() -> None:
    made = as_video_pipe(pipe())
    assert all(getattr(made, name) is part for name, part in pipe().components.items())
