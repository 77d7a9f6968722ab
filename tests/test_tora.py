"""Tora: its modules against recorded numbers, its files, pictures of motion, and whole runs."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from closeness import close
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.generate import _choose
from cogvx_jax.cli.plan import table
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.configs import ToraConfig
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.tora import FILES, find_files, open_tora, tora_parameters, write_tora
from cogvx_jax.data.trajectory import motion_field, motion_pictures, read_trajectory, resampled
from cogvx_jax.data.video import read_video
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.flops import transformer_flops
from cogvx_jax.models.tora import Fuser, Motion, TemporalConv, Tora
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.program_cost import Cost
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.short_schedule import check_stored
from cogvx_jax.pipelines.stored_programs import takes
from cogvx_jax.planning import plan as plans
from cogvx_jax.planning import trying
from cogvx_jax.planning.lower import Beside, lower_step

GOLDEN = Path(__file__).parent / "golden"
RECORDED = ToraConfig(layers=2, width=32, channels=8)
SMALL = ToraConfig(layers=1, width=48, channels=8, latent_channels=4)  # for the small 5B
PATH = "60,128 200,128"


def drawn_files(folder, cfg, seed):
    """Both files, their numbers drawn from the names; all fusers of the recorded one have the same."""
    shapes = {key: one.their_shape for one in tora_parameters(cfg) for key in one.keys}
    parts = ({k: v for k, v in shapes.items() if k[0].isdigit() == is_fuser} for is_fuser in (False, True))
    folder.mkdir(parents=True, exist_ok=True)
    for offset, (own, file) in enumerate(zip(parts, FILES.values(), strict=True)):
        if offset:
            one = weights({key[2:]: shape for key, shape in own.items() if key.startswith("0.")}, seed + 1)
            found = {key: one[key.partition(".")[2]] for key in own}
        else:
            found = weights(own, seed)
            found["body.0.bn1.num_batches_tracked"] = np.int64(3)
        save_file({key: np.ascontiguousarray(x) for key, x in found.items()}, folder / file)
    return folder


# The modules.


def test_it_is_that_of_the_wrapper(tmp_path):
    golden = np.load(GOLDEN / "tora.npz")
    stored = open_tora(find_files(drawn_files(tmp_path, RECORDED, 700)))
    assert stored.cfg == RECORDED
    params = stored.read()
    latents = np.moveaxis(golden["flow_latents"], 1, -1)
    features = Tora(RECORDED).apply({"params": params}, latents, method="extract")
    expected = np.moveaxis(golden["features"], 2, -1)
    assert features.shape == (2, 1, 3, 2, 3, 8)
    np.testing.assert_allclose(features[:, 0], expected, rtol=0, atol=1e-4)
    hidden, fused = (np.moveaxis(golden[name], 1, -1)[None] for name in ("hidden", "fused"))
    own = jax.tree.map(lambda x: x[0], params["fusers"])
    np.testing.assert_allclose(Fuser().apply({"params": own}, hidden, features[0]), fused, rtol=0, atol=1e-4)
    assert np.abs(fused - hidden).max() > 0.5
    # In the blocks: behind the text, in front of the padding.
    tokens = np.concatenate([hidden.reshape(1, -1, 32)[:, :5], hidden.reshape(1, -1, 32), np.zeros((1, 3, 32))], axis=1)
    found = Motion(features[0], own).fuse(tokens.astype(np.float32), 5, 23, "float32")
    np.testing.assert_array_equal(found[:, :5], np.float32(tokens[:, :5]))
    np.testing.assert_allclose(found[:, 5:23].reshape(fused.shape), fused, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found[:, 23:], 0)


def test_the_ends_of_a_clip_are_repeated(random_params):
    x = np.random.default_rng(0).normal(size=(1, 3, 1, 1, 4)).astype(np.float32)
    conv = TemporalConv(5)
    params = random_params(conv, x)
    found = conv.apply({"params": params}, x)
    padded = x[:, [0, 0, 1, 2, 2]]
    wanted = sum(padded[:, i : i + 3] @ params["kernel"][i] for i in range(3)) + params["bias"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    still = conv.apply({"params": params}, x[:, :1])  # a clip of one frame is one that does not move
    np.testing.assert_allclose(still, x[:, :1] @ params["kernel"].sum(0) + params["bias"], rtol=1e-5, atol=1e-5)


# Files.


def test_what_is_written_is_read_again(tmp_path):
    params = open_tora(find_files(drawn_files(tmp_path / "drawn", RECORDED, 1))).read()
    write_tora(tmp_path / "written", RECORDED, params)
    again = open_tora(find_files(tmp_path / "written"))
    assert again.cfg == RECORDED
    jax.tree.map(np.testing.assert_array_equal, again.read(), params)
    for file in FILES.values():
        theirs, ours = (load_file(tmp_path / name / file) for name in ("drawn", "written"))
        assert theirs.keys() - ours.keys() <= {"body.0.bn1.num_batches_tracked"}
        assert all(np.array_equal(theirs[key], ours[key]) for key in ours)


def test_its_sizes_are_those_of_the_published_ones():
    """Numbers of the wrapper's modules, as its loader makes them for 5B."""
    sizes = {part: 0 for part in ("extractor", "fusers")}
    for path, one in abstract_params(ToraConfig()).items():
        sizes[path.partition("/")[0]] += int(np.prod(one.shape))
    residual, conv_in = 2 * (128 * 128 * 9 + 128 + 4 * 128), 128 * 64 * 9 + 128
    assert sizes["extractor"] == 84 * residual + conv_in
    assert sizes["fusers"] == 42 * (2 * (768 * 128 * 9 + 768 + 3072 * 768 * 3 + 3072) + 2 * 3072)


