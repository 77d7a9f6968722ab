"""The warning before a run that takes hours: when it comes, what it estimates, and what it would have instead."""

import warnings

import numpy as np
import pytest

from cogvx_jax.pipelines import duration
from cogvx_jax.pipelines.duration import nearest_faster, sampling_flops, warn_of_hours
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.presets import PRESETS

SPEC = PRESETS["2b"]


def said(monkeypatch, rate, *options):
    """The warning of requests at so many operations a second; "" where there is none."""
    monkeypatch.setattr(duration, "_measured", lambda: rate)
    requests = [check_request(SPEC, "a panda", Options(**one)) for one in options]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_hours(SPEC, requests, None)
    assert len(caught) <= 1
    return str(caught[0].message) if caught else ""


def test_a_guided_video_of_the_published_size_is_the_published_work():
    request = check_request(SPEC, "a panda")
    assert sampling_flops(SPEC, request, 1) / 50 == pytest.approx(240e12, rel=0.01)


def test_hours_are_said_with_something_faster(monkeypatch):
    words = said(monkeypatch, 1e12, {})  # 12 PFLOP at 1 TFLOP/s
    assert words.startswith("sampling will take about 3.3 hours here: 12 PFLOP at 1 TFLOP/s; ")
    assert "frames of " in words and "minutes" in words
    assert "days" in said(monkeypatch, 1e10, {}) and "hours" in said(monkeypatch, 1e12, *[{}] * 3)


def test_short_runs_and_unknown_devices_are_silent(monkeypatch):
    assert said(monkeypatch, 1e13, {}) == ""

    def measure():
        raise AssertionError("nothing is measured for little work")

    monkeypatch.setattr(duration, "_measured", measure)
    small = check_request(SPEC, "a panda", Options(size=(32, 32), frames=9, steps=1))
    warn_of_hours(SPEC, [small], None)
    monkeypatch.setattr(duration, "flops_per_second", lambda mesh: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_hours(SPEC, [check_request(SPEC, "a panda")], None)


def test_the_nearest_faster_setting_is_the_largest_that_is_fast_enough():
    request = check_request(SPEC, "a panda")
    own = sampling_flops(SPEC, request, 1)
    assert nearest_faster(SPEC, request, own / 2).steps == 25  # half the steps, and nothing else
    found = nearest_faster(SPEC, request, own / 10)
    assert own / 40 < sampling_flops(SPEC, found, 1) <= own / 10
    slowest = nearest_faster(SPEC, request, 1.0)  # nothing is so fast: the fastest
    assert (slowest.steps, slowest.frames, slowest.height, slowest.width) == (25, 9, 240, 352)
    fixed = PRESETS["5b-i2v"]  # its size and length are learned
    image = Options(image=np.zeros((480, 720, 3), np.uint8))
    found = nearest_faster(fixed, check_request(fixed, "a panda", image), 1.0)
    assert (found.steps, found.frames, found.height) == (25, 49, 480)


def test_the_rate_of_this_machine_is_measured():
    assert 1e8 < duration.flops_per_second(None) < 1e14
