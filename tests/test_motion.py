"""How things that are drawn move: speeds of squares with and without texture, and who talks."""

import numpy as np
import pytest
from drawn_films import picture

from cogvx_jax.prepare.labels import by_rules
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.motion import motion
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prepare.shots import LUMA

pytest.importorskip("cv2", reason="of the extra `prepare`")
from cogvx_jax.metrics.tracking import corner_moves, moving_speed  # noqa: E402  (needs OpenCV when it is called)

HEIGHT, WIDTH, RATE = 180, 320, 8.0


def square(left, back, inside, size=90):
    """A square whose left side is at a part of a pixel, over a background; (H, W, 3) uint8."""
    ground = picture(1, HEIGHT, WIDTH) if back is None else np.full((HEIGHT, WIDTH, 3), back, np.uint8)
    pattern = picture(2, size, size) if inside is None else np.full((size, size, 3), inside, np.uint8)
    whole, part = divmod(left, 1)
    found = np.zeros((HEIGHT, WIDTH, 3))
    for place, share in ((int(whole), 1 - part), (int(whole) + 1, part)):
        frame = ground.astype(float)
        frame[45 : 45 + size, place : place + size] = pattern
        found += share * frame
    return found.round().astype(np.uint8)


def seen(frames):
    return Look((np.stack(frames) @ LUMA).astype(np.uint8), RATE, np.stack(frames[:1]), (0.0,), True)


def found(frames):
    return motion({}, seen(frames), Settings())


@pytest.mark.parametrize("inside", [200, 20, None], ids=["plain", "dark", "texture"])
@pytest.mark.parametrize("size", [32, 90])
@pytest.mark.parametrize("speed", [1.5, 3, 8])
def test_speed_of_a_square(inside, size, speed):
    luma = [(square(60 + moved, 110, inside, size) @ LUMA).astype(np.uint8) for moved in (0, speed)]
    moves = corner_moves(*luma)
    assert len(moves) >= 4 and abs(moving_speed(moves) / speed - 1) < 0.015
    assert abs(np.median(moves[:, 1])) < 0.05


def test_speed_over_texture_that_stays():
    """Of a plain square the corners are those of its outline, whose neighbourhood is half of it what lies behind."""
    for inside, within in ((None, 0.015), (200, 0.15)):
        luma = [(square(60 + moved, None, inside) @ LUMA).astype(np.uint8) for moved in (0, 3)]
        assert abs(moving_speed(corner_moves(*luma)) / 3 - 1) < within


def test_a_clip_has_the_speed_of_what_moves_in_it():
    clip = [square(40 + 3 * n / 4, 110, 200) for n in range(17)]
    told = found(clip)
    assert abs(told["motion_speed"] / 3 - 1) < 0.015 and told["camera"] == "static"
    still = found([clip[0]] * 9)
    assert still["motion_speed"] == still["motion_area"] == 0 and still["motion_place"] is None
    assert found([np.full_like(clip[0], 90)] * 9)["motion_speed"] is None
    with pytest.raises(ValueError, match="16x16 or more"):
        corner_moves(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8))


def head(n, left=140):
    """A head that sways in front of a wall."""
    wall, face = picture(3, HEIGHT, WIDTH), picture(4, 60, 50)
    x = left + round(4 * np.sin(n))
    wall[50:110, x : x + 50] = face
    return wall


def test_who_talks_is_a_lecture():
    wide = picture(5, HEIGHT, WIDTH + 3 * 33)
    clips = {
        "talks": [head(n) for n in range(33)],
        "crosses": [head(n, 20 + 7 * n) for n in range(33)],
        "camera pans": [wide[:, 3 * n : 3 * n + WIDTH] for n in range(33)],
        "still": [head(0)] * 33,
        "slides": [picture(n // 8, HEIGHT, WIDTH) for n in range(33)],
    }
    said = {name: by_rules(found(frames))["lecture"] for name, frames in clips.items()}
    assert said.pop("talks") > 0.9 and max(said.values()) < 0.3, said
