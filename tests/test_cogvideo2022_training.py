"""Training of CogVideo (2022): batches, losses, runs, the image tokenizer's codes, folders of another size."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cogvx_jax.cli import main as cli
from cogvx_jax.convert import cogvideo2022_folder as folders
from cogvx_jax.convert.cogvideo2022_made import made_parts
from cogvx_jax.convert.cogvideo2022_sizes import Beside, beside_json, read_beside
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.models.cogvideo2022.abstract import abstract_network, network_of
from cogvx_jax.models.cogvideo2022.configs import ImageTokenizerConfig
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.transformer import Text, of_base
from cogvx_jax.pipelines.cogvideo2022.generate import Settings
from cogvx_jax.pipelines.cogvideo2022.load import load_cogvideo2022, settings_of
from cogvx_jax.pipelines.cogvideo2022.text import GUIDE, TextTokenizer
from cogvx_jax.quantization import find_quantization
from cogvx_jax.scripts import eval_tiny2022
from cogvx_jax.scripts import train_tiny2022 as recipe
from cogvx_jax.sharding import make_mesh
from cogvx_jax.tiny import shapes
from cogvx_jax.tiny.tokenizer import word_model
from cogvx_jax.train.cogvideo2022.batches import Batches, Cut, InMemory, cuts
from cogvx_jax.train.cogvideo2022.beginning import begin, new_stage
from cogvx_jax.train.cogvideo2022.codes import open_codes
from cogvx_jax.train.cogvideo2022.objective import codes_loss
from cogvx_jax.train.cogvideo2022.pictures import Components, PictureObjective, clusters, picture_loss
from cogvx_jax.train.cogvideo2022.run import train_codes
from cogvx_jax.train.cogvideo2022.settings import CHANNEL, CodesObjective, CodesRunConfig
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.transformer.settings import StageSettings

PIECES = ("<n>", "▁高清摄影", f"▁{GUIDE}", *(f"▁{n}秒" for n in ("4.0", "2.0", "1.0")))
IMAGES = ImageTokenizerConfig(
    codes=40, code_width=4, channels=8, groups=4, encoder=(1, 1, 1, 1), encoder_blocks=1, decoders=((8, (1, 1, 1, 1)),)
)
SIZES = dict(
    layers=2, heads=2, head_dim=8, codes=40, vocab=140, start_of_image=123, grid=4, first_position=80,
    base_positions=96, text_length=16,
)  # fmt: skip
SEQUENTIAL, INTERPOLATION = new_stage("sequential", SIZES), new_stage("interpolation", SIZES)
PROMPTS = [str(scene) for scene in shapes.scenes()[:6]]
STAGE = StageSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup=1)
SETTINGS = {"depth": 1, "guidance": None, "frames": {"clusters": 3, "temperature": 0.5, "inner": 1.0}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the text tokenizer and the table of clusters."""
    place = tmp_path_factory.mktemp("small")
    (place / folders.TEXT).write_bytes(word_model(PIECES))
    np.save(place / folders.CLUSTERS, np.arange(40))
    return place


@pytest.fixture(scope="module")
def tokenizer(small):
    return TextTokenizer.read(small / folders.TEXT, offset=40, language="English")


def drawn(cfg, rng):
    made = {}
    for path, own in abstract_network(cfg).items():
        spread = 1 / np.sqrt(own.shape[-2]) if path.endswith("kernel") and len(own.shape) > 1 else 0.3
        made[path] = np.float32(path.endswith("scale") + spread * rng.normal(size=own.shape))
    return made


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """A model of random numbers with both stages, in 16 bit."""
    rng = np.random.default_rng(0)
    stages = {cfg.stage: (cfg, drawn(cfg, rng)) for cfg in (SEQUENTIAL, INTERPOLATION)}
    beside = Beside(images=IMAGES, language="English", settings=SETTINGS)
    place = tmp_path_factory.mktemp("model") / "cogvideo"
    folders.write_shared(made_parts(small, stages, drawn(IMAGES, rng), beside, "float16"), place)
    return place


