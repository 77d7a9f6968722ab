"""Guiders and what they change inside the blocks: as formulas, against recorded numbers, and in whole runs."""

import dataclasses
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from small_files import small_spec, write_small
from test_mesh import MESHES

import cogvx_jax as cx
from cogvx_jax.configs import Compute
from cogvx_jax.convert import load_params
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.safetensors import Tensor, write_file
from cogvx_jax.diffusion.combining import combine, start
from cogvx_jax.diffusion.guidance import guide
from cogvx_jax.diffusion.guiders import GUIDERS, kind_of, lay_out, parse_guider
from cogvx_jax.diffusion.update import init, update
from cogvx_jax.models.per_block import PerBlock, enhancement
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines.duration import sampling_flops
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.step_programs import step_program
from cogvx_jax.presets import PRESETS

SHAPE = (2, 3, 4, 6, 4)
STEPS = 10
U, C, P = np.random.default_rng(0).standard_normal((3, *SHAPE), np.float32)
GUIDING = {  # of models of one block
    "rescale": dict(guider="cfg:rescale=0.7"),
    "zero-star": dict(guider="zero-star"),
    "apg": dict(guider="apg:eta=0.3,limit=2,momentum=-0.5"),
    "slg": dict(guider="slg:layers=0,begin=0.2,end=0.8"),
    "stg": dict(guider="stg:layers=0"),
    "pag": dict(guider="pag:layers=0,begin=0,end=1"),
    "enhance": dict(enhance=4.0),
    "enhance, stg": dict(enhance=4.0, guider="stg:layers=0,rescale=0.5"),
}
FEW = ("enhance, stg",)  # what the quick tests run


def cases():
    return [pytest.param(name, marks=() if name in FEW else pytest.mark.full) for name in GUIDING]


def combined(text, *, weight=6.0, unconditional=U, conditional=C, step=5):
    guider = parse_guider(text)
    numbers = lay_out(guider, np.full(STEPS, weight), layers=30)
    one = jax.tree.map(lambda x: x[step], numbers)
    return np.asarray(combine(guider.kind, unconditional, conditional, one, perturbed=P, carry=start(guider, SHAPE))[0])


# Formulas.


@pytest.mark.parametrize(
    "text", ["cfg", "apg:limit=0", "slg:scale=0", "pag:end=0.5", "stg:end=0.4", "apg:limit=1000", "slg:layers=3+4"]
)
def test_without_its_own_part_it_is_plain_guidance(text):
    close(combined(text), np.asarray(guide(U, C, 6.0)), 1e-6)


@pytest.mark.parametrize("text", ["cfg:rescale=1", "apg:eta=0,rescale=1", "zero-star:rescale=1", "stg:rescale=1"])
def test_rescaled_it_has_the_deviation_of_the_prompts(text):
    found = combined(text)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3, 4)), C.std(axis=(1, 2, 3, 4)), rtol=1e-5)


def test_zero_star():
    close(combined("zero-star"), combined("zero-star", unconditional=-3 * U), 1e-5)  # u counts by its direction
    assert not combined("zero-star:zero_steps=6").any() and combined("zero-star:zero_steps=5").any()
    assert np.isfinite(combined("zero-star:rescale=0.7,zero_steps=6")).all()
    assert np.isfinite(combined("zero-star", unconditional=0 * U)).all()


def test_apg_adds_nothing_parallel_where_eta_is_0():
    added = combined("apg:eta=0,limit=0") - U
    assert np.abs((added * C).sum(axis=(1, 2, 3, 4))).max() < 1e-3 * (C * C).sum(axis=(1, 2, 3, 4)).min()
    assert np.isfinite(combined("apg", conditional=0 * C, unconditional=0 * U)).all()
    cut = (combined("apg:limit=0.5") - U) / 6
    np.testing.assert_allclose(np.sqrt((cut * cut).sum(axis=(1, 2, 3, 4))), 0.5, rtol=1e-5)


def test_a_row_does_not_know_the_others():
    for name in GUIDERS:
        alone = combined(
            name, unconditional=np.tile(U[:1], (2, 1, 1, 1, 1)), conditional=np.tile(C[:1], (2, 1, 1, 1, 1))
        )
        if not parse_guider(name).third:
            np.testing.assert_array_equal(combined(name)[:1], alone[:1])


def test_the_third_evaluation_has_its_share_of_the_steps():
    assert parse_guider("stg").active(50).all()
    assert list(np.flatnonzero(parse_guider("slg").active(50))) == [*range(1, 10)]
    assert not parse_guider("apg").active(50).any() and not parse_guider("stg:scale=0").active(50).any()


