"""The VAE on its own: frame batches and caches, shapes, the posterior, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.configs import Compute, VAEConfig
from cogvx_jax.models import tiling
from cogvx_jax.models import vae as vaes
from cogvx_jax.nn.backend import PLAIN, using
from cogvx_jax.nn.conv import CausalConv, FrameConv
from cogvx_jax.nn.norms import Moments
from cogvx_jax.nn.strips import over_strips, rows_of

pytestmark = pytest.mark.device

CFG = VAEConfig(channels=(4, 4, 8), layers=1, groups=2, latent_channels=2)  # 4x4 in space
WHOLE = VAEConfig(**{**CFG.__dict__, "encode_frames": None, "decode_frames": None})


def normal(seed, *shape):
    return jax.device_put(np.float32(np.random.default_rng(seed).normal(size=shape)))


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(vaes.VAE(CFG), normal(0, 1, 1, 4, 4, 3))


def compiled(cfg, method):
    vae = vaes.VAE(cfg)

    def run(p, x, cache):
        with using(PLAIN):  # the definitions, which compile fastest
            return vae.apply({"params": p}, x, cache, method=method)

    return jax.jit(run)


ENCODE_BATCH, DECODE_BATCH = compiled(CFG, "encode_batch"), compiled(CFG, "decode_batch")
encode = functools.partial(vaes.encode, vaes.VAE(CFG), encode_batch=ENCODE_BATCH)
decode = functools.partial(vaes.decode, vaes.VAE(CFG), decode_batch=DECODE_BATCH)


# --- frame batches ---


@pytest.mark.parametrize(
    "frames, size, expected",
    [
        (49, 8, [9] + [8] * 5),
        (81, 8, [9] + [8] * 9),
        (85, 8, [13] + [8] * 9),
        (48, 8, [8] * 6),
        (13, 2, [3] + [2] * 5),
        (21, 2, [3] + [2] * 9),
        (12, 2, [2] * 6),
        (1, 8, [1]),
        (1, 2, [1]),
        (7, 8, [7]),
        (49, None, [49]),
    ],
)
def test_frame_batches(frames, size, expected):
    batches = vaes.frame_batches(frames, size)
    assert [stop - start for start, stop in batches] == expected
    assert batches[0][0] == 0 and batches[-1][1] == frames
    assert all(a[1] == b[0] for a, b in zip(batches, batches[1:], strict=False))


PIXELS_TO_LATENTS = {
    1: 1,
    4: 1,
    5: 2,
    8: 2,
    9: 3,
    12: 3,
    13: 4,
    16: 4,
    17: 5,
    25: 7,
    33: 9,
    48: 12,
    49: 13,
    53: 14,
    81: 21,
    85: 22,
    161: 41,
}
LATENTS_TO_PIXELS = {1: 1, 2: 8, 3: 9, 4: 16, 5: 17, 10: 40, 12: 48, 13: 49, 20: 80, 21: 81, 22: 88, 41: 161, 42: 168}


QUICK = 20  # what is longer is traced for seconds
SOME = pytest.mark.parametrize("longest", [QUICK, pytest.param(1000, marks=pytest.mark.full)])


@SOME
def test_frame_counts_of_latents(params, longest):
    wanted, counts = {n: count for n, count in PIXELS_TO_LATENTS.items() if n <= longest}, {}
    for frames in wanted:
        shape = jax.eval_shape(encode, params, jax.ShapeDtypeStruct((2, frames, 8, 12, 3), jnp.float32)).shape
        assert (shape[0], *shape[2:]) == (2, 2, 3, 4)
        counts[frames] = shape[1]
    assert counts == wanted


@SOME
def test_frame_counts_of_pixels(params, longest):
    wanted, counts = {n: count for n, count in LATENTS_TO_PIXELS.items() if n <= longest}, {}
    for frames in wanted:
        shape = jax.eval_shape(decode, params, jax.ShapeDtypeStruct((2, frames, 2, 3, 2), jnp.float32)).shape
        assert (shape[0], *shape[2:]) == (2, 8, 12, 3)
        counts[frames] = shape[1]
    assert counts == wanted


@pytest.mark.parametrize(
    "count, halved, doubled", [(1, [0], [[0]]), (2, [0.5], [[0, 0, 1, 1]]), (3, [0, 1.5], [[0], [1, 1, 2, 2]])]
)
def test_time_is_halved_and_doubled(count, halved, doubled):
    x = jnp.arange(count, dtype=jnp.float32).reshape(1, -1, 1, 1, 1)
    assert vaes.halve_time(x).ravel().tolist() == halved
    assert [vaes.double_time(part).ravel().tolist() for part in vaes.first_alone(x)] == doubled


def test_output_is_float32_and_halves_stay_in_space():
    vae = vaes.VAE(CFG, Compute(dtype="bfloat16"))
    shapes = jax.eval_shape(lambda: vae.init_with_output(jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))[0])
    # Five frames become two latents, an even count, which stands for eight.
    assert (shapes.shape, shapes.dtype) == ((1, 8, 8, 8, 3), jnp.float32)


# --- caches ---


@pytest.mark.full
def test_what_stands_still_stays_still(params):
    still = jnp.repeat(normal(1, 1, 1, 8, 8, 3), 17, axis=1)
    moments = encode(params, still)
    assert moments.shape[1] == 5
    np.testing.assert_allclose(moments, jnp.repeat(moments[:, :1], 5, axis=1), rtol=0, atol=2e-5)
    pixels = decode(params, jnp.repeat(normal(2, 1, 1, 2, 2, 2), 5, axis=1))
    assert pixels.shape[1] == 17
    np.testing.assert_allclose(pixels, jnp.repeat(pixels[:, :1], 17, axis=1), rtol=0, atol=2e-5)


def identity(parts, scale, bias, *, groups, eps):
    ones = jnp.ones((parts[0].shape[0], 1, 1, 1, parts[0].shape[-1]))
    return 0 * ones, ones, 0 * ones


@pytest.mark.full
def test_the_cut_shows_in_the_norms_alone(params, monkeypatch):
    pixels, latents = normal(1, 1, 17, 8, 8, 3), normal(2, 1, 5, 2, 2, 2)

    def batched_and_whole():
        runs = ((vaes.encode, "encode_batch", pixels), (vaes.decode, "decode_batch", latents))
        for run, method, x in runs:
            yield [run(vaes.VAE(cfg), params, x, **{method: compiled(cfg, method)}) for cfg in (CFG, WHOLE)]

    batched, whole = encode(params, pixels), compiled(CFG, "encode_batch")(params, pixels, None)[0]
    assert np.abs(batched - whole).max() > 0.05
    monkeypatch.setattr("cogvx_jax.nn.norms.group_affine", identity)
    for batched, whole in batched_and_whole():
        assert batched.shape == whole.shape
        np.testing.assert_allclose(batched, whole, rtol=0, atol=2e-5 * float(np.abs(whole).max()))


def test_causal_conv_in_pieces_is_the_whole(random_params):
    conv, x = CausalConv(3), normal(0, 2, 6, 3, 4, 2)
    params = {"params": random_params(conv, x)}
    run, x = jax.jit(conv.apply), np.asarray(x)
    whole, end = run(params, x)
    pieces, cache = [], None
    for start, stop in ((0, 1), (1, 2), (2, 5), (5, 6)):
        y, cache = run(params, x[:, start:stop], cache)
        pieces.append(y)
        # The last two frames of what went in, the padding of the first batch among them.
        seen = np.concatenate([x[:, :1], x[:, :1], x[:, :stop]], axis=1)
        np.testing.assert_array_equal(cache, seen[:, -2:])
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cache, end)


def test_causal_conv_sees_no_later_frame(random_params):
    conv, x = CausalConv(3), normal(0, 1, 5, 3, 4, 2)
    params = {"params": random_params(conv, x)}
    run, other = jax.jit(conv.apply), np.array(x)
    other[:, 3] += 1
    difference = np.abs(np.asarray(run(params, x)[0]) - run(params, other)[0]).max(axis=(0, 2, 3, 4))
    assert (difference[:3] == 0).all() and (difference[3:] > 0).all()


def test_decode_stream(params):
    vae, latents = vaes.VAE(CFG), normal(2, 1, 7, 2, 2, 2)
    parts = list(vaes.decode_stream(vae, params, latents, decode_batch=DECODE_BATCH))
    assert [p.shape[1] for p in parts] == [9, 8, 8]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), decode(params, latents))


def test_decode_stream_is_lazy(params):
    calls = []

    def run(params, latents, cache):
        calls.append((latents.shape[1], cache))
        return latents, len(calls)

    stream = vaes.decode_stream(vaes.VAE(CFG), params, normal(2, 1, 5, 2, 2, 2), decode_batch=run)
    assert not calls
    next(stream)
    assert calls == [(3, None)]
    assert len(list(stream)) == 1
    assert calls == [(3, None), (2, 1)]


@pytest.mark.full
def test_a_batch_is_its_clips(params):
    pixels, latents = normal(1, 2, 9, 8, 8, 3), normal(2, 2, 3, 2, 2, 2)
    for run, x in ((encode, pixels), (decode, latents)):
        apart = jnp.concatenate([run(params, x[i : i + 1]) for i in range(2)])
        np.testing.assert_allclose(run(params, x), apart, rtol=0, atol=1e-5)


# --- padding in space ---


@pytest.mark.parametrize("size", [4, 5])
def test_the_downsampler_is_padded_right_and_below(size):
    conv, x = FrameConv(1, stride=2), normal(0, 1, 1, size, size, 1)

    def tap(row, column):
        kernel = np.zeros((3, 3, 1, 1), np.float32)
        kernel[row, column] = 1
        return np.asarray(conv.apply({"params": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}, x))[0, 0, :, :, 0]

    padded = np.pad(np.asarray(x)[0, 0, :, :, 0], ((0, 1), (0, 1)))
    for row in range(3):
        for column in range(3):
            np.testing.assert_array_equal(
                tap(row, column), padded[row : size + row - 1 : 2, column : size + column - 1 : 2]
            )
    if size == 4:
        assert (tap(2, 2)[-1] == 0).all() and (tap(2, 2)[:, -1] == 0).all()
        assert (tap(0, 0) != 0).all()


# --- the posterior ---


def test_posterior():
    moments = np.asarray(normal(0, 2, 3, 2, 2, 8))
    mean, logvar = moments[..., :4], moments[..., 4:]
    noise, sample, kl = np.asarray(normal(1, *mean.shape)), jax.jit(vaes.sample), jax.jit(vaes.kl)
    np.testing.assert_array_equal(vaes.mode(moments), mean)
    np.testing.assert_allclose(sample(moments, noise), mean + np.exp(logvar / 2) * noise, rtol=1e-6)
    np.testing.assert_array_equal(sample(moments, np.zeros_like(noise)), mean)
    expected = (np.square(mean) + np.exp(logvar) - 1 - logvar) / 2
    np.testing.assert_allclose(kl(moments), expected, rtol=1e-5, atol=1e-6)
    assert (np.asarray(kl(moments)) >= 0).all()
    assert (np.asarray(kl(np.zeros_like(moments))) == 0).all()


@pytest.mark.parametrize("logvar, bound", [(1000.0, 20.0), (-1000.0, -30.0)])
def test_log_variance_is_clipped(logvar, bound):
    moments = jnp.asarray([0.0, logvar])
    assert vaes.sample(moments, jnp.ones(1)) == pytest.approx(np.exp(bound / 2))
    assert vaes.kl(moments) == pytest.approx((np.exp(bound) - 1 - bound) / 2)


# --- tiling ---


def test_tiles_of_the_published_size():
    expected = tiling.Tiling(tile=(30, 45), stride=(25, 36), scale=8)
    assert tiling.Tiling.of(VAEConfig()) == expected


@pytest.mark.parametrize(
    "size, frame",
    [((64, 64), (64, 64)), ((64, 64), (96, 40)), ((100, 52), (48, 64)), ((8, 8), (16, 24)), ((96, 160), (96, 160))],
)
def test_tiles_cover_the_frame(size, frame):
    cfg = VAEConfig(sample_height=size[0], sample_width=size[1])
    latents = normal(0, 1, 2, frame[0] // 8, frame[1] // 8, 1)

    def enlarge(params, z, cache):  # a decoder without any context: then tiling changes nothing
        return jnp.repeat(jnp.repeat(z, 8, axis=2), 8, axis=3), None

    def shrink(params, x, cache):
        return x[:, :, ::8, ::8], None

    @jax.jit
    def there_and_back(latents):
        pixels = tiling.decode_tiled(vaes.VAE(cfg), None, latents, decode_batch=enlarge)
        return pixels, tiling.encode_tiled(vaes.VAE(cfg), None, pixels, encode_batch=shrink)

    pixels, again = there_and_back(latents)
    np.testing.assert_allclose(pixels, enlarge(None, latents, None)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(again, latents, rtol=0, atol=1e-6)


def test_tiles_put_together_on_the_host_have_the_same_bits():
    cfg, latents = VAEConfig(sample_height=16, sample_width=16), normal(0, 1, 1, 3, 2, 1)

    def enlarge(params, z, cache):
        return jnp.repeat(jnp.repeat(z, 8, axis=2), 8, axis=3) + z.mean(), None  # each tile another mean

    made = [tiling.decode_tiled(vaes.VAE(cfg), None, latents, decode_batch=enlarge, on_host=x) for x in (False, True)]
    np.testing.assert_array_equal(*made)
    assert isinstance(made[1], np.ndarray) and isinstance(made[0], jax.Array)


def test_blend_is_a_ramp():
    before, after = jnp.zeros((1, 1, 6, 2, 1)), jnp.ones((1, 1, 5, 2, 1))
    assert tiling.blend(before, after, 4, axis=2)[0, 0, :, 0, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert tiling.blend(after, before, 4, axis=2)[0, 0, :, 1, 0].tolist() == [1, 0.75, 0.5, 0.25, 0, 0]
    np.testing.assert_array_equal(tiling.blend(before, after, 0, axis=2), after)


@pytest.mark.parametrize("frame, calls", [((4, 4), 1), ((4, 3), 1), ((5, 4), 4), ((4, 5), 4), ((5, 5), 4)])
def test_a_frame_no_larger_than_a_tile_is_not_tiled(frame, calls):
    vae, shapes = vaes.VAE(VAEConfig(sample_height=64, sample_width=64)), []  # tiles of 4 x 4 latents, 3 apart

    def run(params, latents, cache):
        shapes.append(latents.shape[2:4])
        return latents, None

    jax.eval_shape(lambda z: tiling.decode_tiled(vae, None, z, decode_batch=run), normal(0, 1, 1, *frame, 2))
    assert len(shapes) == calls
    assert shapes[0] == (min(frame[0], 4), min(frame[1], 4))


# --- strips of rows ---

SHORT = VAEConfig(channels=(4, 8), layers=1, groups=2, latent_channels=2, temporal_compression=2)  # 2x2 in space


def in_strips(strips, method):
    vae = vaes.VAE(SHORT, Compute(strips=strips))

    def run(p, x, cache):
        with using(PLAIN):
            return vae.apply({"params": p}, x, cache, method=method)

    return jax.jit(run)


# Of 28 rows, and of 14: 5 strips of 6 rows and 4, and 2 of 8 and 6; 2 and none; 3 of 10 and 8, and none; rows in twos.
@pytest.mark.full
@pytest.mark.parametrize("strips", [2, 3, 5, 99])
@pytest.mark.parametrize("name", ["decode", "encode"])
def test_strips_change_nothing(name, strips, random_params):
    params = random_params(vaes.VAE(SHORT), normal(0, 1, 1, 2, 2, 3))
    x = normal(2, 2, 5, 14, 3, 2) if name == "decode" else normal(1, 2, 17, 28, 6, 3)
    whole, again = (
        getattr(vaes, name)(vaes.VAE(SHORT), params, x, **{f"{name}_batch": in_strips(n, f"{name}_batch")})
        for n in (1, strips)
    )
    np.testing.assert_allclose(again, whole, rtol=0, atol=1e-5 * max(1, float(np.abs(whole).max())))


def test_moments_of_parts_are_those_of_the_whole():
    x = 1000 + normal(0, 2, 3, 5, 4, 6)
    parts = [x[:, :, start:stop] for start, stop in ((0, 1), (1, 2), (2, 5))]
    found = functools.reduce(Moments.plus, (Moments.of([part]) for part in parts), Moments.none(2, 6))
    assert found.numbers == 3 * 5 * 4
    np.testing.assert_allclose(found.mean, np.mean(np.float64(x), axis=(1, 2, 3)), rtol=1e-6)
    # A mean of 1000 is known to 3e-5; the squares of x itself would be known to 6%.
    np.testing.assert_allclose(found.square / found.numbers, np.var(np.float64(x), axis=(1, 2, 3)), rtol=1e-4)


def test_results_of_strips_take_the_memory_of_those_that_are_done():
    """Of a chain of six videos, two are there at a time: what is made, and what it is made of."""
    shape = (1, 2, 64, 16, 8)

    def step(strips, inside, state):
        return {"made": tuple(jnp.sin(x[:, :, 1:-1]) for x in strips["x"])}, state

    def chain(x):
        for _ in range(6):
            x = over_strips(step, {"x": (x,)}, None, height=64, rows=4)[0]["made"][0]
        return jnp.sum(x)

    memory = jax.jit(chain).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2.5 * 4 * np.prod(shape)


@pytest.mark.parametrize(
    "height, strips, rows", [(28, 5, 6), (28, 1, 28), (5, 1, 5), (480, 16, 30), (720, 16, 46), (8, 99, 2)]
)
def test_rows_of_a_strip(height, strips, rows):
    assert rows_of(height, strips) == rows
