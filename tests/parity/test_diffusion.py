"""Whole sampling runs against diffusers' schedulers, with a stand-in for the model and the same noise."""

import pytest
from closeness import close

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from cogvx_jax.configs import ScheduleConfig  # noqa: E402
from cogvx_jax.diffusion import objective, samplers, schedule, update  # noqa: E402

SHAPE = (1, 3, 4, 6, 16)
CLASSES = {"ddim": diffusers.CogVideoXDDIMScheduler, "dpm": diffusers.CogVideoXDPMScheduler}
pytestmark = pytest.mark.filterwarnings("ignore:.*inference steps")


def reference(name, shift):
    """The scheduler as the checkpoints' JSON builds it; the class defaults differ."""
    return CLASSES[name](
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        snr_shift_scale=shift,
    )


def model(x, t, tanh):
    return 0.8 * tanh(x) + 0.3 * float(np.cos(t / 100))


def run_reference(name, shift, n, start, latents, generator):
    scheduler = reference(name, shift)
    scheduler.set_timesteps(n)
    x, old, kept = torch.from_numpy(latents), None, scheduler.timesteps[start:]
    trace = []
    for i, t in enumerate(kept):
        v = model(x, int(t), torch.tanh)
        if name == "ddim":
            x, old = scheduler.step(v, t, x, return_dict=False)
        else:
            back = kept[i - 1] if i else None
            x, old = scheduler.step(v, old, t, back, x, generator=generator, return_dict=False)
        x = x.to(torch.float32)
        trace.append((x.numpy(), old.numpy()))
    return trace


def run(name, shift, n, start, latents, generator):
    sampler = samplers.SAMPLERS[name](ScheduleConfig(snr_shift=shift), n, start=start)
    state, step, trace = update.init(jnp.asarray(latents), samplers.SAMPLERS[name].history), jax.jit(update.update), []
    for t, row, draws in zip(sampler.timesteps, np.float32(sampler.table), sampler.draws, strict=True):
        noises = [torch.randn(SHAPE, generator=generator).numpy() for _ in range(draws)]
        state = step(state, model(state.latents, t, jnp.tanh), row, noises[-1] if noises else None)
        trace.append((np.asarray(state.latents), np.asarray(state.history[0])))
    return trace


