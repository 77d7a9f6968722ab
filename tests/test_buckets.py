"""Batches of one shape."""

import pytest

from cogvx_jax.train.buckets import bucket_batches

SHAPES = [(3, 4, 6)] * 5 + [(1, 4, 6)] * 4 + [(3, 6, 4)]


def test_a_batch_has_one_shape_and_a_clip_is_in_one_batch():
    said = []
    batches = bucket_batches(SHAPES, 2, seed=0, report=said.append)
    assert said == ["4 batches of 2 clips in 3 shapes; 2 clips left out this time"]
    assert sorted(len(batch) for batch in batches) == [2] * 4
    assert all(len({SHAPES[i] for i in batch}) == 1 for batch in batches)
    assert len({i for batch in batches for i in batch}) == 8


def test_order_is_the_seeds():
    def draw(seed):
        return bucket_batches(SHAPES, 2, seed=seed, report=lambda line: None)

    assert draw(3) == draw(3)
    assert len({str(draw(seed)) for seed in range(10)}) > 5
    # Over the epochs no clip of a shape that fills batches is always left out.
    assert {i for seed in range(20) for batch in draw(seed) for i in batch} == set(range(9))


@pytest.mark.parametrize(
    "shapes, batch, message",
    [
        (SHAPES, 6, "no shape has 6 clips for a batch, the commonest has 5"),
        ([], 1, "no shape"),
        (SHAPES, 0, "at least"),
    ],
)
def test_batches_that_cannot_be(shapes, batch, message):
    with pytest.raises(ValueError, match=message):
        bucket_batches(shapes, batch, seed=0)
