"""Sampling as one compiled program gives what the loop over compiled steps gives."""

import sys

import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.pipelines import generate as pipeline
from cogvx_jax.pipelines.noise import SeededNoise


@pytest.fixture
def both(small, monkeypatch):
    """Latents of the loop and of the one program, which must have been used for the second only."""
    used = []
    in_one = pipeline.denoise_in_one
    monkeypatch.setattr(pipeline, "denoise_in_one", lambda *args, **options: used.append(1) or in_one(*args, **options))

    def run(kind, mesh=None, **options):
        folder, model = small(kind)
        model = model if mesh is None else cx.load(folder, mesh=mesh)
        options |= dict(seed=3, output="latents", progress=False)
        loop = cx.generate(model, "a red circle", **options)
        assert not used
        one = cx.generate(model, "a red circle", one_program=True, **options)
        assert used
        return loop, one

    return run


@pytest.mark.parametrize(
    "options",
    [
        *(dict(sampler=name) for name in SAMPLERS),
        dict(sampler="dpm", use_dynamic_cfg=True, num_inference_steps=5),
    ],
    ids=[*SAMPLERS, "dynamic"],
)
def test_it_gives_what_the_loop_gives(both, options):
    loop, one = both("5b", **options)
    np.testing.assert_allclose(one, loop, atol=1e-5, rtol=1e-5)


@pytest.mark.full
def test_an_image_conditions_it(both):
    loop, one = both("1.5-5b-i2v", image=np.full((32, 48, 3), 90, np.uint8))
    np.testing.assert_allclose(one, loop, atol=1e-5, rtol=1e-5)


@pytest.mark.full
def test_on_a_mesh(both):
    loop, one = both("5b", mesh=cx.make_mesh(cfg=2, fsdp=2, sp=2), sampler="dpm")
    np.testing.assert_allclose(one, loop, atol=1e-5, rtol=1e-5)


def test_recorded_noise_is_used(both):
    class Recorded:
        """Another source: its indices must be numbers, not tracers."""

        def __init__(self):
            self.source, self.asked = SeededNoise(5), []

        def latents(self, shape):
            return self.source.latents(shape)

        def step(self, index, shape):
            self.asked.append(int(index))
            return self.source.step(index, shape) * (-1) ** index

    noise = Recorded()
    loop, one = both("5b", sampler="dpm", noise=noise)
    assert noise.asked == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(one, loop, atol=1e-5, rtol=1e-5)


@pytest.mark.full
def test_the_command_uses_it(tmp_path, monkeypatch):
    in_one, used = pipeline.denoise_in_one, []
    monkeypatch.setattr(pipeline, "denoise_in_one", lambda *args, **options: used.append(1) or in_one(*args, **options))
    for flags in ([], ["--one-program"]):
        arguments = ["generate", "a red circle", "--out", tmp_path / "out.gif", "--steps", 2, "--frames", 1]
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, [*arguments, "--no-progress", *flags])])
        cli.main()
        assert len(used) == len(flags)


def test_steps_differ_and_so_do_seeds():
    shape = (2, 1, 2, 2, 4)
    one, other = SeededNoise(1), SeededNoise(2)
    assert np.abs(one.step(0, shape) - one.step(1, shape)).max() > 0.1
    assert np.abs(one.step(0, shape) - other.step(0, shape)).max() > 0.1
    np.testing.assert_array_equal(SeededNoise(1, first=1).step(0, (1, *shape[1:]))[0], one.step(0, shape)[1])
