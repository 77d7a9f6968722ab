"""The accelerator benchmark beside diffusers, at small size on CPU: that both sides run what the rows compare."""

import pytest

pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from cogvx_jax.scripts import benchmark_gpu  # noqa: E402


def compared(name, part):
    one = benchmark_gpu.case(name, small=True)
    (row,) = benchmark_gpu.measure([one], (part,), ("ours", "eager"), runs=1)
    assert row["ours s"] > 0 and row["ours/eager"] == pytest.approx(row["ours s"] / row["eager s"])


@pytest.mark.parametrize(
    "name, part",
    [
        ("1.5-5b", "step"),
        ("5b", "attention"),
        ("5b", "text"),
        pytest.param("2b", "step", marks=pytest.mark.full),
        pytest.param("1.5-5b", "decode", marks=pytest.mark.full),
    ],
)
def test_beside_diffusers(name, part, monkeypatch):
    """In this process, as each of its own would import torch and jax first."""
    monkeypatch.setattr(benchmark_gpu, "alone", lambda function, *arguments: function(*arguments))
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # the benchmark turns it off for good
        compared(name, part)


@pytest.mark.full
def test_each_side_in_a_process_of_its_own():
    compared("5b", "attention")
