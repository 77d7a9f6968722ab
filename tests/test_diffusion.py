"""Schedule, samplers, guidance and objective against recorded numbers of diffusers 0.42.1."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import guidance, objective, samplers, schedule, update

CFG_2B, CFG_5B = ScheduleConfig(snr_shift=3.0), ScheduleConfig(snr_shift=1.0)
A, SIGMA, X, X0, OLD, NOISE = range(6)  # columns of Sampler.table


@pytest.mark.parametrize(
    "cfg, want",
    [
        (
            CFG_2B,
            {
                0: 0.9974543276430069,
                1: 0.9948006264269799,
                19: 0.9465729792377547,
                499: 0.09596956169073541,
                899: 0.0009687879820230554,
                998: 6.230788467394798e-08,
            },
        ),
        (
            CFG_5B,
            {
                0: 0.99915,
                1: 0.9982334461401823,
                19: 0.9810104569288466,
                499: 0.24235916655614523,
                899: 0.0030330723706475447,
                998: 1.967888056621291e-07,
            },
        ),
    ],
)
def test_alphas_bar(cfg, want):
    got = schedule.alphas_bar(cfg)
    assert got.dtype == np.float64 and got.shape == (1000,) and got[999] == 0
    np.testing.assert_allclose(got[list(want)], list(want.values()), rtol=1e-11)
    assert (np.diff(got) < 0).all()


def test_timesteps_and_previous():
    np.testing.assert_array_equal(schedule.timesteps(CFG_5B, 50), np.arange(999, 0, -20))
    thirty = schedule.timesteps(CFG_5B, 30)
    assert [*thirty[:5], *thirty[-3:]] == [999, 966, 932, 899, 866, 99, 66, 32]
    with pytest.warns(UserWarning, match="5 and 8"):
        np.testing.assert_array_equal(schedule.timesteps(CFG_5B, 7), [999, 856, 713, 570, 428, 285, 142])
    with pytest.warns(UserWarning, match="62 timesteps.* 50 and 100"):
        assert schedule.timesteps(CFG_5B, 61)[-1] == -1
    assert schedule.previous(CFG_5B, 999, 30) == 966
    for n in (0, -1, 1001):
        with pytest.raises(ValueError):
            schedule.timesteps(CFG_5B, n)


@pytest.mark.filterwarnings("ignore:.*inference steps")
def test_every_count_of_steps():
    exact, early, longer = [], 0, 0
    for n in range(1, 1001):
        kept = schedule.timesteps(CFG_5B, n)
        after = schedule.previous(CFG_5B, kept, n)
        longer += len(kept) == n + 1
        early += after[-1] >= 0
        if after[-1] == -1 and (after[:-1] == kept[1:]).all():
            exact.append(n)
    assert tuple(exact) == schedule.EXACT_STEPS and len(exact) == 16
    assert (early, longer) == (372, 62)


@pytest.mark.parametrize("n", schedule.EXACT_STEPS)
def test_exact_counts_do_not_warn(n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.timesteps(CFG_5B, n)


@pytest.mark.parametrize(
    "cfg, t, a, b",
    [
        (CFG_5B, 999, 0.999957105, 0.009262173),
        (CFG_5B, 979, 0.999855294, 0.010108043),
        (CFG_5B, 499, 0.981618185, 0.036323156),
        (CFG_5B, 39, 0.691297297, 0.313036359),
        (CFG_5B, 19, 0, 1),
        (CFG_2B, 999, 0.999986403, 0.005214821),
        (CFG_2B, 979, 0.999954047, 0.005698512),
        (CFG_2B, 499, 0.992488404, 0.023445275),
        (CFG_2B, 39, 0.704426721, 0.307495157),
        (CFG_2B, 19, 0, 1),
    ],
)
def test_ddim_coefficients(cfg, t, a, b):
    sampler = samplers.ddim(cfg, 50)
    row = sampler.table[list(sampler.timesteps).index(t)]
    np.testing.assert_allclose(row[X:], [a, b, 0, 0], rtol=0, atol=2e-9)  # typed to 5e-10
    np.testing.assert_allclose(row[A] ** 2 + row[SIGMA] ** 2, 1)


@pytest.mark.parametrize(
    "cfg, t, m1, m2, half, m_n",
    [
        (CFG_5B, 999, 0, -0.009262173, 0, 0.999957105),
        (CFG_5B, 979, 0.478060396, -0.014940998, 0, 0.878124541),
        (CFG_5B, 959, 0.637755463, -0.018001179, 0.304609860, 0.769739698),
        (CFG_5B, 499, 0.912993708, -0.070106978, 0.490949301, 0.313856653),
        (CFG_5B, 39, 0.472811694, -0.527137082, 0.806295023, 0.100531146),
        (CFG_5B, 19, 0, -1, 0, 0),
        (CFG_2B, 979, 0.477806041, -0.008421420, 0, 0.878401104),
        (CFG_2B, 499, 0.922169231, -0.045229419, 0.490960601, 0.348878308),
        (CFG_2B, 39, 0.481789870, -0.517805253, 0.805355995, 0.168626249),
        (CFG_2B, 19, 0, -1, 0, 0),
    ],
)
def test_dpm_coefficients(cfg, t, m1, m2, half, m_n):
    sampler = samplers.dpm(cfg, 50)
    row = sampler.table[list(sampler.timesteps).index(t)]
    np.testing.assert_allclose(row[X:], [m1, -m2 * (1 + half), m2 * half, m_n], rtol=0, atol=4e-9)  # typed to 5e-10


@pytest.mark.filterwarnings("ignore:.*inference steps")
def test_draws():
    assert not samplers.ddim(CFG_5B, 50).draws.any()
    for n in (2, 5, 50):
        np.testing.assert_array_equal(samplers.dpm(CFG_5B, n).draws, [1] + [2] * (n - 2) + [1])
    assert list(samplers.dpm(CFG_5B, 1).draws) == [1]
    assert list(samplers.dpm(CFG_5B, 7).draws) == [1] + [2] * 6  # it stops early, so no last step
    assert list(samplers.dpm(CFG_5B, 5, start=2).draws) == [1, 2, 1]


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_row_of_a_sampler_says_what_its_steps_do(name):
    method = samplers.SAMPLERS[name]
    for cfg in (CFG_2B, dataclasses.replace(CFG_2B, zero_terminal_snr=False)):
        for n, start in ((1, 0), (2, 0), (50, 0), (50, 10), (50, 49)):
            sampler = method(cfg, n, start=start)
            assert sampler.history == method.history
            assert len(sampler.timesteps) == len(sampler.table) == method.evaluations(cfg, n, start)
            alone = len(sampler.timesteps) == 1  # the last step of some draws nothing
            assert alone or sampler.draws.any() == method.stochastic
            assert method.stochastic or not sampler.table[:, -1].any()


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.filterwarnings("ignore:.*inference steps")
def test_tables_are_finite(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for cfg in (CFG_2B, CFG_5B):
            for n in (*range(1, 130), 201, 333, 500, 501, 999, 1000):
                sampler = samplers.SAMPLERS[name](cfg, n)
                assert np.isfinite(sampler.table).all() and len(sampler.table) == len(sampler.draws)
                assert np.abs(sampler.table).max() < 10


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_start_keeps_the_tail(name):
    whole, tail = samplers.SAMPLERS[name](CFG_2B, 50), samplers.SAMPLERS[name](CFG_2B, 50, start=10)
    assert tail.timesteps[0] == 799
    kept = len(tail.timesteps)
    np.testing.assert_array_equal(tail.timesteps, whole.timesteps[-kept:])
    known = samplers.SAMPLERS[name].history  # later rows remember the same estimates
    np.testing.assert_array_equal(tail.table[known:], whole.table[-kept + known :])
    assert not tail.table[0, OLD:-1].any()  # no step before it
    for start in (-1, 50):
        with pytest.raises(ValueError):
            samplers.SAMPLERS[name](CFG_2B, 50, start=start)


GENERAL = [name for name in samplers.SAMPLERS if name not in ("ddim", "dpm")]


@pytest.mark.parametrize("name", GENERAL)
def test_every_number_of_steps_ends_at_the_clean_latents(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (7, 30, 61, 103):
            sampler = samplers.SAMPLERS[name](CFG_2B, n)
            assert len(set(sampler.timesteps)) == n and sampler.timesteps.min() >= 0
            np.testing.assert_array_equal(sampler.table[-1, X:], [0, 1] + [0] * (sampler.table.shape[1] - 4))


def test_euler_is_ddim():
    np.testing.assert_array_equal(samplers.euler(CFG_2B, 50).table, samplers.ddim(CFG_2B, 50).table)


@pytest.mark.parametrize("name, least", [("euler", 3.5), ("dpmpp-2m", 13), ("unipc", 13), ("deis", 13), ("heun", 13)])
def test_the_error_falls_with_the_steps_as_the_order_says(name, least):
    """Of a Gaussian, whose velocity is linear in x, from timestep 749 to 249: four times the steps."""
    spread, a = 0.5, schedule.alphas_bar(CFG_5B)
    exact = np.sqrt(a * spread**2 + 1 - a)  # all of x at a timestep grows like this

    def error(n):
        sampler = samplers.SAMPLERS[name](CFG_5B, n, start=n // 4)
        x, history = 1.0, [0.0] * sampler.history
        last = np.flatnonzero(sampler.timesteps == 249)[-1]
        for t, row in zip(sampler.timesteps[:last], sampler.table[:last], strict=True):
            v = np.sqrt(a[t] * (1 - a[t])) * (1 - spread**2) / exact[t] ** 2 * x
            now = row[A] * x - row[SIGMA] * v
            x = row[X] * x + row[X0] * now + np.dot(row[OLD:-1], history)
            history = [now, *history[:-1]]
        return abs(x - exact[249] / exact[749])

    assert error(20) >= least * error(80)


@pytest.mark.parametrize("n", [1, 5, 50, *(pytest.param(n, marks=pytest.mark.full) for n in (2, 30))])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.filterwarnings("ignore:.*inference steps")
def test_a_perfect_model_is_sampled_exactly(name, n):
    """With the true velocity of a fixed x0, every step predicts that x0, and the last returns it."""
    sampler = samplers.SAMPLERS[name](CFG_2B, n)
    alphas = schedule.alphas_bar(CFG_2B)
    keys = jax.random.split(jax.random.key(0), len(sampler.timesteps) + 2)
    target = jax.random.normal(keys[0], (1, 2, 3, 4, 2))
    state = update.init(jax.random.normal(keys[1], target.shape), sampler.history)
    step = jax.jit(lambda *args: update.update(*args))  # a cache of its own
    for t, row, key in zip(sampler.timesteps, np.float32(sampler.table), keys[2:], strict=True):
        signal, sigma = np.float32(np.sqrt([alphas[t], 1 - alphas[t]]))
        noise = jax.random.normal(key, target.shape) if samplers.SAMPLERS[name].stochastic else None
        tells_x0 = row[A] == signal  # or eps, of deis
        wanted = target if tells_x0 else (state.latents - signal * target) / sigma
        state = step(state, (signal * state.latents - target) / sigma, row, noise)
        np.testing.assert_allclose(state.history[0], wanted, atol=2e-5 if name == "deis" else 2e-6)
    np.testing.assert_array_equal(state.latents, state.history[0])
    assert step._cache_size() == 1  # one compilation for all steps


def test_update_keeps_dtypes():
    state = update.init(jnp.ones((1, 2), jnp.bfloat16))
    row = np.float32(samplers.dpm(CFG_5B, 50).table[3])
    state = update.update(state, jnp.ones((1, 2), jnp.bfloat16), row, jnp.ones((1, 2)))
    assert state.latents.dtype == jnp.bfloat16 and state.history[0].dtype == jnp.float32


def test_dynamic_weights():
    want = """2.2915 2.5435 6.9744 6.4204 2.7881 4.2719 1.0376 4.1704 1.6180 6.9831 1.0048 2.8720 6.9768 1.6331 4.3297
    2.4366 6.3773 6.0068 3.4479 3.1981 1.6548 6.6100 1.1947 4.2953 6.9854 1.5213 1.7616 1.0579 4.1275 1.4823 2.0026
    5.9477 4.1432 6.5305 6.1398 6.9999 6.1684 1.1199 2.0975 6.6850 6.9992 2.3432 6.2128 1.2505 6.9996 6.8644 1.0636
    1.0000 1.0000 1.1234"""
    got = guidance.weights(6.0, schedule.timesteps(CFG_5B, 50), 50, dynamic=True)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [float(w) for w in want.split()], rtol=0, atol=1.6e-4)  # typed to 5e-5
    np.testing.assert_array_equal(guidance.weights(6.0, np.arange(3), 50, dynamic=False), [6, 6, 6])


def test_guide():
    u, c = jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])
    np.testing.assert_array_equal(guidance.guide(u, c, 6.0), [7, -10])
    assert guidance.guide(u.astype(jnp.bfloat16), c.astype(jnp.bfloat16), 6.0).dtype == jnp.float32


def test_objective():
    keys = jax.random.split(jax.random.key(0), 3)
    x0, noise, prediction = (jax.random.normal(k, (3, 2, 4, 4, 2)) for k in keys)
    a = schedule.alphas_bar(CFG_2B)[[0, 500, 999]]
    x, v = objective.add_noise(x0, noise, a), objective.velocity(x0, noise, a)
    assert x.dtype == v.dtype == jnp.float32
    np.testing.assert_array_equal(x[2], noise[2])
    np.testing.assert_array_equal(v[2], -x0[2])
    np.testing.assert_allclose(objective.clean(x, v, a), x0, atol=1e-6)
    np.testing.assert_array_equal(objective.loss(v, x0, noise, a), 0)
    got = objective.loss(prediction, x0, noise, a)
    assert got.shape == (3,)
    weighted = jnp.mean((objective.clean(x, prediction, a) - x0) ** 2, axis=(1, 2, 3, 4)) / (1 - a)
    np.testing.assert_allclose(got, weighted, rtol=1e-4)


def test_uniform_timesteps():
    t = objective.uniform_timesteps(jax.random.key(1), 4096, 10)
    assert t.shape == (4096,) and t.dtype == jnp.int32
    assert np.bincount(t, minlength=10).min() > 300 and t.min() == 0 and t.max() == 9
