"""What CogVideo (2022) takes on a slice: meshes, bytes of the published sizes, what a program moves."""

import sys

import jax
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.pipelines.cogvideo2022.weights import abstract_stages
from cogvx_jax.pipelines.program_bytes import moved_bytes
from cogvx_jax.pipelines.weights import device_bytes
from cogvx_jax.planning.cogvideo2022 import Sizes, abstract_cache, meshes, plan

LOOP = """\
HloModule one

%cut (p0: bf16[4,8,16], p1: s32[]) -> bf16[8,16] {
  %p0 = bf16[4,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %part = bf16[8,16]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,16}
}

%product (q0: bf16[4,8,16], q1: s32[], q2: bf16[2,8]) -> bf16[2,16] {
  %q0 = bf16[4,8,16]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %inner = bf16[8,16]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%cut
  %q2 = bf16[2,8]{1,0:T(8,128)S(1)} parameter(2)
  ROOT %y = bf16[2,16]{1,0:T(8,128)S(1)} convolution(%q2, %inner), dim_labels=bf_io->bf
}

%kept (r0: f32[100], r1: f32[1], r2: s32[]) -> f32[100] {
  %r0 = f32[100]{0} parameter(0)
  %r1 = f32[1]{0} parameter(1)
  %r2 = s32[] parameter(2)
  ROOT %new = f32[100]{0} dynamic-update-slice(%r0, %r1, %r2)
}

%body (carry: (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1])) -> (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) {
  %carry = (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %w = bf16[4,8,16]{2,1,0} get-tuple-element(%carry), index=1
  %x = bf16[2,8]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=2
  %c = f32[100]{0} get-tuple-element(%carry), index=3
  %row = f32[1]{0} get-tuple-element(%carry), index=4
  %y.1 = bf16[2,16]{1,0:T(8,128)S(1)} fusion(%w, %i, %x), kind=kOutput, calls=%product
  %c.1 = f32[100]{0} fusion(%c, %row, %i), kind=kLoop, calls=%kept
  ROOT %next = (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) tuple(%i, %w, %x, %c.1, %row)
}

%condition (carry.1: (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1])) -> pred[] {
  %carry.1 = (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) parameter(0)
  %n = s32[] get-tuple-element(%carry.1), index=0
  %four = s32[] constant(4)
  ROOT %go = pred[] compare(%n, %four), direction=LT
}

ENTRY %main (a: (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1])) -> (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) {
  %a = (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) parameter(0)
  ROOT %loop = (s32[], bf16[4,8,16], bf16[2,8], f32[100], f32[1]) while(%a), condition=%condition, body=%body
}
"""  # noqa: E501


def test_cuts_updates_and_fast_memory_are_counted_as_they_move():
    weights = 8 * 16 * 2 + 4  # the cut of bf16, and the number of the layer; product and input are in fast memory
    kept = 4 + 4 + 4  # the row is written, it is read, and so is the place
    assert moved_bytes(LOOP) == 4 * (weights + kept)


def test_updates_of_several_arrays_in_one_operation_are_counted_as_updates():
    rows = "(f32[100]{0}, f32[50]{0:T(128)S(1)}, f32[9]{0})"
    program = f"""HloModule two

%kept (c: f32[100], e: f32[50], row: f32[1], i: s32[]) -> {rows} {{
  %c = f32[100]{{0}} parameter(0)
  %e = f32[50]{{0}} parameter(1)
  %row = f32[1]{{0}} parameter(2)
  %i = s32[] parameter(3)
  %first = f32[100]{{0}} dynamic-update-slice(%c, %row, %i)
  %second = f32[50]{{0}} dynamic-update-slice(%e, %row, %i)
  %third = f32[9]{{0}} broadcast(%row), dimensions={{0}}
  ROOT %all = {rows} tuple(%first, %second, %third)
}}

ENTRY %main (c: f32[100], e: f32[50], row: f32[1], i: s32[]) -> {rows} {{
  %c = f32[100]{{0}} parameter(0)
  %e = f32[50]{{0:T(128)S(1)}} parameter(1)
  %row = f32[1]{{0}} parameter(2)
  %i = s32[] parameter(3)
  ROOT %all = {rows} fusion(%c, %e, %row, %i), kind=kLoop, calls=%kept
}}
"""
    read, place, written = 4, 4, 4 + 9 * 4  # the array in fast memory moves nothing, the last is written whole
    assert moved_bytes(program) == read + place + written


def test_meshes_begin_with_the_least_that_a_device_reads():
    found = list(meshes(8, 48))
    assert found[:2] == [{"tensor": 8}, {"data": 2, "tensor": 4}] and found[-1] == {"fsdp": 8}
    assert all(size <= 8 for sizes in meshes(32, 48) for axis, size in sizes.items() if axis == "tensor" and size > 16)
    assert {"tensor": 4} not in meshes(8, 6)


def test_the_published_weights_of_a_device():
    sizes = Sizes()
    alone = {id(leaf): leaf for leaf in jax.tree.leaves(abstract_stages(sizes.stages, "bfloat16"))}
    # A layer of the base has 12 square matrices and 17 vectors of the width, a channel's 4 and 5, with the gate, which
    # super-resolution lacks. It has 3600 positions, the others 2000.
    layers, width = 48, 3072
    base = layers * (12 * width**2 + 17 * width) + (150_010 + 1024 + 2) * width
    own = 3 * layers * (4 * width**2 + 5 * width) - layers * width + (2 * 2000 + 3600) * width
    assert device_bytes(alone) == 2 * (base + own) == 22_727_073_792
    mesh = cx.make_mesh(tensor=8, devices=jax.devices()[:8])
    spread = {id(leaf): leaf for leaf in jax.tree.leaves(abstract_stages(sizes.stages, "bfloat16", mesh))}
    assert device_bytes(alone) / 8 < device_bytes(spread) < device_bytes(alone) / 8 + 1.1e9  # words are everywhere
    cache = device_bytes(abstract_cache(sizes, "sequential", mesh))
    assert cache == 2 * 48 * 2 * 2 * 3072 * (474 + 2074) // 8  # two rows, keys and values


@pytest.mark.full
def test_a_small_one_is_planned(monkeypatch, capsys):
    sizes = dict(layers=2, heads=4, head_dim=4, vocab=100, codes=48, start_of_image=90, grid=4)
    small = Sizes(stages={"sequential": CogVideo2022Config(**sizes)}, rows=2)
    made = plan("small", small, topology="cpu:2", device_gb=1.0, every=True, report=print)
    assert [trial.mesh for trial in made.trials] == [{"tensor": 2}, {"data": 2}, {"fsdp": 2}]
    assert made.chosen.mesh == {"tensor": 2} and made.chosen.beside
    none = plan("small", small, topology="cpu:2", device_gb=1e-5, every=False, report=print)
    assert none.chosen is None and "weights and cache take" in none.trials[0].why


def test_plan_refuses_what_means_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cogvx", "plan", "cogvideo2022", "--steps", "3"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "steps means nothing for cogvideo2022" in capsys.readouterr().err
