"""Runs of several stages: other clips, sizes and rates, one state; what is mixed, resumed and refused."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax.cli import train as commands
from cogvx_jax.cli.settings import from_flags
from cogvx_jax.configs import LoRAConfig, ModelSpec, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.convert import export
from cogvx_jax.convert.runs import read_run
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.tiny.tokenizer import build_tokenizer
from cogvx_jax.train import run_folder
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.clips.batches import Share, choose, feed, packed_feed, spread, turn
from cogvx_jax.train.clips.cache import Shape, open_cache, write_cache
from cogvx_jax.train.clips.pack import best_packing, plan_rows
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.transformer import run as runs
from cogvx_jax.train.transformer.objective import Objective
from cogvx_jax.train.transformer.record import describe
from cogvx_jax.train.transformer.settings import StageSettings
from cogvx_jax.train.transformer.stages import Stage, read_stages

LORA = runs.RunConfig(lora=LoRAConfig(rank=2, alpha=2.0))
SPEC = ModelSpec(
    name="small",
    transformer=TransformerConfig(
        layers=1, heads=2, head_dim=16, in_channels=4, out_channels=4, text_dim=16, text_length=8, time_dim=16
    ),
    vae=VAEConfig(channels=(4, 4, 8, 8), layers=1, groups=2, latent_channels=4, scaling_factor=0.7),
    text_encoder=T5Config(layers=1, width=16, heads=2, head_dim=8, mlp=32, vocab=128),
    trained_dtype="bfloat16",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where a random model lies, and the model; nothing of it is compiled."""
    folder, rng, params = tmp_path_factory.mktemp("source") / "small", np.random.default_rng(0), {}
    for part in ("transformer", "vae", "text_encoder"):
        shapes = abstract_params(getattr(SPEC, part))
        leaves = {path: np.float32(0.2 * rng.normal(size=p.shape)) for path, p in shapes.items()}
        params[part] = traverse_util.unflatten_dict(leaves, sep="/")
    export(folder, SPEC, params)
    build_tokenizer(folder / "tokenizer", 8)
    return folder, cx.load(folder)


@pytest.fixture(scope="module")
def caches(made, random_cache, tmp_path_factory):
    """Folders as `cogvx encode` makes them: five videos, three images, and one clip alone."""
    base = tmp_path_factory.mktemp("caches")
    random_cache(base / "videos", made[1], Shape(32, 48, 9, 8.0), 5)
    random_cache(base / "images", made[1], Shape(32, 16, 1, 8.0), 3)
    random_cache(base / "one", made[1], Shape(16, 16, 1, 8.0), 1)
    return base


def stage(steps, *folders, **settings):
    data = tuple(zip(folders, (3, 1) if len(folders) == 2 else (1,), strict=True))
    return Stage(data=data, steps=steps, **{"batch_size": 2, "learning_rate": 1e-2, "warmup": 0} | settings)


def train(made, stages, folder, config=LORA, **options):
    return runs.train(made[1], stages, config, folder, source=str(made[0]), pace=Pace(**{"log_every": 1} | options))


def command(**flags):
    """`cogvx train` with these flags."""
    commands.train(from_flags(commands.TrainOptions, **flags))


def log(folder, of="loss"):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[of] for row in rows if of in row]


