"""Schedules of step reuse against the published rules, written out, for the five models at 50 steps."""

import math
import warnings

import numpy as np
import pytest

from cogvx_jax.diffusion import reuse
from cogvx_jax.diffusion.guidance_ways import guided_steps, parse_guidance
from cogvx_jax.diffusion.reuse import (
    METHODS,
    MODES,
    POLYNOMIALS,
    Calibration,
    Facts,
    checked_calibration,
    parse_reuse,
    schedule,
)
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.presets import PRESETS


def steps_of(preset, count=50, start=0):
    spec = PRESETS[preset]
    return SAMPLERS[spec.defaults.sampler](spec.schedule, count, start=start).timesteps


def embeddings(timesteps, width=64):
    """A time embedding's stand-in: a smooth curve that changes by 2 to 12 % a step, as those of the models do."""
    t = np.asarray(timesteps, np.float64)[:, None] / 1000
    directions = np.random.default_rng(3).normal(size=(4, width))
    curve = np.concatenate([np.ones_like(t), np.sin(5 * t), np.cos(9 * t) / 2, 0.6 / (t + 0.15)], axis=1)
    return curve @ directions


def written(found):
    return "".join("x" if computed else "." for computed in found.computed)


def made(text, preset="2b", count=50, **facts):
    facts = {"timesteps": steps_of(preset, count), "steps": count, "model": PRESETS[preset].name} | facts
    return schedule(parse_reuse(text), Facts(embeddings=embeddings, **facts))


def teacache_as_published(emb, coefficients, threshold):
    """The loop of ali-vilab/TeaCache's CogVideoX forward: a counter, a running sum, one previous embedding."""
    polynomial, calculated, accumulated, previous = np.poly1d(coefficients), [], 0.0, None
    for count in range(len(emb)):
        if count in (0, len(emb) - 1):
            should, accumulated = True, 0.0
        else:
            accumulated += polynomial(np.abs(emb[count] - previous).mean() / np.abs(previous).mean())
            should = not accumulated < threshold
            accumulated = 0.0 if should else accumulated
        previous = emb[count]
        calculated.append(should)
    return np.array(calculated)


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("preset", PRESETS)
def test_teacache_is_the_published_loop(preset, threshold):
    found = made(f"teacache:{threshold}", preset)
    wanted = teacache_as_published(embeddings(steps_of(preset)), POLYNOMIALS[PRESETS[preset].name], threshold)
    np.testing.assert_array_equal(found.computed, wanted)
    changes = reuse.relative_changes(embeddings(steps_of(preset)))[1:]
    assert 0.01 < changes.min() < changes.max() < 0.2 and 2 < found.computed.sum() < 50  # nothing trivial


RATIOS = tuple(1 - 0.02 * (1 + math.sin(i)) - 0.3 * (i == 49) for i in range(50))


def magcache_as_published(ratios, threshold, most, retention):
    """MagCache's `magcache_forward` for one branch; its last step is computed here."""
    calculated, ratio, steps, error = [], 1.0, 0, 0.0
    for count in range(len(ratios)):
        skip = False
        if count >= int(len(ratios) * retention):
            ratio, steps = ratio * ratios[count], steps + 1
            error += np.abs(1 - ratio)
            if error <= threshold and steps <= most:
                skip = True
            else:
                ratio, steps, error = 1.0, 0, 0.0
        calculated.append(not skip)
    return np.array(calculated[:-1] + [True])


@pytest.mark.parametrize("numbers", [(0.06, 2, 0.2), (0.12, 4, 0.2), (0.5, 1, 0.1), (100, 3, 0.3)])
@pytest.mark.parametrize("preset", PRESETS)
def test_magcache_is_the_published_rule(preset, numbers):
    calibration = Calibration(model=PRESETS[preset].name, ratios=RATIOS, polynomial=(1.0,))
    found = made("magcache:{:g},{:d},{:g}".format(*numbers), preset, calibration=calibration)
    np.testing.assert_array_equal(found.computed, magcache_as_published(RATIOS, *numbers))


