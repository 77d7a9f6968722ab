"""The check of a device: that each part runs at toy size, and what is said of those that fail or find no time."""

import dataclasses
import json
import operator
import os
import time

import numpy as np
import pytest

from cogvx_jax.scripts import check_device
from cogvx_jax.scripts.alone import Failed, alone
from cogvx_jax.scripts.device_workloads import case, decode_flops, random


def test_a_function_alone_gives_its_result_and_knows_its_environment():
    assert alone(operator.truediv, 1, 2) == 0.5
    assert alone(os.getenv, "COGVX_TEST", environment={"COGVX_TEST": "y"}) == "y" and "COGVX_TEST" not in os.environ


@pytest.mark.parametrize(
    "function, arguments, seconds, words",
    [
        (operator.truediv, (1, 0), None, "ZeroDivisionError: division by zero"),
        (os.abort, (), None, "ended by SIGABRT"),
        (os._exit, (3,), None, "ended with status 3"),
        (time.sleep, (60,), 0.2, "was ended after 0.2 seconds"),
        (
            os.execl,
            ("/bin/sh", "sh", "-c", "echo no such device >&2; exit 4"),
            None,
            "status 4; its last words: no such",
        ),
    ],
)
def test_a_function_that_fails_is_a_sentence(function, arguments, seconds, words):
    with pytest.raises(Failed, match=words):
        alone(function, *arguments, seconds=seconds)


@pytest.mark.full
def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch):
    part = check_device.PARTS["device"]
    monkeypatch.setattr(
        check_device, "PARTS", {"broken": dataclasses.replace(part, function=operator.truediv), "device": part}
    )
    file = tmp_path / "device.json"
    check_device.main(out=file, size="toy", minutes=60.0, runs=1)
    assert os.listdir(tmp_path) == ["device.json"]
    report = json.loads(file.read_text())
    assert report["parts"]["broken"]["failed"].startswith("TypeError: ") and not report["left out"]
    assert report["parts"]["device"]["platform"] == "cpu" and report["parts"]["device"]["matmul TFLOP/s"] > 0


def test_a_part_without_time_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(check_device, "alone", None)
    settings = check_device.Settings(size="toy", runs=1, folder=tmp_path)
    left = list(check_device.check(["device", "video"], settings, deadline=time.monotonic() + 1))
    assert left == [(name, {"left out": "no time was left"}) for name in ("device", "video")]


def test_shares_are_of_the_measured_rate_and_of_the_same_part_of_theirs():
    parts = {"device": {"matmul TFLOP/s": 100.0}, "step 5b": {"s": 2.0, "TFLOP": 50.0}, "step 5b compiled": {"s": 4.0}}
    check_device.add_shares(parts)
    assert parts["step 5b"] == {"s": 2.0, "TFLOP": 50.0, "TFLOP/s": 25.0, "of matmul rate": 0.25, "of compiled": 0.5}
    assert parts["step 5b compiled"] == {"s": 4.0}


def test_a_device_that_computes_wrongly_is_written_down(tmp_path):
    check_device.write(tmp_path / "a.json", {"parts": {"attention 5b": {"error": float("nan"), "s": 1.0}}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"parts": {"attention 5b": {"error": "nan", "s": 1.0}}}


@pytest.mark.full
def test_all_parts_at_toy_size(tmp_path):
    file = tmp_path / "device.json"
    check_device.main(out=file, size="toy", minutes=60.0, runs=1)
    report = json.loads(file.read_text())
    found = report["parts"]
    assert {name for name in check_device.PARTS if not name.endswith("compiled")} == found.keys()
    assert {name for name in check_device.PARTS if name.endswith("compiled")} == report["left out"].keys()
    assert not [name for name, figures in found.items() if figures.get("failed")]
    assert found["attention 5b"]["error"] < 1e-5 and all("of matmul rate" in found[f"step {m}"] for m in ("2b", "5b"))
    assert found["tests"]["passed"] and not found["tests"]["failed"]
    assert found["video on cpu"]["largest difference of 255"] == 0 and found["video on cpu"]["least dB"] is None


def test_what_was_killed_keeps_what_it_had(tmp_path, monkeypatch):
    def killed(*arguments, **options):
        assert json.loads((tmp_path / "device.json").read_text())["left out"] == {"device": "not begun"}
        raise KeyboardInterrupt

    monkeypatch.setattr(check_device, "alone", killed)
    with pytest.raises(KeyboardInterrupt):
        check_device.main(out=tmp_path / "device.json", size="toy", only="device")
    assert os.listdir(tmp_path) == ["device.json"]


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"only": "device,step 7b"}, ValueError, "no part 'step 7b'; the parts are device, "),
        ({"minutes": 0.0}, ValueError, "minutes must be above 0"),
        ({"runs": 0}, ValueError, "runs at least 1"),
        ({"out": "missing/device.json"}, OSError, "missing"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(options, error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(check_device, "alone", None)
    out = tmp_path / options.pop("out", "device.json")
    with pytest.raises(error, match=words):
        check_device.main(out=out, size="toy", **options)


def test_random_numbers_are_spread_and_differ_by_seed():
    one, other = (np.float32(random((64, 1024), "float32", seed=seed, scale=0.5)) for seed in (1, 2))
    assert (
        abs(one.mean()) < 0.01
        and abs(one.std() - 0.5) < 0.01
        and abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02
    )
    assert np.unique(one).size > 0.9 * one.size and random((3,), "bfloat16").dtype == "bfloat16"


@pytest.mark.full
def test_operations_of_a_decode_are_those_of_its_convolutions():
    """By hand for the last level, which has most of them: 128 channels to 128 and to 3, 27 taps."""
    one = case("2b", small=True)
    channels, frames, pixels = one.spec.vae.channels[0], 17, 64 * 96
    last = 2 * 27 * frames * pixels * (channels * channels * 2 * (one.spec.vae.layers + 1) + channels * 3)
    assert last < decode_flops(one) < 2.5 * last
