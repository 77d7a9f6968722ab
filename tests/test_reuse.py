"""Steps that are made of what others computed: their formulas, and the same result in the loop, in one, on meshes."""

import functools
import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.configs import Compute, TransformerConfig
from cogvx_jax.diffusion import guidance, samplers, update
from cogvx_jax.models import kept as keeping
from cogvx_jax.models.kept import Kept
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines import calibration, generate
from cogvx_jax.pipelines.calibrate import calibrate
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.program_cost import ProgramText
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.text import encode_prompts

CFG = TransformerConfig(
    layers=2,
    heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    text_length=5,
    time_dim=8,
    position="rope",
)
# A schedule of each kind of program, over four steps.
KINDS = {
    "added": {"reuse": "steps:x.xx"},
    "taylor": {"reuse": "taylor:1.5"},
    "attention": {"reuse": "pab:2"},
    "first_block": {"reuse": "first-block:50"},
    "delta": {"guidance": "delta:2"},
    "interval": {"guidance": "interval:0.4-0.8"},
}


@pytest.fixture(scope="module")
def around(random_params):
    """`around(function, x=0)`: v and what the function gave, of one of two inputs; dtype as asked."""
    rng = np.random.default_rng(1)
    text = rng.normal(size=(2, 5, 8)).astype(np.float32)
    inputs = [(rng.normal(size=(2, 2, 4, 4, 4)).astype(np.float32), text, np.full(2, t)) for t in (500, 480)]
    params = random_params(Transformer(CFG), *inputs[0])
    plain = functools.cache(lambda model: jax.jit(model.apply))

    def run(function, which=0, dtype="float32"):
        model = Transformer(CFG, Compute(dtype=dtype))
        if function is None:
            return plain(model)({"params": params}, *inputs[which])
        inside = jax.jit(lambda params, *x: model.apply({"params": params}, *x, function, method="around_blocks"))
        return inside(params, *inputs[which])

    return run


def blank(count=1, tokens=13):
    return Kept(jnp.zeros((count, 2, tokens, CFG.width)), jnp.int32(0))


def test_a_computed_step_gives_what_it_gives_and_keeps_what_blocks_added(around):
    v, kept = around(keeping.keep_added(blank(), np.zeros(1, np.float32)))
    np.testing.assert_allclose(v, around(None), atol=1e-6, rtol=1e-6)
    x, y = around(lambda stack, x: (x, (x, stack.run(x))))[1]
    np.testing.assert_allclose(kept.parts[0], y - x, atol=1e-5)
    assert kept.parts.shape == (1, 2, 13, 32) and int(kept.computed) == 1


def test_a_skipped_step_is_its_formula(around):
    _, first = around(keeping.keep_added(blank(3), np.zeros(3, np.float32)))
    _, second = around(keeping.keep_added(first, np.float32([0.5, 0, 0])), 1)
    np.testing.assert_allclose(second.parts[1], (second.parts[0] - first.parts[0]) / 2, atol=1e-6)
    np.testing.assert_array_equal(second.parts[2], 0)
    coefficients = np.float32([1, 3, 4.5])
    found = around(keeping.add_kept(second, coefficients))[0]
    added = np.einsum("k,kbsd->bsd", coefficients, np.asarray(second.parts))
    wanted = around(lambda stack, x: (x + added, None))[0]
    np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-6)
    assert np.abs(found - around(None)).max() > 1e-3


@pytest.mark.full
def test_the_difference_is_taken_in_float32(around):
    exact = around(keeping.keep_added(blank(), np.zeros(1, np.float32)))[1].parts
    x, y = around(lambda stack, x: (x, (x, stack.run(x))), dtype="bfloat16")[1]
    kept = around(keeping.keep_added(blank(), np.zeros(1, np.float32)), dtype="bfloat16")[1].parts
    assert kept.dtype == jnp.bfloat16
    assert np.abs(np.float32(kept) - exact).max() < 0.1 * np.abs(exact).max()
    # Of the same x and y: each digit of the difference that bfloat16 can hold is there.
    both = around(lambda stack, x: (y, (x, y)), dtype="bfloat16")[1]
    again = around(
        lambda stack, x: keeping.keep_added(blank(), np.zeros(1))(stack._replace(run=lambda x: y), x), dtype="bfloat16"
    )
    wanted = (np.float32(both[1]) - np.float32(both[0])).astype(jnp.bfloat16)
    np.testing.assert_array_equal(again[1].parts[0], wanted)


