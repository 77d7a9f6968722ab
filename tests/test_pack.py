"""Frame pack: in a row with others, every clip is as if it were alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.configs import Compute, ModelSpec, TransformerConfig, VAEConfig
from cogvx_jax.diffusion import objective as formulas
from cogvx_jax.diffusion import schedule
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.embeddings import rope_at, rope_tables, sincos_at, sincos_table, token_positions
from cogvx_jax.presets import PRESETS
from cogvx_jax.sharding import activate, make_mesh
from cogvx_jax.train.clips.pack import Clip, pack, plan_rows, to_patches, video_tokens
from cogvx_jax.train.step import gradient
from cogvx_jax.train.transformer import packed_objective
from cogvx_jax.train.transformer.objective import Objective
from cogvx_jax.train.transformer.packed_objective import clip_losses, draw_clip_timesteps, make_packed_loss

SMALL = TransformerConfig(
    layers=2,
    heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=6,
    text_length=3,
    time_dim=8,
    sample_height=6,
    sample_width=8,
    sample_frames=9,
)
KINDS = {
    "2b": SMALL,
    "5b": dataclasses.replace(SMALL, position="rope"),
    "1.5-5b": dataclasses.replace(SMALL, position="rope_slice", patch_t=2),
}
VAE = VAEConfig(latent_channels=4, scaling_factor=0.7)
SHAPES = ((3, 4, 6), (1, 6, 4), (2, 4, 4))  # T, h, w: a clip, an image that shares its row, a clip in the other row
ROWS = ((0, 1), (2,))
LENGTH, MOST, T = 26, 3, np.array([[999, 3, 500], [40, 7, 7]])  # places without a clip have a timestep, too
QUICK = {"xla_backend_optimization_level": 0}  # to compile, which is what takes time here
OF = {0: (0, 0), 1: (0, 1), 2: (1, 0)}  # clip -> its row and place


def spec_of(kind):
    return ModelSpec(name=kind, transformer=KINDS[kind], vae=VAE)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def clips():
    """Clips so narrow in their posterior that the mean is what is drawn."""
    means = [normal(i, *shape, 4) for i, shape in enumerate(SHAPES)]
    return [Clip(np.concatenate([m, np.full_like(m, -30)], axis=-1), normal(10 + i, 3, 6)) for i, m in enumerate(means)]


def batch_of(cfg):
    return pack(cfg, [[clips()[i] for i in row] for row in ROWS], length=LENGTH, most=MOST)


def whole(cfg, latents):
    """The first frame in front once more where patches need it."""
    return np.concatenate([latents[: -len(latents) % (cfg.patch_t or 1)], latents])


def inputs(kind):
    """Latents and noise of each clip, whole frames; the batch, and both in its places."""
    cfg = KINDS[kind]
    x0 = [whole(cfg, clip.moments[..., :4]) for clip in clips()]
    noise = [normal(20 + i, *x.shape) for i, x in enumerate(x0)]
    batch = batch_of(cfg)
    places = []
    for of_clips in (x0, noise):
        array = np.zeros((2, LENGTH, batch["moments"].shape[-1] // 2), np.float32)
        for i, latents in enumerate(of_clips):
            row, place = OF[i]
            array[row, batch["clip"][row] == place] = to_patches(cfg, latents)
        places.append(array)
    return x0, noise, batch, places


@pytest.fixture(scope="module")
def params(random_params):
    made = {}

    def make(kind):
        if kind not in made:
            x = jnp.zeros((1, 2, 6, 8, 4))
            made[kind] = random_params(Transformer(KINDS[kind]), x, jnp.zeros((1, 3, 6)), jnp.zeros(1))
        return made[kind]

    return make


@functools.cache
def packed(kind):
    """(params, batch, x0, noise, t) -> the gradient of the sum over the clips, and each clip's loss."""

    def total(params, *args):
        losses = clip_losses(spec_of(kind), Compute(), params, *args)
        return jnp.sum(losses), losses

    return jax.jit(jax.grad(total, has_aux=True), compiler_options=QUICK)


