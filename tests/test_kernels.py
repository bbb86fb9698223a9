"""Faster equals are taken where a trial found them right and faster, never because of a name."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema import choice
from kinema.choice import Choice
from kinema.cli.doctor import examine
from kinema.nn.kernels import enlarged, winograd
from kinema.place import standing_for

CPU = torch.device("cpu")
NUMBERS = torch.randn(64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    monkeypatch.delenv("KINEMA_KERNELS", raising=False)


def slow():
    time.sleep(0)
    sum(range(100_000))
    return NUMBERS.clone()


def fast():
    return NUMBERS.clone()


def raising():
    raise RuntimeError("illegal instruction")


def wrong():
    return NUMBERS + 0.01


def not_numbers():
    return NUMBERS / 0 * 0


def found(plain, other, dtype=torch.float32, **options):
    made = Choice("it", "an operation", lambda *_: (plain, other), **options)
    return made.verdict(CPU, dtype)


def test_the_faster_way_is_taken_and_the_slower_is_not():
    assert found(slow, fast).taken
    assert not found(fast, slow).taken


@pytest.mark.parametrize(("way", "why"), [(raising, "raised RuntimeError"), (wrong, "wrong"), (not_numbers, "wrong")])
def test_a_way_that_raises_or_is_wrong_is_dropped_and_it_is_said(way, why):
    verdict = found(slow, way)
    assert not verdict.taken and why in verdict.why


def test_a_sample_that_cannot_be_made_is_no_error():
    made = Choice("it", "an operation", lambda *_: raising())
    assert "raised" in made.verdict(CPU, torch.float32).why


def test_it_is_found_out_once_by_all_threads():
    tries = []
    made = Choice("it", "an operation", lambda *_: tries.append(1) or (slow, fast))

    def ask(_):
        with torch.no_grad():
            return made.taken(NUMBERS)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(16))) == {True}
    assert len(tries) == 1


def test_nothing_is_tried_where_gradients_are_wanted_and_plans_count_what_may_be():
    made = Choice("it", "an operation", lambda *_: raising())
    assert not made.taken(NUMBERS)
    with torch.no_grad():
        assert made.taken(NUMBERS.to("meta"))
    assert not made.verdicts


def test_a_plan_for_a_processor_counts_what_that_processor_does():
    for other, taken in ((fast, True), (raising, False)):
        made = Choice("it", "an operation", lambda *_, other=other: (slow, other))
        with torch.no_grad(), standing_for("cpu"):
            assert made.taken(NUMBERS.to("meta")) is taken


@pytest.mark.parametrize(("asked", "tried"), [("plain", False), ("other", False), ("other,it", True), ("", True)])
def test_the_environment_says_what_may_be_tried(asked, tried, monkeypatch):
    monkeypatch.setenv("KINEMA_KERNELS", asked)
    verdict = found(slow, fast)
    assert verdict.taken is tried
    assert tried or f"KINEMA_KERNELS={asked}" in verdict.why


def test_a_trial_takes_no_random_number_and_is_counted_by_nobody():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for real in (winograd.THREE_BY_THREE, enlarged.CHOICE):
            real.verdicts.pop((CPU, torch.float32), None)
            real.taken(NUMBERS)
            assert "raised" not in real.verdicts[CPU, torch.float32].why
            assert "wrong" not in real.verdicts[CPU, torch.float32].why
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats_are_tried_for_themselves(dtype):
    assert "wrong" not in enlarged.CHOICE.verdict(CPU, dtype).why


def test_the_doctor_says_what_was_chosen_and_why():
    machine = examine()["machine"]
    for real in (winograd.THREE_BY_THREE, enlarged.CHOICE):
        assert "times as fast here" in machine[real.what]


def test_plain_is_plain_from_the_start_of_a_process():
    script = """
import torch
from kinema import choice
from kinema.nn.kernels import enlarged, winograd
print([why for _, why in choice.report([enlarged.CHOICE, winograd.THREE_BY_THREE])])
"""
    path = {"PYTHONPATH": ":".join(sys.path), "KINEMA_KERNELS": "plain"}
    ran = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, text=True, check=True)
    assert ran.stdout.count("not tried: KINEMA_KERNELS=plain") == 2


def test_what_is_near_enough_depends_on_the_number_format():
    near = NUMBERS + 1e-3 * NUMBERS.std()
    assert not found(slow, lambda: near).taken
    assert found(slow, lambda: near, torch.float16).taken
    assert choice.RIGHT[torch.float32] <= 1e-4
