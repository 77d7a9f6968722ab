"""Runs of small random models: what is trained, on any mesh, what is skipped, stopped, kept and validated."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli import train as commands
from cogvx_jax.cli.export import export as export_run
from cogvx_jax.cli.settings import from_flags
from cogvx_jax.configs import LoRAConfig, ModelSpec, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.convert import export
from cogvx_jax.convert.runs import read_run_lora
from cogvx_jax.data.video import read_video
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.planning.lower_update import lower_update
from cogvx_jax.sharding import replicate
from cogvx_jax.tiny.tokenizer import build_tokenizer
from cogvx_jax.train import optim, parts, run_folder
from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.clips.batches import Share, choose, read
from cogvx_jax.train.clips.cache import Shape
from cogvx_jax.train.clips.held_out import hold_out
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.placement import Placement
from cogvx_jax.train.transformer import run as runs
from cogvx_jax.train.transformer.stages import Stage
from cogvx_jax.train.transformer.trained import read_model
from cogvx_jax.train.transformer.videos import write_videos

LORA = runs.RunConfig(lora=LoRAConfig(rank=2, targets=("to_q", "ff")))
FULL = dataclasses.replace(LORA, lora=None, parts=("*",))
NORMS = dataclasses.replace(FULL, parts=("blocks/attention/norm_*", "out/bias"))


SPEC = ModelSpec(
    name="small",
    transformer=TransformerConfig(
        layers=2,
        heads=2,
        head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        text_length=8,
        time_dim=16,
        position="rope",
        sample_height=4,
        sample_width=6,
        sample_frames=9,
    ),
    vae=VAEConfig(channels=(4, 4, 8, 8), layers=1, groups=2, latent_channels=4, scaling_factor=0.7),
    text_encoder=T5Config(layers=1, width=16, heads=2, head_dim=8, mlp=32, vocab=128),
    trained_dtype="bfloat16",
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a random model; nothing of it is compiled."""
    folder, rng, params = tmp_path_factory.mktemp("source") / "small", np.random.default_rng(0), {}
    for part in ("transformer", "vae", "text_encoder"):
        shapes = abstract_params(getattr(SPEC, part))
        leaves = {path: np.float32(0.2 * rng.normal(size=p.shape)) for path, p in shapes.items()}
        params[part] = traverse_util.unflatten_dict(leaves, sep="/")
    export(folder, SPEC, params)
    build_tokenizer(folder / "tokenizer", 8)
    return folder


@pytest.fixture(scope="module")
def model(source):
    return cx.load(source)


@pytest.fixture(scope="module")
def cache(model, random_cache, tmp_path_factory):
    """Six random clips."""
    return random_cache(tmp_path_factory.mktemp("cache"), model, Shape(32, 48, 9, 8.0), 6)


def command(**flags):
    """`cogvx train` with these flags."""
    commands.train(from_flags(commands.TrainOptions, **flags))


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def mesh_of(sizes):
    return cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def stage_of(cache, config, steps, accumulate=1):
    rate = 1e-3 if config.lora is None else 1e-2
    return Stage(data=((cache.folder, 1),), steps=steps, accumulate=accumulate, learning_rate=rate, warmup=0)


def train(source, cache, config, folder, steps, mesh=None, accumulate=1, **options):
    model = cx.load(source, mesh=None if mesh is None else mesh_of(mesh))
    stages = (stage_of(cache, config, steps, accumulate),)
    return runs.train(model, stages, config, folder, source=str(source), pace=Pace(**{"log_every": 1} | options))