def test_files_are_found_in_folders(tmp_path):
    drawn_files(tmp_path, RECORDED, 1)
    both = [str(tmp_path / file) for file in FILES.values()]
    assert find_files(",".join(reversed(both))) == find_files(tmp_path)
    (tmp_path / "fuser").mkdir()
    (tmp_path / FILES["fusers"]).rename(tmp_path / "fuser" / "other.safetensors")
    assert find_files(tmp_path)["fusers"].name == "other.safetensors"
    with pytest.raises(
        ValueError, match="holds no file of Tora's fusers; name its two files, such as traj_extractor.sa"
    ):
        find_files(both[0])
    save_file(load_file(tmp_path / "fuser" / "other.safetensors"), tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match="holds 2 files of Tora's fusers"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file nowhere; give Tora's folder, or its two files"):
        find_files("nowhere")


def test_many_blocks_are_counted_whatever_stands_in_front(tmp_path):
    cfg = dataclasses.replace(RECORDED, layers=12, blocks=1)
    folder = drawn_files(tmp_path, cfg, 1)
    params = open_tora(find_files(folder)).read()
    for file in FILES.values():  # the tenth block first
        tensors = sorted(load_file(folder / file).items(), key=lambda item: not item[0].startswith("10."))
        save_file({f"module.{key}": x for key, x in tensors}, folder / file)
    stored = open_tora(find_files(folder))
    assert stored.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, stored.read(), params)


def test_inspect_tells_what_they_are(tmp_path):
    folder = drawn_files(tmp_path / "files", RECORDED, 1)
    facts = inspect(folder)
    assert facts["holds"] == "Tora's extractor and fusers" and facts["sizes"].startswith(
        "2 blocks of width 32, 8 channels"
    )
    assert f"--tora {folder} --trajectory '60,128 200,128'" in facts["use"][0]
    alone = inspect(folder / FILES["fusers"])
    assert (alone["holds"], alone["lacks"]) == ("Tora's fusers", "the extractor, which is another file")


def test_files_that_do_not_fit_are_refused(tmp_path):
    folder = drawn_files(tmp_path, RECORDED, 1)
    tensors = load_file(folder / FILES["fusers"])
    spoiled = {key: x for key, x in tensors.items() if key != "1.flow_beta_temporal.bias"} | {"y": np.zeros(3)}
    save_file(spoiled, folder / FILES["fusers"])
    with pytest.raises(ConversionError) as error:
        open_tora(find_files(folder))
    assert "missing: 1.flow_beta_temporal.bias (32,)" in str(error.value) and "spare: y" in str(error.value)
    save_file(
        {key: x for key, x in tensors.items()} | {f"2{k[1:]}": x for k, x in tensors.items()}, folder / FILES["fusers"]
    )
    with pytest.raises(ConversionError, match="do not go together"):
        open_tora(find_files(folder))


