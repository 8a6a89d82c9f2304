"""A short version of `make fuzz`, without its search for new paths."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import inputs
from tests.fuzz.seeds import HUGE
from tests.fuzz.targets import TARGETS, Target

EXAMPLES = 100
SLOW_S = 5.0

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@every_target
@settings(max_examples=EXAMPLES, deadline=SLOW_S * 1000)
@given(st.data())
def test_parsers_let_out_only_what_they_say(target: Target, data: st.DataObject) -> None:
    target.check(data.draw(inputs(target)))


@every_target
def test_huge_inputs_take_no_long_time(target: Target) -> None:
    for data in (*target.seeds, *HUGE):
        began = time.process_time()
        target.check(data)
        assert time.process_time() - began < SLOW_S, data[:20]
