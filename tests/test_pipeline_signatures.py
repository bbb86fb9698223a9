"""Code written for the published pipelines finds the same arguments, in the same order, with the same defaults."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers
import pytest

import kinema

PUBLISHED = json.loads((Path(__file__).parent / "published_signatures.json").read_text())
# On purpose: frames are decoded one at a time, which takes the least memory and changes no picture.
DIFFERENT = {name: {"decode_chunk_size"} if name.startswith("AnimateDiff") else set() for name in PUBLISHED}


def said(parameter: inspect.Parameter) -> list[object]:
    """An argument's name and, if it may be left out, its default."""
    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return [parameter.name] if parameter.default is parameter.empty else [parameter.name, default]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_arguments_come_first_in_order_with_their_defaults(name: str) -> None:
    parameters = list(inspect.signature(getattr(kinema, name).__call__).parameters.values())[1:]
    published = PUBLISHED[name]
    for mine, (argument, *default) in zip(parameters, published):  # without a default where one must be given
        assert mine.name == argument
        assert mine.kind is mine.POSITIONAL_OR_KEYWORD
        if argument not in DIFFERENT[name]:
            assert said(mine) == [argument, *default] and [type(d) for d in said(mine)[1:]] == [
                type(d) for d in default
            ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_kinema_adds_is_said_by_name_only_and_may_be_left_out(name: str) -> None:
    parameters = list(inspect.signature(getattr(kinema, name).__call__).parameters.values())[1:]
    for more in parameters[len(PUBLISHED[name]) :]:
        assert more.kind is more.KEYWORD_ONLY and more.default is not more.empty


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_is_what_the_reference_says(name: str) -> None:
    parameters = list(inspect.signature(getattr(diffusers, name).__call__).parameters.values())[1:]
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]  # older names, which are refused or taken by name
    assert [said(p) for p in named] == PUBLISHED[name]