@pytest.fixture(scope="module")
def clips():
    """Codes of 9 frames: each frame is the one before, moved on by one code."""
    first = np.random.default_rng(1).integers(0, 40, (6, 1, 16))
    return InMemory((first + np.arange(9)[None, :, None]) % 40, PROMPTS)


# What an update sees.


def test_cuts_are_those_of_a_video_that_is_made():
    assert cuts(SEQUENTIAL, 17) == [[Cut(0, 4, 4.0)]]
    assert cuts(INTERPOLATION, 17) == [[Cut(0, 2, 2.0), Cut(8, 2, 2.0)], [Cut(s, 1, 1.0) for s in (0, 4, 8, 12)]]
    for cfg, frames, said in ((SEQUENTIAL, 7, "5, 9, 17, 33"), (INTERPOLATION, 5, "take 9 at least")):
        with pytest.raises(ValueError, match=said):
            cuts(cfg, frames)


def test_batches_hold_the_frames_and_words_of_a_stage(tokenizer, clips):
    plain = CodesObjective(text_dropout=0.0, named=0.0, first=1.0)
    batch = Batches(INTERPOLATION, tokenizer, clips, plain, range(6), 6, 0)(0)
    assert {name: x.shape for name, x in batch.items()} == {
        "codes": (6, 5, 16), "ids": (6, 16), "real": (6, 16), "first_ids": (6, 16), "first_real": (6, 16)
    }  # fmt: skip
    for codes, ids in zip(batch["codes"], batch["ids"], strict=True):
        said = tokenizer.decode(ids)
        (number,) = (i for i, prompt in enumerate(PROMPTS) if prompt in said)
        assert said.startswith("2.0秒<n>")  # of 9 frames there is one distance between others
        assert codes.tolist() in [clips.array[number, s + np.array([0, 2, 4, 1, 3])].tolist() for s in (0, 4)]
    dropped = Batches(SEQUENTIAL, tokenizer, clips, CodesObjective(text_dropout=1.0), range(6), 6, 0)(0)
    assert {tokenizer.decode(ids).split()[-1] for ids in dropped["ids"]} == {GUIDE}
    again = Batches(SEQUENTIAL, tokenizer, clips, CodesObjective(), range(6), 6, 0)
    np.testing.assert_array_equal(again(3)["ids"], again(3)["ids"])
    seen = np.concatenate([again(step)["codes"][:, 0, 0] for step in (0, 1)])
    assert sorted(seen[:6]) == sorted(clips.array[:, 0, 0])  # an epoch shows every clip


@pytest.mark.full
@pytest.mark.parametrize("name, record", [("sequential", "train1"), ("interpolation", "train2")])
def test_losses_are_the_recorded_ones(name, record):
    from cogvideo2022_weights import STAGES, network_params

    with np.load(Path(__file__).parent / "golden" / "cogvideo2022_tiny.npz") as file:
        ids, frames, expected = file["text"], file["frames"].reshape(5, 400), float(file[f"{record}_loss"])
    cfg, pads = STAGES[name], 64 - len(ids)
    text = Text(np.pad(ids, (pads, 0), constant_values=20_003)[None], (np.arange(64) >= pads)[None])
    loss = jax.jit(lambda params, codes: codes_loss(network_of(cfg), params, text, codes))
    found = loss(jax.tree.map(jnp.asarray, network_params(cfg)), jnp.asarray(frames[list(cfg.order)])[None])
    np.testing.assert_allclose(found, [expected], rtol=2e-5)


# Where a run begins.


def test_integers_are_not_trained(folder):
    parts = dataclasses.replace(folders.open_parts(folder), how=find_quantization("int8"))
    with pytest.raises(ValueError, match="is quantised, and is not trained; give the folder that it was made of"):
        begin(parts, "sequential")


def test_a_new_channel_begins_as_the_makers_does(folder):
    parts = folders.open_parts(folder)
    given, new = begin(parts, "interpolation"), begin(parts, "interpolation", new=True)
    alone = begin(dataclasses.replace(parts, stages={"sequential": SEQUENTIAL}), "interpolation")
    assert not given.new and new.new and alone.new and alone.cfg == INTERPOLATION
    flat = flatten_dict(new.params, sep="/")
    np.testing.assert_array_equal(flat["blocks/channel/q/kernel"], flat["blocks/base/q/kernel"])
    assert not np.array_equal(flat["blocks/channel/dense/kernel"], flat["blocks/base/dense/kernel"])
    assert not flat["blocks/channel/gate"].any()
    for frame in np.split(flat["extra_positions"], 5):
        np.testing.assert_array_equal(frame, flat["positions"][80:])
    for path, x in flatten_dict(alone.params, sep="/").items():
        np.testing.assert_array_equal(x, flat[path])


