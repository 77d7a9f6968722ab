"""Laws of rates: how many frames, which moments, and in what order they are made."""

from fractions import Fraction

import pytest

from cogvx_jax.finishing.interpolate import between
from cogvx_jax.finishing.rates import frame_count, last_count, levels, parts

NTSC = Fraction(30000, 1001)


def shown(frames, fps, rate, hold=False):
    """The moments of all frames, in frames of the old video."""
    fps, rate = Fraction(fps), Fraction(rate)
    moments = [frame + part for frame in range(frames - 1) for part in parts(frame, fps, rate)]
    return moments + [Fraction(frames - 1)] * last_count(frames, fps, rate, hold)


@pytest.mark.parametrize("fps, rate, levels_", [(8, 16, 1), (8, 32, 2), (8, 64, 3), (16, 64, 2), (NTSC, 2 * NTSC, 1)])
def test_powers_of_two_show_every_frame_and_all_between(fps, rate, levels_):
    factor = Fraction(rate) / Fraction(fps)
    assert levels(Fraction(fps), Fraction(rate)) == levels_
    for frames in (1, 2, 49):
        moments = shown(frames, fps, rate)
        assert moments == [Fraction(j) / factor for j in range(int(factor) * (frames - 1) + 1)]
        assert len(moments) == frame_count(frames, Fraction(fps), Fraction(rate)) == factor * (frames - 1) + 1


@pytest.mark.parametrize("fps", [8, 16, NTSC, Fraction(25, 2)])
@pytest.mark.parametrize("rate", [30, 60, Fraction(60000, 1001), 120])
def test_other_rates_show_the_nearest_moment(fps, rate):
    fps, rate = Fraction(fps), Fraction(rate)
    for frames in (1, 2, 17, 49, 81):
        moments = shown(frames, fps, rate)
        assert len(moments) == frame_count(frames, fps, rate)
        assert moments == sorted(moments) and moments[-1] == frames - 1
        unit = Fraction(1, 2 ** levels(fps, rate))
        assert all(abs(moment - min(j * fps / rate, frames - 1)) <= unit / 2 for j, moment in enumerate(moments))
        assert abs(len(moments) / rate - frames / fps) < 1 / fps
        held = shown(frames, fps, rate, hold=True)
        assert held[: len(moments)] == moments and len(held) == frame_count(frames, fps, rate, hold=True)
        assert len(held) == len(moments) or abs(len(held) / rate - frames / fps) <= 1 / rate / 2


def test_what_the_open_models_make():
    assert frame_count(49, Fraction(8), Fraction(64)) == 385
    assert frame_count(49, Fraction(8), Fraction(60)) == 361
    assert frame_count(49, Fraction(8), Fraction(30)) == 181
    assert frame_count(81, Fraction(16), Fraction(60)) == 301
    assert frame_count(49, Fraction(8), Fraction(60), hold=True) == 368  # 6.133 s of 6.125


def test_rates_that_cannot_be_had():
    with pytest.raises(ValueError, match="fps must be at least the video's own 8, got 7.5"):
        levels(Fraction(8), Fraction(15, 2))
    with pytest.raises(ValueError, match="fps must be at most 256 for a video of 8, got 1000"):
        levels(Fraction(8), Fraction(1000))
    assert levels(Fraction(8), Fraction(8)) == 0


def test_the_same_rate_shows_the_same_frames():
    assert shown(5, NTSC, NTSC) == [0, 1, 2, 3, 4]


def test_middles_are_made_once_in_order_and_few_are_held():
    made = []

    def middle(a, b):
        made.append((a, b))
        return (a + b) / 2

    wanted = [Fraction(i, 8) for i in (0, 1, 1, 3, 4, 8)]
    assert list(between(Fraction(0), Fraction(1), wanted, middle)) == wanted
    assert made == [(0, 1), (0, Fraction(1, 2)), (0, Fraction(1, 4)), (Fraction(1, 4), Fraction(1, 2))]
    assert list(between(Fraction(0), Fraction(1), [], middle)) == [] and len(made) == 4
