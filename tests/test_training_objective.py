"""The training loss: what the model is shown, and what it is asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cogvx_jax import presets
from cogvx_jax.configs import Compute, ModelSpec, TransformerConfig, VAEConfig
from cogvx_jax.convert import expected_shapes
from cogvx_jax.diffusion import objective as formulas
from cogvx_jax.diffusion import schedule
from cogvx_jax.models import lora as loras
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.tasks import resize_known
from cogvx_jax.train.run_folder import as_json
from cogvx_jax.train.transformer import objective
from cogvx_jax.train.transformer.objective import Objective, make_lora_loss, make_loss
from cogvx_jax.train.transformer.run import _modern
from cogvx_jax.train.transformer.settings import RunConfig

VAE = VAEConfig(channels=(4, 4, 4, 8), layers=1, groups=2, latent_channels=4, scaling_factor=0.7)
SMALL = TransformerConfig(layers=1, heads=1, head_dim=16, in_channels=4, out_channels=4, text_dim=6, time_dim=8)
SMALL = dataclasses.replace(SMALL, text_length=3, sample_height=4, sample_width=4, sample_frames=9, position="rope")
T2V = ModelSpec(name="small", transformer=SMALL, vae=VAE)
I2V = ModelSpec(
    name="1.5", transformer=dataclasses.replace(SMALL, in_channels=8, patch_t=2, position="rope_slice"), vae=VAE
)
INPAINT = dataclasses.replace(T2V, name="inpaint", transformer=dataclasses.replace(SMALL, in_channels=9))
PLAIN = Objective(text_dropout=0, image_dropout=0, image_noise=False)
KEY = jax.random.key(0)


@pytest.mark.parametrize("batch", [1, 3, 40, 1000, 1500])
def test_explicit_timesteps_stay_in_their_part(batch):
    draws = np.stack([formulas.explicit_timesteps(jax.random.key(i), batch, 1000) for i in range(20)])
    assert draws.dtype == np.int32 and draws.min() >= 0 and draws.max() <= 999
    row = np.arange(batch)
    assert np.all(draws >= np.floor(row * 1000 / batch)) and np.all(draws <= np.ceil((row + 1) * 1000 / batch))


def test_explicit_timesteps_are_uniform_altogether():
    keys = jax.random.split(KEY, 20000)
    draws = np.asarray(jax.vmap(lambda k: formulas.explicit_timesteps(k, 7, 10))(keys)).ravel()
    np.testing.assert_allclose(np.bincount(draws, minlength=10) / len(draws), 0.1, atol=0.005)


@pytest.fixture
def shown(monkeypatch):
    """What the transformer is called with; in its place stands a model that predicts zeros."""
    calls: dict = {}

    class Fake:
        def __init__(self, cfg, compute):
            self.cfg = cfg

        def apply(self, variables, x, text, t, per_block=None):
            calls.update(x=x, text=text, t=t)
            return jnp.zeros((*x.shape[:-1], self.cfg.out_channels))

    monkeypatch.setattr(objective, "Transformer", Fake)
    return calls


def evaluate(shown, loss, batch):
    """The loss, as one program; `shown` holds the numbers of that program afterwards."""

    def run(batch):
        shown.clear()
        return loss({}, batch, KEY), dict(shown)

    value, found = jax.jit(run)(batch)
    shown.update({name: np.asarray(x) for name, x in found.items()})
    return value


def batch_of(spec, count, frames=3, seed=0):
    """Clips with a posterior so narrow that its mean is what is drawn."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(count, frames, 4, 4, 4)).astype(np.float32)
    text = rng.normal(size=(count + 1, 3, 6)).astype(np.float32)
    batch = {"moments": np.concatenate([mean, np.full_like(mean, -30)], -1), "text": text[1:], "empty": text[0]}
    if spec.kind == "i2v":
        batch["image"] = rng.uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)
    return batch