# Runs.


def run_codes(folder, clips, tokenizer, where, steps=6, mesh=None, **changes):
    config = CodesRunConfig(**{"channel": "interpolation", "validation": 1.0, **changes})
    begins = begin(folders.open_parts(folder), config.channel, new=config.new_channel, mesh=mesh)
    stage = dataclasses.replace(STAGE, steps=steps)
    pace = Pace(log_every=1, save_every=3, validate_every=3)
    made = train_codes(begins, tokenizer, clips, stage, config, where, source=str(folder), mesh=mesh, pace=pace)
    return flatten_dict(begins.params, sep="/"), flatten_dict(made, sep="/")


def curve(where):
    return [json.loads(line) for line in (where / "log.jsonl").read_text().splitlines()]


@pytest.mark.full
def test_the_channel_learns_beside_a_base_that_stays(folder, clips, tokenizer, tmp_path):
    before, after = run_codes(folder, clips, tokenizer, tmp_path / "run", steps=3)
    _, longer = run_codes(folder, clips, tokenizer, tmp_path / "run")  # goes on
    for path, x in before.items():
        assert np.array_equal(x, after[path]) == of_base(path), path
        assert np.array_equal(after[path], longer[path]) == of_base(path), path
    losses = [row["loss"] for row in curve(tmp_path / "run") if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    with pytest.raises(ValueError, match="channel was interpolation and is now sequential"):
        run_codes(folder, clips, tokenizer, tmp_path / "run", channel="sequential")


@pytest.mark.full
def test_a_run_that_stopped_is_one_that_did_not(folder, clips, tokenizer, tmp_path):
    _, whole = run_codes(folder, clips, tokenizer, tmp_path / "whole")
    run_codes(folder, clips, tokenizer, tmp_path / "stopped", steps=3)
    _, resumed = run_codes(folder, clips, tokenizer, tmp_path / "stopped")
    for path, x in whole.items():
        np.testing.assert_array_equal(x, resumed[path])


@pytest.mark.full
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}])
def test_meshes_train_the_same(axes, folder, clips, tokenizer, tmp_path):
    for where, mesh in (("alone", None), ("spread", make_mesh(**axes))):
        run_codes(folder, clips, tokenizer, tmp_path / where, steps=3, mesh=mesh)
    # Not the parameters: Adam divides by a gradient's size, which for the keys' biases is that of rounding.
    for name in ("loss", "grad_norm", "validation_loss"):
        alone, spread = ([row[name] for row in curve(tmp_path / where) if name in row] for where in ("alone", "spread"))
        assert len(alone) >= 1
        np.testing.assert_allclose(spread, alone, rtol=3e-4)


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    place = tmp_path_factory.mktemp("videos")
    for i, scene in enumerate(shapes.scenes()[:3]):
        with VideoWriter(place / f"{i}.mp4", 2) as writer:
            writer.write(shapes.draw(scene, np.random.default_rng(i), frames=9, size=32))
        (place / f"{i}.txt").write_text(str(scene))
    (place / "broken.mp4").write_bytes(b"none")
    (place / "broken.txt").write_text("x")
    return place


