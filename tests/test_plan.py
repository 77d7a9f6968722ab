"""Plans: which meshes are tried, in what order, what is kept, and what is said where nothing fits."""

import dataclasses
import json
import math
import os

import jax
import numpy as np
import pytest
from small_files import small_spec

from cogvx_jax import cache, chips
from cogvx_jax.cli.generate import _choose
from cogvx_jax.cli.plan import table
from cogvx_jax.configs import Compute
from cogvx_jax.models.flops import transformer_flops
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.memory_modes import MODES, RESIDENT, find_mode
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.pipelines.options import Options, Sampling
from cogvx_jax.pipelines.program_cost import Cost, ProgramText, kernel_cycles, read_cost
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.weights import weight_bytes
from cogvx_jax.planning import plan as plans
from cogvx_jax.planning import targets, trying
from cogvx_jax.planning.plan import plan
from cogvx_jax.planning.targets import candidates
from cogvx_jax.presets import PRESETS
from cogvx_jax.sharding.topologies import TOPOLOGIES, topology

# What a TPU compiler writes, shortened: a loop of three layers around a kernel, collectives in and out of it.
PROGRAM = """HloModule jit_step

%fused (p: bf16[8]) -> bf16[8] {
  %inside = bf16[8]{0} add(%p, %p), backend_config={"estimated_cycles":"1000000"}
}

%body.1 (arg: (s32[], bf16[1,4,64,128])) -> (s32[], bf16[1,4,64,128]) {
  %f = bf16[8]{0} fusion(%x), calls=%fused, backend_config={"estimated_cycles":"100"}
  %k = bf16[1,4,64,128]{3,2,1,0} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[1,4,64,128]{3,2,1,0}, bf16[1,4,64,256]{3,2,1,0}, bf16[1,4,64,256]{3,2,1,0}}, \
metadata={op_name="jit(step)/flash_attention/pallas_call"}
  %a = bf16[1,4,64,128]{3,2,1,0} all-to-all(%k), channel_id=1
}

%cond.1 (arg: (s32[], bf16[1,4,64,128])) -> pred[] {
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %w = (s32[], bf16[1,4,64,128]{3,2,1,0}) while(%t), condition=%cond.1, body=%body.1
  %unknown = bf16[8]{0} copy(%p), backend_config={"estimated_cycles":"9223372036854775807"}
  %j = bf16[2,5,640,64]{3,2,1,0} custom-call(%m, %q, %k), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[5,1,1]{2,1,0}, bf16[10,640,64]{2,1,0}, bf16[10,128,64]{2,1,0}}, attributes={
"block_q": 640
}}, metadata={op_name="jit(step)/splash_mha_fwd_segmented_no_residuals"}
  %o = bf16[2,5,640,64]{3,2,1,0} custom-call(%q, %k, %v, %i), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[2,5,640,64]{3,2,1,0}, bf16[2,5,256,64]{3,2,1,0}, bf16[2,5,256,64]{3,2,1,0}, \
s32[2,640,128]{2,1,0}}, metadata={op_name="jit(step)/jit(flash_attention)/pallas_call"}
  %known = bf16[8]{0} copy(%p), backend_config={"estimated_cycles":"7"}
  %s = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%p), channel_id=2
  %d = bf16[32]{0} all-gather-done(%s)
}
"""


BRANCHES = """HloModule jit_step

%full.1 (p: bf16[8]) -> bf16[8] {
  %m = bf16[8]{0} fusion(%p), calls=%f, backend_config={"estimated_cycles":"50"}
  %a = bf16[16]{0} all-gather(%p), channel_id=1
}

%reused.1 (p: bf16[8]) -> bf16[8] {
  %r = bf16[8]{0} copy(%p), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %c = bf16[8]{0} conditional(%i, %p, %p), branch_computations={%reused.1, %full.1}
  %d = bf16[8]{0} conditional(%b, %p, %p), true_computation=%reused.1, false_computation=%reused.1
  %g = (s4[3,5]{1,0:E(4)}, f8e4m3fn[3]{0}, f4e2m1fn[4]{0}, s8[7]{0}, pred[2]{0}, u16[1]{0}, c64[1]{0}) all-to-all(%p)
}
"""