# Pictures of motion.


def test_trajectories_have_a_point_a_frame():
    assert resampled(((0, 0), (8, 4)), 5) == ((0, 0), (2, 1), (4, 2), (6, 3), (8, 4))
    assert resampled(((0, 0), (9, 0), (9, 9)), 6) == ((0, 0), (3, 0), (6, 0), (9, 0), (9, 4), (9, 9))
    assert resampled(((0, 0), (1, 1), (2, 2)), 3) == ((0, 0), (1, 1), (2, 2))
    assert resampled(tuple((i, 0) for i in range(9)), 4) == ((0, 0), (2, 0), (4, 0), (6, 0))


def test_motion_spreads_to_its_surroundings():
    field = motion_field([((0, 0), (128, 128)), ((255, 0), (255, 128))], 3, 120, 160)
    assert field.shape == (3, 120, 160, 2) and not field[0].any()
    # The first trajectory is at (0, 0), (40, 30), (80, 60), the second at (159, 0), (159, 30), (159, 60).
    assert field[2, 30, 40].tolist() == [40, 30]
    np.testing.assert_allclose(field[2, 30, 50], np.exp(-0.5) * np.array([40, 30]), rtol=1e-4)
    np.testing.assert_array_equal(field[2, 30, 90], 0)  # beyond the reach
    # At an edge the surroundings are mirrored, the edge itself is not.
    one = motion_field([((10, 100), (10, 255))], 2, 120, 160)[1, :, :, 1]
    x, y, move = 160 * 10 // 256, 120 * 100 // 256, 120 * 255 // 256 - 120 * 100 // 256
    blur = lambda d: np.exp(-0.5 * (d / 10) ** 2)  # noqa: E731
    np.testing.assert_allclose(one[y, x], move * (1 + blur(2 * x)), rtol=1e-5)
    np.testing.assert_allclose(one[y, 0], move * 2 * blur(x), rtol=1e-5)


def test_motion_is_a_colour():
    motion = np.zeros((2, 1, 5, 2), np.float32)
    motion[1, 0] = [(2, 0), (-2, 0), (0, 1), (1, 0), (0, 0)]
    pictures = motion_pictures(motion)
    assert pictures.dtype == np.uint8 and (pictures[0] == 255).all()  # no motion is white
    left, right, down, half, none = pictures[1, 0].tolist()
    assert left == [255, 0, 0] and none == [255, 255, 255]  # to the right: the wheel's first colour, in full
    assert half[0] == 255 and half[1] in (127, 128) and half[2] in (127, 128)
    assert right[0] < 5 and right[1] > 200 and right[2] > 200  # its opposite
    assert down != half


def test_one_trajectory_needs_no_list():
    pairs = [[60, 128], [200, 128]]
    for one in (pairs, [pairs], np.array(pairs)):
        (found,) = Options(trajectory=one).trajectory
        assert read_trajectory(found) == ((60, 128), (200, 128))
    assert Options(trajectory=None).trajectory == Options(trajectory=[]).trajectory == ()


def test_points_are_read(tmp_path):
    (tmp_path / "points.txt").write_text("60,128\n200.4,128\n")
    wanted = ((60, 128), (200, 128))
    for said in (
        PATH,
        "60,128;200,128",
        str(tmp_path / "points.txt"),
        [(60, 128), [200, 128]],
        np.array([[60, 128], [200, 128]]),
    ):
        assert read_trajectory(said) == wanted


# Whole runs.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return str(drawn_files(tmp_path_factory.mktemp("tora") / "files", SMALL, 3))


def latents_of(model, **options):
    return cx.generate(model, "x", output="latents", progress=False, **{"num_inference_steps": 2} | options)