def test_attention_that_is_kept_stands_for_itself(around):
    v, kept = around(keeping.keep_attention(blank(2)))
    np.testing.assert_allclose(v, around(None), atol=1e-6, rtol=1e-6)
    again, nothing = around(keeping.use_attention(kept))
    np.testing.assert_allclose(again, v, atol=1e-6, rtol=1e-6)
    assert nothing is None and kept.parts.shape == (2, 2, 13, 32)
    moved = kept._replace(parts=kept.parts.at[1].add(1.0))
    assert np.abs(around(keeping.use_attention(moved))[0] - v).max() > 1e-3


def test_after_the_first_block_it_is_decided_by_its_change(around):
    v, kept = around(keeping.decide_after_first(blank(2), np.float32(-1)))
    np.testing.assert_allclose(v, around(None), atol=1e-6, rtol=1e-6)
    x, first, y = around(lambda stack, x: (x, (x, stack.one(layer(stack, 0), x)[0], stack.run(x))))[1]
    np.testing.assert_allclose(kept.parts, np.stack([first - x, y - first]), atol=1e-5)

    _, (f, x, first) = around(lambda stack, x: (x, (stack.one(layer(stack, 0), x)[0] - x, x, x)), 1)
    ratio = np.abs(f - kept.parts[0]).mean() / np.abs(kept.parts[0]).mean()
    assert 0.01 < ratio < 10
    ran, after = around(keeping.decide_after_first(kept, np.float32(ratio * 0.99)), 1)
    np.testing.assert_allclose(ran, around(None, 1), atol=1e-6, rtol=1e-6)
    assert int(after.computed) == 2
    left, same = around(keeping.decide_after_first(kept, np.float32(ratio * 1.01)), 1)
    wanted = around(lambda stack, x: (stack.one(layer(stack, 0), x)[0] + kept.parts[1], None), 1)[0]
    np.testing.assert_allclose(left, wanted, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(same.parts, kept.parts)
    assert int(same.computed) == 1


def layer(stack, number):
    return jax.tree.map(lambda p: p[number], stack.params)


def latents(model, **options):
    return cx.generate(model, "a red circle", seed=3, output="latents", progress=False, **options)


@pytest.fixture(scope="module")
def plain(small):
    return latents(small("5b")[1])


@pytest.mark.full  # the older emitter, which quick tests compile with, rounds fused operations otherwise
def test_all_steps_computed_is_no_reuse_bit_for_bit(small, plain):
    model = small("5b")[1]
    for way in ({"reuse": "steps:xxxx"}, {"reuse": "every:1"}, {"guidance": "delta:1"}, {"guidance": "interval:0-1"}):
        np.testing.assert_array_equal(latents(model, **way), plain)
    np.testing.assert_array_equal(latents(model, reuse="first-block:0"), plain)


def test_taylor_of_order_0_is_the_reuse_of_residuals(small, plain):
    model = small("5b")[1]
    found = latents(model, reuse="taylor:2,0")
    np.testing.assert_array_equal(found, latents(model, reuse="every:2"))
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_in_one_program_and_on_a_mesh_it_is_the_same(small, plain, kind):
    folder, model = small("5b")
    options = KINDS[kind]
    if kind == "first_block":  # the small model has no other
        folder, model, options = "tiny", cx.load("tiny"), dict(options, num_frames=1, num_inference_steps=4)
        plain = latents(model, num_frames=1, num_inference_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a threshold that leaves only the first and the last step
        loop = latents(model, **options)
        assert np.abs(loop - plain).max() > 1e-4
        np.testing.assert_allclose(latents(model, one_program=True, **options), loop, atol=1e-5, rtol=1e-5)
        sizes = dict(fsdp=2, sp=2) if "guidance" in KINDS[kind] else dict(cfg=2, fsdp=2, sp=2)
        spread = cx.load(folder, mesh=cx.make_mesh(**sizes, devices=jax.devices()[: 2 ** len(sizes)]))
        for one_program in (False, True):
            found = latents(spread, one_program=one_program, **options)
            np.testing.assert_allclose(found, loop, atol=1e-4, rtol=1e-4)


@pytest.mark.full
def test_what_is_kept_lies_where_tokens_lie_and_is_donated(small):
    folder, _ = small("5b")
    model, seen = cx.load(folder, mesh=cx.make_mesh(cfg=2, context=2, devices=jax.devices()[:4])), []
    request = check_request(model.spec, "a red circle", Options(reuse="steps:x.xx"))
    generate.sample(model, request, progress=False, watch=lambda kept: seen.append(kept.parts))
    assert seen[-1].sharding.spec == jax.sharding.PartitionSpec(None, "cfg", "context", None)
    tokens = 24 + 3 * 2 * 3
    assert seen[-1].shape == (1, 2, tokens, 48) and seen[-1].addressable_shards[0].data.shape == (1, 1, tokens // 2, 48)
    assert seen[0] is seen[1] and seen[1].is_deleted() and seen[2].is_deleted() and not seen[3].is_deleted()


@pytest.mark.full
def test_videos_of_a_batch_do_not_mix(small):
    model = small("5b")[1]
    both = cx.generate(model, ["x", "a red circle"], seed=2, output="latents", progress=False, reuse="every:2")
    alone = cx.generate(
        model, "a red circle", output="latents", progress=False, reuse="every:2", noise=SeededNoise(2, first=1)
    )
    np.testing.assert_allclose(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_guidance_by_its_last_difference_is_its_formula(small):
    """Against a loop that calls the model itself."""
    model = small("5b")[1]
    steps = samplers.ddim(model.spec.schedule, 4)
    text = encode_prompts(model, ["", "a red circle"])
    predict = jax.jit(lambda x, text, t: model.transformer.apply({"params": model.params["transformer"]}, x, text, t))
    state = update.init(SeededNoise(3).latents((1, 3, 4, 6, 4)))
    for i, t in enumerate(steps.timesteps):
        conditional = predict(state.latents, text[1:], jnp.full(1, t))
        if i in (0, 3):
            difference = predict(state.latents, text[:1], jnp.full(1, t)) - conditional
        v = guidance.guide(conditional + difference, conditional, model.spec.defaults.guidance_scale)
        state = update.update(state, v, np.float32(steps.table[i]))
    found = latents(model, guidance="delta:2", sampler="ddim")
    np.testing.assert_allclose(found, state.latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            dict(reuse="every:2", exact=True),
            "need every step computed; leave out reuse every:2, or exact",
        ),
        (dict(guidance="delta:2", exact=True), "leave out guidance delta:2, or exact"),
        (dict(reuse="every:2", num_inference_steps=2), "needs at least 3 steps, got 2"),
        (dict(reuse="every:2", guidance="delta:2"), "give either reuse every:2 or guidance delta:2"),
        (dict(guidance="delta:2", guidance_scale=1.0), "guidance delta:2 needs a guidance scale above 1, got 1"),
        (dict(reuse="steps:x.x"), "names 3 steps, but 4 are taken"),
        (dict(reuse="magcache"), "needs a calibration of small-5b: make one by `cogvx calibrate`"),
        (dict(reuse="magcache", calibration="none.json"), "there is no ./none.json; `cogvx calibrate` makes one"),
        (dict(reuse=5), "reuse must be text such as every:2, got 5"),
        (dict(guidance=5), "guidance must be text such as delta:2, got 5"),
        (dict(reuse="every:2", video=np.zeros((9, 32, 48, 3), np.uint8), strength=0.5), "at least 3 steps, got 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(small, monkeypatch, options, words):
    monkeypatch.setattr(generate, "encode_prompts", None)
    with pytest.raises((ValueError, OSError), match=words):
        latents(small("5b")[1], **options)


def test_on_a_mesh_with_branches_side_by_side_guidance_cannot_leave_one_out(small):
    model = cx.load(small("5b")[0], mesh=cx.make_mesh(cfg=2, sp=2, devices=jax.devices()[:4]))
    with pytest.raises(ValueError, match="half of a mesh with cfg=2 would idle; use sp=4 instead"):
        latents(model, guidance="interval:0.2-0.8")


def test_so_large_a_threshold_is_said(small):
    with pytest.warns(UserWarning, match="reuse every:4 computes only 2 of 4 steps"):
        latents(small("5b")[1], reuse="every:4")


def test_teacache_and_magcache_use_what_was_measured(small, tmp_path, monkeypatch, capsys):
    folder, model = small("5b")
    file = tmp_path / "own.json"
    arguments = ["calibrate", str(folder), "--out", str(file), "--steps", "10"]
    monkeypatch.setattr(sys, "argv", ["cogvx", *arguments])
    cli.main()
    assert "own.json: 10 steps, 6 videos" in capsys.readouterr().out
    found = calibration.read_calibration(tmp_path, "own.json")
    assert found.model == "small-5b" and found.ratios[0] == 1 and len(found.ratios) == 10 and len(found.polynomial) == 5
    assert 0.2 < min(found.ratios) < max(found.ratios) < 5
    options = dict(calibration=file, num_inference_steps=10)
    whole = latents(model, num_inference_steps=10)
    for method in ("teacache:1", "magcache:1"):
        assert 1e-4 < np.abs(latents(model, reuse=method, **options) - whole).max()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": "tiny"}))
    with pytest.raises(ValueError, match="the calibration is of tiny, and cannot be used for small-5b"):
        latents(model, reuse="magcache:0.1", **options)
    file.write_text("{")
    with pytest.raises(ValueError, match="own.json is no calibration: not JSON"):
        latents(model, reuse="magcache:0.1", **options)


@pytest.mark.full
def test_ratios_are_those_of_what_blocks_add(small):
    """A calibration against norms that are taken on the host."""
    model, kept = small("5b")[1], []
    request = check_request(model.spec, "a red circle", Options(steps=10, seed=1))
    generate.sample(model, request, progress=False, watch=lambda now: kept.append(np.asarray(now.parts[0])))
    norms = np.linalg.norm(np.stack(kept), axis=-1)
    np.testing.assert_allclose(calibrate(model, [request]).ratios[1:], (norms[1:] / norms[:-1]).mean((1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["calibrate", "--steps", "5"], "a calibration needs at least 10 steps, got 5"),
        (["calibrate", "--reuse", "every:2"], "a calibration needs full runs, every step computed"),
        (
            ["calibrate", "--guider", "apg"],
            "a calibration is of the model's own steps: no guider, enhance, windows, positions, ControlNet",
        ),
        (
            ["calibrate", "5b-i2v"],
            "makes videos from an image; give --prompts-file, with image or last_image or keyframes in",
        ),
        (["generate", "x", "--reuse", "teapot"], "unknown reuse 'teapot'"),
        (["generate", "x", "--reuse", "magcache", "--calibration", "none.json"], "there is no ./none.json"),
        (["generate", "x", "--reuse", "every:2", "--exact"], "leave out reuse every:2, or exact"),
        (["generate", "x", "--guidance", "delta:2", "--mesh", "cfg=2,sp=4"], "use sp=8 instead"),
    ],
)
def test_commands_end_with_a_sentence(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cogvx", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and words in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_stored_programs_make_the_same_steps_and_no_others(small, tmp_path):
    folder, _ = small("5b")
    cx.compile_programs(folder, tmp_path / "programs", reuse="every:2")
    model = cx.load(folder, programs=tmp_path / "programs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latents(model, reuse="steps:x.xx")
    np.testing.assert_array_equal(found, latents(small("5b")[1], reuse="steps:x.xx"))
    for options, words in (
        (dict(), "make added-0 steps and cannot make those of neither reuse nor a way of guidance"),
        (dict(reuse="pab:2"), "make added-0 steps and cannot make those of reuse pab:2; repeat `cogvx compile`"),
        (dict(reuse="taylor:2"), "cannot make those of reuse taylor:2,1"),
    ):
        with pytest.raises(ValueError, match=words):
            latents(model, **options)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("one_program", [False, True])
def test_programs_of_every_kind_are_stored(small, tmp_path, kind, one_program):
    folder, options = small("5b")[0], dict(one_program=one_program)
    mesh = cx.make_mesh(sp=2, devices=jax.devices()[:2])
    cx.compile_programs(folder, tmp_path / "programs", mesh=mesh, sampler="dpm", **options, **KINDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "only 2 of 4")
        options |= dict(sampler="dpm", **KINDS[kind])
        found = latents(cx.load(folder, mesh=mesh, programs=tmp_path / "programs"), **options)
    np.testing.assert_array_equal(found, latents(cx.load(folder, mesh=mesh), **options))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["2b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"])
def test_every_kind_of_model_reuses(small, kind):
    model = small(kind)[1]
    image = np.full((32, 48, 3), 90, np.uint8) if kind.endswith("i2v") else None
    loop = latents(model, reuse="taylor:1.5", image=image)
    np.testing.assert_allclose(latents(model, reuse="taylor:1.5", image=image, one_program=True), loop, atol=1e-5)
    assert np.isfinite(loop).all() and np.abs(loop - latents(model, image=image)).max() > 1e-4


BRANCHES = """HloModule jit_all_steps

%skipped.1 (p: bf16[8]) -> bf16[8] {
  %r = bf16[8]{0} copy(%p), backend_config={"estimated_cycles":"8"}
}

%computed.1 (p: bf16[8]) -> bf16[8] {
  %m = bf16[8]{0} fusion(%p), calls=%f, backend_config={"estimated_cycles":"400"}
  %a = bf16[16]{0} all-gather(%p), channel_id=1
}

%body.1 (p: bf16[8]) -> bf16[8] {
  %c = bf16[8]{0} conditional(%i, %p, %p), branch_computations={%skipped.1, %computed.1}
}

%condition.1 (p: bf16[8]) -> pred[] {
  %n = s32[] constant(20)
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %w = bf16[8]{0} while(%p), condition=%condition.1, body=%body.1
  %d = bf16[8]{0} conditional(%b, %p, %p), true_computation=%computed.1, false_computation=%skipped.1
}
"""


@pytest.mark.parametrize("computed, runs, skips", [(None, 21, 0), (1.0, 21, 0), (0.5, 10.5, 10.5), (0.0, 0, 21)])
def test_branches_of_a_program_count_by_the_schedule(computed, runs, skips):
    program = ProgramText(BRANCHES, computed)
    assert program.cycles() == runs * 400 + skips * 8
    assert program.collectives().get("all-gather", (0, 0)) == (round(runs), runs * 32)


def test_the_computed_branch_is_that_of_true():
    """In a program as the compiler writes it, whichever way it says which branch is which."""
    step = jax.jit(lambda computed, x: jax.lax.cond(computed, lambda x: jnp.sin(x @ x), lambda x: x + 1, x))
    text = step.lower(True, jnp.ones((8, 8))).compile().as_text()
    for computed in (0.0, 1.0):
        walked = [line for times, line in ProgramText(text, computed).walk(ProgramText(text)._entry) if times]
        assert any("dot" in line or "sin" in line for line in walked) == bool(computed)