def test_of_a_conditional_the_longer_branch_counts_and_small_types_by_their_bits():
    program = ProgramText(BRANCHES)
    assert program.cycles() == 50 + 5
    sizes = 8 + 3 + 2 + 7 + 2 + 2 + 8
    assert program.collectives() == {"all-gather": (1, 32), "all-to-all": (1, sizes)}


def test_a_program_is_read_with_its_loops():
    program = ProgramText(PROGRAM)
    assert program.cycles() == 3 * 100 + 7  # not what is inside a fusion, not what the compiler does not know
    assert program.scores() == 3 * 1 * 4 * 128 * 256
    assert program.scores("splash") == 2 * 5 * 640 * 128
    assert program.scores("jax_flash") == 2 * 5 * 640 * 256
    assert program.collectives() == {"all-to-all": (3, 3 * 4 * 64 * 128 * 2), "all-gather": (1, 64)}
    v5p, scores = chips.chip_of("TPU v5p"), [program.scores(name) for name in ("pallas", "splash", "jax_flash")]
    cycles = (2.46 * scores[0] + 4.27 * scores[1] + 4.66 * scores[2]) / 1000 / 2  # two cores
    assert kernel_cycles(program, v5p) == round(cycles) and kernel_cycles(program, chips.chip_of("NVIDIA A100")) == 0


def test_the_peak_is_the_compilers_own_where_that_is_less():
    cost = Cost(arguments=1, temporaries=6, outputs=2, cycles=0, kernel_cycles=0, collectives={}, seconds=0)
    peaks = [dataclasses.replace(cost, fullest=fullest).peak for fullest in (None, 5, 99)]
    assert peaks == [9, 5, 9]  # a peak with more than HBM in it says nothing
    compiled = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((8,), "float32")).compile()
    by_chip = {kind: read_cost(compiled, chip=chips.chip_of(kind)).fullest for kind in ("cpu", "NVIDIA A100", "TPU v4")}
    assert by_chip["cpu"] is by_chip["NVIDIA A100"] is None and by_chip["TPU v4"] >= 64


def test_a_chip_is_known_by_the_longest_words():
    kinds = {"TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v6 lite": "v6e"}
    assert {kind: chips.chip_of(kind).generation for kind in kinds} == kinds
    assert chips.chip_of("NVIDIA H100 80GB HBM3").peak > chips.chip_of("NVIDIA H100 PCIe").peak
    assert chips.chip_of("cpu") is None and list(chips.generations()) == ["v4", "v5e", "v5p", "v6e", "tpu7x"]


@pytest.mark.parametrize("preset, frames, teraflops", [("2b", 49, 240), ("5b", 49, 664), ("1.5-5b", 81, 2958)])
def test_flops_of_a_guided_step(preset, frames, teraflops):
    spec = PRESETS[preset]
    cfg, own = spec.transformer, spec.defaults
    assert own.num_frames == frames
    latent = (frames - 1) // 4 + 1
    latent += -latent % (cfg.patch_t or 1)
    tokens = latent // (cfg.patch_t or 1) * (own.height // 16) * (own.width // 16) + 226
    assert transformer_flops(cfg, tokens, batch=2) / 1e12 == pytest.approx(teraflops, rel=0.01)


def test_flops_are_those_xla_counts(random_params):
    """Of a model whose embeddings and modulation are small beside its layers; a loop's body counts once there."""
    cfg = dataclasses.replace(PRESETS["5b"].transformer, layers=1, heads=4, text_dim=8, time_dim=8)
    latents, text = jax.numpy.zeros((1, 5, 16, 16, 16)), jax.numpy.zeros((1, 226, 8))
    model = Transformer(cfg)
    inputs = latents, text, jax.numpy.zeros(1)
    params = random_params(model, *inputs)
    lowered = jax.jit(lambda p, *x: model.apply({"params": p}, *x)).lower(params, *inputs)
    counted = lowered.cost_analysis()["flops"]
    assert transformer_flops(cfg, 5 * 64 + 226) == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("heads, devices, videos", [(30, 8, 1), (48, 8, 1), (48, 256, 1), (48, 8, 8), (5, 6, 1)])