@pytest.mark.full
def test_a_run_of_parts_moves_them_alone_and_is_exported(source, model, cache, tmp_path):
    after = train(source, cache, NORMS, tmp_path / "run", 2)
    was, now = flat(model.params["transformer"]), flat(after.params["transformer"])
    moved = {path for path in was if not np.array_equal(was[path], now[path])}
    assert moved == {f"blocks/attention/norm_{x}/{y}" for x in "qk" for y in ("scale", "bias")} | {"out/bias"}
    assert model.compute.logit_bound and runs._begin(model, NORMS).compute.logit_bound is None
    tx = runs.make_optimizer(NORMS, stage_of(cache, NORMS, 2))
    state = update.init(parts.split(model.params["transformer"], NORMS.parts)[0], tx)
    assert len(jax.tree.leaves(state.opt)) == 2 * len(moved) + 2  # two moments each, and counts of theirs and the rate
    export_run(tmp_path / "run", out=tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, cx.load(tmp_path / "model").params, after.params)
    with pytest.raises(ValueError, match="trained the model itself, not a LoRA"):
        cx.load_lora(model, tmp_path / "run")
    with pytest.raises(ValueError, match="give a new folder"):
        export_run(tmp_path / "run", out=tmp_path / "model")
    with pytest.raises(ValueError, match=r"parts was \['blocks/attention/norm_\*', 'out/bias'\] and is now \['\*'\]"):
        train(source, cache, FULL, tmp_path / "run", 3)


def test_a_pattern_that_matches_nothing_names_paths(model):
    with pytest.raises(ValueError, match="no parameter matches 'blocks/attn/.'; some of the .* are blocks/attention"):
        parts.split(model.params["transformer"], ["out/*", "blocks/attn/*"])


def test_split_and_join_are_inverse():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": 3}
    trained, frozen = parts.split(tree, ["*/bias"])
    assert (trained, frozen) == ({"a": {"bias": 2}}, {"a": {"kernel": 1}, "b": 3})
    assert parts.join(frozen, trained) == tree and parts.split(tree, parts.EVERYTHING) == (tree, {})


@pytest.mark.full
@pytest.mark.parametrize("config", [pytest.param(LORA, id="lora"), pytest.param(FULL, id="full")])
def test_losses_are_the_same_on_a_mesh_and_a_run_moves_between_meshes(source, cache, tmp_path, config):
    alone = train(source, cache, config, tmp_path / "alone", 5)
    train(source, cache, config, tmp_path / "mesh", 3, dict(data=2, fsdp=2))
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "alone")[:3], rtol=1e-5)
    moved = train(source, cache, config, tmp_path / "mesh", 5, dict(fsdp=2, tensor=2))
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "alone"), rtol=1e-5)
    one, two = (flat(after.params["transformer"])["blocks/mlp/up/kernel"] for after in (alone, moved))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)
    assert losses(tmp_path / "alone")[-1] != losses(tmp_path / "alone")[0]


@pytest.mark.full
def test_a_run_in_bfloat16_learns_like_one_in_float32_and_resumes_exactly(source, cache, tmp_path):
    half = dataclasses.replace(FULL, trained_dtype="bfloat16")
    train(source, cache, FULL, tmp_path / "float32", 8)
    whole = train(source, cache, half, tmp_path / "half", 8)
    np.testing.assert_allclose(losses(tmp_path / "half"), losses(tmp_path / "float32"), rtol=0.02)
    assert losses(tmp_path / "half")[-1] < 0.9 * losses(tmp_path / "half")[0]
    train(source, cache, half, tmp_path / "parts", 5)
    jax.tree.map(np.testing.assert_array_equal, train(source, cache, half, tmp_path / "parts", 8).params, whole.params)
    assert losses(tmp_path / "parts") == losses(tmp_path / "half")
    train(source, cache, half, tmp_path / "mesh", 8, dict(data=2, fsdp=2))
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "half"), rtol=0.02)
    state = Checkpoints(tmp_path / "half" / "checkpoints")
    saved = state._manager.item_metadata(8)
    assert {str(x.dtype) for x in jax.tree.leaves(saved["params"])} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(saved["average"])} == {"float32"}
    moments = [x for x in jax.tree.leaves(saved["opt"]) if x.shape]
    assert len(moments) == 2 * len(jax.tree.leaves(saved["params"])) and {str(x.dtype) for x in moments} == {"bfloat16"}
    with pytest.raises(ValueError, match="trained_dtype was bfloat16 and is now float32"):
        train(source, cache, FULL, tmp_path / "half", 9)
    with pytest.raises(ValueError, match="the adapters of a LoRA, which are small, are trained in float32"):
        dataclasses.replace(LORA, trained_dtype="bfloat16")
    export_run(str(tmp_path / "half"), out=tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, cx.load(tmp_path / "model").params, whole.params)


