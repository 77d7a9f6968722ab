"""Training a ControlNet: its data, its beginning, its loss, and its runs."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layouts import write, write_tar

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.configs import Compute
from cogvx_jax.convert.controlnet import open_controlnet, write_controlnet
from cogvx_jax.convert.runs import read_run_controlnet
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.pipelines.controlnets import open_controlnet as find_controlnet
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.scripts.controlnet_tiny import compare, outlines
from cogvx_jax.sharding import make_mesh
from cogvx_jax.tiny import shapes
from cogvx_jax.train.clips.cache import Shape, control_name, deflated, open_cache, store_of, write_cache
from cogvx_jax.train.clips.encode import _read_missing
from cogvx_jax.train.transformer import controlnet as beginnings
from cogvx_jax.train.transformer import run as runs
from cogvx_jax.train.transformer.controlled_objective import make_controlled_errors, make_controlled_loss
from cogvx_jax.train.transformer.objective import make_errors
from cogvx_jax.train.transformer.settings import ControlNetTraining, Objective

PLAIN = Objective(text_dropout=0.0)
SHAPE = Shape(32, 48, 9, 8.0)
KEY = jax.random.key(0)


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


# Its data.


def controls(path):
    return [source.control and source.control.name for source in read_sources(path)]


def test_every_layout_names_control_videos(tmp_path):
    both = ["a-edges.mp4", "b-edges.mp4"]
    files = write(tmp_path, **{name.replace(".", "_"): "x" for name in ("a.mp4", "b.mp4", *both)})
    for key in ("control", "control_video", "control_file_path"):
        rows = [{"video": f"{n}.mp4", "prompt": "p", key: f"{n}-edges.mp4"} for n in "ab"]
        (files / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert controls(files / "c.jsonl") == both
    (files / "c.csv").write_text("video,prompt,control\na.mp4,p,a-edges.mp4\nb.mp4,p,b-edges.mp4\n")
    assert controls(files / "c.csv") == both
    lists = write(tmp_path / "lists", prompts_txt="p\np\n", videos_txt="../a.mp4\n../b.mp4\n")
    assert controls(lists) == [None, None]
    assert controls(write(lists, controls_txt="../a-edges.mp4\n../b-edges.mp4\n")) == both
    sat = write(tmp_path / "sat", videos__a_mp4="A", labels__a_txt="p", controls__a_mp4="C")
    assert [source.control.parent.name for source in read_sources(sat)] == ["controls"]
    beside = write(tmp_path / "beside", a_mp4="A", a_txt="p", a_control_mp4="C")
    assert controls(beside) == ["a.control.mp4"]
    (tmp_path / "tars").mkdir()
    tar = write_tar(tmp_path / "tars" / "t.tar", *(beside / name for name in ("a.mp4", "a.txt", "a.control.mp4")))
    assert controls(tar) == ["a.control.mp4"]


def test_control_videos_that_are_missing_are_said(tmp_path):
    write(tmp_path, a_mp4="A", b_mp4="B", c_mp4="C")
    (tmp_path / "c.csv").write_text("video,prompt,control\na.mp4,p,c.mp4\nb.mp4,p,\n")
    with pytest.raises(ValueError, match="1 of 2 lines have no control, though others do"):
        read_sources(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("video,prompt,control\na.mp4,p,gone.mp4\n")
    with pytest.raises(FileNotFoundError, match="1 of 1 controls are not there"):
        read_sources(tmp_path / "c.csv")
    sat = write(tmp_path / "sat", videos__a_mp4="A", labels__a_txt="p", controls__b_mp4="C")
    with pytest.raises(ValueError, match="1 of 1 videos have no file of their name in controls/"):
        read_sources(sat)
    beside = write(tmp_path / "beside", a_mp4="A", a_txt="p", a_control_mp4="C", b_mp4="B", b_txt="p")
    with pytest.raises(ValueError, match="1 of 2 samples have no control video, though others do"):
        read_sources(beside)


def film(file, frames=9, size=(32, 48), seed=0, fps=8):
    with VideoWriter(file, fps) as writer:
        writer.write(np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), np.uint8))
    return file


def source_of(tmp_path, control):
    (tmp_path / "c.csv").write_text(f"video,prompt,control\na.mp4,p,{control.name}\n")
    return read_sources(tmp_path / "c.csv")[0]


def test_control_videos_are_read_as_their_videos_are(tmp_path):
    film(tmp_path / "a.mp4")
    how = dict(names=(), vae="v", shape=SHAPE, pixels=False)
    found = _read_missing(source_of(tmp_path, film(tmp_path / "c.mp4", seed=1)), **how)
    assert found.control.shape == (9, 32, 48, 3) and found.control_key != found.key
    known = dict(names={control_name(found.control_key)}, vae="another", shape=SHAPE, pixels=False)
    other = _read_missing(source_of(tmp_path, tmp_path / "c.mp4"), **known)
    assert other.control is None and other.control_key == found.control_key  # it does not depend on the encoder
    twice = film(tmp_path / "twice.mp4", size=(64, 96))
    assert _read_missing(source_of(tmp_path, twice), **how).control.shape == (9, 32, 48, 3)


APART = {
    "5 frames at 8 fps are too short for 9": dict(frames=5),
    "it is 48x48 and the video 32x48; their shapes must be the same": dict(size=(48, 48)),
    "it has 4 frames a second and the video 8; their rates must be the same": dict(fps=4),
}


@pytest.mark.parametrize("words", APART)
def test_a_control_video_of_other_places_or_moments_is_named(tmp_path, words):
    film(tmp_path / "a.mp4")
    source = source_of(tmp_path, film(tmp_path / "other.mp4", **APART[words]))
    with pytest.raises(ValueError, match=f"its control video .*other.mp4: {words}"):
        _read_missing(source, names=(), vae="v", shape=SHAPE, pixels=False)


def with_controls(cache, pixels, stored=None):
    """The cache with such control videos, of which another array may be stored."""
    store = store_of(cache.folder)
    for i, video in enumerate(pixels):
        store.add(control_name(f"{i}"), {"pixels": deflated(video) if stored is None else stored})
    store.commit()
    write_cache(dataclasses.replace(cache, controls=tuple(f"{i}" for i in range(len(pixels)))))
    return open_cache(cache.folder)


@pytest.fixture(scope="module")
def cache(small, random_cache, tmp_path_factory):
    """Six random clips of the small 5B with control videos."""
    plain = random_cache(tmp_path_factory.mktemp("cache"), small("5b")[1], SHAPE, 6)
    return with_controls(plain, np.random.default_rng(0).integers(0, 256, (6, 9, 32, 48, 3), np.uint8))


def test_the_cache_gives_back_pixels_and_not_more(small, cache, random_cache, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 32, 48, 3), np.uint8)
    np.testing.assert_array_equal(cache.batch([4, 1], controls=True)["control"], pixels[[4, 1]])
    assert "control" not in cache.batch([4, 1]) and cache.verify() == (6 + 6 + 2, 0)
    plain = random_cache(tmp_path / "plain", small("5b")[1], SHAPE, 6)
    assert plain.digest != cache.digest and "controls" not in json.loads((plain.folder / "cache.json").read_text())
    with pytest.raises(ValueError, match="holds no control videos; encode the clips to it again from data that has"):
        beginnings.check_controls([cache, plain])
    bomb = with_controls(plain, pixels[:1].repeat(6, 0), deflated(np.zeros(10**8, np.uint8)))
    with pytest.raises(ValueError, match=re.escape("pixels of the entry control/0 are not of (9, 32, 48, 3)")):
        bomb.batch([0], controls=True)
    write_cache(dataclasses.replace(cache, folder=plain.folder, controls=("0",)))
    with pytest.raises(ValueError, match="it has 6 clips and 1 control videos"):
        open_cache(plain.folder)


# Its beginning and its loss.


@pytest.fixture(scope="module")
def begun(small):
    """The small 5B, what a new ControlNet beside it begins with, and a batch."""
    _, model = small("5b")
    begins = beginnings.find_beginning(model.spec, ControlNetTraining(start="new"))
    base = model.params["transformer"]
    rng = np.random.default_rng(1)
    batch = {
        "moments": np.concatenate([rng.normal(size=(2, 3, 4, 6, 4)), np.full((2, 3, 4, 6, 4), -30)], -1),
        "text": rng.normal(size=(2, 24, 16)),
        "empty": rng.normal(size=(24, 16)),
    }
    batch = {name: np.float32(x) for name, x in batch.items()}
    batch |= {"control": rng.integers(0, 256, (2, 9, 32, 48, 3), np.uint8), "base": base}
    return model, begins, beginnings.first_params(begins, model.spec, base, 0, None), batch


@pytest.mark.full
def test_a_new_one_has_the_models_weights_and_adds_nothing(begun):
    model, begins, net, batch = begun
    base = model.params["transformer"]
    jax.tree.map(np.testing.assert_array_equal, net["blocks"], jax.tree.map(lambda x: x[:1], base["blocks"]))
    for name in ("text", "time"):
        jax.tree.map(np.testing.assert_array_equal, net[name], base[name])
    np.testing.assert_array_equal(net["patch"]["kernel"][:16], base["patch"]["kernel"])
    assert float(jnp.abs(net["patch"]["kernel"][16:]).max()) > 0 and not np.any(net["projectors"]["kernel"])

    draw, errors = make_controlled_errors(model.spec, Compute(), PLAIN, lambda base, net: base, begins.cfg)
    rows = draw(batch, KEY)
    alone = jax.jit(make_errors(model.spec, Compute()))(base, {k: x for k, x in rows.items() if k != "control"})
    np.testing.assert_allclose(jax.jit(errors)(net, rows, batch), alone, rtol=1e-6)


def test_a_new_one_beside_an_image_model_copies_the_noisy_channels(small):
    _, model = small("5b-i2v")
    begins, base = beginnings.find_beginning(model.spec, ControlNetTraining(start="new")), model.params["transformer"]
    net = beginnings.first_params(begins, model.spec, base, 0, None)
    assert base["patch"]["kernel"].shape[0] == 32
    np.testing.assert_array_equal(net["patch"]["kernel"][:16], base["patch"]["kernel"][:16])
    assert not np.array_equal(net["patch"]["kernel"][16:32], base["patch"]["kernel"][16:])


def test_sizes_are_those_of_the_model():
    spec = load_spec("5b")
    cfg = beginnings.new_config(spec)
    assert (cfg.layers, cfg.heads, cfg.out_dim, cfg.text_dim) == (6, 48, 3072, 4096)
    assert beginnings.new_config(load_spec("tiny")).layers == 3 and beginnings.new_config(spec, 8).layers == 8
    with pytest.raises(ValueError, match="models of 1.5's layout such as .* can have none"):
        beginnings.find_beginning(load_spec("1.5-5b"), ControlNetTraining(start="new"))
    with pytest.raises(ValueError, match="it has 43 blocks, the model 42"):
        beginnings.find_beginning(spec, ControlNetTraining(start="new", layers=43))
    fun = dataclasses.replace(spec, transformer=dataclasses.replace(spec.transformer, in_channels=33))
    with pytest.raises(ValueError, match="is of the kind inpaint and takes no ControlNet; use a text- or image-to"):
        beginnings.find_beginning(fun, ControlNetTraining(start="new"))


@pytest.mark.parametrize("remat", ["none", pytest.param("block", marks=pytest.mark.full)])
def test_all_of_it_is_learnt_once_it_adds_something(begun, remat):
    """And the loss is that of what the control shows: another video has another."""
    model, begins, net, batch = begun
    rng = np.random.default_rng(0)
    net = net | {"projectors": jax.tree.map(lambda x: np.float32(rng.normal(0, 0.1, x.shape)), net["projectors"])}
    loss = make_controlled_loss(model.spec, Compute(remat=remat), PLAIN, lambda base, net: base, cfg=begins.cfg)
    both = jax.jit(jax.value_and_grad(loss))
    value, found = both(net, batch, KEY)
    still = {"/".join(str(k.key) for k in path) for path, x in jax.tree.leaves_with_path(found) if not np.any(x)}
    assert still == set() and np.isfinite(value)
    other, _ = both(net, batch | {"control": 255 - batch["control"]}, KEY)
    assert abs(float(other - value)) > 1e-5 * float(value)


# Its runs.

FLAGS = ["--controlnet", "new", "--batch-size", "2", "--log-every", "1", "--learning-rate", "0.01", "--warmup", "0"]


def flags(cache, folder, out, steps):
    return ["--data", cache.folder, "--model", folder, "--out", out, "--steps", steps, *FLAGS]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.full
def test_a_run_is_opened_as_a_controlnet(small, cache, tmp_path, monkeypatch):
    folder, model = small("5b")
    out = tmp_path / "run"
    assert train(small, cache, out, 1, {}).spec == model.spec  # nothing of it is trained
    cfg, net = read_run_controlnet(out)
    assert cfg == beginnings.new_config(model.spec) and np.any(net["projectors"]["kernel"])
    found = find_controlnet(str(out), model.spec)
    jax.tree.map(np.testing.assert_array_equal, found.on(None, "float32"), net)
    run("export", out, "--out", tmp_path / "net", monkeypatch=monkeypatch)
    again = find_controlnet(tmp_path / "net", model.spec)
    assert again.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, again.on(None, "float32"), net)
    with pytest.raises(ValueError, match="run trained a ControlNet, not a LoRA; give it as a ControlNet"):
        cx.load_lora(model, out)


@pytest.mark.full
def test_a_run_is_stopped_goes_on_is_used_and_exported(small, cache, tmp_path, monkeypatch, capsys):
    folder, model = small("5b")
    whole, parts, out = tmp_path / "whole", tmp_path / "parts", tmp_path / "net"
    run("train", *flags(cache, folder, whole, 3), monkeypatch=monkeypatch)
    assert f"`cogvx generate --controlnet {whole} --control VIDEO` uses it" in capsys.readouterr().out
    run("train", *flags(cache, folder, parts, 2), monkeypatch=monkeypatch)
    run("train", "--config", parts / "run.json", "--out", parts, "--steps", 3, monkeypatch=monkeypatch)
    cfg, net = read_run_controlnet(whole)
    assert losses(parts) == losses(whole) and np.isfinite(losses(parts)).all() and np.any(net["projectors"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, read_run_controlnet(parts)[1], net)

    run("export", whole, "--out", out, monkeypatch=monkeypatch)
    assert open_controlnet(out).cfg == cfg == beginnings.new_config(model.spec)
    control = np.random.default_rng(3).integers(0, 256, (9, 32, 48, 3), np.uint8)
    asked = dict(control=control, num_inference_steps=2, output="latents", progress=False)
    made = [cx.generate(model, "x", controlnet=place, **asked) for place in (str(whole), str(out))]
    np.testing.assert_array_equal(*made)
    plain = cx.generate(model, "x", num_inference_steps=2, output="latents", progress=False)
    assert np.abs(made[0] - plain).max() > 1e-4 * np.abs(plain).max()

    capsys.readouterr()
    run("inspect", whole, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "a ControlNet of small-5b" in shown and f"--controlnet {whole} --control CONTROL.mp4" in shown
    with pytest.raises(ValueError, match="controlnet.layers was 1 and is now 2|it has 2 blocks, the model 1"):
        train(small, cache, whole, 3, dict(layers=2))
    with VideoWriter(tmp_path / "control.mp4", 8) as writer:
        writer.write(control)
    line = {"prompt": "x", "control": str(tmp_path / "control.mp4"), "steps": 2}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    more = ["--prompts", tmp_path / "prompts.jsonl", "--video-every", 4]
    run("train", *flags(cache, folder, whole, 4), *more, monkeypatch=monkeypatch)
    assert (whole / "videos" / "4" / "00.mp4").is_file()

    from_there = tmp_path / "from"
    train(small, cache, from_there, 1, dict(start=str(out)))
    assert json.loads((from_there / "run.json").read_text())["controlnet"] == {"start": str(out), "layers": None}


def train(small, cache, out, steps, training, mesh=None):
    """The small 5B's ControlNet, in this process."""
    folder, _ = small("5b")
    config = runs.RunConfig(lora=None, controlnet=ControlNetTraining(**{"start": "new"} | training))
    stage = runs.Stage(data=((cache.folder, 1),), steps=steps, batch_size=2, learning_rate=0.01, warmup=0)
    return runs.train(cx.load(folder, mesh=mesh), (stage,), config, out, source=str(folder))