def close(ours, expected):
    """Within 1e-5 of each leaf's largest number. One is 0 but for rounding: hence no less than 3e-8 of the largest."""
    largest = max(np.abs(b).max() for b in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 3e-3 * largest))


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_each_clip_alone(kind, params):
    x0, noise, batch, places = inputs(kind)
    alphas_bar = jnp.asarray(schedule.alphas_bar(spec_of(kind).schedule), jnp.float32)

    def alone(params):
        losses = []
        for i, (clean, eps) in enumerate(zip(x0, noise, strict=True)):
            t = jnp.array([T[OF[i]]])
            x = formulas.add_noise(clean[None], eps[None], alphas_bar[t])
            v = Transformer(KINDS[kind]).apply({"params": params}, x, clips()[i].text[None], t)
            losses.append(formulas.loss(v, clean[None], eps[None], alphas_bar[t])[0])
        return sum(losses), jnp.stack(losses)

    expected_grads, expected = jax.jit(jax.grad(alone, has_aux=True), compiler_options=QUICK)(params(kind))
    grads, losses = packed(kind)(params(kind), batch, *places, T)
    np.testing.assert_allclose([losses[OF[i]] for i in OF], expected, rtol=1e-5)
    assert not np.delete(losses.ravel(), [0, 1, 3]).any()  # places without a clip
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected_grads))
    close(grads, expected_grads)


@pytest.mark.parametrize("kind", [pytest.param("2b", marks=pytest.mark.full), "1.5-5b"])
def test_padding_does_not_matter_whatever_it_holds(kind, params):
    _, _, batch, (x0, noise) = inputs(kind)
    expected = packed(kind)(params(kind), batch, x0, noise, T)
    padding = batch["clip"] < 0
    assert padding.any(axis=1).all() and not padding[:, 0].any()
    bad = {name: array.copy() for name, array in (batch | {"x0": x0, "noise": noise}).items()}
    for name, value in {"positions": np.nan, "x0": np.inf, "noise": np.nan}.items():
        bad[name][padding] = value
    bad["text"][0, 2] = bad["text"][1, 1:] = np.nan
    t = T.copy()
    t[0, 2], t[1, 1:] = 0, 999
    found = packed(kind)(params(kind), {name: bad[name] for name in batch}, bad["x0"], bad["noise"], t)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_clips_do_not_see_each_other(params):
    cfg, (_, _, batch, (x, _)) = KINDS["5b"], inputs("5b")

    @jax.jit
    def predict(x, text, t):
        arguments = (x, text, t, batch["clip"], batch["positions"])
        return Transformer(cfg).apply({"params": params("5b")}, *arguments, method=Transformer.packed)

    before = predict(x, batch["text"], T)
    first = (batch["clip"] == 0) & (np.arange(2) == 0)[:, None]
    others = (batch["clip"] >= 0) & ~first
    other_x, other_text, other_t = x.copy(), batch["text"].copy(), T.copy()
    other_x[first] += 100
    other_text[0, 0] -= 10
    other_t[0, 0] = 5
    for changed in ((other_x, batch["text"], T), (x, other_text, T), (x, batch["text"], other_t)):
        after = predict(*changed)
        np.testing.assert_array_equal(after[others], before[others])
        assert (np.abs(after - before)[first].max(axis=-1) > 1e-4).all()  # every token of the clip sees the change


@pytest.mark.full
def test_a_batch_of_rows_can_be_computed_in_parts(params):
    batch = batch_of(KINDS["5b"]) | {"empty": normal(5, 3, 6)}
    loss = make_packed_loss(spec_of("5b"), Compute(), Objective())
    results = (
        jax.jit(gradient(loss, parts), compiler_options=QUICK)(params("5b"), batch, jax.random.key(0))
        for parts in (1, 2)
    )
    (one, grads), (two, grads_in_parts) = results
    np.testing.assert_allclose(two, one, rtol=1e-5)  # rows of two clips and of one weigh as much as their clips
    close(grads_in_parts, grads)


