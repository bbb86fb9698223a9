"""Schedulers read every published configuration, pass it on without loss, and refuse what cannot be used, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from kinema.errors import CheckpointError, InputError
from kinema.sampling import schedulers

NAMES = [n for n in schedulers.__all__ if n.endswith("Scheduler") and n != "Scheduler"]

SVD = {  # the published scheduler_config.json of stable-video-diffusion
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}


def make(name: str, **options: Any) -> Any:
    return getattr(schedulers, name)(**options)


@pytest.mark.parametrize("name", NAMES)
def test_options_and_defaults_are_the_references(name: str) -> None:
    theirs = {k: v for k, v in getattr(diffusers, name)().config.items() if not k.startswith("_")}
    ours = make(name).config
    for key, value in theirs.items():
        assert key in ours, key
        assert ours[key] == (tuple(value) if isinstance(value, list) else value), key


def test_the_published_svd_configuration_gives_the_published_levels() -> None:
    schedule = schedulers.EulerDiscreteScheduler.from_config(SVD).plan(25).schedule
    assert schedule.sigma[:3].tolist() == pytest.approx([700, 545.73, 421.57], rel=1e-4)
    assert schedule.times[[0, -1]].tolist() == pytest.approx([1.6378, -1.5537], abs=1e-4)
    assert schedule.init_noise_sigma == pytest.approx(700.0007, rel=1e-7)


@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_comes_back_whole_from_any_other_scheduler(name: str, other: str) -> None:
    first = make(name, beta_schedule="scaled_linear", num_train_timesteps=500)
    there = getattr(schedulers, other).from_config(first.config)
    again = getattr(schedulers, name).from_config(there.config)
    assert again.config == first.config
    there.plan(4)


def test_another_schedulers_defaults_do_not_pass_on_but_what_was_said_does() -> None:
    """As in the reference: ModelScope's DDIM says nothing of spacing, so DPM-Solver uses its own."""
    said, unsaid = schedulers.DDIMScheduler(timestep_spacing="leading"), schedulers.DDIMScheduler()
    assert schedulers.DPMSolverMultistepScheduler.from_config(unsaid.config).config.timestep_spacing == "linspace"
    assert schedulers.DPMSolverMultistepScheduler.from_config(said.config).config.timestep_spacing == "leading"
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(diffusers.DDIMScheduler().config)
    assert theirs.config.timestep_spacing == "linspace"


def test_the_references_configuration_objects_are_read() -> None:
    theirs = diffusers.DDIMScheduler(beta_end=0.012)
    ours = schedulers.EulerDiscreteScheduler.from_config(theirs.config)
    assert ours.config.beta_end == 0.012
    assert ours.config.timestep_spacing == "linspace"


def test_sigma_extremes_reach_other_schedulers() -> None:
    sigmas = schedulers.DPMSolverMultistepScheduler.from_config(SVD).plan(5).schedule
    assert (sigmas.sigma / sigmas.alpha)[0].item() == pytest.approx(700, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_can_be_loaded_here_and_by_the_reference(name: str, tmp_path: Path) -> None:
    scheduler = getattr(schedulers, name).from_config({"beta_end": 0.013, "odd_key": [1, 2], "trained_betas": None})
    scheduler.save_pretrained(tmp_path / "scheduler")
    data = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert data["_class_name"] == name and data["odd_key"] == [1, 2]
    cls = getattr(schedulers, name)
    for loaded in (cls.from_pretrained(tmp_path), cls.from_pretrained(tmp_path, subfolder="scheduler")):
        assert loaded.config == scheduler.config
    theirs = getattr(diffusers, name).from_pretrained(tmp_path / "scheduler")
    assert theirs.config.beta_end == 0.013


def test_from_pretrained_takes_overrides(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SVD))
    scheduler = schedulers.DDIMScheduler.from_pretrained(tmp_path, beta_schedule="linear", clip_sample=True)
    assert scheduler.config.beta_schedule == "linear" and scheduler.config.clip_sample


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("DDIMScheduler", {"beta_schedule": "quadratic"}, "beta_schedule"),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("DDIMScheduler", {"clip_sample": "yes"}, "clip_sample"),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("DDIMScheduler", {"num_train_timesteps": 0}, "num_train_timesteps"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "even"}, "timestep_spacing"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "exclude each other"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpm"}, "algorithm_type"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "use_karras_sigmas": True}, "exclude each other"),
        ("UniPCMultistepScheduler", {"solver_p": "ddim"}, "solver_p"),
        ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, "shift_terminal"),
        ("UniPCMultistepScheduler", {"solver_order": 0}, "solver_order"),
    ],
)
def test_wrong_option_values_are_refused_by_name(name: str, options: dict[str, Any], said: str) -> None:
    for build in (lambda: make(name, **options), lambda: getattr(schedulers, name).from_config(options)):
        with pytest.raises(CheckpointError, match=said):
            build()