def same_state(one, other, update):
    states = []
    for folder in (one, other):
        saved = Checkpoints(folder / "checkpoints")
        assert saved.latest() == update
        states.append(saved._manager.restore(update, args=ocp.args.PyTreeRestore()))
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.full
def test_a_run_of_stages_that_is_stopped_in_each_ends_where_an_uninterrupted_one_does(made, caches, tmp_path, capsys):
    (tmp_path / "stages.toml").write_text(
        f'[[stage]]\ndata = "{caches}/videos"\n\n'
        f'[[stage]]\ndata = {{"{caches}/videos" = 3, "{caches}/images" = 1}}\nsteps = 4\nlearning_rate = 0.001\n'
    )
    options = dict(model=str(made[0]), lora_rank=2, batch_size=2, learning_rate=1e-2, warmup=0, log_every=1)
    command(stages=tmp_path / "stages.toml", out=tmp_path / "whole", steps=3, **options)
    assert "whole 3/7 loss" in capsys.readouterr().out

    videos, images = caches / "videos", caches / "images"
    mixed = stage(1, videos, images, learning_rate=1e-3)
    train(made, (stage(2, videos),), tmp_path / "parts")
    train(made, (stage(3, videos), mixed), tmp_path / "parts")
    train(made, (stage(3, videos), dataclasses.replace(mixed, steps=4)), tmp_path / "parts")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert log(tmp_path / "parts", "stage") == [1] * 3 + [2] * 4
    same_state(tmp_path / "parts", tmp_path / "whole", 7)
    said, parts = read_run(tmp_path / "whole"), read_run(tmp_path / "parts")
    assert [s["steps"] for s in said["stages"]] == [3, 4]
    assert {**said, "command": None} == {**parts, "command": None}
    assert [(d["shape"]["width"], d["weight"]) for d in said["stages"][1]["data"]] == [(48, 3), (16, 1)]


@pytest.mark.full
def test_a_stage_begins_with_all_of_the_state_of_the_last_one(made, caches, tmp_path):
    """Of one clip, where the order cannot differ, two stages are a longer one; and what is best is best of a stage."""
    one = caches / "one"
    settings = dict(batch_size=1, learning_rate=1e-2)
    train(made, (stage(6, one, **settings),), tmp_path / "one")
    train(made, (stage(3, one, **settings), stage(3, one, **settings)), tmp_path / "two")
    same_state(tmp_path / "one", tmp_path / "two", 6)


@pytest.mark.full
def test_the_best_state_is_of_the_newest_stage(made, caches, tmp_path, monkeypatch):
    seen = iter([1.0, 5.0, 4.0])
    monkeypatch.setattr(runs, "make_validate", lambda *_: lambda average: {"100": next(seen)})
    config = dataclasses.replace(LORA, validation=1)
    stages = (stage(1, caches / "images"), stage(2, caches / "images"))
    train(made, stages, tmp_path / "run", config, validate_every=1)
    assert log(tmp_path / "run", "validation_loss") == [1, 5, 4]
    assert Checkpoints(tmp_path / "run" / "best").latest() == 3