def test_ratios_are_stretched_to_other_counts_and_cut_for_the_tail_of_a_run():
    np.testing.assert_array_equal(reuse.stretched([1, 2, 3], 5), [1, 1, 2, 3, 3])  # of .5, numpy takes the even one
    np.testing.assert_array_equal(reuse.stretched(range(50), 50), range(50))
    calibration = Calibration(model=PRESETS["2b"].name, ratios=RATIOS, polynomial=(1.0,))
    tail = made("magcache:0.12,4,0", timesteps=steps_of("2b", start=20), calibration=calibration)
    np.testing.assert_array_equal(tail.computed[1:], magcache_as_published((9.0, *RATIOS[21:]), 0.12, 4, 0)[1:])


@pytest.mark.parametrize("preset", PRESETS)
def test_pab_broadcasts_as_videosys(preset):
    count, wanted = 0, []
    for t in steps_of(preset):
        wanted.append(not (count % 2 != 0 and 100 < t < 850))
        count += 1
    np.testing.assert_array_equal(made("pab:2", preset).computed, wanted)


@pytest.mark.parametrize(
    "text, count, steps",
    [
        ("every:2", 20, "x.x.x.x.x..x.x.x.x.x"),
        ("every:1.5", 20, "x.xx.xx.x.xx.xx.xx.x"),
        ("every:1", 5, "xxxxx"),
        ("every:100", 5, "x...x"),
        ("taylor:2", 20, "x.x.x.x.x..x.x.x.x.x"),
        ("taylor:2,0", 20, "x.x.x.x.x..x.x.x.x.x"),
        ("taylor:2,2", 20, "x.x.x.x.x..x.x.x.x.x"),
        ("taylor:100,3", 5, "x...x"),
        ("first-block:0.1", 4, "xxxx"),
        ("steps:x..x.x", 6, "x..x.x"),
        ("teacache:1000000", 20, "x..................x"),
    ],
)
def test_steps_of_the_others(text, count, steps):
    found = made(text, count=count, timesteps=np.arange(999, 0, -1)[:count])
    assert written(found) == steps
    if METHODS[text.partition(":")[0]].kind == "added" and "." in steps:
        assert 2 <= found.computed.sum() <= max(round(count / 2), 13)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_and_the_last_step_are_always_computed(name):
    calibration = Calibration(model=PRESETS["5b"].name, ratios=(1.0,) * 50, polynomial=(0.0,))
    for count in (3, 4, 7, 50):
        text = "steps:x" + "." * (count - 2) + "x" if name == "steps" else name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of counts that are not exact
            found = made(text, "5b", count, calibration=calibration)
        assert found.computed[0] and found.computed[-1] and len(found.control) == count
        assert found.control.dtype == np.float32 and np.isfinite(found.control).all()