@pytest.mark.full
def test_videos_to_a_trained_model(folder, videos, tmp_path, monkeypatch, capsys):
    out, made = tmp_path / "run", tmp_path / "made"
    verb = ["train", "--model", folder, "--out", out, "--batch-size", 2, "--log-every", 1, "--channel", "interpolation"]
    run(*verb, "--data", videos, "--frames", 9, "--steps", 2, monkeypatch=monkeypatch)
    said = capsys.readouterr()
    assert "skipped" in said.err and "3 clips" in said.err and "cogvx export" in said.out
    assert open_codes(out / "cache").frames == 9
    run(*verb, "--data", out / "cache", "--steps", 4, "--remat", "block", monkeypatch=monkeypatch)
    assert "trained to update 4" in capsys.readouterr().out
    run("export", out, "--out", made, monkeypatch=monkeypatch)
    for name in ("base.safetensors", "sequential.safetensors", "image_tokenizer.safetensors", folders.TEXT):
        assert (made / name).read_bytes() == (folder / name).read_bytes(), name
    assert (made / "interpolation.safetensors").read_bytes() != (folder / "interpolation.safetensors").read_bytes()
    assert json.loads((made / folders.SIZES).read_text()) == json.loads((folder / folders.SIZES).read_text())


@pytest.mark.full
def test_training_all_of_it_leaves_other_stages_out(folder, videos, tmp_path, monkeypatch):
    out, made = tmp_path / "run", tmp_path / "made"
    verb = ["train", "--model", folder, "--out", out, "--batch-size", 2, "--train", "full", "--steps", 1, "--warmup", 0]
    run(*verb, "--data", videos, "--frames", 5, monkeypatch=monkeypatch)
    run("export", out, "--out", made, monkeypatch=monkeypatch)
    assert list(folders.open_parts(made).stages) == ["sequential"]
    assert (made / "base.safetensors").read_bytes() != (folder / "base.safetensors").read_bytes()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--lora-rank", "4"], "trained without what a LoRA adapts"),
        (["--size", "32x32"], "trained without --size"),
        (["--frames", "8"], "clips of 8 frames are not of those"),
        (["--config", "run.json"], "there is no"),
    ],
)
def test_options_of_other_models_are_refused(arguments, said, folder, videos, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(
            "train", "--model", folder, "--data", videos, "--out", tmp_path / "run", *arguments, monkeypatch=monkeypatch
        )
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_it_is_not_distilled(folder, videos, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("distill", folder, "--data", videos, "--out", tmp_path / "run", monkeypatch=monkeypatch)
    assert stopped.value.code == 2 and "no sampling steps to spare" in capsys.readouterr().err


def test_channels_are_of_this_model_alone(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("train", "--data", tmp_path, "--out", tmp_path / "r", "--channel", "interpolation", monkeypatch=monkeypatch)
    assert stopped.value.code == 2 and "tiny is no CogVideo (2022)" in capsys.readouterr().err


# Codes and sizes.


def test_codes_of_patches_and_what_is_left_of_them():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(x, 0.01, (100, 3)) for x in (0, 5, 10, 15)]).astype(np.float32)
    np.testing.assert_allclose(np.sort(clusters(features, 4, rng)[:, 0]), [0, 5, 10, 15], atol=0.1)
    assert len(clusters(features[:1].repeat(9, axis=0), 4, rng)) == 4  # fewer kinds than clusters
    pixels = rng.random((4, 8, 12, 3), np.float32)
    patches = Components.of(pixels, 4, 48)
    kept = patches.features(pixels)
    assert kept.shape == (4, 2, 3, 48)
    # All components keep all distances, but for their scale; the first ones keep the most of them.
    scale = np.square(patches.basis).sum() / 48
    cut = pixels[0, 4:8, 8:12] - pixels[1, :4, :4]
    np.testing.assert_allclose(np.square(kept[0, 1, 2] - kept[1, 0, 0]).sum(), scale * np.square(cut).sum(), rtol=2e-3)
    few = Components.of(pixels, 4, 2)
    ratio = few.basis / patches.basis[:, :2]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    with pytest.raises(ValueError, match="at least 0"):
        PictureObjective(l1=-1)


@pytest.mark.full
def test_the_encoder_learns_features_and_the_decoder_what_their_codes_show():
    sizes = dataclasses.replace(IMAGES, encoder=(1, 1), decoders=((2, (1, 1)),))
    rng = np.random.default_rng(0)
    pixels = rng.random((2, 4, 4, 3), np.float32)
    network, patches = ImageTokenizer(sizes), Components.of(pixels, 2, 4)
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), pixels))["params"]
    params |= {"codebook": clusters(patches.features(pixels).reshape(-1, 4), 40, rng)}

    def both(params):
        wanted, apply = patches.features(pixels), functools.partial(network.apply, {"params": params})
        error = apply(apply(wanted, method="nearest"), 2, method="decode") - pixels
        given = apply(pixels, 2, method="features") - wanted
        by_hand = jnp.abs(error).mean() + 2 * jnp.square(error).mean() + jnp.square(given).mean()
        return picture_loss(PictureObjective(), network, patches, params, pixels), by_hand

    (found, by_hand), slope = jax.jit(jax.value_and_grad(both, has_aux=True))(params)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    assert not slope["codebook"].any()
    assert all(x.any() for x in jax.tree.leaves((slope["encoder"]["conv_in"], slope["decoder_2"]["conv_out"])))