@pytest.mark.parametrize(
    "n, start", [(1, 0), (2, 0), (5, 0), (20, 0), (50, 0), (30, 0), (7, 0), (61, 0), (50, 10), (30, 7)]
)
@pytest.mark.parametrize("shift", [3.0, 1.0])
@pytest.mark.parametrize("name", CLASSES)
def test_runs_match_diffusers(name, shift, n, start):
    latents = np.random.default_rng(n).standard_normal(SHAPE, np.float32)
    theirs_rng, ours_rng = (torch.Generator().manual_seed(n) for _ in range(2))
    theirs = run_reference(name, shift, n, start, latents, theirs_rng)
    ours = run(name, shift, n, start, latents, ours_rng)
    assert len(ours) == len(theirs)
    for got, want in zip(ours, theirs, strict=True):
        for a, b in zip(got, want, strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
    assert torch.equal(theirs_rng.get_state(), ours_rng.get_state())  # as many draws


GENERAL = {  # class, its options, and whether its samples are x / sqrt(alphas_bar)
    "euler": (diffusers.EulerDiscreteScheduler, {}, True),
    "euler-ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}, True),
    "dpmpp-2m": (diffusers.DPMSolverMultistepScheduler, dict(final_sigmas_type="zero"), False),
    "unipc": (diffusers.UniPCMultistepScheduler, dict(solver_type="bh2", final_sigmas_type="zero"), False),
    "deis": (diffusers.DEISMultistepScheduler, {}, False),
    "heun": (diffusers.HeunDiscreteScheduler, {}, True),
}


def run_general(name, alphas, n, start, latents, generator):
    """A general class of diffusers with our alphas_bar: what it gives after each evaluation."""
    make, options, scaled = GENERAL[name]
    scheduler = make(prediction_type="v_prediction", timestep_spacing="trailing", **options)
    scheduler.alphas_cumprod = torch.from_numpy(alphas)
    scheduler.set_timesteps(n)
    scheduler.sigmas = scheduler.sigmas.double()  # in float32 the coefficients of DEIS lose a digit
    evaluations = scheduler.timesteps[2 * start - 1 if name == "heun" and start else start :]
    if name == "heun" and start:
        evaluations = evaluations[1:]  # of the two at a timestep the first is the end of the step before
    scheduler.set_begin_index(len(scheduler.timesteps) - len(evaluations))
    levels = [*alphas[evaluations.numpy().astype(int)], 1.0]
    kwargs = {"generator": generator} if name == "euler-ancestral" else {}
    x, trace = torch.from_numpy(latents).to(torch.float32 if kwargs else torch.float64), []  # noise is of its type
    x = x / levels[0] ** 0.5 if scaled else x
    for t, after in zip(evaluations, levels[1:], strict=True):
        v = model(scheduler.scale_model_input(x, t), int(t), torch.tanh)
        x = scheduler.step(v, t, x, return_dict=False, **kwargs)[0]
        trace.append((x * after**0.5 if scaled else x).numpy().astype(np.float32))
    return trace


@pytest.mark.parametrize("n, start", [(2, 0), (5, 0), (10, 0), (20, 0), (50, 0), (30, 0), (7, 0), (50, 10), (30, 7)])
@pytest.mark.parametrize("shift", [3.0, 1.0])
@pytest.mark.parametrize("name", GENERAL)
def test_runs_match_general_classes(name, shift, n, start, monkeypatch):
    """Each is given our alphas_bar; of itself it would take others, see docs/tasks.md."""
    start = max(start, 1) if name == "heun" else start  # see `samplers.heun`: from the first its result is nothing
    alphas = schedule.alphas_bar(ScheduleConfig(snr_shift=shift))
    # They cannot take 0. Their own 2^-24 makes samples of the size of 4096, whose last bits are 5e-4.
    alphas[-1] = alphas[schedule.visited(ScheduleConfig(), n)[1]] / 4
    monkeypatch.setattr(schedule, "alphas_bar", lambda cfg: alphas)
    latents = np.random.default_rng(n).standard_normal(SHAPE, np.float32)
    theirs_rng, ours_rng = (torch.Generator().manual_seed(n) for _ in range(2))
    theirs = run_general(name, alphas, n, start, latents, theirs_rng)
    ours = [x for x, _ in run(name, shift, n, start, latents, ours_rng)]
    assert len(ours) == len(theirs)
    if name == "deis":  # diffusers' ends at the noise of timestep 0, not at the clean latents
        ours, theirs = ours[:-1], theirs[:-1]
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert torch.equal(theirs_rng.get_state(), ours_rng.get_state())


@pytest.mark.parametrize("n", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("shift", [3.0, 1.0])
def test_lcm_matches_diffusers(shift, n):
    """Given our alphas_bar, as it knows no shift of the signal-to-noise ratio."""
    latents = np.random.default_rng(n).standard_normal(SHAPE, np.float32)
    scheduler = diffusers.LCMScheduler(prediction_type="v_prediction", clip_sample=False)
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_bar(ScheduleConfig(snr_shift=shift)))
    scheduler.set_timesteps(n)
    theirs_rng, ours_rng = (torch.Generator().manual_seed(n) for _ in range(2))
    x, theirs = torch.from_numpy(latents), []
    for t in scheduler.timesteps:
        x, x0 = scheduler.step(model(x, int(t), torch.tanh), t, x, generator=theirs_rng, return_dict=False)
        x = x.to(torch.float32)
        theirs.append((x.numpy(), x0.numpy()))
    ours = run("lcm", shift, n, 0, latents, ours_rng)
    assert len(ours) == len(theirs)
    tolerance = 1e-5 if n < 50 else 2e-5  # errors add up over the steps: 6e-6 of 50 with AVX2
    for got, want in zip(ours, theirs, strict=True):
        for a, b in zip(got, want, strict=True):
            close(a, b, tolerance)
    assert torch.equal(theirs_rng.get_state(), ours_rng.get_state())  # as many draws


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("shift", [3.0, 1.0])
def test_schedule_matches_diffusers(name, shift):
    cfg, scheduler = ScheduleConfig(snr_shift=shift), reference(name, shift)
    np.testing.assert_allclose(schedule.alphas_bar(cfg), scheduler.alphas_cumprod.numpy(), rtol=1e-12, atol=0)
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        np.testing.assert_array_equal(schedule.timesteps(cfg, n), scheduler.timesteps.numpy())


def test_objective_matches_diffusers():
    rng = np.random.default_rng(0)
    x0, noise = (rng.standard_normal((5, 3, 4), np.float32) for _ in range(2))
    t = np.array([0, 1, 499, 998, 999])
    scheduler, a = reference("ddim", 1.0), schedule.alphas_bar(ScheduleConfig(snr_shift=1.0))[t]
    torches = (*map(torch.from_numpy, (x0, noise, t)),)
    x, v = scheduler.add_noise(*torches).numpy(), scheduler.get_velocity(*torches).numpy()
    np.testing.assert_allclose(objective.add_noise(x0, noise, a), x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(objective.velocity(x0, noise, a), v, rtol=0, atol=1e-6)
    swapped = scheduler.get_velocity(torch.from_numpy(v), torch.from_numpy(x), torches[2])
    np.testing.assert_allclose(objective.clean(x, v, a), swapped.numpy(), rtol=0, atol=1e-5)