def test_rows_on_a_mesh(params):
    """Tokens and the numbers of their clips go the same ways; 35 tokens a row are padded to 36."""
    cfg, (_, _, batch, (x, _)) = KINDS["5b"], inputs("5b")
    mesh = make_mesh(context=2, sp=2, devices=jax.devices()[:4])

    def predict(params):
        arguments = (x, batch["text"], T, batch["clip"], batch["positions"])
        return Transformer(cfg).apply({"params": params}, *arguments, method=Transformer.packed)

    expected = jax.jit(predict)(params("5b"))
    with activate(mesh):
        found = jax.jit(predict)(params("5b"))
    real = batch["clip"] >= 0
    close(np.asarray(found)[real], np.asarray(expected)[real])


@pytest.mark.parametrize("preset", ["2b", "5b", "1.5-5b"])
def test_positions_give_the_tables(preset):
    cfg, grid = PRESETS[preset].transformer, (11, 24, 40)
    positions = token_positions(cfg, *grid)
    assert (positions.shape, positions.dtype) == ((11 * 24 * 40, 3), np.float32)
    some = np.random.default_rng(0).integers(0, len(positions), 300)
    if preset == "2b":
        found, expected = [sincos_at(cfg, positions[some])], [sincos_table(cfg, *grid)]
    else:
        found, expected = rope_at(cfg, positions[some]), rope_tables(cfg, *grid)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b[some], rtol=0, atol=1e-5)  # an angle of 40 is known to 4e-6


# --- planning and arrays ---


def test_plan_is_first_fit_decreasing():
    said = []
    rows = plan_rows([3, 7, 2, 5, 4], length=10, most=2, report=said.append)
    assert rows == [[1, 0], [3, 4], [2]]
    assert said == ["packed 5 clips into 3 rows of 10 video tokens: 70.0% of them are used, 5 of 6 places for text"]
    assert plan_rows([3, 7, 2, 5, 4], length=12, most=3, report=said.append) == [[1, 3], [4, 0, 2]]
    assert plan_rows([1, 1, 1], length=10, most=1, report=said.append) == [[0], [1], [2]]


def test_plan_keeps_every_clip_once_and_within_the_rows():
    sizes = np.random.default_rng(0).integers(1, 60, 300).tolist()
    rows = plan_rows(sizes, length=100, most=8, report=lambda line: None)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert all(sum(sizes[i] for i in row) <= 100 and len(row) <= 8 for row in rows)
    assert sum(sizes) / (100 * len(rows)) > 0.95


@pytest.mark.parametrize(
    "sizes, message", [([5, 11], "rows of 10 tokens cannot hold a clip of 11"), ([], "rows need clips")]
)
def test_plans_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        plan_rows(sizes, length=10, most=2)


def test_arrays_of_rows():
    batch = batch_of(KINDS["1.5-5b"])
    # 3 frames make 2 x 2 x 3 tokens, the image of one frame 1 x 3 x 2, 2 frames 1 x 2 x 2.
    assert [video_tokens(KINDS["1.5-5b"], shape) for shape in SHAPES] == [12, 6, 4]
    assert batch["clip"].tolist() == [[0] * 12 + [1] * 6 + [-1] * 8, [0] * 4 + [-1] * 22]
    assert batch["copies"].tolist() == [[1] * 6 + [0] * 6 + [1] * 6 + [0] * 8, [0] * 26]
    first = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 0, 0]]
    assert batch["positions"][0, :7].tolist() == first
    assert batch["positions"][0, 12:18].tolist() == [[0, r, c] for r in range(3) for c in range(2)]
    moments = clips()[1].moments
    # The image's last token: channels, then two frames of the same, then 2 x 2 pixels; mean, then log variance.
    expected = np.repeat(moments[0, 4:6, 2:4].transpose(2, 0, 1)[:, None], 2, axis=1)
    np.testing.assert_array_equal(batch["moments"][0, 17], expected.reshape(2, 4, 2, 2, 2).ravel())
    np.testing.assert_array_equal(batch["text"][0, :2], np.stack([clip.text for clip in clips()[:2]]))
    assert not batch["text"][0, 2].any() and not batch["moments"][1, 4:].any()