@pytest.mark.full
def test_what_is_trained_is_held_once(source, cache, tmp_path):
    """The weights that the model came with go when the state has them, also where a run goes on; all else stays."""
    whole = train(source, cache, NORMS, tmp_path / "kept", 2)
    for steps in (1, 2):
        model = cx.load(source, components=("transformer",))
        stages = (stage_of(cache, NORMS, steps),)
        pace = Pace(log_every=1)
        after = runs.train(model, stages, NORMS, tmp_path / "run", source=str(source), pace=pace, release=True)
        gone = {path for path, x in flat(model.params["transformer"]).items() if x.is_deleted()}
        assert gone == set(flat(parts.split(model.params["transformer"], NORMS.parts)[0]))
    assert losses(tmp_path / "run") == losses(tmp_path / "kept")
    jax.tree.map(np.testing.assert_array_equal, after.params["transformer"], whole.params["transformer"])
    model = cx.load(source)
    runs.train(model, (stage_of(cache, FULL, 1),), FULL, tmp_path / "full", source=str(source))
    assert not any(x.is_deleted() for x in jax.tree.leaves(model.params["transformer"]))


def test_moments_lie_where_their_parameters_do(source):
    model = cx.load(source, mesh=mesh_of(dict(fsdp=4, tensor=2)))
    params = model.params["transformer"]
    state = Placement(model.mesh).init(params, optim.adamw(1e-3))
    up = params["blocks"]["mlp"]["up"]["kernel"]
    same = [x for x in jax.tree.leaves(state) if x.shape == up.shape]
    assert len(same) == 4 and all(x.sharding == up.sharding for x in same)  # parameters, average, two moments
    assert up.addressable_shards[0].data.nbytes * 8 == up.nbytes
    assert state.step.sharding.is_fully_replicated
    wide = jax.device_put(np.zeros((2, 256, 512), np.float32), up.sharding)
    rows = jax.tree.leaves(Placement(model.mesh).init({"up": wide}, optim.adafactor(1e-3)).opt)
    assert not [x for x in rows if x.shape == wide.shape]  # rows and columns lie whole on every device


def test_a_batch_that_the_mesh_cannot_split_is_refused(source, cache, tmp_path):
    with pytest.raises(ValueError, match="4 clips cannot be split over data=2 x fsdp=2 x 2 parts; .* multiple of 8"):
        train(source, cache, LORA, tmp_path / "run", 1, dict(data=2, fsdp=2), accumulate=2)
    assert not (tmp_path / "run").exists()
    options = dict(data=cache.folder, out=tmp_path / "run", model=str(source))
    with pytest.raises(ValueError, match="6 devices, there are 8"):
        command(**options, mesh="data=6")
    with pytest.raises(ValueError, match="6 clips cannot be split over data=8"):
        command(**options, mesh="data=8", batch_size=6)
    with pytest.raises(ValueError, match="4 clips cannot be computed in 3 equal parts"):
        command(**options, accumulate=3)