def test_every_candidate_uses_all_devices_once(heads, devices, videos):
    found = list(candidates(heads, devices, videos, guided=True))
    assert found and all(math.prod(sizes.values()) == devices for sizes in found)
    assert len({tuple(sizes.items()) for sizes in found}) == len(found)


def test_the_first_candidate_talks_least():
    first = {
        (heads, devices, videos, guided): next(candidates(heads, devices, videos, guided=guided))
        for heads, devices, videos, guided in [
            (48, 8, 1, True),
            (30, 8, 1, True),
            (48, 8, 1, False),
            (48, 8, 8, True),
            (48, 256, 1, True),
            (48, 1, 1, True),
        ]
    }
    assert list(first.values()) == [
        {"cfg": 2, "sp": 4},
        {"cfg": 2, "context": 2, "sp": 2},  # 30 heads do not divide by 4
        {"sp": 8},
        {"data": 8},
        {"cfg": 2, "context": 8, "sp": 16},
        {},
    ]


def test_later_candidates_split_the_weights_further():
    ways = [sizes.get("fsdp", 1) for sizes in candidates(48, 8, 1, guided=True)]
    assert ways == [1, 2, 4, 8]


def change_v5e(monkeypatch, **facts):
    rows = [dataclasses.replace(c, **facts) if c.generation == "v5e" else c for c in chips.CHIPS]
    monkeypatch.setattr(chips, "CHIPS", tuple(rows))


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """A slice of devices with 1 GiB whose programs take what the test says; counts what is compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    change_v5e(monkeypatch, memory=1.0, clock=1.0)
    compiled: list[tuple[dict, str]] = []
    takes: dict[str, int] = {"step": 2**28, "text": 2**28, "decode": 2**28}

    def lowered(wanted, mesh, name):
        compiled.append(({a: n for a, n in mesh.shape.items() if n > 1}, name))
        yield wanted, mesh, name

    def cost(wanted, program):
        name = program[2]
        way = "tiles" if wanted.mode.tiling and name == "decode" else f"{name} in {wanted.strips} strips"
        # Nobody here could read a slice's programs from the disk.
        assert wanted.target.slice_chip is None or not jax.config.values["jax_enable_compilation_cache"]
        split = program[1].shape["fsdp"]
        return Cost(
            arguments=0,
            temporaries=takes.get(way, takes[name]) // split * (wanted.shape[1] if name == "step" else 1),
            outputs=0,
            cycles=10**9,
            kernel_cycles=0,
            collectives={},
            seconds=0,
        )

    monkeypatch.setattr(trying, "_lowered", lowered)
    monkeypatch.setattr(trying, "_cost", cost)
    monkeypatch.setattr("cogvx_jax.sharding.topologies._tpus", lambda kind, shape: jax.devices()[:4])
    return compiled, takes


def test_the_first_mesh_that_fits_is_chosen_and_remembered(scripted):
    compiled, takes = scripted
    takes["step"] = 2**28  # times 5 latent frames: 1.25 GiB, which split over two fits
    made = plan("tiny", topology="v5e:2x2")
    assert [trial.fits for trial in made.trials] == [False, True]
    assert made.chosen is not None and made.chosen.mesh == {"fsdp": 2, "cfg": 2}
    assert made.trials[0].why == "step takes 1.3 of 1.0 GiB"
    assert made.chosen.step_seconds == 1.0 and made.chosen.other_seconds == 1 + 2 * 1
    before = len(compiled)
    assert plan("tiny", topology="v5e:2x2") == made and len(compiled) == before
    assert plan("tiny", topology="v5e:2x2", fresh=True) == made and len(compiled) > before
    assert json.loads(made.json())["trials"][1]["mesh"] == {"fsdp": 2, "cfg": 2}
    assert "Chosen: --mesh fsdp=2,cfg=2" in table(made)


def test_damaged_or_unwritable_notes_of_plans_do_no_harm(scripted, tmp_path):
    compiled, _ = scripted
    made = plan("tiny", topology="v5e:2x2")
    (kept,) = (tmp_path / "cogvx_jax" / "plans").iterdir()
    for text in ("{", "[1]", json.dumps(json.loads(made.json()) | {"trials": 5})):
        kept.write_text(text)
        before = len(compiled)
        assert plan("tiny", topology="v5e:2x2") == made and len(compiled) > before
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file where the folder should be")
    assert plan("tiny", topology="v5e:2x2") == made


def test_caches_forget_what_was_not_used_for_longest(tmp_path):
    for age in range(8):
        (tmp_path / f"{age}").write_bytes(bytes(100))
        os.utime(tmp_path / f"{age}", (1e9 - age, 1e9 - age))
    cache.trim(tmp_path, 800)
    assert len(list(tmp_path.iterdir())) == 8
    cache.trim(tmp_path, 799)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3", "4"]
    cache.trim(tmp_path / "none", 1)


def test_a_plan_takes_the_options_of_a_video(scripted):
    asked = Options(size=(32, 32), frames=9, steps=3, guidance_scale=1, seed=5)
    made = plan("tiny", topology="v5e:2x2", sampling=asked)
    assert (made.size, made.frames, made.steps) == ((32, 32), 9, 3)
    named = dict(height=32, width=32, num_frames=9, num_inference_steps=3, guidance_scale=1.0)
    assert plan("tiny", topology="v5e:2x2", **named) == made
    with pytest.raises(TypeError, match="give either options or num_frames"):
        plan("tiny", sampling=asked, num_frames=9)
    with pytest.raises(ValueError, match="videos must be at least 1, got 0"):
        plan("tiny", videos=0)


def test_programs_that_take_less_than_a_step_are_timed(scripted):
    """The skipped step of reuse, and a step of the inversion of an edit's clip."""
    _, takes = scripted
    takes |= {"skipped": 2**20, "inversion": 2**20}
    asked = dict(topology="v5e:2x2", height=32, width=32, num_frames=9, num_inference_steps=10)
    plain, edit = (plan("tiny", **asked, **how) for how in ({}, dict(task="edit")))
    assert (plain.inversions, edit.inversions, edit.chosen.inversion_seconds) == (0, 10, 1.0)
    assert 2.5 < edit.flops / plain.flops < 3.5
    assert "The clip is inverted first, by 10 evaluations of one branch, of 1.000 s each." in table(edit)
    rows = [line for made in (plain, edit) for line in table(made).splitlines() if " yes " in line]
    assert float(rows[1].split()[-1]) == float(rows[0].split()[-1]) + 10
    assert plan("tiny", reuse="every:2", **asked).chosen.skipped_seconds == 1.0
    with pytest.raises(ValueError, match="takes no video to edit; use a text-to-video model"):
        plan("5b-i2v", topology="v5e:2x2", task="edit")
    assert plan("tiny", task="edit", **asked) == edit and plan("tiny", task="v2v", **asked) == plain
    with pytest.raises(ValueError, match="an edit looks at its clip in all evaluations, and reuse every:2"):
        plan("tiny", topology="v5e:2x2", task="edit", reuse="every:2")


