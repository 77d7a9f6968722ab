"""CogVideo (2022): whole passes, cached steps, super-resolution and image tokenizer against recorded arrays."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cogvideo2022_weights import STAGES, image_tokenizer_params, network_params
from flax import traverse_util

from cogvx_jax.models.cogvideo2022.abstract import network_of
from cogvx_jax.models.cogvideo2022.cached import cache_of, step
from cogvx_jax.models.cogvideo2022.configs import ImageTokenizerConfig
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.transformer import Frames, Text
from cogvx_jax.models.cogvideo2022.visibility import between_frames
from cogvx_jax.nn.quantized import quantize_kernel
from cogvx_jax.quantization import find_quantization

PAD = 20_003
LIMIT = 2e-5  # of the largest value


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "cogvideo2022_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def params():
    made = {}

    def make(name):
        if name not in made:
            made[name] = jax.tree.map(jnp.asarray, network_params(STAGES[name]))
        return made[name]

    return make


def text_of(golden, length=None):
    ids = golden["text"]
    pads = 0 if length is None else length - len(ids)
    real = np.arange(len(ids) + pads) >= pads
    return Text(np.pad(ids, (pads, 0), constant_values=PAD)[None], real[None])


def whole(cfg, params, text, codes, frames):
    network = network_of(cfg)
    run = jax.jit(lambda p, t, c: network.apply({"params": p}, t, c, frames))
    return run(params, text, jnp.asarray(codes)[None])


def assert_near(found, expected, limit=LIMIT):
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit * np.abs(expected).max())


@pytest.mark.full
@pytest.mark.parametrize("name, record", [("sequential", "train1"), ("interpolation", "train2")])
def test_training_pass_is_the_recorded_one(name, record, golden, params):
    cfg = STAGES[name]
    codes = golden["frames"].reshape(5, 400)
    hidden, _ = whole(cfg, params(name), text_of(golden, 64), codes, Frames(tuple(range(5)), training_mask=True))
    assert_near(hidden[0, golden["rows"]], golden[f"{record}_hidden"])


def steps_of(cfg, params, text, given, codes, slot, count, *, training_mask=False, **bias):
    """Hidden states of the first codes of a slot after a pass over the text and the given frames, and that pass's."""
    network = network_of(cfg)
    frames = Frames(cfg.order[: len(given)], given=len(given), training_mask=training_mask, **bias)
    if not bias.get("temporal", True):
        bias.pop("temporal")

    @jax.jit
    def run(params, text, given, codes):
        hidden, kept = network.apply({"params": params}, text, given, frames)

        def one(cache, code_and_place):
            y, cache = step(network, params, cache, text.real, *code_and_place, slot=slot, **bias)
            return cache, y[0]

        before = jnp.pad(codes, (1, 0))[:count, None]
        return hidden, jax.lax.scan(one, cache_of(cfg, kept, text.ids.shape[1]), (before, jnp.arange(count)))[1]

    hidden, steps = run(params, text, jnp.asarray(given)[None], jnp.asarray(codes))
    return hidden[0], steps


def test_steps_of_the_first_frame_are_the_recorded_ones(golden, params):
    cfg, codes = STAGES["sequential"], golden["frames"].reshape(5, 400)
    _, found = steps_of(
        cfg, params("sequential"), text_of(golden), codes[:0], codes[0], 0, 30, temporal=False, text_bias=1.4
    )
    assert_near(found, golden["cache1_first"])


@pytest.mark.full
def test_steps_of_the_second_frame_are_the_recorded_ones(golden, params):
    cfg, codes = STAGES["sequential"], golden["frames"].reshape(5, 400)
    first, found = steps_of(cfg, params("sequential"), text_of(golden), codes[:1], codes[1], 1, 30, text_bias=1.4)
    assert_near(first[::13], golden["cache1_prefill"])
    assert_near(found, golden["cache1_second"])


@pytest.mark.full
@pytest.mark.parametrize("name, record", [("interpolation", "cache2"), ("four_layers", "cache2_L4")])
def test_steps_between_frames_are_the_recorded_ones(name, record, golden, params):
    cfg, codes = STAGES[name], golden["frames"].reshape(5, 400)
    expected = golden[f"{record}_slot1"]
    args = cfg, params(name), text_of(golden), codes[[0, 2, 4]], codes[1], 3, len(expected)
    first, found = steps_of(*args, text_bias=1.4)
    assert_near(first[::37], golden[f"{record}_prefill"])
    assert_near(found, expected)