@pytest.mark.full
@pytest.mark.parametrize("sizes", [dict(data=2), dict(fsdp=2, tensor=2), dict(context=2), dict(sp=2)])
def test_a_run_is_the_same_on_every_mesh(small, cache, tmp_path, sizes):
    several = make_mesh(**sizes, devices=jax.devices()[: np.prod([*sizes.values()])])
    for name, mesh in (("one", None), ("many", several)):
        train(small, cache, tmp_path / name, 2, {}, mesh)
    one, many = (read_run_controlnet(tmp_path / name)[1] for name in ("one", "many"))
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-4)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        assert np.abs(a - b).max() <= 0.1 * max(np.abs(a).max(), 0.01)


WRONG = {
    "holds no control videos": ["--controlnet", "new"],
    "--controlnet-layers is for a new ControlNet; give --controlnet new, too": ["--controlnet-layers", "2"],
    "a ControlNet is trained beside a model that stays as it is; leave out": ["--controlnet", "new", "--train", "full"],
    "stays as it is; leave out --train, --parts and what a LoRA adapts": ["--controlnet", "new", "--lora-rank", "4"],
    "--train full and --parts train the model's own parameters; leave them out, or what a LoRA adapts": [
        *("--train", "full", "--lora-rank", "4"),
    ],
    "masks is for training models of the kind inpaint, and small-5b is of the kind t2v; leave it out": [
        *("--controlnet", "new", "--masks", "all"),
    ],
    "image_dropout is for training models of the kind i2v, and small-5b is of": ["--image-dropout", "0.5"],
    "there is no ControlNet /nowhere; give a folder, a file or a hub id": ["--controlnet", "/nowhere"],
    "a ControlNet needs a block, got 0 layers": ["--controlnet", "new", "--controlnet-layers", "0"],
    "has layers of its own; leave out the number": ["--controlnet", "/nowhere", "--controlnet-layers", "2"],
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_one_sentence(small, random_cache, tmp_path, monkeypatch, capsys, words):
    plain = random_cache(tmp_path / "plain", small("5b")[1], SHAPE, 2)
    monkeypatch.setattr(jax, "jit", None)
    data = ["--data", plain.folder, "--model", small("5b")[0], "--out", tmp_path / "run", "--steps", "1"]
    with pytest.raises(SystemExit) as stopped:
        run("train", *data, *WRONG[words], monkeypatch=monkeypatch)
    *_, line = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and words in line and not (tmp_path / "run").exists()


def test_packed_rows_and_two_things_at_once_are_refused(small, cache):
    spec = small("5b")[1].spec
    config = runs.RunConfig(lora=None, controlnet=ControlNetTraining(start="new"))
    stage = runs.Stage(data=((cache.folder, 1),), pack=100)
    with pytest.raises(ValueError, match="a ControlNet takes no packed rows; leave out pack"):
        beginnings.complete_controlnet(spec, config, [stage])
    with pytest.raises(ValueError, match="a run trains either a LoRA, or parts of the model, or a ControlNet"):
        runs.RunConfig(controlnet=ControlNetTraining(start="new"))


def test_a_net_that_is_written_is_gone_on_from(begun, tmp_path):
    model, begins, net, _ = begun
    write_controlnet(tmp_path / "net", begins.cfg, jax.tree.map(np.asarray, net))
    found = beginnings.find_beginning(model.spec, ControlNetTraining(start=str(tmp_path / "net")))
    again = beginnings.first_params(found, model.spec, None, 0, None)
    assert found.cfg == begins.cfg and set(abstract_params(found.cfg)) == set(abstract_params(begins.cfg))
    jax.tree.map(np.testing.assert_array_equal, again, net)


# What the proof on `tiny` measures.


def test_outlines_and_what_covers_them():
    scene = shapes.Scene("red", "square", "moves left", "white")
    drawn = shapes.draw(scene, np.random.default_rng(0))
    edges = outlines(drawn)
    assert set(np.unique(edges)) == {0, 255} and 0.02 < (edges > 0).mean() < 0.2
    same = compare(drawn, drawn, scene)
    assert same == {"iou": 1.0, "centre": 0.0, "right": 1.0}
    apart = compare(np.roll(drawn, 6, axis=1), drawn, scene)
    assert 0.3 < apart["iou"] < 0.8 and apart["centre"] == pytest.approx(6, abs=0.1)
    assert compare(np.full_like(drawn, 248), drawn, scene)["iou"] == 0.0