def test_clips_that_cannot_be_packed():
    cfg, (clip, image, _) = KINDS["5b"], clips()
    with pytest.raises(ValueError, match="2 clips of 24 tokens, its places are 1 and 26"):
        pack(cfg, [[clip, image]], length=LENGTH, most=1)
    with pytest.raises(ValueError, match="2 clips of 24 tokens, its places are 3 and 20"):
        pack(cfg, [[clip, image]], length=20, most=3)
    with pytest.raises(ValueError, match="divisible by 16"):
        pack(cfg, [[Clip(clip.moments[:, :3], clip.text)]], length=LENGTH, most=1)
    with pytest.raises(ValueError, match="texts of one shape"):
        pack(cfg, [[clip, Clip(image.moments, image.text[:2])]], length=LENGTH, most=2)
    with pytest.raises(ValueError, match="exactly 3 text tokens"):
        pack(KINDS["2b"], [[Clip(clip.moments, clip.text[:2])]], length=LENGTH, most=1)


def test_image_to_video_is_refused():
    cfg = dataclasses.replace(KINDS["1.5-5b"], in_channels=8)
    with pytest.raises(ValueError, match="frame pack is for text-to-video models"):
        pack(cfg, [clips()[:1]], length=LENGTH, most=1)
    with pytest.raises(ValueError, match="frame pack is for text-to-video models"):
        make_packed_loss(ModelSpec(name="i2v", transformer=cfg, vae=VAE), Compute(), Objective())


# --- what is random ---


@pytest.mark.parametrize("how", ["explicit", "uniform"])
def test_timesteps_of_clips(how):
    used = jnp.asarray(np.random.default_rng(0).uniform(size=(40, 4)) < 0.6)
    count = int(used.sum())
    draws = np.stack([draw_clip_timesteps(jax.random.key(i), used, 1000, how) for i in range(30)])
    assert draws.shape == (30, 40, 4) and draws.min() >= 0 and draws.max() <= 999
    drawn = np.sort(draws[:, used])
    parts = np.arange(count) * 1000 / count
    inside = (drawn >= np.floor(parts)) & (drawn <= np.ceil(parts + 1000 / count))
    assert inside.all() == (how == "explicit")
    # Over batches every place meets the whole range: else the longest clips would be trained at some of it only.
    assert np.abs(draws[:, used].mean(axis=0) - 499.5).max() < 4 * 289 / np.sqrt(30)


@pytest.mark.parametrize(
    "kind", [kind if kind == "1.5-5b" else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]
)
def test_what_the_model_is_shown(kind, monkeypatch):
    seen = {}

    def losses(spec, compute, params, batch, x0, noise, t):
        seen.update(batch=batch, x0=np.asarray(x0), noise=np.asarray(noise), t=t)
        return jnp.array([[1.0, 2.0, 0], [6.0, 0, 0]])

    monkeypatch.setattr(packed_objective, "clip_losses", losses)
    cfg, batch = KINDS[kind], batch_of(KINDS[kind])
    batch["moments"][..., batch["moments"].shape[-1] // 2 :] = 0  # a deviation of 1: copies must be of what is drawn
    options = Objective(text_dropout=1, noise_offset=100)
    value = make_packed_loss(spec_of(kind), Compute(), options)(
        {}, batch | {"empty": normal(5, 3, 6)}, jax.random.key(0)
    )
    assert value == 3  # the mean over three clips
    real = batch["clip"] >= 0
    x0 = seen["x0"].reshape(2, LENGTH, 4, cfg.patch_t or 1, 4)
    mean = 0.7 * batch["moments"][..., : seen["x0"].shape[-1]].reshape(x0.shape)
    assert 0.5 < (x0 - mean)[real].std() < 0.9
    copied = batch["copies"] > 0
    assert copied.any() == (kind == "1.5-5b")
    np.testing.assert_array_equal(x0[copied][:, :, 0], x0[copied][:, :, -1])
    if cfg.patch_t:
        apart = x0[real & ~copied]
        assert (apart[:, :, 0] != apart[:, :, 1]).all()
    # The offset is one number a clip: what is left after it is plain noise.
    levels = [seen["noise"][row][batch["clip"][row] == place] for row, place in OF.values()]
    assert np.ptp([level.mean() for level in levels]) > 10 and max(level.std() for level in levels) < 2
    np.testing.assert_array_equal(seen["batch"]["text"], np.broadcast_to(normal(5, 3, 6), (2, MOST, 3, 6)))