def test_values_and_words():
    for name in GUIDERS:
        value = parse_guider(name)
        assert parse_guider(str(value)) == value and hash(value) == hash(parse_guider(str(value)))
    assert parse_guider("slg:layers=9+7,scale=-1") == cx.SLG(layers=(7, 9), scale=-1.0)
    assert str(parse_guider("stg")) == str(cx.STG()) == "stg:rescale=0,layers=11,scale=1,begin=0,end=1"


def test_stg_is_slg_with_other_defaults():
    made = (lay_out(g, np.ones(9), layers=12) for g in (cx.STG(), cx.SLG(scale=1, begin=0, end=1)))
    jax.tree.map(np.testing.assert_array_equal, *made)
    assert kind_of(cx.STG()) == kind_of(cx.SLG())  # so they run the same programs


WRONG = {
    "unknown guider 'cgf'; the known ones are cfg, zero-star, apg, slg, stg, pag": "cgf:rescale=1",
    "guider cfg: rescale must be a number from 0 to 1, got 7": "cfg:rescale=7",
    "guider apg takes rescale=..., eta=..., limit=..., momentum=..., each once; got 'norm=3'": "apg:norm=3",
    "each once; got 'eta=2'": "apg:eta=1,eta=2",
    "guider apg: eta must be a number, for layers several such as 7+8+9, got 'x'": "apg:eta=x",
    "guider apg: eta must be a number from -10 to 10, got nan": "apg:eta=nan",
    "guider zero-star: zero_steps must be a whole number from 0 to 1000, got 1.5": "zero-star:zero_steps=1.5",
    "guider slg: layers must be numbers of blocks, such as 7+8+9, got (-1,)": "slg:layers=-1",
    "guider stg: scale must be a number from -100 to 100, got 101": "stg:scale=101",
    "guider pag: begin must be before end, got 0.5 and 0.5": "pag:begin=0.5,end=0.5",
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_wrong_is_one_sentence(said):
    with pytest.raises(ValueError) as error:
        Options(guider=WRONG[said])
    assert said in str(error.value) and "\n" not in str(error.value)


ASKED = {
    "guider apg needs a guidance scale above 1, got 1": dict(guider="apg", guidance_scale=1.0),
    "guider stg names block 30, but the model's blocks are 0 to 29": dict(guider="stg:layers=30"),
    "guider pag changes blocks in every evaluation, and reuse every:2 leaves some out": dict(
        guider="pag", reuse="every:2"
    ),
    "enhance changes blocks in every evaluation, and guidance delta:2 leaves": dict(enhance=1, guidance="delta:2"),
    "enhance must be a number, got 'x'": dict(enhance="x"),
    "guider must be text such as apg:eta=0.5, got 3": dict(guider=3),
}


@pytest.mark.parametrize("said", ASKED)
def test_wrong_pairs_are_one_sentence(said):
    with pytest.raises(ValueError) as error:
        check_request(PRESETS["2b"], "a panda", Options.from_keywords(**ASKED[said]))
    assert said in str(error.value)


def test_its_work_is_counted():
    def flops(**options):
        return sampling_flops(
            PRESETS["2b"], check_request(PRESETS["2b"], "a panda", Options.from_keywords(**options)), 1
        )

    assert flops(guider="stg") / flops() == 1.5
    assert flops(guider="slg") / flops() == 1 + 9 / 100
    assert flops(guider="apg") == flops()


# Inside the blocks.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Transformer, parameters and arrays of golden/enhance.md."""
    base = small_spec("5b")
    sizes = dict(layers=2, heads=2, in_channels=16, out_channels=16, text_dim=24, text_length=8, sample_frames=17)
    spec = dataclasses.replace(
        base,
        transformer=dataclasses.replace(base.transformer, **sizes),
        vae=dataclasses.replace(base.vae, latent_channels=16),
        text_encoder=dataclasses.replace(base.text_encoder, width=24),
    )
    folder = write_small(tmp_path_factory.mktemp("enhance") / "model", spec)
    (file,) = (folder / "transformer").glob("*.safetensors")
    shapes = {key: entry.shape for key, entry in open_tensors(file).items()}
    rng, drawn = np.random.default_rng(1000), {}
    for key in sorted(shapes):
        z = rng.standard_normal(shapes[key], dtype=np.float32)
        matrix = z.ndim > 1
        drawn[key] = z / np.sqrt(np.prod(z.shape[1:], dtype=np.float32)) if matrix else 0.1 * z + key.endswith("weight")
    write_file(file, [Tensor.of(key, np.float32(array)) for key, array in drawn.items()], {})
    with np.load(Path(__file__).parent / "golden" / "enhance.npz") as arrays:
        golden = dict(arrays)
    for name in ("latents", "plain", "enhanced"):
        golden[name] = golden[name].transpose(0, 1, 3, 4, 2)
    return Transformer(spec.transformer), load_params(folder, spec, "transformer"), golden


def predict(transformer, params, golden, per_block=None):
    run = jax.jit(
        lambda p, x, w, per_block: transformer.apply({"params": p}, x, w, jnp.full(2, 499), per_block=per_block)
    )
    return np.asarray(run(params, golden["latents"], golden["text"], per_block))


def test_enhance_a_video_as_recorded(recorded):
    transformer, params, golden = recorded
    np.testing.assert_allclose(predict(*recorded), golden["plain"], rtol=0, atol=1e-4)
    both = PerBlock(enhance=np.full((2, 2), 3.4, np.float32))  # the rows are two branches of a video
    found = predict(*recorded, both)
    np.testing.assert_allclose(found, golden["enhanced"], rtol=0, atol=1e-4)
    assert np.abs(golden["enhanced"] - golden["plain"]).max() > 0.01
    none = PerBlock(enhance=np.full((2, 2), -100, np.float32))  # the factor is at least 1
    np.testing.assert_allclose(predict(*recorded, none), golden["plain"], rtol=0, atol=1e-4)


def test_the_factor():
    """Of equal queries attention is even: m = 1 / T."""
    q, k = np.random.default_rng(0).standard_normal((2, 4, 3, 10, 8)).astype(np.float32)
    even = enhancement(jnp.zeros(q.shape), k, np.float32([3, 3]), 5)
    np.testing.assert_allclose(even, (5 + 3) / 5, rtol=1e-6)
    np.testing.assert_array_equal(enhancement(q, k, np.float32([3, 3]), 1), np.ones(4))
    found = enhancement(q, k, np.float32([3, 3]), 5)
    np.testing.assert_array_equal(found[:2], found[2:])  # the branches of a video share it, videos do not
    assert found[0] != found[1]


def without(params, layer):
    return params | {"blocks": jax.tree.map(lambda x: np.delete(x, layer, axis=0), params["blocks"])}


@pytest.mark.parametrize("layer", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_block_that_is_skipped_is_not_there(recorded, layer):
    transformer, params, golden = recorded
    skip = np.float32(np.arange(2) == layer)
    smaller = Transformer(dataclasses.replace(transformer.cfg, layers=1))
    close(predict(transformer, params, golden, PerBlock(skip=skip)), predict(smaller, without(params, layer), golden))
    close(predict(transformer, params, golden, PerBlock(skip=0 * skip)), predict(*recorded))


def test_perturbed_attention_knows_no_other_token(recorded):
    transformer, params, golden = recorded

    def found(layer_values, scale=1.0):
        attention = dict(params["blocks"]["attention"])
        attention["q"] = jax.tree.map(lambda x: np.stack([x[0], scale * x[1]]), attention["q"])
        attention["q"]["bias"] = attention["q"]["bias"] + scale - 1
        changed = params | {"blocks": params["blocks"] | {"attention": attention}}
        return predict(transformer, changed, golden, PerBlock(values=np.float32(layer_values)))

    np.testing.assert_array_equal(found([1, 1]), found([1, 1], scale=2.0))  # what is asked does not matter
    close(found([0, 0]), predict(*recorded))
    assert np.abs(found([0, 1]) - found([0, 0])).max() > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("how", [dict(rows_apart=True), dict(rows_apart=True, mlp_tokens=8)])
def test_memory_modes_have_it_too(recorded, how):
    transformer, params, golden = recorded
    apart = Transformer(transformer.cfg, Compute(**how))
    for per_block in (PerBlock(skip=np.float32([0, 1])), PerBlock(values=np.float32([1, 0]))):
        close(predict(apart, params, golden, per_block), predict(transformer, params, golden, per_block))


@pytest.mark.parametrize("remat", ["none", pytest.param("block", marks=pytest.mark.full)])
def test_it_costs_nothing_when_unused(recorded, remat):
    """The plain step's text is that of a step that knows of no guider, sampler or extension of the blocks."""
    transformer = Transformer(recorded[0].cfg, Compute(remat=remat))
    params, latents, text = recorded[1], np.zeros((1, 5, 4, 6, 16), np.float32), recorded[2]["text"]

    def step(params, state, text, condition, t, row, weight, noise):
        x = jnp.concatenate([state.latents, state.latents])
        v = transformer.apply({"params": params}, x, text, jnp.full((2,), t)).astype(jnp.float32)
        return update(state, guide(*jnp.split(v, 2), weight), row, noise)

    inputs = params, init(latents), text, None, np.int32(499), np.zeros(6, np.float32), np.float32(6), None
    found = step_program(transformer, True).lower(*inputs).as_text()
    assert found == jax.jit(step, donate_argnums=1).lower(*inputs).as_text()
    arguments = len(jax.tree.leaves(inputs))
    head = found[found.index("@main") : found.index("->", found.index("@main"))]
    assert head.count("%arg") == arguments  # nothing is passed beside


# Whole runs.


def latents(model, **options):
    return cx.generate(model, "a red circle", output="latents", progress=False, **options)


@pytest.mark.parametrize("name", cases())
def test_as_one_program(small, name):
    _, model = small("5b")
    found = latents(model, **GUIDING[name])
    close(latents(model, one_program=True, **GUIDING[name]), found)
    plain = latents(model)
    assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()


def test_cfg_alone_is_no_guider(small):
    _, model = small("5b")
    close(latents(model, guider="cfg"), latents(model))


def meshes():
    """All for what changes blocks, and two for each guider."""
    for sizes in MESHES:
        yield "enhance, stg", sizes
    for name in GUIDING:
        for sizes in (dict(cfg=2, context=2, sp=2), dict(data=2, cfg=2, tensor=2)):
            if name != "enhance, stg":
                yield name, sizes


@pytest.mark.full
@pytest.mark.parametrize("name, sizes", list(meshes()))
def test_on_a_mesh(small, name, sizes):
    folder, model = small("5b")
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    close(latents(cx.load(folder, mesh=mesh), **GUIDING[name]), latents(model, **GUIDING[name]), 3e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in GUIDING if "enhance" not in name])
def test_exact_ones_have_the_same_bits_on_a_mesh(small, name):
    folder, model = small("5b")
    there = cx.load(folder, mesh=cx.make_mesh(cfg=2, devices=jax.devices()[:2]))
    options = dict(exact=True, **GUIDING[name])
    np.testing.assert_array_equal(latents(there, **options), latents(model, **options))


def test_enhance_is_refused_where_branches_are_apart(small):
    folder, model = small("5b")
    with pytest.raises(ValueError, match="exact results are of each branch alone"):
        latents(model, exact=True, enhance=1.0)
    with pytest.raises(ValueError, match="which memory mode rows computes one after the other"):
        latents(cx.load(folder, memory="rows"), enhance=1.0)


@pytest.mark.full
@pytest.mark.parametrize("name", GUIDING)
def test_videos_do_not_know_each_other(small, name):
    _, model = small("5b")
    both = cx.generate(model, ["a red circle", "a blue star"], output="latents", progress=False, **GUIDING[name])
    close(both[:1], latents(model, **GUIDING[name]))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*computes only 2 of 4")
@pytest.mark.parametrize(
    "name, other",
    [
        ("apg", dict(guidance="delta:2")),
        ("apg", dict(guidance="interval:0.2-0.8")),
        ("apg", dict(reuse="every:2")),
        ("zero-star", dict(reuse="first-block:0.1")),
    ],
)
def test_combining_goes_with_shorter_schedules(small, name, other):
    _, model = small("5b")
    found = latents(model, **GUIDING[name], **other)
    close(latents(model, one_program=True, **GUIDING[name], **other), found)
    assert np.abs(found - latents(model, **other)).max() > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("name", GUIDING)
def test_programs_are_stored_for_any_numbers(small, tmp_path, name):
    folder, model = small("5b")
    cx.compile_programs(folder, tmp_path / "programs", sampler="unipc", **GUIDING[name])
    options = dict(sampler="unipc", **GUIDING[name])
    if "guider" in options:
        options["guider"] += ",rescale=0.25" if "=" in options["guider"] else ":rescale=0.25"
        options["guider"] = options["guider"].replace("rescale=0.7,", "").replace("rescale=0.5,", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latents(cx.load(folder, programs=tmp_path / "programs"), **options)
    np.testing.assert_array_equal(found, latents(model, **options))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["2b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"])
@pytest.mark.parametrize("name", ["apg", "enhance, stg"])
def test_every_kind_of_model_has_them(small, kind, name):
    model = small(kind)[1]
    image = np.full((32, 48, 3), 90, np.uint8) if kind.endswith("i2v") else None
    found = latents(model, image=image, **GUIDING[name])
    close(latents(model, image=image, one_program=True, **GUIDING[name]), found)
    assert np.abs(found - latents(model, image=image)).max() > 1e-4


@pytest.mark.full  # each command is a process of its own
def test_the_page_runs(tmp_path, monkeypatch):
    """The commands and the Python of docs/tasks.md, of the part on samplers and guidance."""
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    part = page[page.index("## Samplers and guidance") :].split("\n## ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", part, flags=re.S)
    commands = [shlex.split(line) for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    for command in commands:
        arguments = [sys.executable, "-m", "cogvx_jax.cli", *command[1:], "--no-progress"]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (code,) = (text for kind, text in blocks if kind == "python")
    exec(compile(code, "docs/tasks.md", "exec"), {})