def test_shares_are_exact_and_epochs_whole(made, caches):
    assert spread((3, 1)) == (0, 0, 1, 0) or sorted(spread((3, 1))) == [0, 0, 0, 1]
    weights = (5, 2, 1)
    turns = [turn(weights, place) for place in range(400)]
    for which, weight in enumerate(weights):
        assert [before for who, before in turns if who == which] == list(range(50 * weight))
        for start in range(0, 391):  # in any ten turns, as many as the weight says, give or take one
            assert abs(sum(who == which for who, _ in turns[start : start + 10]) - 10 * weight / 8) <= 1.5

    folders = [caches / "videos", caches / "images"]
    sizes = zip(folders, (3, 1), (5, 3), strict=True)
    shares = [Share(open_cache(folder), weight, tuple(range(count))) for folder, weight, count in sizes]
    shown = [choose(shares, 0, place, (0,)) for place in range(15)]
    assert [sorted(shown[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3 and shown[:5] != shown[5:10]
    fed = feed(made[1].spec, shares, 2, (0, 0))
    widths = Counter(fed.batches(step, range(2))["moments"].shape[3] for step in range(8))
    assert widths == {6: 6, 2: 2} and fed.tokens == 2 * (8 + (3 * 18 + 2) / 4)
    second = feed(made[1].spec, shares, 2, (0, 0)).batches(5, [1])["moments"]  # what another host reads
    np.testing.assert_array_equal(fed.batches(5, range(2))["moments"][1:], second)


def test_a_run_goes_on_with_more_stages_but_not_with_others(made, caches, tmp_path):
    videos, images = (Share(open_cache(caches / name), weight, (0,)) for name, weight in (("videos", 3), ("images", 1)))
    one, two = stage(30, caches / "videos"), stage(20, caches / "videos", caches / "images")

    def say(*stages):
        shares = [[videos, images][: len(s.data)] for s in stages]
        return describe(made[1], LORA, stages, shares, "somewhere")

    def refused(words, *stages):
        with pytest.raises(ValueError, match=words):
            run_folder.check_same(tmp_path, say(*stages))

    run_folder.write(tmp_path, say(one, two))
    long, short = (dataclasses.replace(two, steps=n) for n in (40, 10))
    for stages in ((one, two), (one, two, one), (one, long), (one, short), (one, long, one)):
        run_folder.check_same(tmp_path, say(*stages))
    refused("stages.2.steps was 20 and is now 10", one, short, one)
    refused("stages.1.data.2.clips was None and is now 3; .*stages.1.steps was 30 and is now 20", two, one)
    refused("stages.2.data.2.weight was 1 and is now None", one, stage(20, caches / "videos"))
    refused("of 2 stages, and now there are 1", one)
    refused("stages.2.batch_size was 2 and is now 4", one, dataclasses.replace(two, batch_size=4))
    cosine = dataclasses.replace(two, schedule="cosine")
    run_folder.write(tmp_path, say(one, cosine))
    refused("stages.2.steps was 20 and is now 40", one, dataclasses.replace(cosine, steps=40))


@pytest.mark.parametrize(
    "text, words",
    [
        ("stage = 1", "must hold a"),
        ("[[stage]]\nsteps = ", "is not TOML"),
        ("[[stage]]\nsteps = 5", "stage 1: data must be a folder"),
        ('[[stage]]\ndata = "a"\n[[stage]]\ndata = "a"\nstepz = 5', "stage 2: there is no setting 'stepz'; .* steps"),
        ('[[stage]]\ndata = "a"\nsteps = "5"', "steps must be an int, got '5'"),
        ('[[stage]]\ndata = "a"\nsteps = 0', "stage 1: steps must be at least 1"),
        ("[[stage]]\ndata = {a = 0.7, b = 0.3}", "whole numbers from 1 on, such as 7 and 3"),
        ('[[stage]]\ndata = "a"\nschedule = "cosine"\nwarmup = 9', "cosine of 9 updates leaves none"),
    ],
)
def test_stages_that_cannot_be(tmp_path, text, words):
    file = tmp_path / "stages.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_stages(file, StageSettings(steps=9))
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_stages(tmp_path / "none.toml", StageSettings())


def test_what_a_stage_does_not_say_is_as_told(tmp_path):
    (tmp_path / "stages.toml").write_text('[[stage]]\ndata = "a"\nlearning_rate = 1e-4\n[[stage]]\ndata = {"/b" = 2}')
    found = read_stages(tmp_path / "stages.toml", StageSettings(steps=7, learning_rate=0.5))
    assert found == (
        Stage(data=((tmp_path / "a", 1),), steps=7, learning_rate=1e-4),
        Stage(data=((Path("/b"), 2),), steps=7, learning_rate=0.5),
    )
    with pytest.raises(ValueError, match="a is not encoded; do that with `cogvx encode"):
        command(stages=tmp_path / "stages.toml", out=tmp_path / "run")
    with pytest.raises(ValueError, match="give --data, or --stages"):
        command(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- packed rows ---


def both(caches, *counts):
    """Shares of videos, 18 video tokens each, and images, 2."""
    names = ("videos", "images")
    return [
        Share(open_cache(caches / name), weight, tuple(range(count)))
        for name, weight, count in zip(names, (3, 1), counts, strict=True)
    ]


def test_packed_batches_are_full_and_of_all_clips(caches):
    fed = packed_feed(SPEC, both(caches, 5, 3), 2, 40, (0,))
    assert (fed.packing.clips, fed.packing.most) == (5, 3)  # 3 or 4 videos and 1 or 2 images
    seen, used = Counter(), 0
    for step in range(8):
        batch = fed.batches(step, range(2))
        assert batch["clip"].shape == (2, 40) and batch["text"].shape == (2, 3, 8, 16)
        sizes = [int(np.sum(row == place)) for row in batch["clip"] for place in range(3) if place in row]
        seen += Counter(sizes)
        used += sum(sizes) + 8 * len(sizes)
    assert seen == {18: 30, 2: 10}
    assert fed.packing.used == pytest.approx(used / (8 * 2 * (40 + 3 * 8))) and fed.tokens == pytest.approx(used / 8)
    whole = fed.batches(5, range(2))
    for row in range(2):  # what another host reads
        alone = packed_feed(SPEC, both(caches, 5, 3), 2, 40, (0,)).batches(5, [row])
        jax.tree.map(np.testing.assert_array_equal, {name: x[row : row + 1] for name, x in whole.items()}, alone)
    with pytest.raises(ValueError, match="rows of 10 tokens cannot hold a clip of 18"):
        packed_feed(SPEC, both(caches, 5, 3), 2, 10, (0,))
    i2v = dataclasses.replace(SPEC, transformer=dataclasses.replace(SPEC.transformer, in_channels=8))
    with pytest.raises(ValueError, match="frame pack is for text-to-video models"):
        packed_feed(i2v, both(caches, 5, 3), 2, 40, (0,))


@pytest.mark.parametrize("length", [20, 33, 64])
def test_the_best_packing_fits_whatever_comes(length):
    sizes, weights = (18, 7, 1), (3, 2, 4)
    turns = spread(weights)
    found = best_packing(sizes, turns, rows=3, length=length, words=4)
    for step in range(2 * len(turns)):
        lengths = [sizes[turns[i % 9]] for i in range(step * found.clips, (step + 1) * found.clips)]
        rows = plan_rows(lengths, length=length, most=found.most, report=lambda line: None)
        assert len(rows) <= 3 and max(map(len, rows)) <= found.most
    assert 0.5 < found.used <= 1


@pytest.mark.full
def test_a_packed_run_learns_and_resumes_exactly(made, caches, tmp_path, capsys):
    config = dataclasses.replace(LORA, lora=None, parts=("*",), objective=Objective(text_dropout=0.5))
    packed = stage(40, caches / "videos", caches / "images", batch_size=2, pack=40, learning_rate=3e-3, accumulate=2)
    train(made, (packed,), tmp_path / "whole", config)
    said = capsys.readouterr().out
    assert "stage 1: 5 clips an update in 2 rows of 40 video tokens and 3 texts, 85.9% of which are used" in said
    assert log(tmp_path / "whole", "packed") == [pytest.approx(5 * (14 + 8) / (2 * (40 + 24)), abs=1e-4)] * 40
    losses = log(tmp_path / "whole")
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    train(made, (dataclasses.replace(packed, steps=23),), tmp_path / "parts", config)
    train(made, (packed,), tmp_path / "parts", config)
    assert log(tmp_path / "parts") == losses
    same_state(tmp_path / "parts", tmp_path / "whole", 40)


@pytest.mark.full
def test_adapters_are_trained_on_packed_rows_and_on_plain_ones_after_them(made, caches, tmp_path):
    stages = (stage(1, caches / "images", pack=6), stage(1, caches / "images"))
    config = dataclasses.replace(LORA, validation=1)
    after = train(made, stages, tmp_path / "run", config).params["transformer"]["blocks"]
    before = made[1].params["transformer"]["blocks"]
    assert not np.array_equal(after["attention"]["q"]["kernel"], before["attention"]["q"]["kernel"])
    np.testing.assert_array_equal(after["mlp"]["up"]["kernel"], before["mlp"]["up"]["kernel"])
    assert len(log(tmp_path / "run", "validation_loss")) == 2 and read_run(tmp_path / "run")["stages"][0]["pack"] == 6


def test_a_stage_takes_the_clips_that_it_chooses(caches, tmp_path):
    shutil.copytree(caches / "videos", tmp_path / "videos")
    cache = open_cache(tmp_path / "videos")
    write_cache(dataclasses.replace(cache, scores=tuple({"motion_mean": float(n)} for n in range(5))))
    (tmp_path / "stages.toml").write_text('[[stage]]\ndata = "videos"\nsteps = 1\nwhere = "motion_mean > 2"\n')
    [chosen] = read_stages(tmp_path / "stages.toml", StageSettings())
    [share] = runs._shares(chosen, 0, False)
    assert share.clips == (3, 4) and share.held_out == ()
    with pytest.raises(ValueError, match="is no expression"):
        StageSettings(where="motion_mean >")
