"""Videos longer than trained: RIFLEx."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_files import small_spec

import cogvx_jax as cx
from cogvx_jax.models.transformer import check_packs
from cogvx_jax.nn.embeddings import rope_tables, time_frequencies
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.short_schedule import check_stored
from cogvx_jax.presets import PRESETS

GOLDEN = Path(__file__).parent / "golden"


def latents_of(model, **options):
    return cx.generate(model, "x", output="latents", progress=False, **{"num_inference_steps": 2} | options)


# RIFLEx.


def stretched(preset):
    return dataclasses.replace(PRESETS[preset].transformer, riflex=True)


def test_riflex_is_as_recorded():
    golden = np.load(GOLDEN / "riflex.npz")
    for table, name in zip(rope_tables(stretched("5b"), 25, 2, 3), ("cos", "sin"), strict=True):
        np.testing.assert_allclose(table[::5], golden[f"{name}_97_2x3_k2"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(table[::6, :16], golden[f"time_{name}_25_k2"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", ["5b", "1.5-5b"])
def test_riflex_changes_one_frequency_of_clips_beyond_its_period(preset):
    """Its count is of temporal tokens: those of 1.5 are of two latents."""
    own = time_frequencies(PRESETS[preset].transformer, 33)
    np.testing.assert_array_equal(time_frequencies(stretched(preset), 20), own)
    for tokens in (21, 33):
        found = time_frequencies(stretched(preset), tokens)
        assert found[1] == pytest.approx(0.9 * 2 * np.pi / tokens) and found[1] < own[1]
        np.testing.assert_array_equal(np.delete(found, 1), np.delete(own, 1))


def test_riflex_is_asked_for_by_a_word(small):
    _, model = small("5b")
    plain, riflex = (latents_of(model, num_frames=33, positions=one) for one in (None, "riflex"))
    assert plain.shape == riflex.shape == (1, 9, 4, 6, 4)
    assert np.abs(plain - riflex).max() > 1e-3
    np.testing.assert_array_equal(latents_of(model, positions="riflex"), latents_of(model))  # 3 of 6 tokens


def test_riflex_depends_on_a_length_that_packed_rows_have_not():
    cfg = dataclasses.replace(small_spec("5b").transformer, riflex=True)
    with pytest.raises(ValueError, match="RIFLEx's positions depend on a clip's length"):
        check_packs(cfg)


@pytest.mark.parametrize("kind, said", [("2b", "its are sincos"), ("5b-i2v", r"its are rope\+learned")])
def test_riflex_needs_rotary_positions(kind, said):
    image = np.zeros((8, 8, 3), np.uint8) if kind == "5b-i2v" else None
    with pytest.raises(ValueError, match=f"positions riflex need rotary positions, which .* has not: {said}"):
        check_request(small_spec(kind), "x", Options(positions="riflex", image=image))


def test_what_is_asked_of_positions_is_checked():
    with pytest.raises(ValueError, match="unknown positions 'ntk'; the known ones are riflex"):
        Options(positions="ntk")
    request = check_request(small_spec("5b"), "x", Options(positions="riflex"))
    with pytest.raises(ValueError, match="stored programs have the positions of training; leave out"):
        check_stored(request)
