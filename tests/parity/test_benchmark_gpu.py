"""The accelerator benchmark beside diffusers, at small size on CPU: that both sides run what the rows compare."""

import pytest

pytest.importorskip("diffusers")

from cogvx_jax.scripts import benchmark_gpu  # noqa: E402


@pytest.mark.parametrize(
    "name, part",
    [("2b", "step"), ("1.5-5b", "step"), ("1.5-5b", "decode"), ("5b", "attention"), ("5b", "text")],
)
def test_beside_diffusers(name, part):
    one = benchmark_gpu.case(name, small=True)
    (row,) = benchmark_gpu.measure([one], (part,), ("ours", "eager"), runs=1)
    assert row["ours s"] > 0 and row["ours/eager"] == pytest.approx(row["ours s"] / row["eager s"])