def test_a_video_follows_a_trajectory(small, files, tmp_path):
    _, model = small("5b")
    plain, found = latents_of(model), latents_of(model, tora=files, trajectory=PATH)
    assert np.abs(found - plain).max() > 1e-2
    other = latents_of(model, tora=files, trajectory=[PATH, "128,20 128,200"])
    assert np.abs(other - found).max() > 1e-4
    assert np.abs(latents_of(model, tora=f"{files}:0.5", trajectory=PATH) - found).max() > 1e-4
    np.testing.assert_array_equal(latents_of(model, tora=(files, 1), trajectory=[[(60, 128), (200, 128)]]), found)
    params = traverse_util.flatten_dict(open_tora(find_files(files)).read(), sep="/")
    still = {path: 0 * x if "temporal" in path else x for path, x in params.items()}
    write_tora(tmp_path / "still", SMALL, traverse_util.unflatten_dict(still, sep="/"))
    close(latents_of(model, tora=tmp_path / "still", trajectory=PATH), plain)  # as it is before training


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, dict(guider="stg:layers=0"), dict(guidance_scale=1.0)], ids=str)
def test_everywhere_the_same(small, files, options):
    folder, model = small("5b")
    asked = dict(tora=files, trajectory=PATH) | options
    plain = latents_of(model, **asked)
    close(latents_of(model, one_program=True, **asked), plain)
    for memory in ("turns", "rows", "chunks"):
        close(latents_of(cx.load(folder, memory=memory), **asked), plain)
    for sizes in (dict(cfg=2, sp=2), dict(context=2, tensor=2), dict(fsdp=2, sp=2)):
        there = cx.load(folder, mesh=cx.make_mesh(**sizes, devices=jax.devices()[:4]))
        close(latents_of(there, **asked), plain, 3e-5)
    if not options:
        meshes = None, cx.make_mesh(cfg=2, devices=jax.devices()[:2])
        exact = [latents_of(cx.load(folder, mesh=mesh), exact=True, **asked) for mesh in meshes]
        np.testing.assert_array_equal(*exact)
        close(exact[0], plain)


@pytest.mark.full
def test_it_goes_with_other_tasks(small, files):
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    for kind, options in (
        ("5b-i2v", dict(image=clip[0])),
        ("5b", dict(video=clip, strength=0.5, num_inference_steps=4)),
        ("5b", dict(travel={"50%": "y"}, enhance=1.0)),
        ("5b", dict(region=[((0, 0, 0.4, 1), "y")])),
    ):
        _, model = small(kind)
        found = latents_of(model, tora=files, trajectory=PATH, **options)
        assert np.abs(found - latents_of(model, **options)).max() > 1e-3
        close(latents_of(model, tora=files, trajectory=PATH, one_program=True, **options), found)


# What is refused before any work.

