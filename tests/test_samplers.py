"""Samplers of the table in whole runs: strength, meshes, exactness, stored programs, and what counts evaluations."""

import warnings

import jax
import numpy as np
import pytest
from closeness import close

import cogvx_jax as cx
from cogvx_jax.diffusion.samplers import SAMPLERS
from cogvx_jax.pipelines import denoise
from cogvx_jax.pipelines.duration import sampling_flops
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request, evaluations
from cogvx_jax.pipelines.short_schedule import computed_count
from cogvx_jax.planning.plan import plan
from cogvx_jax.presets import PRESETS

CLIP = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
SPEC = PRESETS["2b"]


def latents(model, **options):
    return cx.generate(model, "a red circle", output="latents", progress=False, **options)


def request(**options):
    return check_request(SPEC, "a panda", Options.from_keywords(**options))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("unipc", "heun") else pytest.mark.full) for name in SAMPLERS]
)
def test_a_video_is_redrawn(small, name):
    """As one program, too; one step from the middle, which all visit, is the same of all: to the clean latents."""
    _, model = small("5b")
    several = latents(model, video=CLIP, strength=0.75, sampler=name)
    close(latents(model, video=CLIP, strength=0.75, sampler=name, one_program=True), several)
    one = latents(model, video=CLIP, strength=0.5, num_inference_steps=2, sampler=name)
    close(one, latents(model, video=CLIP, strength=0.5, num_inference_steps=2, sampler="ddim"))
    assert np.abs(one - several).max() > 1e-3


def test_samplers_differ(small):
    """But Euler, which is DDIM where the number of steps divides the schedule's."""
    _, model = small("5b")
    found = {name: latents(model, sampler=name) for name in SAMPLERS}
    np.testing.assert_array_equal(found.pop("euler"), found["ddim"])
    for name, other in found.items():
        assert sum(np.abs(other - one).max() < 1e-3 * np.abs(one).max() for one in found.values()) == 1, name


@pytest.mark.parametrize(
    "name, sizes",
    [
        *(pytest.param(name, dict(cfg=2, sp=2), marks=pytest.mark.full) for name in SAMPLERS),
        pytest.param("unipc", dict(fsdp=2, context=2, tensor=2), marks=pytest.mark.full),
        pytest.param("unipc", dict(data=2, cfg=2, tensor=2), marks=pytest.mark.full),
    ],
)
def test_on_a_mesh(small, name, sizes):
    folder, model = small("5b")
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    close(latents(cx.load(folder, mesh=mesh), sampler=name), latents(model, sampler=name))


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
def test_exact_ones_have_the_same_bits_on_a_mesh(small, name):
    folder, model = small("5b")
    there = cx.load(folder, mesh=cx.make_mesh(cfg=2, devices=jax.devices()[:2]))
    np.testing.assert_array_equal(latents(there, sampler=name, exact=True), latents(model, sampler=name, exact=True))


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("one_program", [False, True])
def test_programs_are_stored(small, tmp_path, name, one_program):
    folder, model = small("5b")
    cx.compile_programs(folder, tmp_path / "programs", sampler=name, one_program=one_program)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latents(cx.load(folder, programs=tmp_path / "programs"), sampler=name, one_program=one_program)
    np.testing.assert_array_equal(found, latents(model, sampler=name, one_program=one_program))


def test_heun_evaluates_twice_a_step(small, monkeypatch):
    """And the bar, reuse, the warning of hours and the plan count evaluations."""
    _, model = small("5b")
    shown = []
    bar = denoise.tqdm
    monkeypatch.setattr(denoise, "tqdm", lambda some, **options: shown.append(len(some)) or bar(some, **options))
    cx.generate(model, "x", sampler="heun", reuse="steps:xx.xxx", output="latents")
    assert shown == [6]
    with pytest.raises(ValueError, match="names 4 steps, but 6 are taken"):
        latents(model, sampler="heun", reuse="steps:x.xx")
    ddim, heun = request(sampler="ddim"), request(sampler="heun")
    assert (evaluations(SPEC, ddim), evaluations(SPEC, heun)) == (50, 98)
    assert sampling_flops(SPEC, heun, 1) / sampling_flops(SPEC, ddim, 1) == 98 / 50
    assert computed_count(request(sampler="heun", reuse="every:2"), SPEC) == 49
    redrawn = request(sampler="heun", video=np.zeros((9, 480, 720, 3), np.uint8), strength=0.5, num_frames=9)
    assert evaluations(SPEC, redrawn, 0.5) == 2 * 25 - 1


@pytest.mark.full
def test_a_plan_counts_evaluations(small):
    folder, _ = small("5b")
    made = [plan(str(folder), sampler=name, fresh=True) for name in ("euler", "heun")]
    assert [one.evaluations for one in made] == [4, 6] and [one.steps for one in made] == [4, 4]
    assert made[1].flops / made[0].flops == 1.5
    third = plan(str(folder), sampler="euler", guider="stg:layers=0", enhance=1.0, fresh=True)
    assert (third.thirds, third.evaluations) == (4, 4) and third.flops / made[0].flops == 1.5
    assert third.guider == "stg:rescale=0,layers=0,scale=1,begin=0,end=1" and third.chosen is not None