@pytest.mark.full
@pytest.mark.parametrize("name, layers", [("interpolation", 2), ("four_layers", 4)])
def test_the_training_mask_of_given_frames(name, layers, golden, params):
    """Without the text's bias, steps are the training pass's where given codes have its mask, too."""
    cfg, codes = STAGES[name], golden["frames"].reshape(5, 400)
    args = cfg, params(name), text_of(golden), codes[[0, 2, 4]], codes[1], 3, 20
    _, found = steps_of(*args)
    assert_near(found, golden[f"cache2_L{layers}_slot1_bias0"])
    if layers == 4:
        _, found = steps_of(*args, training_mask=True)
        assert_near(found, golden["train2_L4_slot1"])


@pytest.mark.full
def test_super_resolution_is_the_recorded_one(golden, params):
    cfg = STAGES["super_resolution"]
    ids = golden["dsr_text"]
    pads = cfg.text_length - len(ids)
    text = Text(np.pad(ids, (pads, 0))[None], (np.arange(cfg.text_length) >= pads)[None])
    network = network_of(cfg)
    hidden = jax.jit(lambda p, t, c: network.apply({"params": p}, t, c))(
        params("super_resolution"), text, golden["dsr_image"][None]
    )
    assert_near(hidden[0, golden["dsr_rows"]], golden["dsr_hidden"])


def test_visible_pairs_are_the_recorded_ones(golden):
    cfg, w = STAGES["interpolation"], 100
    plain, moved = between_frames(cfg, tuple(range(5)), 0)
    for mask, expected in ((plain[:1], golden["interp_causal_blocks"][None]), (moved, golden["interp_shift_blocks"])):
        pairs = mask.reshape(len(mask), 5, w, 5, w).sum((2, 4))
        np.testing.assert_array_equal(np.broadcast_to(pairs, expected.shape), expected)


@pytest.mark.full
def test_image_tokenizer_is_the_recorded_one(golden):
    cfg = ImageTokenizerConfig()
    network, params = ImageTokenizer(cfg), image_tokenizer_params(cfg)
    picture = np.float32(np.random.default_rng(160).random((1, 3, 160, 160))).transpose(0, 2, 3, 1)
    features = jax.jit(lambda p, x: network.apply({"params": p}, x, method="features"))(params, picture)[0]
    assert_near(features[::4, ::4, ::16].transpose(2, 0, 1), golden["vq_before_quant"])
    ids = network.apply({"params": params}, features[None], method="nearest")[0]
    words = params["codebook"]
    distances = np.sum(words**2, -1) - 2 * np.asarray(features).reshape(-1, 256) @ words.T
    two = np.sort(np.partition(distances, 1, axis=-1)[:, :2], axis=-1)
    clear = (two[:, 1] - two[:, 0]).reshape(20, 20) > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(ids)[clear], golden["vq_ids"][clear])
    pixels = jax.jit(lambda p, x: network.apply({"params": p}, x, method="decode"))(params, golden["vq_tokens"][None])[
        0
    ]
    assert_near(pixels[::8, ::8].transpose(2, 0, 1), golden["vq_decoded"])
    assert_near(pixels.mean((0, 1)), golden["vq_decoded_mean"])


@pytest.mark.full
@pytest.mark.parametrize("kind, limit", [("int8", 0.03), ("int4:32", 0.5), ("bfloat16", 0.024)])
def test_integers_and_sixteen_bits_cost_what_the_page_says(kind, limit, golden, params):
    """0.010, 0.164 and 0.008 were measured."""
    cfg, exact = STAGES["sequential"], params("sequential")
    codes, frames = golden["frames"].reshape(5, 400)[:2], Frames((0, 1), 2)
    expected, _ = whole(cfg, exact, text_of(golden), codes, frames)
    if kind == "bfloat16":
        network, other = network_of(cfg, kind), jax.tree.map(lambda x: x.astype(kind), exact)
    else:
        network, other = network_of(cfg), quantized_params(exact, find_quantization(kind))
    run = jax.jit(lambda p, t, c: network.apply({"params": p}, t, c, frames)[0])
    found = np.float32(run(other, text_of(golden), jnp.asarray(codes)[None]))
    assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)


def quantized_params(params, how):
    """Kernels as integers, and their scales."""
    flat = {}
    for path, x in traverse_util.flatten_dict(params, sep="/").items():
        storage = how.storage(path)
        kernel = None if storage is None else quantize_kernel(x, storage)
        flat |= {path: x} if kernel is None else {path: kernel.values, f"{path}_scale": kernel.scale}
    return traverse_util.unflatten_dict(flat, sep="/")