def test_every_mesh_is_tried_on_demand(scripted):
    made = plan("tiny", topology="v5e:2x2", every=True)
    assert len(made.trials) == len(list(candidates(5, 4, 1, guided=True)))
    assert made.chosen == next(trial for trial in made.trials if trial.fits)


def test_where_nothing_fits_it_says_what_would(scripted):
    _, takes = scripted
    takes["step"] = 2**30
    made = plan("tiny", topology="v5e:2x2")
    assert made.chosen is None
    assert "9 frames on fsdp=4 (0.8 GiB)" in made.instead and "v5e:2x4" in made.instead
    assert "GiB too large" in made.instead
    assert "Nothing fits" in table(made)
    with pytest.raises(ValueError, match="does not fit v5e:2x2; it is"):
        _ = made.mesh


def test_weights_that_are_too_large_are_not_compiled(scripted, monkeypatch):
    compiled, _ = scripted
    change_v5e(monkeypatch, memory=0.001)
    made = plan("tiny", topology="v5e:2x2")
    assert not compiled and all("weights alone" in trial.why for trial in made.trials)


@pytest.mark.full
def test_virtual_devices_are_planned_for_with_a_note(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = plan("tiny", topology="cpu:2", height=32, width=32, num_frames=9)
    assert made.chosen is not None and made.chosen.mesh == {"cfg": 2} and made.memory is None
    assert made.chosen.decode and made.chosen.step and made.chosen.step_seconds is None
    assert "No time is estimated" in table(made)


def test_auto_mesh_uses_all_devices():
    mesh = plans.auto_mesh("tiny")
    assert mesh is not None and mesh.size == len(jax.devices())
    assert mesh.shape["cfg"] == 2


@pytest.mark.parametrize("task, name", [("v2v", "video"), ("edit", "edit")])
def test_auto_takes_all_lengths_of_a_task(task, name, monkeypatch):
    """A clip of 13 frames is a whole number of patches of 1.5's layout, which videos from text alone must not be."""
    spec, clip = small_spec("1.5-5b"), np.zeros((17, 32, 48, 3), np.uint8)
    request = check_request(spec, "x", Options(size=(32, 48), frames=13, **{name: clip}))
    monkeypatch.setattr("cogvx_jax.pipelines.model.load_spec", lambda source: spec)
    monkeypatch.setattr(plans, "load_spec", lambda source: spec)
    mesh, mode = _choose("small", [request], None, None, "auto", None)
    assert request.task == task and mesh.size == len(jax.devices()) and mode == RESIDENT
    with pytest.raises(ValueError, match="the number of frames must be 16N.1"):
        plans.choose("small", mesh="auto", sampling=Sampling(frames=13))


@pytest.mark.parametrize(
    "name, said",
    [
        ("v9:2x2", "unknown topology 'v9:2x2'; the known ones are v4: 2x2x1"),
        ("v5e:3x3", "unknown topology"),
        ("cpu:0", "unknown topology"),
        ("cpu:9999", "needs 9999 virtual devices, there are"),
    ],
)
def test_bad_topologies(name, said):
    with pytest.raises(ValueError, match=said):
        topology(name).devices()


def test_missing_libtpu_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        plan("2b", topology=TOPOLOGIES[0])


@pytest.fixture
def one_chip(scripted, monkeypatch):
    """`plan_for(GiB)` of tiny on one scripted device; the names that were compiled; GiB of weights by component."""
    compiled, takes = scripted
    monkeypatch.setattr("cogvx_jax.sharding.topologies._tpus", lambda kind, shape: jax.devices()[:1])
    spec = load_spec("tiny")
    sizes = weight_bytes(spec, Compute(dtype=spec.trained_dtype), None)

    def plan_for(gib, **asked):
        return plan("tiny", topology="v5e:1x1", device_gb=gib * 2**30 / 1e9, **asked)

    return plan_for, compiled, {name: size / 2**30 for name, size in sizes.items()}, takes


def test_memory_modes_are_tried_in_order_and_programs_compiled_once(one_chip):
    plan_for, compiled, weights, _ = one_chip
    step = 1.25 + weights["transformer"]  # of 5 latent frames
    made = plan_for(step + 1e-6)
    assert [(trial.mode, trial.fits) for trial in made.trials] == [("resident", False), ("turns", True)]
    assert made.mode == find_mode("turns") and made.chosen.memory == pytest.approx(step)
    assert [name for _, name in compiled] == ["step", "text", "decode"]
    assert "Chosen: --mesh one device --memory turns: the first that fits" in table(made)
    assert "That costs reading each" in table(made)
    assert plan_for(2.0).mode == RESIDENT
    assert [trial.mode for trial in plan_for(2.0, memory="offload").trials] == ["offload"]
    with pytest.raises(ValueError, match="unknown memory mode 'less'"):
        plan_for(2.0, memory="less")
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="the memory of a device must be a positive number of GB"):
            plan_for(wrong)


