"""A cache of encoded clips: damage, wrong shapes and numbers that are not finite are named; `cogvx verify`."""

import dataclasses
import sys
import warnings

import numpy as np
import pytest
import safetensors.numpy

from cogvx_jax.cli import main as cli
from cogvx_jax.train.clips import store as stores
from cogvx_jax.train.clips.cache import (
    ClipCache,
    Shape,
    chosen,
    clip_name,
    open_cache,
    store_of,
    text_name,
    write_cache,
)

TEXT = np.ones((3, 8), np.float32)


def clip(height=32):
    return {"moments": np.ones((3, height // 8, 6, 8), np.float32), "image": np.zeros((height, 48, 3), np.uint8)}


def make(folder, **clips):
    """A cache of these clips of 9 frames of 32x48, each with the same caption."""
    store = store_of(folder)
    for name, arrays in clips.items():
        store.add(clip_name(name), arrays)
    for text in ("words", "empty"):
        store.add(text_name(text), {"states": TEXT})
    store.commit()
    made = {"model": "small", "vae": "a", "text_encoder": "b", "shape": Shape(32, 48, 9, 8.0), "empty": "empty"}
    write_cache(ClipCache(folder=folder, clips=tuple((name, "words") for name in clips), **made))
    return open_cache(folder)


def verify(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", "verify", str(folder)])
    cli.main()


def test_a_whole_cache_is_verified(tmp_path, monkeypatch, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = make(tmp_path / "cache", a=clip(), b=clip())
        assert cache.batch([0, 1])["moments"].shape == (2, 3, 4, 6, 8)
    verify(cache.folder, monkeypatch)
    assert "4 entries are what was written; " in capsys.readouterr().out


def test_old_caches_are_read_with_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stores, "encode_entry", safetensors.numpy.save)
    with pytest.warns(UserWarning, match="cache was encoded before entries had checksums") as said:
        cache = make(tmp_path / "cache", a=clip())
        cache.batch([0])
    assert len(said) == 1
    verify(cache.folder, monkeypatch)
    assert "3 entries are what was written, but 3 of them have no checksum" in capsys.readouterr().out


def test_what_is_wrong_names_the_folder_and_the_entry(tmp_path, monkeypatch, capsys):
    broken = clip()
    broken["moments"][1, 2, 3, 4] = np.nan
    cache = make(tmp_path / "cache", a=clip(), small=clip(16), nan=broken, bare={"image": clip()["image"]})
    with pytest.raises(
        ValueError, match=r"cache: moments of the entry clip/small is of shape \(3, 2, 6, 8\), not \(3, 4"
    ):
        cache.batch([0, 1])
    with pytest.raises(ValueError, match="cache: moments of the entry clip/nan holds numbers that are not finite"):
        cache.batch([2])
    with pytest.raises(ValueError, match="cache: moments of the entry clip/bare is missing"):
        cache.batch([3])
    with pytest.raises(SystemExit) as stopped:
        verify(cache.folder, monkeypatch)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "cache: 3 of 6 entries\n  moments of the entry clip/bare is missing" in said


def test_damage_is_found_by_verify(tmp_path, monkeypatch, capsys):
    cache = make(tmp_path / "cache", a=clip())
    for file in (cache.folder / "arrays" / "d").iterdir():
        data = bytearray(file.read_bytes())
        data[data.index(np.ones(20, np.float32).tobytes()) + 9] ^= 1  # in the moments
        file.write_bytes(data)
    with pytest.raises(ValueError, match="cache.arrays: the entry clip/a is damaged, it is not what was written"):
        store_of(cache.folder).read([clip_name("a")])
    with pytest.raises(SystemExit) as stopped:
        verify(cache.folder, monkeypatch)
    assert stopped.value.code == 2 and "the entry clip/a is damaged" in capsys.readouterr().err


def test_stages_choose_clips_by_scores(tmp_path):
    cache = make(tmp_path / "cache", a=clip(), b=clip(), c=clip())
    with pytest.raises(ValueError, match="holds no scores"):
        chosen(cache, "motion_mean > 1")
    scores = ({"motion_mean": 2.0}, {"motion_mean": None}, {"motion_mean": 3.0})
    write_cache(dataclasses.replace(cache, scores=scores))
    cache = open_cache(cache.folder)
    assert chosen(cache, "motion_mean > 1") == [0, 2] and chosen(cache, None) == [0, 1, 2]
    for where, said in (
        ("motoin_mean > 1", "the nearest is motion_mean"),
        ("motion_mean > 9", "true of none of the 3"),
    ):
        with pytest.raises(ValueError, match=said):
            chosen(cache, where)
