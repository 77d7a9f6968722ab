"""Exact results: the same bits on one device and on meshes of `data` and `cfg`, whatever the batch."""

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.pipelines.latents import decode_frames
from cogvx_jax.pipelines.request import latent_frames

KINDS = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v", "control", "inpaint", "repaint", "edit")
MODELS = {"repaint": "5b", "edit": "5b"}  # of kinds of tasks that other models have
MESHES = (dict(data=2), dict(cfg=2), dict(data=2, cfg=2))
PROMPTS = ["a red circle", "a blue star"]
IMAGE = np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (32, 1, 3))
CLIP = np.stack([np.roll(IMAGE, 2 * i, axis=1) for i in range(9)])
INPUTS = {  # of a kind, beside the prompt
    "5b-i2v": dict(image=IMAGE),
    "1.5-5b-i2v": dict(image=IMAGE),
    "control": dict(control=CLIP),
    "inpaint": dict(video=CLIP, mask=CLIP[..., 0] > 99),
    "repaint": dict(video=CLIP, mask=CLIP[..., 0] > 99, strength=1.0),
    "edit": dict(edit=CLIP),
}


@functools.cache
def made(folder, kind, mesh, videos=2):
    """Final latents, and frames of the last video."""
    model = cx.load(folder, mesh=mesh)
    latents = cx.generate(
        model,
        PROMPTS[:videos],
        num_inference_steps=3,
        sampler="dpm",
        output="latents",
        progress=False,
        exact=True,
        **INPUTS.get(kind, {}),
    )
    padding = latents.shape[1] - latent_frames(model.spec, model.spec.defaults.num_frames)
    frames = decode_frames(dataclasses.replace(model, exact=True), latents[-1:], padding)
    return latents, np.concatenate(list(frames))


def cases():
    for kind in KINDS:
        for sizes in MESHES:
            name = "-".join([kind, *(f"{axis}{n}" for axis, n in sizes.items())])
            yield pytest.param(kind, sizes, id=name)


def mesh_of(sizes):
    return cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


@pytest.mark.full
@pytest.mark.parametrize("kind, sizes", list(cases()))
def test_every_bit_is_the_same(small, kind, sizes):
    folder, _ = small(MODELS.get(kind, kind))
    for here, alone in zip(made(folder, kind, mesh_of(sizes)), made(folder, kind, None), strict=True):
        np.testing.assert_array_equal(here, alone)


@pytest.mark.full
def test_a_video_does_not_depend_on_its_batch(small):
    folder, _ = small("5b")
    np.testing.assert_array_equal(made(folder, "5b", None, videos=1)[0], made(folder, "5b", None)[0][:1])


def test_other_meshes_are_refused(small, monkeypatch, capsys):
    folder, _ = small("5b")
    model = cx.load(folder, mesh=mesh_of(dict(cfg=2, sp=2)))
    with pytest.raises(ValueError, match="exact results need a mesh of data and cfg only, got sp=2"):
        cx.generate(model, "a red circle", exact=True)
    with pytest.raises(ValueError, match="exact results need a program per step"):
        cx.generate(cx.load(folder), "a red circle", exact=True, one_program=True)
    arguments = ["generate", "a red circle", "--model", folder, "--exact", "--mesh", "fsdp=4,context=2"]
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "data and cfg only, got fsdp=4,context=2" in capsys.readouterr().err