WRONG = {
    "a trajectory needs Tora's files, by which a model follows it; give tora=": dict(tora=None),
    "Tora needs a trajectory to follow; give trajectory=": dict(trajectory=None),
    "a trajectory is of a whole clip; give trajectory or windows, not both": dict(windows="8:4"),
    "reuse leaves out blocks that a trajectory changes": dict(reuse="every:2"),
    "ways of guidance leave out what a trajectory changes": dict(guidance="delta:2"),
    "there is no file nowhere": dict(tora="nowhere"),
    "tora must be a path, got 3": dict(tora=3),
    "the weight of tora must be from -100 to 100": dict(tora=("x", 200.0)),
    "a trajectory is 2 to 16384 points x,y, such as 60,128 200,128, got": dict(trajectory="60,128"),
    "points of a trajectory lie on a canvas of 256 x 256, got 0.0 to 256.0": dict(trajectory="0,0 256,3"),
    "this text holds no trajectory, whose points are x,y, such as 60,128 200,128: ''": dict(trajectory=""),
    "this text holds no trajectory, whose points are x,y, such as 60,128 200,128: 'nan,128": dict(
        trajectory="nan,128 20,128"
    ),
    "there is no file 'somewhere.txt'": dict(trajectory="somewhere.txt"),
    "this text holds no trajectory, whose points are x,y, such as 60,128 200,128: '1,2,3'": dict(trajectory="1,2,3"),
    "a trajectory is 2 to 16384 points x,y, such as 60,128 200,128, got '[[1, 2], [3]]'": dict(
        trajectory=[[[1, 2], [3]]]
    ),
    "trajectory must be at most 64 lists of points x,y, got": dict(trajectory=[PATH] * 65),
    "a trajectory needs at least 2 frames to move in, got 1": dict(num_frames=1),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_one_sentence(small, files, said):
    with pytest.raises((ValueError, OSError)) as error:
        options = dict(tora=files, trajectory=PATH) | WRONG[said]
        check_request(small("5b")[1].spec, "x", Options.from_keywords(**options))
    assert said in str(error.value) and "\n" not in str(error.value)


OTHERS = {
    "it has width 64, and the model 48; use one that was trained beside this model": ("5b", dict(width=64)),
    "it has latents of channels 16, and the model 4": ("5b", dict(latent_channels=16)),
    "it has blocks 2, and the model 1": ("5b", dict(layers=2)),
    "models of 1.0's layout such as 5B, not for small-1.5-5b": ("1.5-5b", {}),
}


@pytest.mark.parametrize("said", OTHERS)
def test_one_of_another_model_is_refused(tmp_path, said):
    kind, changes = OTHERS[said]
    folder = drawn_files(tmp_path, dataclasses.replace(SMALL, **changes), 0)
    with pytest.raises(ValueError) as error:
        check_request(small_spec(kind), "x", Options.from_keywords(tora=folder, trajectory=PATH))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_one_is_named(small, files, tmp_path):
    folder = drawn_files(tmp_path, SMALL, 0)
    tensors = load_file(folder / FILES["extractor"])
    tensors["conv_in.bias"][3] = np.nan
    save_file(tensors, folder / FILES["extractor"])
    with pytest.raises(ValueError, match=r"holds numbers that are not finite in extractor/conv_in/bias \(1 of its 8"):
        latents_of(small("5b")[1], tora=folder, trajectory=PATH)


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "more", [{}, pytest.param(dict(region=[((0, 0, 0.4, 1), "y")]), marks=pytest.mark.full)], ids=str
)
def test_a_plan_compiles_the_step_that_runs(small, files, monkeypatch, more):
    """The step is lowered for what `generate` calls it with."""
    _, model = small("5b")
    called = []

    def step(*arguments, **named):
        called.append(takes(arguments, named))
        raise Stop

    monkeypatch.setattr("cogvx_jax.pipelines.denoise.step_program", lambda *about: step)
    with pytest.raises(Stop):
        latents_of(model, tora=files, trajectory=PATH, **more)
    beside = Beside(tora=SMALL, texts=1 + len(more))
    lowered = lower_step(model.spec, model.compute, None, (1, 3, 4, 6, 4), guided=True, beside=beside)
    assert [takes(*lowered.args_info)] == called


