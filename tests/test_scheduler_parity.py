"""Every scheduler follows the reference's whole trajectory, for all options the reference accepts.

Where single precision alone parts the two by more than 1e-5 of the trajectory's range (a step that divides by a tiny
alpha multiplies the last digit of everything before it), both are run in double precision from the same levels: there
they agree, and ours in single precision is no further from that than the reference's own single precision.

Where the reference is wrong, this says so beside the exception:

- `sde-dpmsolver++` of third order (multistep; singlestep "heun"): φ3 has +1/2 for −1/2, so that the correction does not
  vanish with the step. Ours is the integral; the reference is compared with that one sign put right.
- DDPM with `fixed_large_log` takes the root of a negative logarithm: not a number. Ours is `fixed_large`.
- PNDM with `v_prediction` averages velocities of different levels as if of one. Ours averages the noise they stand for;
  the reference is compared on that noise.
- "trailing" timesteps come from a float range, one too long for some numbers of steps, and then start at −1.
- High orders at steps of no length (Karras sigmas ending at `sigma_min`) are 0/0 in the reference: not a number.
- KDPM2 ancestral finds its lower sigma as a difference of nearly equal squares in single precision; it is compared with
  that in double.
- The first of several equal timesteps is skipped unless `set_begin_index` is called; it is, here.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from tests.scheduler_cases import CASES
from tests.scheduler_reference import (
    SHAPE,
    Generated,
    built,
    corrected,
    distance,
    exact_times,
    network,
    planned,
    reference,
    stepped,
)

from kinema.errors import KinemaError
from kinema.sampling import schedulers
from kinema.sampling.solvers import State

EXPECTED_ERROR = 1e-5

# Sentences of refusals for what the reference runs into numbers that mean nothing.
REFUSED = (
    "holds no signal",
    "needs use_flow_sigmas",
    "exclude each other",
    "distilled on",
    "do not fit",
    "give one or the other",
)


@pytest.mark.parametrize("name", CASES)
def test_trajectories_follow_the_reference(name: str) -> None:
    """A sixth of all combinations, the slow test being all of them."""
    follow(name, every=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_trajectories_follow_the_reference(name: str) -> None:
    follow(name, every=1)


def follow(name: str, every: int) -> None:
    case, compared, worst = CASES[name], 0, 0.0
    with corrected(case.scheduler):
        for config, call, step in itertools.islice(
            case.combinations(), 0, None, every if len(case.configs) > every else 1
        ):
            try:
                theirs, path = reference(case.scheduler, config, call, step)
            except Exception:  # what the reference refuses is not compared
                continue
            what = f"{config} {call} {step}"
            try:
                ours, mine = stepped(case.scheduler, config, call, step)
            except KinemaError as error:
                if not any(said in str(error) for said in REFUSED):
                    raise
                continue
            compared += 1
            if not all(x.isfinite().all() for x in path):
                assert all(x.isfinite().all() for x in mine), what
                continue
            assert len(ours.timesteps) == len(theirs.timesteps), what
            assert (ours.timesteps - exact_times(theirs)).abs().max() < 1e-2, what
            if hasattr(theirs, "sigmas") and hasattr(ours, "sigmas"):
                assert ours.sigmas.shape == theirs.sigmas.shape, what
                assert (ours.sigmas - theirs.sigmas).abs().max() <= 1e-6 * theirs.sigmas.max(), what
            assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
            apart = distance(mine, path)
            if not apart < EXPECTED_ERROR:
                apart = apart_in_double(case.scheduler, config, call, step, mine, path)
            assert apart < EXPECTED_ERROR, f"{apart:.1e} apart: {what}"
            worst = max(worst, apart)
    print(f"{name}: {compared} combinations, at most {worst:.1e} apart")  # noqa: T201
    assert compared > 0


def built_times(name: str, config: Any, call: Any) -> torch.Tensor:
    """What ours tells the network: fractional times from levels that the reference rounds more."""
    scheduler = getattr(schedulers, name)(**config)
    scheduler.set_timesteps(**call)
    return scheduler.timesteps


def apart_in_double(name: str, config: Any, call: Any, step: Any, mine: Any, path: Any) -> float:
    """How far apart the two are in double precision, once ours in single is found as good as the reference's."""
    told = built_times(name, config, call)
    exact = reference(name, config, call, step, double=True, told=told)[1]
    if distance(mine, exact) > max(EXPECTED_ERROR, 2 * distance(path, exact)):
        return distance(mine, exact)
    return distance(stepped(name, config, call, step, double=True)[1], exact)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_takes_the_same_path_as_stepping(name: str) -> None:
    case = CASES[name]
    for config in case.configs[:: max(1, len(case.configs) // 8)]:
        try:
            call = case.calls[-1]
            path = stepped(case.scheduler, config, call, {"eta": 0.0} if case.scheduler == "TCDScheduler" else {})[1]
            assert distance(planned(case.scheduler, config, call, {}), path) == 0
        except KinemaError:
            continue


def test_fixed_large_log_is_fixed_large() -> None:
    ours = stepped("DDPMScheduler", {"variance_type": "fixed_large_log"}, {"num_inference_steps": 5}, {})[1]
    assert (
        distance(ours, reference("DDPMScheduler", {"variance_type": "fixed_large"}, {"num_inference_steps": 5}, {})[1])
        < 1e-5
    )


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variances_are_read_from_the_further_channels(kind: str) -> None:
    theirs, ours = built("DDPMScheduler", {"variance_type": kind}), schedulers.DDPMScheduler(variance_type=kind)
    theirs.set_timesteps(4)
    ours.set_timesteps(4)
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    for t in theirs.timesteps:
        outputs = [torch.cat([network(z, t), torch.cos(z) ** 2], dim=1) for z in (x, y)]
        x = theirs.step(outputs[0], t, x, generator=draws[0]).prev_sample
        y = ours.step(outputs[1], t, y, generator=draws[1]).prev_sample
        assert (x - y).abs().max() < 1e-5


def test_pndm_reads_velocities_as_the_noise_they_stand_for() -> None:
    theirs = built("PNDMScheduler", {"skip_prk_steps": True})
    ours = schedulers.PNDMScheduler(skip_prk_steps=True, prediction_type="v_prediction")
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    for t in theirs.timesteps:
        kept = theirs.alphas_cumprod[t]
        noise = kept.sqrt() * network(x, t) + (1 - kept).sqrt() * x
        x = theirs.step(noise, t, x).prev_sample
        y = ours.step(network(y, t), t, y).prev_sample
        assert (x - y).abs().max() < 1e-5


STRENGTHS = [
    *["DDIM", "DDPM", "LCM", "Euler", "Euler ancestral", "Heun", "KDPM2", "KDPM2 ancestral", "DEIS", "UniPC, solvers"],
    *["DPM-Solver multistep, solvers", "DPM-Solver singlestep, solvers"],
]


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("case", STRENGTHS)
def test_a_strength_starts_where_the_references_video_to_video_starts(case: str, strength: float) -> None:
    """LMS and PNDM are left out: begun later, the reference gives one derivative the weight it has among four, and
    takes latents of one level for those of another."""
    name, n = CASES[case].scheduler, 10
    theirs = built(name, {})
    theirs.set_timesteps(n)
    first = max(n - min(int(n * strength), n), 0) * theirs.order
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(first)
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    times = theirs.timesteps[first:]
    x = theirs.add_noise(clean, noise, times[:1].repeat(2))

    schedule, solver = getattr(schedulers, name)().plan(n, strength=strength)
    assert len(schedule) == len(times)
    assert (schedule.times - times).abs().max() < 1e-2
    state = State(schedule.add_noise(clean, noise))
    assert (state.x - x).abs().max() < 1e-5 * x.abs().max()
    draws, ours = torch.Generator().manual_seed(7), Generated(7)
    more = {"generator": draws} if "generator" in inspect.signature(theirs.step).parameters else {}
    for i, t in enumerate(times):
        x_next = theirs.step(network(theirs.scale_model_input(x, t), t), t, x, **more).prev_sample
        state = solver.step(state, network(schedule.seen(state.x, i), t), i, schedule, ours)
        assert (state.x - x_next).abs().max() < 1e-5 * max(1, x.abs().max().item())
        x = x_next


@pytest.mark.parametrize("name", ["LMSDiscreteScheduler", "PNDMScheduler"])
def test_a_strength_starts_lms_and_pndm_like_a_schedule_of_those_levels(name: str) -> None:
    whole = getattr(schedulers, name)(**({"skip_prk_steps": True} if name.startswith("P") else {}))
    part, solver = whole.plan(10, strength=0.5)
    times = [t for i, t in enumerate(part.times.tolist()) if t not in part.times[:i].tolist()]
    again, other = whole.plan(timesteps=times)
    assert torch.equal(part.times, again.times)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    paths = []
    for schedule, how in ((part, solver), (again, other)):
        state = State(x)
        for i, t in enumerate(schedule.times):
            state = how.step(state, network(schedule.seen(state.x, i), t), i, schedule, Generated(7))
        paths.append(state.x)
    assert (paths[0] - paths[1]).abs().max() < 1e-5


def test_trailing_timesteps_are_as_many_as_asked_for() -> None:
    for n in range(1, 1001):
        times = schedulers.DDIMScheduler(timestep_spacing="trailing").plan(n).schedule.times
        assert len(times) == n and times[0] == 999 and times[-1] >= 0


@pytest.mark.parametrize("name", [n for n in schedulers.__all__ if n.endswith("Scheduler") and n != "Scheduler"])
def test_noise_is_added_and_velocity_told_as_the_reference_does(name: str) -> None:
    theirs, ours = built(name, {}), getattr(schedulers, name)()
    clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    theirs.set_timesteps(7)
    ours.set_timesteps(7)
    places = [0, 4]  # where steps begin, also those of two calls
    t = theirs.timesteps[places]
    expected = theirs.add_noise(clean, noise, t)
    assert (ours.add_noise(clean, noise, ours.timesteps[places]) - expected).abs().max() <= 1e-6 * expected.abs().max()
    if name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"):
        assert (ours.get_velocity(clean, noise, t) - theirs.get_velocity(clean, noise, t)).abs().max() < 1e-6
