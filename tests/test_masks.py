"""Masks that inpainting models are trained with."""

import jax
import numpy as np
import pytest

from cogvx_jax.train.transformer.masks import draw_masks
from cogvx_jax.train.transformer.settings import MASKS

COUNT = 200
KEY = jax.random.key(3)


PROGRAM = jax.jit(draw_masks, static_argnums=(1, 2, 3))


def draw(*kinds, shape=(17, 16, 24)):
    return np.asarray(PROGRAM(KEY, COUNT, shape, kinds))


def kind_of(made):
    """Which kind of mask it is, by how it looks: (F, H, W) bool."""
    frames = made.any(axis=(1, 2))
    if made.all():
        return "all"
    if np.all(made.all(axis=(1, 2)) == frames):
        return "first" if frames[-1] else "first-last"
    return "block" if np.all(made == made[:1]) else "block-in-time"


@pytest.mark.full
def test_masks_come_in_the_authors_shares():
    made = draw(*MASKS)
    kinds = [kind_of(one) for one in made]
    for kind, share in MASKS.items():
        spread = np.sqrt(share.clips * (1 - share.clips) / COUNT)
        assert abs(kinds.count(kind) / COUNT - share.clips) < 4 * spread, kind
    pictures = [kind_of(one) for one in draw(*MASKS, shape=(1, 16, 24))]
    assert abs(pictures.count("all") / COUNT - 0.8) < 0.12 and set(pictures) == {"all", "block"}


def test_frames_at_the_ends_are_known():
    known = ~draw("first").any(axis=(2, 3))
    assert {tuple(np.flatnonzero(one)) for one in known} == {tuple(range(n)) for n in (1, 2, 3, 4)}
    known = ~draw("first-last").any(axis=(2, 3))
    assert {tuple(np.flatnonzero(one)) for one in known} == {(*range(n), *range(17 - n, 17)) for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_short_clips_keep_a_frame_to_make(frames):
    for kind in ("first", "first-last"):
        assert draw(kind, shape=(frames, 8, 8)).any(axis=(1, 2, 3)).all() or frames == 2, kind


def test_pictures_are_made_as_a_whole_where_no_kind_is_for_them():
    assert draw("first", "first-last", shape=(1, 8, 8)).all()


def test_blocks_are_rectangles():
    made = draw("block", "block-in-time")
    rows, columns = made.any(axis=(1, 3)), made.any(axis=(1, 2))
    frames = made.any(axis=(2, 3))
    np.testing.assert_array_equal(made, frames[:, :, None, None] & rows[:, None, :, None] & columns[:, None, None])
    for sides, size in ((rows, 16), (columns, 24)):
        extent = sides.sum(axis=1)
        assert np.all(extent <= size * 3 / 4) and extent.max() >= size / 2 and extent.min() >= size // 8
    some = frames[~frames.all(axis=1)]  # from the first half to the second
    assert len(some) > 50 and some[:, 7].all() and some.any(axis=1).all()