@pytest.mark.full
@pytest.mark.parametrize("config", [pytest.param(LORA, id="lora"), pytest.param(FULL, id="full")])
def test_an_update_lowered_from_shapes_is_that_of_a_run(source, cache, tmp_path, config):
    sizes = dict(data=2, fsdp=2, tensor=2)
    train(source, cache, config, tmp_path / "run", 1, sizes)
    model = cx.load(source, mesh=mesh_of(sizes))
    begun = runs._begin(model, config)
    tx, mesh = runs.make_optimizer(config, stage_of(cache, config, 1)), model.mesh
    spec, start, base = begun.spec, begun.given, begun.frozen
    compiled = lower_update(spec, begun.compute, mesh, (4, 3, 4, 6, 4), config.lora, tx).compile()
    numbers = [choose([Share(cache, 1, tuple(range(6)))], 0, place, (config.seed, 0)) for place in range(4)]
    batch = Placement(mesh).batch(read(spec, Share(cache, 1, ()), numbers)) | {"base": base}
    _, metrics = compiled(
        Placement(mesh).init(start, tx),
        batch | {"empty": replicate(cache.empty_text(), mesh)},
        replicate(jax.random.key(config.seed), mesh),
    )
    np.testing.assert_allclose(metrics["loss"], losses(tmp_path / "run")[0], rtol=1e-6)