def test_what_waits_on_the_host_is_no_weight_of_the_device(one_chip):
    plan_for, _, weights, _ = one_chip
    (trial,) = plan_for(2.0, memory="offload").trials
    assert 0 < trial.host < weights["transformer"]
    assert trial.weights["transformer"] == pytest.approx(weights["transformer"] - trial.host)
    assert trial.weights["vae"] == weights["vae"] and trial.weights["text_encoder"] < weights["text_encoder"]
    assert "Every step brings" in table(plan_for(2.0, memory="offload"))


def test_where_no_mode_fits_the_nearest_and_the_gap_are_named(one_chip):
    plan_for, compiled, weights, takes = one_chip
    made = plan_for(0.5)  # less than the step takes in any mode, as it is scripted
    assert made.chosen is None and [trial.mode for trial in made.trials] == [mode.name for mode in MODES]
    nearest = min(trial.memory for trial in made.trials)
    assert f"it is {nearest - 0.5:.1f} GiB too large for each device with --memory offload" in made.instead
    with pytest.raises(ValueError, match="does not fit v5e:1x1; it is"):
        _ = made.mode
    takes["step"] = 0
    takes["decode"] = 2**30
    compiled.clear()
    made = plan_for(1.0)  # what does not fit in one mode is not compiled again for the next
    assert made.chosen is None and [name for _, name in compiled].count("decode") <= 4 + 3 + 4


