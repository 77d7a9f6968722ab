"""ControlNets: against recorded numbers, their files, and in whole runs."""

import dataclasses
import io
import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights, write_small
from test_mesh import MESHES

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.generate import _choose
from cogvx_jax.cli.plan import table
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.configs import Compute, ControlNetConfig
from cogvx_jax.convert import load_params
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.controlnet import controlnet_parameters, open_controlnet, write_controlnet
from cogvx_jax.data.video import VideoWriter, read_video
from cogvx_jax.models.controlnet import ControlBranch, halve_time, weighted_sum
from cogvx_jax.models.flops import sequence_tokens, transformer_flops
from cogvx_jax.models.per_block import PerBlock, States
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.pipelines import program_pickle, stored_programs
from cogvx_jax.pipelines.conditions import Control
from cogvx_jax.pipelines.controlnets import branch_of
from cogvx_jax.pipelines.duration import with_beside
from cogvx_jax.pipelines.generate import sampler_of
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.tasks import sampling_inputs
from cogvx_jax.planning.plan import plan

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SEEDS, BLOCKS = {"5b": 100, "2b": 110}, {"5b": [0.7, 0.7], "2b": [0.5, 1.5]}


def drawn_controlnet(folder, cfg, seed):
    """A folder in TheDenk's layout whose numbers are drawn from the names."""
    shapes = {key: parameter.their_shape for parameter in controlnet_parameters(cfg) for key in parameter.keys}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "CogVideoXControlnet"}))
    save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, seed).items()}, folder / WEIGHTS)
    return folder


# The recorded runs of TheDenk's code.


@pytest.fixture(scope="module", params=["5b", pytest.param("2b", marks=pytest.mark.full)])
def recorded(request, tmp_path_factory):
    """Kind, base and its parameters, ControlNet and its parameters, and arrays of golden/controlnet.md."""
    kind, folder = request.param, tmp_path_factory.mktemp("controlnet")
    base = small_spec(kind)
    sizes = dict(layers=3, heads=2, in_channels=16, out_channels=16, text_dim=24, text_length=226)
    transformer = dataclasses.replace(base.transformer, **sizes, sample_height=60, sample_width=90)
    spec = dataclasses.replace(
        base,
        transformer=transformer,
        vae=dataclasses.replace(base.vae, latent_channels=16),
        text_encoder=dataclasses.replace(base.text_encoder, width=24),
    )
    write_small(folder / "model", spec)
    (file,) = (folder / "model" / "transformer").glob("*.safetensors")
    shapes = {key: entry.shape for key, entry in open_tensors(file).items()}
    assert len(shapes) == 88
    save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, SEEDS[kind]).items()}, file)
    cfg = ControlNetConfig(layers=2, heads=2, head_dim=16, text_dim=24, time_dim=16)
    stored = open_controlnet(drawn_controlnet(folder / "controlnet", cfg, SEEDS[kind] + 1))
    assert stored.cfg == cfg
    with np.load(GOLDEN / f"controlnet_{kind}_like.npz") as arrays:
        golden = dict(arrays)
    for name in ("latents", "v", "v_without"):
        golden[name] = golden[name].transpose(0, 1, 3, 4, 2)
    golden["frames"] = np.float32(golden["frames"].transpose(0, 1, 3, 4, 2)) / 127.5 - 1
    params = load_params(folder / "model", spec, "transformer")
    return kind, Transformer(transformer), params, ControlBranch(cfg, transformer), stored.read(), golden


def predict(recorded, per_block=None, **how):
    _, transformer, params, _, _, golden = recorded
    transformer = Transformer(transformer.cfg, Compute(**how))
    run = jax.jit(
        lambda p, x, w, per_block: transformer.apply({"params": p}, x, w, jnp.full(2, 499), per_block=per_block)
    )
    return run(params, golden["latents"], golden["text"], per_block)