@pytest.mark.full
def test_clips_are_held_out_and_validated(source, cache, tmp_path, capsys):
    videos = [video for video, _ in cache.clips]
    held_out = hold_out(videos, 2)
    assert len(held_out) == 2 and held_out < set(videos) and hold_out(videos[::-1] + videos, 2) == held_out
    assert held_out < hold_out(videos, 0.5) and len(hold_out(videos, 0.5)) == 3 and hold_out(videos, 0) == set()
    moved = hold_out([f"elsewhere/{video}" for video in videos], 2, name=lambda key: key.rpartition("/")[2])
    assert moved == {f"elsewhere/{video}" for video in held_out}
    for amount, words in ((6, "none is left"), (-1, "below 1, or their number"), (1.5, "below 1, or their number")):
        with pytest.raises(ValueError, match=words):
            hold_out(videos, amount)

    config = dataclasses.replace(LORA, validation=2, average=0.0)
    train(source, cache, config, tmp_path / "run", 4, validate_every=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    found = [row for row in rows if "validation" in row]
    assert [row["step"] for row in found] == [2, 4] and list(found[0]["validation"]) == [
        "100",
        "300",
        "500",
        "700",
        "900",
    ]
    assert found[0]["validation_loss"] == pytest.approx(np.mean(list(found[0]["validation"].values())))
    best = min(found, key=lambda row: row["validation_loss"])["step"]
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == [str(best)]
    adapters = read_run_lora(tmp_path / "run", SPEC, best=True).adapters
    assert float(abs(adapters["blocks/attention/q/kernel"]["b"]).max()) > 0
    # The same state has the same loss, whatever was done in between.
    train(source, cache, config, tmp_path / "run", 5, validate_every=4)
    assert "validation loss" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize(
    "parts",
    [pytest.param((), id="lora"), pytest.param(("blocks/attention/norm_*",), id="parts")],
)
def test_videos_of_the_same_prompts_are_made_on_the_way(source, model, cache, tmp_path, monkeypatch, parts):
    compiled, calls = [], []
    monkeypatch.setattr(runs, "write_videos", lambda *a: (calls.append(len(compiled)), write_videos(*a)))
    lines = [{"prompt": "a red circle", "steps": 2}, {"prompt": "a star", "steps": 2, "seed": 3}]
    (tmp_path / "prompts.txt").write_text("\n".join(map(json.dumps, lines)))
    options = dict(data=cache.folder, model=str(source), prompts=tmp_path / "prompts.txt", warmup=0)
    options |= dict(parts=parts) if parts else dict(lora_rank=2)

    def count(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        rate = dict(learning_rate=0.3 if parts else 1e-2, average=0.0)
        pace = dict(steps=5, video_every=2, save_every=9)
        command(**options, **rate, out=tmp_path / "run", **pace)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    made = sorted(str(path.relative_to(tmp_path / "run" / "videos")) for path in tmp_path.glob("run/videos/*/*"))
    assert made == [f"{step}/{number}.mp4" for step in (2, 4, 5) for number in ("00", "01")]
    assert calls[0] < calls[1] == calls[2]  # the second time everything is there
    first, last = (read_video(tmp_path / "run" / "videos" / f"{step}/01.mp4")[0] for step in (2, 5))
    assert first.shape == (9, 32, 48, 3) and not np.array_equal(first, last)
    tuned = read_model(tmp_path / "run", model) if parts else cx.load_lora(model, tmp_path / "run")
    # With other norms attention's bound is another one, which is part of the program.
    assert tuned.spec == model.spec and (tuned.compute == model.compute) == (not parts)
    size = dict(height=32, width=48, num_frames=9, num_inference_steps=2)
    cx.generate(tuned, "a star", seed=3, **size, progress=False).save(tmp_path / "again.mp4")
    assert np.abs(np.float32(read_video(tmp_path / "again.mp4")[0]) - last).mean() < 0.5
    with pytest.raises(ValueError, match="line 1: colour; a line has a prompt and any of"):
        (tmp_path / "prompts.txt").write_text('{"prompt": "a star", "colour": "red"}')
        command(**options, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def begin(source, cache, out, *more, **variables):
    """`cogvx train` in a process of its own, for ever."""
    arguments = ["train", "--data", cache.folder, "--model", source, "--out", out, "--steps", 10**6]
    arguments += ["--lora-rank", 2, "--batch-size", 4, "--log-every", 1, "--save-every", 1, "--keep", 3, *more]
    arguments += ["--learning-rate", 0.01, "--warmup", 0]  # as `stage_of` has them
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "cogvx_jax.cli", *map(str, arguments)],
        env=os.environ | here | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def running(process):
    """The process, once it has logged three updates."""
    said = ""
    while said.count("steps/s") < 3 and (line := process.stdout.readline()):
        said += line
    assert said.count("steps/s") == 3, said
    return process


@pytest.mark.full
def test_runs_that_are_stopped_or_killed_go_on(source, cache, tmp_path):
    out = tmp_path / "run"
    process = running(begin(source, cache, out))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    saved = Checkpoints(out / "checkpoints").latest()
    assert f"SIGTERM came; update {saved} is saved" in said.splitlines()[-1]
    process = running(begin(source, cache, out))
    process.kill()
    process.communicate()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert saved + 1 in steps  # it went on from where it was stopped
    newest = Checkpoints(out / "checkpoints").latest()
    assert newest > saved and len([p for p in (out / "checkpoints").iterdir() if p.name.isdecimal()]) <= 3
    # What the kill left can be gone on from.
    config = runs.RunConfig(lora=LoRAConfig(rank=2, alpha=2.0))
    start = runs._begin(cx.load(source), config).given
    state = Checkpoints(out / "checkpoints").restore(
        Placement().init(start, runs.make_optimizer(config, stage_of(cache, config, 1)))
    )
    assert int(state.step) == newest and all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert np.abs(state.average["blocks/attention/q/kernel"]["b"]).max() > 0


@pytest.mark.full
def test_a_run_of_two_processes_goes_on_in_one_on_another_mesh(source, cache, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    mesh = ["--mesh", "data=2,fsdp=2", "--distributed"]
    both = [begin(source, cache, tmp_path / "run", *mesh, JAX_PROCESS_ID=str(i), **shared) for i in range(2)]
    try:
        running(both[0])
        both[1].send_signal(signal.SIGTERM)  # of which the first process knows nothing
        said = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    done = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert f"SIGTERM came; update {done} is saved" in said[0] and "update" not in said[1]
    assert len(losses(tmp_path / "run")) == done  # one process logs
    config = runs.RunConfig(lora=LoRAConfig(rank=2, alpha=2.0))
    train(source, cache, config, tmp_path / "run", done + 3, dict(fsdp=2, tensor=2))
    train(source, cache, config, tmp_path / "alone", done + 3)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "alone"), rtol=1e-4)


def test_processes_that_cannot_train_together_are_refused(source, cache, tmp_path):
    options = dict(out=tmp_path / "run", model=str(source), distributed=True)
    with pytest.raises(ValueError, match="--distributed needs --mesh"):
        command(data=cache.folder, **options)
    with pytest.raises(ValueError, match="run `cogvx encode --data .*clips.jsonl` first"):
        command(data=tmp_path / "clips.jsonl", mesh="data=2", **options)


def repeat(folder, *flags, monkeypatch):
    """`cogvx train --config` of the run in a folder."""
    monkeypatch.setattr(sys, "argv", ["cogvx", "train", "--config", str(folder / "run.json"), *map(str, flags)])
    cli.main()


@pytest.mark.full
def test_a_run_is_repeated_from_its_record(source, cache, tmp_path, monkeypatch, capsys):
    first = tmp_path / "first"
    options = dict(data=cache.folder, model=str(source), batch_size=2, learning_rate=1e-2, warmup=1, seed=5)
    options |= dict(lora_rank=2, lora_targets=("to_q", "ff"), text_dropout=0.3, validation=1, average=0.9)
    command(**options, out=first, steps=3, log_every=1, validate_every=3, keep=1)
    repeat(first, "--out", tmp_path / "again", monkeypatch=monkeypatch)
    assert losses(tmp_path / "again") == losses(first)
    one, two = (json.loads((folder / "run.json").read_text()) for folder in (first, tmp_path / "again"))
    assert one == two and one["command"]["keep"] == 1
    # What stands beside it comes first, and a run goes on so, too.
    repeat(first, "--out", tmp_path / "again", "--steps", 4, "--log-every", 2, monkeypatch=monkeypatch)
    said = json.loads((tmp_path / "again" / "run.json").read_text())
    assert said["stages"][0]["steps"] == 4 and said["command"]["log_every"] == 2
    capsys.readouterr()
    repeat(first, "--out", tmp_path / "again", "--steps", 1, monkeypatch=monkeypatch)
    assert "is at update 4 already, 1 were asked for, and nothing was trained" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "run.json").read_text()) == said
    # A record of a version that did not note where the clips lie.
    del one["stages"][0]["data"][0]["folder"], one["command"]
    (tmp_path / "old.json").write_text(json.dumps(one))
    with pytest.raises(ValueError, match="old.json cannot be repeated: it is of a version that did not note where"):
        commands.recorded(str(tmp_path / "old.json"))