def test_sizes_there_and_back_and_what_is_none():
    beside = Beside(images=IMAGES, language="English", settings=SETTINGS)
    said = json.loads(json.dumps({"stages": {}} | beside_json(beside)))
    assert read_beside(said, "x") == beside and beside_json(Beside()) == {}
    assert settings_of(SETTINGS, "x").frames.clusters == 3 and settings_of({}, "x") == Settings()
    for wrong, message in (
        ({"more": 1}, "'more', which is nothing"),
        ({"language": 3}, "no name of a language"),
        ({"settings": []}, "no table"),
        ({"images": {"codes": 0}}, "codes 0 is no size"),
        ({"images": {"decoders": [[8, [1, 1]]]}}, "decoders .* is no size"),
        ({"images": {"channels": 7}}, "do not fit each other"),
    ):
        with pytest.raises(ValueError, match=message):
            read_beside(wrong, "x")
    for wrong in ({"deep": 1}, {"depth": "2"}, {"frames": {"clusters": 0}}, {"frames": 3}):
        with pytest.raises(ValueError, match="settings that no video has"):
            settings_of(wrong, "x")


def test_a_folder_of_other_sizes_is_read_as_it_says(folder, tmp_path):
    parts = folders.open_parts(folder)
    assert parts.stages == {"sequential": SEQUENTIAL, "interpolation": INTERPOLATION}
    assert parts.image_sizes == IMAGES and parts.beside.language == "English"
    assert set(CHANNEL) == {"extra_positions", "blocks/channel/*"}
    assert load_cogvideo2022(folder).settings == SETTINGS
    with pytest.raises(ValueError, match="codes is 40, not 20000"):
        folders.write_theirs(parts, tmp_path / "theirs")


@pytest.mark.full
def test_the_recipe_of_a_small_model_writes_one_that_makes_videos(tmp_path, monkeypatch, capsys):
    short = StageSettings(steps=2, batch_size=2, learning_rate=1e-3, warmup=1)
    monkeypatch.setattr(recipe, "CLIPS", 6)
    for name, value in dict(PICTURE_STEPS=2, PICTURES_AT_ONCE=2, PICTURES_SEEN=64).items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(recipe, "SEQUENTIAL_STAGES", [turn._replace(stage=short) for turn in recipe.SEQUENTIAL_STAGES])
    monkeypatch.setattr(recipe, "INTERPOLATION_STAGE", recipe.INTERPOLATION_STAGE._replace(stage=short))
    recipe.main(tmp_path)
    model, base = tmp_path / "model", recipe.SEQUENTIAL.frame_codes
    size = sum(file.stat().st_size for file in model.iterdir())
    assert size < 10e6 and "Made by" in (model / "README.md").read_text()
    system = load_cogvideo2022(model)
    first, second = (flatten_dict(dict(system.params[stage]), sep="/") for stage in ("sequential", "interpolation"))
    assert all(first[path] is second[path] for path in first if of_base(path)) and base == 64
    eval_tiny2022.main(str(model), prompts=2, batch=2, depth=1, out=tmp_path / "eval.json")
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["prompts"] == 2 and 0 <= found[eval_tiny2022.THREE] <= 1


@pytest.mark.full
def test_the_one_that_ships_draws_what_it_is_asked_for(tmp_path):
    eval_tiny2022.main(prompts=20, batch=20, out=tmp_path / "eval.json")
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["colour"] == found["background"] == 1
    assert found[eval_tiny2022.THREE] >= 0.6  # 81.5% of 200