@pytest.fixture(scope="module")
def states(recorded):
    _, _, _, branch, params, golden = recorded
    inputs = golden["latents"], golden["frames"], golden["text"], jnp.full(2, 499)
    return jax.jit(lambda p, *x: branch.apply({"params": p}, *x))(params, *inputs)


def added(kind, states):
    values = weighted_sum([states], [np.float32(BLOCKS[kind])])
    return PerBlock(states=States.of(values, 3))


def test_it_is_that_of_thedenk(recorded, states):
    kind, *_, golden = recorded
    np.testing.assert_allclose(predict(recorded), golden["v_without"], rtol=0, atol=1e-4)
    assert states.shape == (2, 2, 244, 32) and not np.any(states[:, :, :226])
    for i in range(2):
        np.testing.assert_allclose(states[i, :, 226:], golden[f"state_{i}"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(predict(recorded, added(kind, states)), golden["v"], rtol=0, atol=1e-4)
    assert np.abs(golden["v"] - golden["v_without"]).max() > 0.1


@pytest.mark.parametrize(
    "how", [pytest.param(dict(rows_apart=True), marks=pytest.mark.full), dict(rows_apart=True, mlp_tokens=8)]
)
def test_memory_modes_have_it_too(recorded, states, how):
    kind, *_, golden = recorded
    if kind == "5b":
        np.testing.assert_allclose(predict(recorded, added(kind, states), **how), golden["v"], rtol=0, atol=1e-4)


def test_nothing_is_added_after_its_last_block(recorded, states):
    values = weighted_sum([states, states[:1]], [np.float32([0, 0]), np.float32([0])])
    assert values.shape == states.shape
    close(predict(recorded, PerBlock(states=States.of(values, 3))), recorded[-1]["v_without"], 1e-4)
    once = weighted_sum([states, states[:1]], [np.float32([1, 2]), np.float32([3])])
    np.testing.assert_allclose(once, np.stack([4 * states[0], 2 * states[1]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames, pairs", [(9, 3), (12, 3), (13, 4), (1, 1)])
def test_time_is_halved_twice(frames, pairs):
    x = np.arange(frames, dtype=np.float32)[None, :, None]
    found = np.asarray(halve_time(halve_time(x)))[0, :, 0]
    first = [] if frames % 4 == 0 else [0.0]
    means = [np.mean(x[0, i : i + 4]) for i in range(len(first), frames, 4)]
    np.testing.assert_array_equal(found, [*first, *means])
    assert len(found) == pairs


# Files.

SMALL = ControlNetConfig(layers=2, heads=2, head_dim=16, text_dim=24, time_dim=16)


def test_what_is_written_is_read_again(tmp_path):
    cfg = dataclasses.replace(SMALL, out_dim=48, adds_positions=False, latent_channels=4, norm_eps=1e-6)
    drawn = open_controlnet(drawn_controlnet(tmp_path / "drawn", cfg, 0)).read()
    write_controlnet(tmp_path / "written", cfg, drawn)
    again = open_controlnet(tmp_path / "written")
    assert again.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, again.read(), drawn)
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("drawn", "written"))
    assert theirs.keys() == ours.keys() and "out_projectors.1.weight" in ours
    assert all(np.array_equal(theirs[key], ours[key]) for key in ours)
    alone = open_controlnet(tmp_path / "written" / WEIGHTS)  # what shapes do not tell is as it is trained
    assert alone.cfg == dataclasses.replace(cfg, adds_positions=True, norm_eps=1e-5)
    save_file({f"module.{key}": array for key, array in ours.items()}, tmp_path / "module.safetensors")
    assert open_controlnet(tmp_path / "module.safetensors").cfg == alone.cfg


@pytest.mark.full
def test_its_sizes_are_those_of_the_published_ones():
    """Numbers and tensors of TheDenk's class, as it makes them for both widths."""
    for cfg, numbers, tensors in (
        (ControlNetConfig(), 458_281_648, 208),
        (ControlNetConfig(out_dim=1920), 487_788_208, 224),
        (ControlNetConfig(heads=48, layers=6), 808_420_784, 160),
        (ControlNetConfig(heads=48, out_dim=3072), 1_148_338_096, 224),
    ):
        parameters = controlnet_parameters(cfg)
        assert sum(int(np.prod(p.shape)) for p in parameters) == numbers
        assert sum(len(p.keys) for p in parameters) == tensors


def rewrite(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


WRONG_FILES = {
    "num_layers 0 is not supported, only 1 to 1024 is": dict(num_layers=0),
    "num_attention_heads 'x' is not supported": dict(num_attention_heads="x"),
    "use_learned_positional_embeddings True is not supported, only False is": dict(
        use_learned_positional_embeddings=True
    ),
    "_class_name 'SD3ControlNetModel' is not supported": dict(_class_name="SD3ControlNetModel"),
    "use_rotary_positional_embeddings 1 is not supported, only true and false are": dict(
        use_rotary_positional_embeddings=1
    ),
    "does not hold a ControlNet of 3 blocks of 2 x 16:\n  missing: transformer_blocks.2.": dict(num_layers=3),
    "does not hold a ControlNet of 2 blocks of 3 x 16:\n  misshapen: patch_embed.proj.": dict(num_attention_heads=3),
    "missing: out_projectors.0.weight (48, 32)": dict(out_proj_dim=48),
}


@pytest.mark.parametrize("said", WRONG_FILES)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, said):
    folder = drawn_controlnet(tmp_path / "net", SMALL, 0)
    rewrite(folder, **WRONG_FILES[said])
    with pytest.raises(ValueError) as error:
        open_controlnet(folder)
    assert said.replace("'", '"') in str(error.value).replace("'", '"') and str(folder) in str(error.value)


def test_what_is_no_controlnet_is_refused(tmp_path):
    save_file({"x.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no ControlNet of TheDenk's: it has no controlnet_en"):
        open_controlnet(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no ControlNet: there is no config.json beside diffusion_pyt"):
        open_controlnet(tmp_path)
    folder = drawn_controlnet(tmp_path / "net", SMALL, 0)
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {key: x for key, x in tensors.items() if "norm2" not in key} | {"y": tensors["patch_embed.proj.bias"]},
        folder / WEIGHTS,
    )
    with pytest.raises(ValueError) as error:
        open_controlnet(folder)
    assert "missing: transformer_blocks.0.norm2.linear.weight" in str(error.value) and "spare: y" in str(error.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: "):
        open_controlnet(folder)


# Whole runs.

CLIP = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
FITTING = ControlNetConfig(layers=1, heads=2, head_dim=16, latent_channels=4, text_dim=16, time_dim=16, out_dim=48)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Two folders of ControlNets for the small 5B, narrower than it, whose projectors widen their states."""
    made = []
    for seed in (1, 2):
        folder = drawn_controlnet(tmp_path_factory.mktemp("nets") / str(seed), FITTING, seed)
        made.append(str(folder))
    return made


def latents(model, **options):
    return cx.generate(model, "a red circle", output="latents", progress=False, **options)


def test_a_video_follows_it(small, nets):
    _, model = small("5b")
    plain, found = latents(model), latents(model, controlnet=nets[0], control=CLIP)
    assert np.abs(found - plain).max() > 0.05 * np.abs(plain).max()
    assert np.abs(latents(model, controlnet=nets[0], control=255 - CLIP) - found).max() > 1e-3
    close(latents(model, controlnet=nets[0], control=CLIP, control_strength=0), plain)
    loaded = cx.load_controlnet(nets[0], model)
    np.testing.assert_array_equal(latents(model, controlnet=loaded, control=CLIP), found)
    half = latents(model, controlnet=f"{nets[0]}:0.5", control=CLIP)
    assert np.abs(half - found).max() > 1e-3
    for same in (
        dict(controlnet=(loaded, 0.5)),
        dict(controlnet=[(nets[0], 0.25), (loaded, 0.25)]),
        dict(controlnet=nets[0], control_strength=0.5),
        dict(controlnet=nets[0], control_strength=[0.5]),
        dict(controlnet=[loaded, f"{nets[0]}:-0.5"], control=[CLIP, CLIP]),
    ):
        close(latents(model, **dict(control=CLIP) | same), half)


@pytest.mark.full
def test_it_has_a_part_of_the_steps(small, nets):
    _, model = small("5b")
    options = dict(controlnet=nets[0], control=CLIP)
    full, first = latents(model, **options), latents(model, **options, control_end=0.5)
    assert np.abs(full - first).max() > 1e-3
    close(latents(model, one_program=True, **options, control_end=0.5), first)
    request = check_request(model.spec, "x", Options.from_keywords(**options, control_end=0.5))
    noise = SeededNoise(0)
    control = sampling_inputs(model, request, noise, sampler_of(model, request)).control
    assert list(control.active) == [True, True, True, False]  # 0, 1/4 and 2/4, the end included
    assert control.channels[0].shape == (1, 3, 4, 6, 48)


@pytest.mark.full
def test_videos_do_not_know_each_other(small, nets):
    _, model = small("5b")
    options = dict(controlnet=nets[0], control=CLIP)
    both = cx.generate(model, ["a red circle", "a blue star"], output="latents", progress=False, **options)
    close(both[:1], latents(model, **options))


@pytest.mark.full
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_on_a_mesh(small, nets, sizes):
    folder, model = small("5b")
    there = cx.load(folder, mesh=cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))]))
    options = dict(controlnet=nets, control=CLIP, control_end=0.5)
    close(latents(there, **options), latents(model, **options), 3e-5)


@pytest.mark.full
@pytest.mark.parametrize("memory", ["turns", "rows", "chunks"])
def test_memory_modes_give_the_same(small, nets, memory):
    folder, model = small("5b")
    options = dict(controlnet=nets, control=CLIP)
    close(latents(cx.load(folder, memory=memory), **options), latents(model, **options))


@pytest.mark.full
@pytest.mark.parametrize(
    "kind, options",
    [
        ("2b", {}),
        ("5b", dict(guider="stg:layers=0", enhance=1.0)),
        ("5b", dict(sampler="heun")),
        ("5b", dict(video=CLIP, strength=0.5)),
        ("5b", dict(video=CLIP, strength=0.5, mask=CLIP[0, ..., 0] > 99)),
        ("5b", dict(guidance_scale=1.0)),
        ("5b", dict(num_frames=17, windows="9:4")),
        ("5b-i2v", dict(image=CLIP[0])),
    ],
)
def test_it_goes_with_other_tasks_and_guiders(small, nets, kind, options):
    model, given = small(kind)[1], dict(controlnet=nets, control=np.concatenate([CLIP, ~CLIP]))
    found = latents(model, **given, **options)
    close(latents(model, **given, one_program=True, **options), found)
    assert np.abs(found - latents(model, **options)).max() > 1e-4


@pytest.mark.full
@pytest.mark.parametrize(
    "sizes, one_program", [({}, False), (dict(cfg=2, context=2), False), (dict(sp=2), True)], ids=str
)
def test_stored_programs_have_them(small, nets, tmp_path, sizes, one_program):
    """What is stored with two of them makes the same latents, and those of steps and videos without one."""
    folder, _ = small("5b")
    devices = jax.devices()[: int(np.prod([*sizes.values(), 1]))]
    mesh = cx.make_mesh(**sizes, devices=devices) if sizes else None
    cx.compile_programs(folder, tmp_path / "programs", mesh=mesh, controlnet=nets, one_program=one_program)
    own, more = dict(controlnet=nets, control=CLIP), dict(one_program=one_program)
    for options in (own, {}) if one_program else (own, {}, own | dict(control_end=0.5)):
        made = []
        for programs in (None, tmp_path / "programs"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # as of a program that is not there
                model = cx.load(folder, mesh=mesh, programs=programs)
                made.append(latents(model, **more, **options))
        np.testing.assert_array_equal(*made)
    with pytest.warns(UserWarning, match=r"has no program '(step|loop)' for these shapes and ControlNets; it is comp"):
        latents(model, **more, **own | dict(controlnet=nets[0]))


def test_stored_programs_are_known_by_the_sizes_and_kinds_of_controlnets():
    spec, compute = small_spec("5b"), Compute()
    changes = {}, dict(adds_positions=False), dict(layers=2)
    one, other, deeper = (branch_of(dataclasses.replace(FITTING, **change), spec, compute) for change in changes)
    known = [stored_programs.beside(some) for some in ([], [one], [other], [deeper], [one, one], [one, other])]
    assert len(set(known)) == len(known) and known[0] == ""
    again = branch_of(dataclasses.replace(FITTING), spec, compute)
    assert stored_programs.beside([again, other]) == known[-1]
    tree = jax.tree.structure({"control": Control(params=({"a": 1},), channels=(2,), weights=(3,))})
    assert program_pickle._Trees(io.BytesIO(pickle.dumps(tree))).load() == tree


# What is refused before any work.

REFUSED = {
    "a ControlNet needs the video that it follows; give control=...": dict(control=None),
    "adds to blocks in every evaluation, and reuse every:2 leaves some out; give one": dict(reuse="every:2"),
    "adds to blocks in every evaluation, and guidance delta:2 leaves some out": dict(guidance="delta:2"),
    "control_strength has 2 numbers and the ControlNet": dict(control_strength=[1, 0.5]),
    "control_strength must be a number, got 'x'": dict(control_strength="x"),
    "control_strength has a number for each block, which only a ControlNet has": dict(
        controlnet=None, control_strength=[1, 0.5]
    ),
    "2 control videos for 1 ControlNets; give one, or one each": dict(control=[CLIP, CLIP]),
    "no step sees the control video from 0.9": dict(control_start=0.9),
    "there is no ControlNet ./nowhere; give a folder, a file or a hub id": dict(controlnet="./nowhere"),
    "controlnet must be a path or what `load_controlnet` gives, got 3": dict(controlnet=3),
    "the weight of a controlnet must be from -100 to 100": dict(controlnet=[("x", 101.0)]),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_one_sentence(small, nets, said):
    spec = small("5b")[1].spec
    with pytest.raises((ValueError, OSError)) as error:
        check_request(spec, "x", Options.from_keywords(**dict(controlnet=nets[0], control=CLIP) | REFUSED[said]))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("count, said", [(1, "2 control videos for 1 Contr"), (3, "2 control videos for 3 Contr")])
def test_names_of_several_control_videos_are_counted(small, nets, tmp_path, monkeypatch, count, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"")
    asked = Options(controlnet=[nets[0]] * count, control="a.mp4,a.mp4")
    with pytest.raises(ValueError, match=f"{said}olNets; give one, or one each"):
        check_request(small("5b")[1].spec, "x", asked)
    with pytest.raises(FileNotFoundError, match="a.mp4,b.mp4"):  # which may be the name of one
        check_request(small("5b")[1].spec, "x", dataclasses.replace(asked, control="a.mp4,b.mp4"))


OTHERS = {
    "it has width 32, and the model 48; use one that was trained beside this model": ("5b", dict(out_dim=None)),
    "it has latents of channels 16, and the model 4": ("5b", dict(latent_channels=16)),
    "it has heads of width 8, and the model 16": ("5b", dict(heads=4, head_dim=8)),
    "it has 2 blocks, the model 1": ("5b", dict(layers=2)),
    "models of 1.5's layout such as small-1.5-5b can have none": ("1.5-5b", {}),
}


@pytest.mark.parametrize("said", OTHERS)
def test_one_of_another_model_is_refused(tmp_path, said):
    kind, changes = OTHERS[said]
    cfg = dataclasses.replace(FITTING, **changes)
    folder = drawn_controlnet(tmp_path / "net", cfg, 0)
    with pytest.raises(ValueError) as error:
        check_request(small_spec(kind), "x", Options.from_keywords(controlnet=folder, control=CLIP))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_other_kinds_of_models_and_exact_results_are_refused(small, nets):
    options = dict(controlnet=nets[0], control=CLIP)
    for kind in ("control", "inpaint"):
        spec = small_spec("5b")
        cfg = dataclasses.replace(spec.transformer, in_channels=8 + (kind == "inpaint"), control=kind == "control")
        with pytest.raises(ValueError, match="and takes no ControlNet; use a text- or image-to-video model"):
            check_request(dataclasses.replace(spec, transformer=cfg), "x", Options.from_keywords(**options))
        with pytest.raises(ValueError, match=f"is of the kind {kind} and takes no ControlNet"):  # as a plan opens it
            cx.load_controlnet(
                nets[0], dataclasses.replace(small("5b")[1], spec=dataclasses.replace(spec, transformer=cfg))
            )
    with pytest.raises(ValueError, match="exact results know no ControlNet, whose sums depend on the mesh"):
        latents(small("5b")[1], exact=True, **options)


def test_a_damaged_one_is_named(small, nets, tmp_path):
    tensors = load_file(Path(nets[0]) / WEIGHTS)
    tensors["time_embedding.linear_1.bias"][3] = np.nan
    folder = tmp_path / "damaged"
    shutil.copytree(nets[0], folder)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"damaged holds numbers that are not finite in time/up/bias \(1 of its 16"):
        latents(small("5b")[1], controlnet=folder, control=CLIP)


def test_requests_know_their_controlnets(small, nets):
    spec, own = small("5b")[1].spec, dict(controlnet=nets[0], control=CLIP)
    asked = [{}, own, own | dict(controlnet=nets[1]), own | dict(controlnet=(nets[0], 0.5)), own | dict(control=~CLIP)]
    digests = [check_request(spec, "x", Options.from_keywords(**one)).digest() for one in asked]
    assert len(set(digests)) == len(digests)
    assert digests[1] == check_request(spec, "x", Options.from_keywords(**own)).digest()
    short = own | dict(control=CLIP[:3], num_frames=9)
    with pytest.warns(UserWarning, match="the control video has 3 of 9 frames; it runs forth and back"):
        request = check_request(spec, "x", Options.from_keywords(**short))
    np.testing.assert_array_equal(request.controls[0].clip, CLIP[[0, 1, 2, 2, 1, 0, 0, 1, 2]])
    long = np.concatenate([CLIP, CLIP])[:17]  # without a number of frames it is that of the video
    assert check_request(spec, "x", Options.from_keywords(**own | dict(control=long))).frames == 9  # the model's own
    assert check_request(spec, "x", Options.from_keywords(**own | dict(control=CLIP[:4]))).frames == 1


def test_its_work_is_counted(small, nets):
    spec, own = small("5b")[1].spec, dict(controlnet=nets[0], control=CLIP)
    plain, one, two, part = (
        with_beside(spec, check_request(spec, "x", Options.from_keywords(**options)))
        for options in ({}, own, own | dict(controlnet=nets), own | dict(control_end=0.5))
    )
    assert plain == 1 and 1 < one < 2  # it is narrower than the model
    np.testing.assert_allclose([two - 1, part - 1], [2 * (one - 1), 0.75 * (one - 1)])
    with pytest.raises(ValueError, match="give a video to extend or a control video, not both"):
        check_request(spec, "x", Options.from_keywords(**own, extend=CLIP))


@pytest.mark.full
def test_the_command_and_a_prompts_file(small, nets, tmp_path, monkeypatch):
    folder, model = small("5b")
    for name, frames in (("a", CLIP), ("b", 255 - CLIP)):
        with VideoWriter(tmp_path / f"{name}.mp4", 8) as writer:
            writer.write(frames)
    monkeypatch.chdir(tmp_path)
    lines = [
        {"prompt": "x", "control": "a.mp4,b.mp4", "controlnet": [nets[0], f"{nets[1]}:0.5"], "control_strength": [0.5]},
        {"prompt": "x", "control": "a.mp4", "controlnet": nets[0]},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    first, second = read_jobs(None, tmp_path / "prompts.jsonl", tmp_path / "out.mp4", Options())
    request = check_request(model.spec, first.prompt, first.options)
    assert [use.weights for use in request.controls] == [(0.5,), (0.25,)]
    assert np.abs(np.float32(request.controls[0].clip) - request.controls[1].clip).mean() > 20
    assert check_request(model.spec, "x", second.options).controls[0].weights == (1.0,)
    words = ["--controlnet", nets[0], "--controlnet", f"{nets[1]}:0.5", "--control", "a.mp4,b.mp4"]
    words += ["--control-strength", "0.5", "--model", str(folder), "--out", "out.mp4", "--no-progress", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["cogvx", "generate", "x", *words])
    cli.main()
    assert read_video(tmp_path / "out.mp4")[0].shape == (9, 32, 48, 3)


def test_auto_counts_them(small, nets, monkeypatch):
    """The request that shows the model the most decides, with the ControlNets of any; reuse of others is left out."""
    folder, model = small("5b")
    own, seen = dict(controlnet=nets, control=CLIP), {}
    asked = (own, dict(num_frames=17, reuse="every:2"), dict(num_frames=33, windows="12:4"))
    requests = [check_request(model.spec, "x", Options.from_keywords(**one)) for one in asked]
    monkeypatch.setattr("cogvx_jax.planning.plan.choose", lambda source, **how: seen.update(how))
    _choose(str(folder), requests, None, None, None, "auto")
    assert [net.name for net in seen["controlnet"]] == nets and seen["memory"] == "auto"
    sampling = seen["sampling"]
    assert (sampling.frames, sampling.windows, sampling.reuse) == (17, None, None)
    _choose(str(folder), requests[1:2], None, None, None, "auto")
    assert str(seen["sampling"].reuse) == "every:2" and seen["controlnet"] == []


@pytest.mark.full
def test_a_plan_counts_them(small, nets, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, model = small("5b")
    about = dict(mesh=cx.make_mesh(devices=jax.devices()[:1]), memory="resident")
    plain, with_two = (plan(str(folder), **about, **more) for more in ({}, dict(controlnet=nets)))
    weights = sum(x.nbytes for net in nets for x in jax.tree.leaves(cx.load_controlnet(net, model).params))
    assert with_two.chosen.weights["controlnets"] * 2**30 == pytest.approx(weights)
    assert with_two.chosen.step > plain.chosen.step
    assert with_two.chosen.memory - plain.chosen.memory == pytest.approx(with_two.chosen.weights["controlnets"])
    in_turns = dataclasses.replace(with_two.chosen, mode="turns", decode=0.0)  # they lie there beside the transformer
    lying = in_turns.weights["transformer"] + in_turns.weights["controlnets"]
    assert in_turns.memory == pytest.approx(
        max(lying + in_turns.step, in_turns.weights["text_encoder"] + in_turns.text)
    )
    tokens = sequence_tokens(model.spec.transformer, (3, 4, 6))
    more = sum(transformer_flops(FITTING.transformer, tokens) for _ in nets)
    assert with_two.flops - plain.flops == 8 * more  # four steps, both branches
    assert "Every step has ControlNets, of 1 blocks and 1 blocks" in table(with_two)
    with pytest.raises(ValueError, match="a ControlNet adds to blocks in every evaluation, and reuse every:2 leaves"):
        plan(str(folder), controlnet=nets, reuse="every:2")