@pytest.mark.full
def test_a_run_of_parts_and_stages_is_repeated(source, cache, tmp_path, monkeypatch, capsys):
    stages = (
        f'[[stage]]\ndata = "{cache.folder}"\nsteps = 1\n[[stage]]\ndata = "{cache.folder}"\nsteps = 1\npack = 20\n'
    )
    (tmp_path / "stages.toml").write_text(stages)
    options = dict(stages=tmp_path / "stages.toml", model=str(source), batch_size=2, accumulate=2, warmup=0)
    command(**options, parts=("out/*",), out=tmp_path / "first", log_every=1)
    (tmp_path / "stages.toml").unlink()
    repeat(tmp_path / "first", "--out", tmp_path / "again", monkeypatch=monkeypatch)
    assert losses(tmp_path / "again") == losses(tmp_path / "first")
    with pytest.raises(SystemExit):
        repeat(tmp_path / "first", "--out", tmp_path / "again", "--steps", "9", monkeypatch=monkeypatch)
    assert "run.json has 2 stages; give --stages with a file" in capsys.readouterr().err


@pytest.mark.full
def test_a_folder_in_use_is_refused_and_free_when_its_user_is_killed(source, cache, tmp_path):
    out = tmp_path / "run"
    process = running(begin(source, cache, out))
    try:
        refused = begin(source, cache, out)
        said, _ = refused.communicate(timeout=240)
        assert refused.returncode == 2 and said.splitlines() == [
            f"cogvx: {out} is in use: another process trains in it; wait for it, or give another folder"
        ]
    finally:
        process.kill()
        process.communicate()
    run_folder.check_free(out)
    with run_folder.used(out), pytest.raises(ValueError, match="is in use"):
        run_folder.check_free(out)
