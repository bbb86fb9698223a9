"""A contact sheet shows clips as rows, enlarged without blur, with their labels."""

from __future__ import annotations

import numpy as np
import pytest
from tests.media_clips import gradient, pictures

from kinema.errors import InputError
from kinema.media import contact_sheet


def test_a_sheet_shows_evenly_spread_frames_exactly():
    clip = gradient(9, 20, 100)
    sheet = np.asarray(contact_sheet([clip], columns=3))
    assert sheet.shape == (20 + 8, 3 * 104 + 4, 3)
    for column, frame in enumerate((0, 4, 8)):
        left = 4 + column * 104
        assert np.array_equal(sheet[4:24, left : left + 100], clip[frame])


def test_small_frames_are_enlarged_in_whole_steps():
    clip = gradient(2, 16, 32)
    sheet = np.asarray(contact_sheet([clip]))
    assert np.array_equal(sheet[4:52:3, 4:100:3], clip[0])
    assert contact_sheet([clip], scale=1).size == (2 * 36 + 4, 24)


def test_labels_take_room_and_any_script():
    clips = [gradient(3), pictures(gradient(5, 20, 30))]
    plain, labelled = contact_sheet(clips), contact_sheet(clips, ["a red circle\n", "赤い円 🔴"])
    assert labelled.height == plain.height + 40 and labelled.width == plain.width
    assert np.asarray(labelled)[4:24, 4:90].min() < 100


def test_counts_that_differ_are_refused():
    for wrong in (
        {"clips": []},
        {"clips": [gradient(2)], "labels": ["a", "b"]},
        {"clips": [gradient(2)], "columns": 0},
    ):
        with pytest.raises(InputError):
            contact_sheet(**wrong)