def test_unknown_options_are_refused_when_said_and_kept_when_read() -> None:
    with pytest.raises(InputError, match="did you mean 'beta_schedule'"):
        schedulers.DDIMScheduler(beta_scedule="linear")
    with pytest.raises(InputError, match="did you mean 'use_karras_sigmas'"):
        schedulers.DPMSolverMultistepScheduler.from_config({}, use_karras_sigma=True)
    assert schedulers.DDIMScheduler.from_config({"beta_scedule": "linear"}).config.unknown == {"beta_scedule": "linear"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_inference_steps": -3}, "at least 1"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"num_inference_steps": 1001}, "1001|distilled"),
        ({}, "exactly one"),
        ({"num_inference_steps": 5, "timesteps": [9, 3]}, "exactly one"),
        ({"timesteps": [9, 3], "sigmas": [9, 3, 0]}, "exactly one"),
        ({"timesteps": [3, 9]}, "must fall"),
        ({"timesteps": [9, 9, 3]}, "must fall"),
        ({"timesteps": []}, "empty"),
        ({"timesteps": [9, -3]}, "not below 0"),
        *(
            ({"timesteps": wrong}, "must be a list of falling numbers")
            for wrong in (9, "93", ["9"], [[9, 3]], [True], {9})
        ),
        *(({"sigmas": wrong}, "must be a list of falling numbers") for wrong in (9.0, "ays", [None, 0], [[9, 0]])),
        ({"timesteps": [1000, 3]}, "999 or below"),
        ({"sigmas": [1, float("nan"), 0]}, "must fall"),
        ({"sigmas": [0, 1]}, "must fall"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(name: str, call: dict[str, Any], said: str) -> None:
    scheduler = make(name)
    with pytest.raises(InputError, match=said):
        scheduler.plan(**call)
    with pytest.raises(InputError, match=said):
        scheduler.set_timesteps(**call)


@pytest.mark.parametrize(
    ("name", "call", "said"),
    [
        ("DDIMScheduler", {"sigmas": [3, 1, 0]}, "cannot use sigmas"),
        ("DDIMScheduler", {"num_inference_steps": 5, "eta": 1.5}, "eta"),
        ("DDIMScheduler", {"num_inference_steps": 5, "strength": 0.0}, "strength"),
        ("DDIMScheduler", {"num_inference_steps": 5, "strength": 1.2}, "strength"),
        ("DDIMScheduler", {"num_inference_steps": 5, "strength": 0.1}, "leaves none"),
        ("PNDMScheduler", {"num_inference_steps": 3}, "skip_prk_steps"),
        ("LCMScheduler", {"num_inference_steps": 51}, "distilled on 50"),
        ("TCDScheduler", {"num_inference_steps": 5, "original_inference_steps": 2000}, "original_inference_steps"),
        ("EulerDiscreteScheduler", {"num_inference_steps": 5, "mu": 0.5}, "mu"),
        ("DPMSolverMultistepScheduler", {"num_inference_steps": 5, "original_inference_steps": 9}, "original"),
    ],
)
def test_what_a_scheduler_cannot_do_is_said(name: str, call: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(name).plan(**call)


def test_chosen_timesteps_and_a_rule_for_sigmas_exclude_each_other() -> None:
    with pytest.raises(InputError, match="use_karras_sigmas"):
        schedulers.EulerDiscreteScheduler(use_karras_sigmas=True).plan(timesteps=[9, 3])


def test_noise_cannot_be_predicted_where_no_signal_is_left() -> None:
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(InputError, match="holds no signal"):
        schedulers.DDIMScheduler(**options).plan(5)
    schedulers.DDIMScheduler(**options, prediction_type="v_prediction").plan(5)


def test_stepping_needs_timesteps_and_takes_only_those_set() -> None:
    scheduler, x = schedulers.EulerDiscreteScheduler(), torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match="set_timesteps first"):
        scheduler.step(x, 5, x)
    scheduler.set_timesteps(3)
    with pytest.raises(InputError, match=r"scheduler\.timesteps"):
        scheduler.step(x, 5, x)
    with pytest.raises(InputError, match="no s_chrun"):
        scheduler.step(x, scheduler.timesteps[0], x, s_chrun=1)


@pytest.mark.parametrize("content", [None, "not json", "[1]"])
def test_missing_and_broken_files_are_told(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "scheduler_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json"):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)


def test_a_path_that_is_nowhere_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        schedulers.DDIMScheduler.from_pretrained("/no/such/folder")


def test_a_loop_can_be_run_again_and_restarted() -> None:
    scheduler = schedulers.DPMSolverMultistepScheduler()
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def loop() -> torch.Tensor:
        latents = x
        for t in scheduler.timesteps:
            latents = scheduler.step(torch.sin(latents), t, latents).prev_sample
        return latents

    scheduler.set_timesteps(6)
    first = loop()
    assert torch.equal(loop(), first)
    scheduler.set_timesteps(6)
    assert torch.equal(loop(), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_keep_the_networks_type_and_solvers_work_in_single_precision(dtype: torch.dtype) -> None:
    scheduler = schedulers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(5)
    x = torch.randn(1, 2, 3, 3).to(dtype)
    assert scheduler.step(x, scheduler.timesteps[0], x).prev_sample.dtype == dtype
    assert scheduler.step(x, scheduler.timesteps[1], x, return_dict=False)[0].dtype == dtype


def test_one_generator_a_clip_gives_each_clip_its_own_noise() -> None:
    scheduler = schedulers.EulerAncestralDiscreteScheduler()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def one(clips: slice) -> torch.Tensor:
        scheduler.set_timesteps(4)
        seeds = [torch.Generator().manual_seed(s) for s in (5, 6)][clips]
        t = scheduler.timesteps[0]
        return scheduler.step(x[clips], t, x[clips], generator=seeds).prev_sample

    assert torch.equal(one(slice(0, 2))[1:], one(slice(1, 2)))


def test_thresholds_can_be_for_each_frame() -> None:
    options = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 9.0}
    scheduler = schedulers.DDIMScheduler(prediction_type="sample", **options)
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 4
    framed = scheduler.plan(4, frames_as_batch=True).schedule.clean(x, x, 0)
    apart = scheduler.plan(4).schedule.clean(x.flatten(0, 1), x.flatten(0, 1), 0)
    assert torch.equal(framed.flatten(0, 1), apart)