def test_taylor_numbers_extrapolate_a_parabola_exactly():
    """Differences over unequal gaps, and coefficients D^k / k!, by the recursion of the paper on a known curve."""
    computed = np.array([letter == "x" for letter in "xxx.x..x"])
    control, factors, known = reuse.taylor_numbers(computed, 2), np.zeros(3), []
    curve = [2.0 - 3 * i for i in range(8)]  # a line: order 1 meets it wherever two points are known
    for i, here in enumerate(computed):
        if here:
            new = [curve[i]]
            for k in range(2):
                new.append((new[k] - factors[k]) * control[i][k])
            factors = np.array(new)
        else:
            known.append(i)
            np.testing.assert_allclose(control[i] @ factors, curve[i], atol=1e-12)
    assert known == [3, 5, 6]
    np.testing.assert_array_equal(control[6], [1, 2, 2])  # D = 2: 1, 2, 2^2 / 2!
    np.testing.assert_array_equal(control[:3], [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(control[4], [0.5, 0.5, 0])


@pytest.mark.parametrize(
    "text, words",
    [
        ("teapot:1", "unknown reuse 'teapot'; the known ones are every, teacache"),
        ("teacache:nan", "reuse teacache: a threshold must be a number from 0 to 1e\\+06, got 'nan'"),
        ("teacache:inf", "a threshold must be"),
        ("teacache:-0.1", "a threshold must be a number from 0"),
        ("teacache:0.1,2", "reuse teacache takes a threshold, got '0.1,2'"),
        ("magcache:0.1,1.5", "how many steps in a row must be a whole number from 1"),
        ("taylor:2,9", "an order must be a whole number from 0 to 3"),
        ("every:0", "a rate, how many times fewer steps are computed must be a number from 1 to 100, got '0'"),
        ("pab:x", "a period must be a whole number"),
        ("steps:", "must be of x, computed, and ., reused, such as steps:x.x.xx"),
        ("steps:.xx", "steps:.xx would reuse the first step, which must be computed"),
        ("steps:xx.", "would reuse the last step"),
        ("steps:" + "x" * 10**6, "must be of x"),
    ],
)
def test_what_cannot_be_is_one_sentence(text, words):
    with pytest.raises(ValueError, match=words) as raised:
        parse_reuse(text)
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["every:2", "teacache:0.15", "magcache:0.06,3,0.2", "taylor:1.5,2", "steps:x.x"])
def test_text_and_value_are_the_same(text):
    assert str(parse_reuse(text)) == text and parse_reuse(str(parse_reuse(text))) == parse_reuse(text)


@pytest.mark.parametrize(
    "text, facts, words",
    [
        ("every:2", {"count": 2}, "reuse every:2 needs at least 3 steps, got 2; leave it out"),
        ("steps:x.x.x", {"count": 4}, "names 5 steps, but 4 are taken"),
        ("magcache:0.1", {}, "needs a calibration of CogVideoX-2b: make one by `cogvx calibrate`, or use every:2"),
        ("teacache:0.1", {"model": "my model"}, "needs a calibration of my model"),
        (
            "teacache:0.1",
            {"calibration": Calibration(model="tiny", ratios=(1.0,), polynomial=(1.0,))},
            "the calibration is of tiny, and cannot be used for CogVideoX-2b",
        ),
    ],
)
def test_what_does_not_fit_the_run_is_refused(text, facts, words):
    with pytest.raises(ValueError, match=words):
        made(text, **facts)


def test_a_models_own_calibration_goes_before_the_published_polynomial():
    flat = Calibration(model=PRESETS["2b"].name, ratios=(1.0,) * 3, polynomial=(0.0, 0.05))
    assert written(made("teacache:0.1", count=10, calibration=flat)) == "x.x.x.x.xx"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": 5}, "its model is no name"),
        ({"ratios": [1.0]}, "its ratios must be 3 to 1001 numbers"),
        ({"ratios": [1.0, 1.0, 0.0]}, "its ratios must be above 0"),
        ({"ratios": "111"}, "its ratios must be"),
        ({"polynomial": [True, 1.0]}, "its polynomial must be 1 to 10 numbers"),
        ({"polynomial": [1e300]}, "its polynomial must be"),
    ],
)
def test_a_file_that_is_no_calibration(change, words):
    good = {"model": "tiny", "ratios": [1.0, 1.1, 0.9], "polynomial": [1.0, 0.0]}
    assert checked_calibration(good).ratios == (1.0, 1.1, 0.9)
    with pytest.raises(ValueError, match=words):
        checked_calibration(good | change)


def test_every_method_has_its_mode_of_stored_programs():
    kinds = {mode.partition("-")[0] for mode in MODES}
    assert {method.kind for method in METHODS.values()} <= kinds and {"delta", "interval"} <= kinds


@pytest.mark.parametrize(
    "text, count, steps",
    [
        ("interval:0.2-0.8", 10, "..xxxxxx.."),
        ("interval:0-1", 5, "xxxxx"),
        ("interval:0.5-1", 5, "xxx.."),
        ("delta:2", 20, "x.x.x.x.x..x.x.x.x.x"),
        ("delta:1", 5, "xxxxx"),
    ],
)
def test_guided_steps(text, count, steps):
    assert written(guided_steps(parse_guidance(text), steps_of("2b", count), 1000)) == steps


@pytest.mark.parametrize(
    "text, words",
    [
        ("fastercache", "unknown guidance 'fastercache'; the known ones are interval, delta"),
        ("interval:0.8-0.2", "two shares of the timesteps, such as interval:0.2-0.8"),
        ("interval:0.2", "two shares"),
        ("interval:nan-1", "two shares"),
        ("delta:0", "a rate from 1 to 100, such as delta:2"),
        ("delta:nan", "a rate from 1"),
        ("delta", "a rate from 1"),
    ],
)
def test_guidance_that_cannot_be(text, words):
    with pytest.raises(ValueError, match=words):
        parse_guidance(text)