def test_a_decode_that_is_too_large_goes_in_the_fewest_strips_that_fit(one_chip):
    """Before any slower mode and any tiles; programs without a VAE are compiled once."""
    plan_for, compiled, _, takes = one_chip
    takes |= {"step": 0, "decode": 2**32, "decode in 16 strips": 2**30, "decode in 64 strips": 2**29, "tiles": 2**28}
    made = plan_for(1.2)
    (trial,) = made.trials
    assert (trial.mode, trial.strips, trial.decode) == ("resident", 16, 1.0) and made.mode == RESIDENT
    assert [name for _, name in compiled] == ["step", "text", "decode", "decode"]
    assert "It decodes in 16 strips of rows" in table(made)
    made = plan_for(0.7)
    assert [(trial.mode, trial.strips) for trial in made.trials] == [("resident", 64)]
    made = plan_for(0.4)  # less than any strips need
    assert made.mode == find_mode("turns+tiles") and made.chosen.strips == 1
    assert made.trials[0].strips == 64 and "decode in 64 strips of rows takes 0.5 of 0.4 GiB" in made.trials[0].why
    assert [name for _, name in compiled].count("decode") == 2 + 4 + 5


def test_what_the_compiler_says_it_would_need_is_read():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.40G of 15.75G hbm. Exceeded by 2.65G."
    assert trying._beside_at_least(MemoryError(said), 0.8) == pytest.approx(17.6)
    assert trying._beside_at_least(MemoryError("Used 512.0M of 1G"), 0.0) == 0.5
    assert trying._beside_at_least(MemoryError("no room"), 0.8) is None


def test_a_mode_is_chosen_for_the_devices_that_are_here(one_chip, monkeypatch):
    _, compiled, weights, _ = one_chip
    said, limit = [], 1.25 + weights["transformer"] + 0.001
    monkeypatch.setattr(targets.Target, "memory", property(lambda target: limit))
    on, mode = plans.choose("tiny", memory="auto", dtype="bfloat16", report=said.append)
    assert on is None and mode == find_mode("turns")
    assert said[-1].startswith("--memory turns: it holds text encoder, transformer and VAE on the devices one after")
    compiled.clear()
    assert plans.choose("tiny", memory="rows") == (None, find_mode("rows")) and not compiled
    limit = 0.5
    with pytest.raises(ValueError, match=r"does not fit 1 x cpu; it is 0\.[78] GiB too large .* with --memory offload"):
        plans.choose("tiny", memory="auto", dtype="bfloat16")