@pytest.mark.parametrize("options", [PLAIN, dataclasses.replace(PLAIN, timesteps="uniform", noise_offset=0.5)])
def test_the_loss_is_the_squared_error_of_v(shown, options):
    batch = batch_of(T2V, 8)
    value = evaluate(shown, make_loss(T2V, Compute(), options), batch)
    x0, t = 0.7 * np.float64(batch["moments"][..., :4]), shown["t"]
    alphas = schedule.alphas_bar(T2V.schedule)[t].reshape(-1, 1, 1, 1, 1)
    noise = (shown["x"] - np.sqrt(alphas) * x0) / np.sqrt(1 - alphas)
    v = np.sqrt(alphas) * noise - np.sqrt(1 - alphas) * x0
    np.testing.assert_allclose(value, np.mean(v**2), rtol=1e-4)
    np.testing.assert_array_equal(shown["text"], batch["text"])
    spread = noise.mean(axis=(1, 2, 3, 4)).std()
    assert spread > 0.2 if options.noise_offset else spread < 0.2
    if options.timesteps == "explicit":
        assert np.all(t // 125 == np.arange(8))


@pytest.mark.parametrize("empty", ["encoded", "zeros"])
def test_dropped_text(shown, empty):
    batch = batch_of(T2V, 64)
    evaluate(shown, make_loss(T2V, Compute(), dataclasses.replace(PLAIN, text_dropout=0.25, empty=empty)), batch)
    replaced = np.any(shown["text"] != batch["text"], axis=(1, 2))
    assert 6 <= replaced.sum() <= 26
    expected = batch["empty"] if empty == "encoded" else np.zeros((3, 6))
    np.testing.assert_array_equal(shown["text"][replaced], np.broadcast_to(expected, (replaced.sum(), 3, 6)))


@pytest.mark.full
def test_an_image_stands_at_the_repeated_first_frame(shown, monkeypatch):
    def encode(vae, params, pixels):  # posteriors that tell which image they are of
        shown["pixels"] = pixels
        mean = jnp.broadcast_to(pixels.mean(axis=(1, 2, 3, 4), keepdims=True), (len(pixels), 1, 4, 4, 4))
        return jnp.concatenate([mean, jnp.full_like(mean, -30)], axis=-1)

    monkeypatch.setattr(objective.vaes, "encode", encode)
    batch = batch_of(I2V, 32) | {"vae": {}}
    evaluate(shown, make_loss(I2V, Compute(), PLAIN), batch)
    np.testing.assert_array_equal(shown["pixels"][:, 0], batch["image"])
    x = shown["x"]
    assert x.shape == (32, 4, 4, 4, 8)  # 3 latent frames and one in front
    condition = x[:, 0, 0, 0, 4:]
    expected = 0.7 * batch["image"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(condition, np.repeat(expected[:, None], 4, 1), atol=1e-5)
    assert not x[:, 1:, ..., 4:].any()

    scaled = dataclasses.replace(I2V, vae=dataclasses.replace(VAE, invert_scale_latents=True))
    evaluate(shown, make_loss(scaled, Compute(), PLAIN), batch)
    np.testing.assert_allclose(shown["x"][:, 0, 0, 0, 4], expected / 0.49, atol=1e-5)
    evaluate(shown, make_loss(scaled, Compute(), dataclasses.replace(PLAIN, image_scale=1.0)), batch)
    np.testing.assert_allclose(shown["x"][:, 0, 0, 0, 4], expected / 0.7, atol=1e-5)

    evaluate(shown, make_loss(I2V, Compute(), dataclasses.replace(PLAIN, image_dropout=0.4, image_noise=True)), batch)
    dropped = ~np.any(shown["x"][:, 0, ..., 4:], axis=(1, 2, 3))
    assert 5 <= dropped.sum() <= 21
    levels = np.log((shown["pixels"][:, 0] - batch["image"]).std(axis=(1, 2, 3)))  # one for each image
    assert abs(levels.mean() + 3) < 0.4 and 0.3 < levels.std() < 0.7


SOME_PIXELS = np.random.default_rng(1).integers(1, 255, (24, 9, 32, 32, 3), np.uint8)


def encode_some(vae, params, pixels):
    """Narrow posteriors of some of the pixels."""
    mean = jnp.concatenate([pixels[:, ::4, ::8, ::8], pixels[:, ::4, 1::8, ::8, :1]], axis=-1)
    return jnp.concatenate([mean, jnp.full_like(mean, -30)], axis=-1)


@pytest.fixture
def inpainted(shown, monkeypatch):
    """`inpainted(patch_t, text_alone)`: of 24 random clips, pixels that the VAE sees and the model's channels."""

    def encode(vae, params, pixels):
        shown["pixels"] = pixels
        return encode_some(vae, params, pixels)

    def evaluated(patch_t, text_alone):
        spec = dataclasses.replace(INPAINT, transformer=dataclasses.replace(INPAINT.transformer, patch_t=patch_t))
        batch = batch_of(T2V, 24) | {"pixels": SOME_PIXELS, "vae": {}}
        evaluate(shown, make_loss(spec, Compute(), dataclasses.replace(PLAIN, text_alone=text_alone)), batch)
        return shown["pixels"], shown["x"][..., 4:]

    monkeypatch.setattr(objective.vaes, "encode", encode)
    return evaluated


@pytest.mark.parametrize("patch_t", [pytest.param(None, marks=pytest.mark.full), 2])
def test_an_inpainting_model_is_told_what_is_known(inpainted, patch_t):
    """The channel and the black of its masks agree, as those of the pipeline do."""
    seen, channels = inpainted(patch_t, 0.0)
    made = np.all(seen == -1, axis=-1)
    np.testing.assert_allclose(seen[~made], SOME_PIXELS[~made] / 127.5 - 1, atol=1e-6)
    known = np.stack([resize_known(~one, (3, 4, 4)) for one in made])
    expected = np.concatenate([known[..., None], encode_some(None, None, seen)[..., :4]], axis=-1) * 0.7
    if patch_t:
        np.testing.assert_array_equal(channels[:, 0], channels[:, 1])
        channels = channels[:, 1:]
    np.testing.assert_allclose(channels, expected, atol=1e-5)
    everything = made.all(axis=(1, 2, 3))
    assert 0 < everything.sum() < 24 and np.all(channels[everything, ..., 0] == 0)


@pytest.mark.full
@pytest.mark.parametrize("patch_t", [None, 2])
def test_all_of_a_clip_is_told_by_zeros(inpainted, patch_t):
    everything = np.all(inpainted(patch_t, 0.0)[0] == -1, axis=(1, 2, 3, 4))
    told = np.any(inpainted(patch_t, 1.0)[1], axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(told, ~everything)  # the same masks


@pytest.mark.full
def test_pictures_get_noise_where_a_model_was_trained_with_it(shown, monkeypatch):
    def encode(vae, params, pixels):
        shown["pixels"] = pixels
        return jnp.zeros((len(pixels), 3, 4, 4, 8))

    monkeypatch.setattr(objective.vaes, "encode", encode)
    noisy = dataclasses.replace(INPAINT, defaults=dataclasses.replace(INPAINT.defaults, image_noise=0.0563))
    pixels, seen = np.full((16, 9, 32, 32, 3), 127.5, np.float32), []
    for spec in (INPAINT, noisy):
        batch = batch_of(T2V, 16) | {"pixels": pixels, "vae": {}}
        options = dataclasses.replace(PLAIN, image_noise=True, masks=("block",))
        evaluate(shown, make_loss(spec, Compute(), options), batch)
        seen.append(shown["pixels"])
    plain, drawn = seen
    np.testing.assert_array_equal(drawn == -1, plain == -1)
    levels = [drawn[i][plain[i] != -1].std() for i in range(16)]
    assert abs(np.log(levels).mean() + 3) < 0.4 and np.ptp(np.log(levels)) > 0.5  # one for each clip


@pytest.mark.full
def test_the_frame_in_front_is_the_first_again(shown):
    batch = batch_of(T2V, 2)
    options = dataclasses.replace(PLAIN, timesteps="uniform")
    longer = dataclasses.replace(T2V, transformer=dataclasses.replace(SMALL, patch_t=2))
    for frames, shape in ((3, 4), (2, 2)):
        some = batch | {"moments": batch["moments"][:, :frames]}
        evaluate(shown, make_loss(longer, Compute(), options), some)
        assert shown["x"].shape[1] == shape
    latents = objective._clip_latents(longer, jnp.asarray(batch["moments"]), KEY)
    np.testing.assert_allclose(latents[:, 0], latents[:, 1])


MORE = ("5b", "5b-i2v", "1.5-5b")


@pytest.mark.parametrize("preset", ["1.5-5b-i2v", *(pytest.param(p, marks=pytest.mark.full) for p in ("2b", *MORE))])
def test_the_five_models_have_a_loss_and_a_gradient(preset):
    """At full size, of shapes alone."""
    spec = presets.PRESETS[preset]
    scale, own = spec.vae.spatial_compression, spec.defaults
    frames, height, width = (own.num_frames - 1) // 4 + 1, own.height // scale, own.width // scale
    count = 2

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, "float32")

    text = (spec.transformer.text_length, spec.transformer.text_dim)
    batch = {"moments": array(count, frames, height, width, 32), "text": array(count, *text), "empty": array(*text)}
    if spec.kind == "i2v":
        vae = {path: array(*shape) for path, shape in expected_shapes(spec, "vae").items()}
        batch |= {"image": array(count, own.height, own.width, 3), "vae": traverse_util.unflatten_dict(vae, sep="/")}
    flat = {path: array(*shape) for path, shape in expected_shapes(spec, "transformer").items()}
    params = traverse_util.unflatten_dict(flat, sep="/")
    value = jax.eval_shape(make_loss(spec, Compute(), Objective()), params, batch, KEY)
    assert value.shape == () and value.dtype == jnp.float32
    cfg = loras.LoRAConfig(rank=4, targets=("to_q", "ff"))
    adapters = jax.eval_shape(lambda: loras.init(KEY, params, cfg))
    loss = make_lora_loss(spec, Compute(), Objective(), cfg.alpha / cfg.rank)
    grads = jax.eval_shape(jax.grad(loss), adapters, batch | {"base": params}, KEY)
    assert jax.tree.map(lambda x: x.shape, grads) == jax.tree.map(lambda x: x.shape, adapters)


@pytest.mark.full
def test_adapters_learn_and_the_base_does_not_move(random_params):
    params = random_params(Transformer(SMALL), jnp.ones((1, 3, 4, 4, 4)), jnp.ones((1, 3, 6)), jnp.ones(1))
    cfg = loras.LoRAConfig(rank=2, targets=("to_v",))
    adapters = loras.init(KEY, params, cfg)
    batch = batch_of(T2V, 4) | {"base": params}
    loss = make_lora_loss(T2V, Compute(), Objective(), 1.0)
    value, grads = jax.jit(jax.value_and_grad(loss))(adapters, batch, KEY)
    np.testing.assert_allclose(value, make_loss(T2V, Compute(), Objective())(params, batch, KEY), rtol=1e-5)
    assert float(jnp.abs(grads["blocks/attention/v/kernel"]["b"]).max()) > 0


def test_a_run_of_before_there_were_masks_goes_on():
    now = as_json(dataclasses.asdict(RunConfig(objective=PLAIN)))
    before = now | {"objective": {name: now["objective"][name] for name in ("text_dropout", "image_dropout")}}
    for name in ("masks", "text_alone"):
        assert _modern(before)["objective"][name] == now["objective"][name]
    assert _modern(before)["objective"]["text_dropout"] == 0


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(text_dropout=1.5), "text_dropout must be between 0 and 1"),
        (dict(noise_offset=-1), "noise_offset"),
        (dict(timesteps="even"), "explicit or uniform"),
        (dict(empty="none"), "encoded or zeros"),
        (dict(text_alone=2.0), "text_alone must be between 0 and 1"),
        (dict(masks=("all", "last")), "masks must be some of all, first, first-last, block, block-in-time, got 'last'"),
        (dict(masks=()), "masks must be some of .*, got 'none'"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        Objective(**options)
