"""Editing by inversion: what the blocks look at, as recorded and by its properties, and what is asked and refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights, write_small

import cogvx_jax as cx
from cogvx_jax.configs import ScheduleConfig, TransformerConfig
from cogvx_jax.diffusion import inversion, samplers, schedule
from cogvx_jax.pipelines.conditions import SamplingInputs
from cogvx_jax.pipelines.denoise import denoise
from cogvx_jax.pipelines.inversion import invert
from cogvx_jax.pipelines.noise import SeededNoise

GOLDEN = np.load(Path(__file__).parent / "golden" / "ddim_inversion.npz")
STEPS = 5
SHIFTS = {"5b": 1.0, "2b": 3.0}  # of the signal-to-noise ratio


def close(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# The recorded run.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The transformer of golden/edit.md, and its arrays, channels last."""
    spec = small_spec("5b")
    sizes = dict(layers=2, heads=2, head_dim=16, text_dim=24, text_length=8, time_dim=16, position="rope")
    spec = dataclasses.replace(
        spec,
        transformer=TransformerConfig(**sizes),
        vae=dataclasses.replace(spec.vae, latent_channels=16),
        text_encoder=dataclasses.replace(spec.text_encoder, width=24),
    )
    folder = write_small(tmp_path_factory.mktemp("recorded") / "model", spec)
    (path,) = (folder / "transformer").glob("*.safetensors")
    shapes = {key: array.shape for key, array in load_file(path).items()}
    assert len(shapes) == 64
    save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, 200).items()}, path)
    arrays = {name: GOLDEN[name] for name in GOLDEN.files}
    for name in ("x0", "start", "inverted", "plain", "edited"):
        arrays[name] = np.moveaxis(arrays[name], -3, -1)
    return cx.load(folder, components=("transformer",), dtype="float32"), arrays


def sampled(model, inputs, plan, text, negative=None, weight=6.0):
    """The latents after each step."""
    after: list[np.ndarray] = []
    many = np.full(len(plan.timesteps), weight, np.float32)
    how = dict(noise=SeededNoise(0), progress=False, after=lambda x: after.append(np.asarray(x)))
    denoise(model, inputs, text, negative, plan, many, **how)
    return np.stack(after)


def test_inversion_and_editing_are_as_recorded(recorded):
    model, golden = recorded
    plan = samplers.ddim(model.spec.schedule, STEPS)
    np.testing.assert_array_equal(plan.timesteps, golden["timesteps"])
    steps = inversion.inversion(model.spec.schedule, plan.timesteps)
    np.testing.assert_array_equal(steps.timesteps, golden["inverse_timesteps"])
    how = dict(noise=SeededNoise(0), progress=False)
    reference = invert(model, golden["x0"], golden["negative"], steps, plan.timesteps, **how)
    np.testing.assert_array_equal(reference.order, [4, 3, 2, 1, 0])
    start, texts = SamplingInputs(golden["start"]), (golden["text"], golden["negative"])
    found = {
        "inverted": reference.latents,
        "plain": sampled(model, start, plan, *texts),
        "edited": sampled(model, start._replace(reference=reference), plan, *texts),
    }
    for name, arrays in found.items():
        assert arrays.shape == golden[name].shape
        for i, (ours, theirs) in enumerate(zip(arrays, golden[name], strict=True)):
            assert np.linalg.norm(ours - theirs) <= 2e-4 * np.linalg.norm(theirs), (name, i)
    assert np.linalg.norm(golden["edited"][-1] - golden["plain"][-1]) > 0.1 * np.linalg.norm(golden["plain"][-1])


@pytest.mark.parametrize("kind", SHIFTS)
def test_what_is_inverted_comes_back_the_better_the_more_steps_there_are(recorded, kind):
    model, golden = recorded
    cfg = dataclasses.replace(model.spec.schedule, snr_shift=SHIFTS[kind])
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, schedule=cfg))
    errors = []
    for count in (10, 40, 200):
        plan = samplers.ddim(cfg, count)
        steps = inversion.inversion(cfg, plan.timesteps)
        how = dict(noise=SeededNoise(0), progress=False)
        reference = invert(model, golden["x0"], golden["negative"], steps, plan.timesteps, **how)
        again = sampled(model, SamplingInputs(reference.at(0)), plan, golden["negative"])[-1]
        errors.append(np.linalg.norm(again - golden["x0"]) / np.linalg.norm(golden["x0"]))
    print(errors)


def test_the_tables():
    found = inversion.inversion(ScheduleConfig(snr_shift=1.0), samplers.ddim(ScheduleConfig(snr_shift=1.0), 50).timesteps)
    at = {int(t): row for t, row in zip(found.timesteps, found.table, strict=True)}
    # Of TASKS' official script in float32.
    for t, c_x, c_v in ((19, 0.990459740, 0.137802407), (39, 0.998051155, 0.062401058), (499, 0.999500071, 0.031616574), (999, 0.999957105, 0.009262170)):
        np.testing.assert_allclose(at[t][2:4], [c_x, c_v], atol=1e-5)