def test_a_plan_counts_fusers_and_regions(files, small, monkeypatch, tmp_path):
    """The compiler is scripted: all programs take 1 GiB."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost = Cost(arguments=0, temporaries=2**30, outputs=0, cycles=0, kernel_cycles=0, collectives={}, seconds=0)
    monkeypatch.setattr(trying, "_lowered", lambda *about: [None])
    monkeypatch.setattr(trying, "_cost", lambda *about: cost)
    folder, model = small("5b")
    spec, about = model.spec, dict(mesh=cx.make_mesh(devices=jax.devices()[:1]), num_inference_steps=10)
    plain, moved, parts = (plans.plan(str(folder), **about, **one) for one in ({}, dict(tora=files), dict(regions=2)))
    fusers = sum(x.nbytes for x in jax.tree.leaves(open_tora(find_files(files)).read()["fusers"]))
    assert moved.chosen.weights["tora"] * 2**30 == fusers and "tora" not in plain.chosen.weights
    assert moved.chosen.lying("transformer") - plain.chosen.lying("transformer") == moved.chosen.weights["tora"]
    assert moved.flops - plain.flops == 10 * 18 * 2 * 2 * (9 * 8 * 12 + 3 * 12 * 48)  # of 18 video tokens
    length = spec.transformer.text_length
    assert parts.flops == 20 * transformer_flops(spec.transformer, 3 * length + 18)
    assert "Every step has Tora's fusers" in table(moved) and "Prompts of 2 regions stand beside" in table(parts)
    assert plans.plan(str(folder), **about, regions=2) == parts != plans.plan(str(folder), **about, regions=1)
    for said, asked in {
        "a trajectory is of a whole clip; give trajectory or windows, not both": dict(tora=files, windows="8:4"),
        "an edit's clip is seen by one prompt; give regions or edit": dict(regions=1, task="edit"),
        "regions must be from 0 to 16, got 17": dict(regions=17),
        "a trajectory needs at least 2 frames": dict(tora=files, num_frames=1),
        "reuse leaves out what regions change; give regions or reuse": dict(regions=1, reuse="every:2"),
    }.items():
        with pytest.raises(ValueError, match=said):
            plans.plan(str(folder), **about, **asked)
    with pytest.raises(ValueError, match="has positions for exactly 226 text tokens"):
        plans.plan("2b", topology="v5e:1x1", regions=1)


def test_auto_counts_trajectories_and_regions(small, files, monkeypatch):
    folder, model = small("5b")
    own, seen = dict(tora=files, trajectory=PATH), {}
    asked = dict(reuse="every:2"), own, dict(region=[((0, 0, 0.4, 1), "y")])
    requests = [check_request(model.spec, "x", Options.from_keywords(**one)) for one in asked]
    monkeypatch.setattr(plans, "choose", lambda source, **how: seen.update(how))
    _choose(str(folder), requests, None, None, None, "auto")
    assert (seen["tora"], seen["regions"], seen["sampling"].reuse) == (files, 1, None)
    windows = check_request(model.spec, "x", Options.from_keywords(num_frames=33, windows="16:8"))
    with pytest.raises(ValueError, match="auto plans for videos with trajectories or with windows; make them in two"):
        _choose(str(folder), [*requests, windows], None, None, None, "auto")


def test_requests_know_their_trajectories(small, files):
    spec, own = small("5b")[1].spec, dict(tora=files, trajectory=PATH)
    asked = [{}, own, own | dict(trajectory="60,128 200,129"), own | dict(tora=(files, 0.5))]
    requests = [check_request(spec, "x", Options.from_keywords(**one)) for one in asked]
    assert len({request.digest() for request in requests}) == len(asked)
    assert requests[1].digest() == check_request(spec, "x", Options.from_keywords(**own)).digest()
    with pytest.raises(ValueError, match="stored programs know no trajectory; leave out the programs"):
        check_stored(requests[1])


def test_the_command_and_a_prompts_file(small, files, tmp_path, monkeypatch):
    folder, model = small("5b")
    monkeypatch.chdir(tmp_path)
    line = {"prompt": "x", "tora": f"{files}:0.5", "trajectory": [PATH, [[1, 2], [3, 4]]]}
    Path("prompts.jsonl").write_text(json.dumps(line))
    (job,) = read_jobs(None, Path("prompts.jsonl"), Path("out.mp4"), Options())
    motion = check_request(model.spec, job.prompt, job.options).motion
    assert (motion.weight, motion.trajectories) == (0.5, (((60, 128), (200, 128)), ((1, 2), (3, 4))))
    words = ["--tora", files, "--trajectory", PATH, "--trajectory", "1,2 3,4", "--steps", "2"]
    words += ["--model", str(folder), "--out", "out.mp4", "--no-progress"]
    monkeypatch.setattr(sys, "argv", ["cogvx", "generate", "x", *words])
    cli.main()
    assert read_video("out.mp4")[0].shape == (9, 32, 48, 3)
    record = read_record("out.mp4")
    assert (record.options["tora"], record.options["trajectory"]) == (f"{files}:1.0", [PATH, "1,2 3,4"])
    assert [(one["option"], one["path"]) for one in record.inputs] == [("tora", files)]
    monkeypatch.setattr(sys, "argv", ["cogvx", "replay", "out.mp4", "--out", "again.mp4", "--no-progress"])
    cli.main()
    assert Path("again.mp4").read_bytes() == Path("out.mp4").read_bytes()
