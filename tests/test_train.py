"""The training step and loop: they learn, resume exactly, and start from nothing but their arguments."""

import dataclasses
import functools
import json
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from tensorboardX.proto import event_pb2

from cogvx_jax.cli import train as commands
from cogvx_jax.cli.settings import from_flags
from cogvx_jax.configs import TransformerConfig
from cogvx_jax.convert.runs import read_exported
from cogvx_jax.models import lora
from cogvx_jax.models.flops import training_flops
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.train import loop, mfu, optim, parts, progress
from cogvx_jax.train import step as update
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.curve import Curve
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.placement import Placement
from cogvx_jax.train.prefetch import read_ahead
from cogvx_jax.train.progress import Span, Watch


def loss(params, batch, key):
    return jnp.mean(jnp.square(batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"][None] - batch["y"]))


def start():
    return {"dense": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}}


def batches(step):
    rng = np.random.default_rng(step)
    x = rng.standard_normal((16, 8)).astype(np.float32)
    return {"x": x, "y": x[:, :4] * 2 + 1}


def run_updates(params, batches, loss_fn, tx, *, steps, folder, seed=0, decay=0.999, **options):
    """`loop.run_updates` by names: `watch` takes what is no `Pace`."""
    known = {field.name for field in dataclasses.fields(Watch)}
    watch = Watch(**{name: value for name, value in options.items() if name in known})
    pace = Pace(**{name: value for name, value in options.items() if name not in known})
    update = loop.Update(loss=loss_fn, tx=tx, decay=decay)
    about = {"seed": seed, "pace": pace, "watch": watch}
    return loop.run_updates(params, loop.Input(batches=batches), update, Span(steps=steps), folder, **about)


@pytest.mark.parametrize("make", [optim.adamw, optim.muon])
def test_fit_learns(tmp_path, make):
    state = run_updates(
        start(), batches, loss, make(0.05, 200, warmup=5), steps=200, folder=tmp_path / "run", seed=0, decay=0.9
    )
    assert float(loss(state.params, batches(999), None)) < 0.01
    assert float(loss(state.average, batches(999), None)) < 0.01
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150, 200] and rows[0]["loss"] > rows[-1]["loss"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    run = functools.partial(run_updates, start(), batches, loss, optim.adamw(0.05, 40, warmup=5), seed=0, log_every=10)
    whole = run(steps=40, folder=tmp_path / "whole")
    run(steps=20, folder=tmp_path / "parts")
    parts = run(steps=40, folder=tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_batches_are_read_ahead_but_not_far_and_in_order():
    begun, together = [], threading.Barrier(2, timeout=30)

    def read(step):
        begun.append(step)
        if step < 5:
            together.wait()  # broken, unless two are read at once
        if step == 8:
            raise OSError("no such file")
        return step**2

    batches = read_ahead(read, 3, 10)
    assert next(batches) == (3, 9) and max(begun) <= 5
    assert [next(batches) for _ in range(4)] == [(4, 16), (5, 25), (6, 36), (7, 49)]
    with pytest.raises(OSError, match="no such file"):
        next(batches)
    assert list(read_ahead(read, 7, 7)) == []


@pytest.mark.full
def test_processes_read_the_same_batches_in_order(tmp_path):
    def read(step):
        if step == 8:
            raise OSError("no such file")
        return {"x": np.full(3, step), "by": os.getpid()}

    found = read_ahead(read, 3, 10, workers=2)
    rows = [next(found) for _ in range(5)]
    assert [step for step, _ in rows] == [3, 4, 5, 6, 7]
    for step, batch in rows:
        np.testing.assert_array_equal(batch["x"], np.full(3, step))
    readers = {int(batch["by"]) for _, batch in rows}
    assert len(readers) == 2 and os.getpid() not in readers
    with pytest.raises(OSError, match="no such file"):
        next(found)
    found.close()
    for reader in readers:
        with pytest.raises(ProcessLookupError):
            os.kill(reader, 0)
    assert list(read_ahead(read, 7, 7, workers=2)) == []


def test_parameters_of_16_bits_are_rounded_at_random_and_right_on_average():
    apply = jax.jit(update.apply)
    exact = {"w": jnp.asarray([1.0, -0.5, 0.0, 3.0], jnp.bfloat16)}
    moved = apply(exact, {"w": jnp.zeros(4, jnp.bfloat16)}, jax.random.key(0))
    np.testing.assert_array_equal(moved["w"], exact["w"])
    # Half of the last bit of 1 is 0.0039: steps of 0.0001 are lost to the nearest number.
    ones, small = {"w": jnp.ones(4096, jnp.bfloat16)}, {"w": jnp.full(4096, -1e-4, jnp.bfloat16)}
    once = apply(ones, small, jax.random.key(1))["w"]
    assert set(np.unique(np.float32(once))) == {1.0, 1 - 2.0**-8}
    for i in range(100):
        ones = apply(ones, small, jax.random.key(i))
    assert ones["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(ones["w"]).mean(), 0.99, atol=5e-4)
    lost = jnp.ones(4, jnp.bfloat16)
    assert jnp.all(lost + small["w"][:4] == 1)
    float32 = apply({"w": jnp.ones(4)}, {"w": jnp.full(4, 1e-6)}, jax.random.key(0))["w"]
    np.testing.assert_array_equal(float32, np.full(4, np.float32(1) + np.float32(1e-6)))


def test_the_caller_keeps_its_parameters(tmp_path):
    params = start()
    run_updates(params, batches, loss, optim.adamw(0.05, 3, warmup=1), steps=3, folder=tmp_path, seed=0)
    assert float(jnp.sum(params["dense"]["kernel"])) == 0  # readable: not donated


def test_the_average_follows_slowly():
    tx = optim.adamw(0.1, 100, warmup=1)
    state = update.init(start(), tx)
    step = jax.jit(functools.partial(update.step, loss_fn=loss, tx=tx, decay=0.99))
    for i in range(20):
        state, metrics = step(state, batches(i), jax.random.key(0))
    ahead = jnp.abs(state.params["dense"]["bias"]).mean()
    behind = jnp.abs(state.average["dense"]["bias"]).mean()
    assert 0 < behind < ahead
    assert int(state.step) == 20 and np.isfinite(metrics["grad_norm"])


def test_muon_takes_each_layer_of_a_stack_as_its_own_matrix():
    params = {
        "blocks": {"up": {"kernel": jnp.zeros((3, 8, 16)), "bias": jnp.zeros((3, 16))}},
        "embedding": jnp.zeros((5, 8)),
    }
    numbers = optim._matrices(params)
    assert numbers["blocks"]["up"]["kernel"].reduction_axis == (1,)
    assert numbers["blocks"]["up"]["kernel"].output_axis == (2,)
    assert numbers["blocks"]["up"]["bias"] is None and numbers["embedding"] is None


def noisy():
    """A loss that draws noise for each row, as a `Loss`."""

    def draw(batch, key):
        return dict(batch) | {"noise": jax.random.normal(key, batch["y"].shape)}

    def mean(params, rows, batch):
        return loss(params, rows | {"y": rows["y"] + rows["noise"]}, None)

    return update.Loss(draw, mean)


@pytest.mark.parametrize("accumulate", [4, *(pytest.param(n, marks=pytest.mark.full) for n in (2, 16))])
def test_a_batch_in_parts_gives_the_same_update(accumulate):
    tx = optim.adamw(0.1, 100, warmup=0)
    each = functools.partial(update.step, loss_fn=noisy(), tx=tx, decay=0.9)
    whole, parts = update.init(start(), tx), update.init(start(), tx)
    for i in range(2):
        whole, one = each(whole, batches(i), jax.random.key(1))
        parts, two = each(parts, batches(i), jax.random.key(1), accumulate=accumulate)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (whole, one), (parts, two))
    with pytest.raises(TypeError, match="only a Loss"):
        update.step(whole, batches(0), jax.random.key(1), loss_fn=loss, tx=tx, decay=0.9, accumulate=2)


def broken(first, count):
    """Batches of which `count` from `first` on hold a number that is not finite."""
    return lambda step: batches(step) | ({"y": np.full((16, 4), np.inf)} if first <= step < first + count else {})


def test_an_update_that_is_not_finite_moves_nothing_but_the_count():
    tx = optim.adamw(0.1, 100, warmup=0)
    before, metrics = update.step(
        update.init(start(), tx), batches(0), jax.random.key(0), loss_fn=loss, tx=tx, decay=0.9
    )
    assert metrics["sound"]
    after, metrics = update.step(before, broken(0, 1)(0), jax.random.key(0), loss_fn=loss, tx=tx, decay=0.9)
    assert not metrics["sound"] and int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after[1:], before[1:])


def test_skipped_updates_are_counted_and_too_many_end_the_run(tmp_path, capsys):
    run = functools.partial(
        run_updates, start(), loss_fn=loss, tx=optim.adamw(0.05, 40, warmup=5), seed=7, log_every=10
    )
    state = run(batches=broken(3, 4), steps=10, folder=tmp_path / "few", patience=5)
    row = json.loads((tmp_path / "few" / "log.jsonl").read_text())
    assert row["skipped"] == 4 and np.isfinite(row["loss"]) and np.isfinite(state.params["dense"]["bias"]).all()
    assert "4 updates skipped, not finite" in capsys.readouterr().out
    with pytest.raises(ValueError, match="5 updates in a row .* batch of the last is in batch-7.npz"):
        run(batches=broken(3, 9), steps=40, folder=tmp_path / "many", patience=5)
    kept = np.load(tmp_path / "many" / "batch-7.npz")
    assert (kept["step"], kept["seed"]) == (7, 7) and np.isinf(kept["y"]).all()
    np.testing.assert_array_equal(kept["x"], batches(7)["x"])


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    seen = iter([3.0, 1.0, 2.0])
    options = dict(seed=0, folder=tmp_path, save_every=1, validate_every=2, keep=3)
    run_updates(
        start(), batches, loss, optim.adamw(0.1), steps=6, validate=lambda average: {"x": next(seen)}, **options
    )

    def steps(name):
        return sorted(int(path.name) for path in (tmp_path / name).iterdir())

    assert steps("checkpoints") == [4, 5, 6] and steps("best") == [4]
    run_updates(start(), batches, loss, optim.adamw(0.1), steps=8, validate=lambda average: {"x": 1.5}, **options)
    assert steps("checkpoints") == [6, 7, 8] and steps("best") == [4]  # the best of an earlier part, too
    assert Checkpoints(tmp_path / "best", best=True).loss() == 1.0
    average = read_exported(tmp_path, start(), best=False)
    assert float(jnp.abs(average["dense"]["bias"]).min()) > 0


def test_the_progress_line():
    rows = [{"loss": 0.5, "grad_norm": 1.0, "sound": 1.0}, {"loss": 0.25, "grad_norm": 2.0, "sound": 1.0}]
    assert progress.line("panda", 100, 4000, rows, 2.0, 1500) == (
        "panda 100/4000 loss 0.37500, 0.5 steps/s, 750 tokens/s, 2:10:00 left"
    )
    assert "750 tokens/s, MFU 41.5%, 2:10:00 left" in progress.line("panda", 100, 4000, rows, 2.0, 1500, 0.415)


def test_utilisation_is_of_all_devices_and_of_known_ones():
    assert mfu.utilisation(int(197e12), 2.0, 4, "TPU v5 lite") == pytest.approx(1 / 8)
    assert mfu.peak("TPU v5") > mfu.peak("TPU v5 lite") and mfu.peak("NVIDIA H100 PCIe") < mfu.peak("NVIDIA H100 80GB")
    assert mfu.utilisation(10**15, 1.0, 1) is None  # of a CPU no peak is known
    assert mfu.utilisation(0, 1.0, 1, "TPU v4") is None


def products(jaxpr):
    """Operations of all products in a program, those in loops as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shared = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * int(shared) * eqn.outvars[0].aval.size
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        total += eqn.params.get("length", 1) * sum(products(part) for part in inner if hasattr(part, "eqns"))
    return total


@pytest.mark.parametrize("kind", ["full", "mlp", "lora"])
def test_operations_of_an_update_are_those_of_its_program(kind):
    cfg = TransformerConfig(
        layers=3, heads=4, head_dim=32, in_channels=4, out_channels=4, text_dim=8, text_length=16, time_dim=8
    )
    x, text, t = jnp.zeros((2, 4, 8, 8, 4)), jnp.zeros((2, 16, 8)), jnp.zeros(2)
    base = jax.eval_shape(lambda key: nn.unbox(Transformer(cfg).init(key, x, text, t)["params"]), jax.random.key(0))
    adapters = lora.LoRAConfig(rank=4, targets=("to_q", "ff"))
    if kind == "lora":
        trained, paths = jax.eval_shape(lambda: lora.init(jax.random.key(0), base, adapters)), adapters.paths
    else:
        trained = parts.split(base, ["*"] if kind == "full" else ["blocks/mlp/*"])[0]
        paths = traverse_util.flatten_dict(trained, sep="/")

    def loss(part, base):
        whole = lora.merge(base, part, 1.0) if kind == "lora" else parts.join(base, part)
        return jnp.sum(Transformer(cfg).apply({"params": whole}, x, text, t))

    counted = products(jax.make_jaxpr(jax.value_and_grad(loss))(trained, base).jaxpr)
    formula = training_flops(cfg, 16 + 4 * 4 * 4, paths, batch=2, rank=4 if kind == "lora" else 0)
    assert formula == pytest.approx(counted, rel=0.03) and formula < counted  # which has embeddings and modulation


def test_metrics_are_read_when_the_next_update_is_on_its_way(tmp_path, monkeypatch):
    seen, place, read = [], Placement.batch, progress.read
    monkeypatch.setattr(Placement, "batch", lambda *a: seen.append("sent") or place(*a))
    monkeypatch.setattr(progress, "read", lambda metrics: seen.append("read") or read(metrics))
    run_updates(start(), batches, loss, optim.adamw(0.1), steps=4, folder=tmp_path, seed=0)
    assert seen == ["sent", "sent", "read", "sent", "read", "sent", "read", "read"]


def scalars(folder):
    """What TensorBoard's files hold: {(tag, step): value}."""
    found = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:  # a record is its size in 8 bytes, 4 of check sum, itself, and 4 more
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    return found


def test_the_curve_is_written_for_tensorboard(tmp_path, monkeypatch):
    run_updates(
        start(),
        batches,
        loss,
        optim.adamw(0.1, warmup=4),
        steps=3,
        folder=tmp_path,
        seed=0,
        log_every=1,
        tensorboard=True,
        rate=optim.schedule(0.1, None, warmup=4),
        validate=lambda average: {"100": 0.5, "300": 1.5},
        validate_every=2,
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = scalars(tmp_path / "tensorboard")
    assert {tag for tag, step in found} == {
        *("loss", "grad_norm", "learning_rate", "steps_per_second"),
        *("validation_loss", "validation/100", "validation/300"),
    }
    assert [found["loss", i] for i in (1, 2, 3)] == pytest.approx([row["loss"] for row in rows if "loss" in row])
    assert [found["learning_rate", i] for i in (1, 2, 3)] == pytest.approx([0, 0.025, 0.05])
    assert (found["validation_loss", 2], found["validation/300", 3]) == (1.0, 1.5)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        commands.train(from_flags(commands.TrainOptions, data=tmp_path, out=tmp_path / "run", tensorboard=True))


@pytest.mark.parametrize("steps", [None, 200])
def test_adafactor_learns_with_a_small_state(tmp_path, steps):
    tx = optim.adafactor(0.05, steps, warmup=5)
    state = run_updates(start(), batches, loss, tx, steps=200, folder=tmp_path, seed=0, decay=0.9)
    assert float(loss(state.params, batches(999), None)) < 0.02
    wide = {"kernel": jnp.zeros((2, 256, 512))}
    assert sum(x.size for x in jax.tree.leaves(tx.init(wide))) < 2 * (256 + 512) + 10


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_after_a_kill_the_log_holds_each_update_once(tmp_path):
    """A run that is killed between two checkpoints does some updates again."""
    options = dict(folder=tmp_path, log_every=1, save_every=2, validate_every=2, validate=lambda average: {"x": 1.0})
    run_updates(start(), batches, loss, optim.adamw(0.1), steps=4, **options)
    whole = logged(tmp_path)
    log = tmp_path / "log.jsonl"
    # As if it had come to update 7, whose line was cut off, without a checkpoint after 4.
    later = [json.dumps({"step": step, "loss": 9.0}) + "\n" for step in (5, 6)]
    later.append(json.dumps({"step": 6, "validation_loss": 9.0}) + "\n")
    log.write_text(log.read_text() + "".join(later) + '{"step": 7, "lo')
    run_updates(start(), batches, loss, optim.adamw(0.1), steps=8, **options)
    found = logged(tmp_path)
    assert found[: len(whole)] == whole and [row["step"] for row in found if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in found if "validation" in row] == [2, 4, 6, 8]


def test_a_checkpoint_is_saved_when_its_updates_are_logged(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: saved.append((int(state.step), len(logged(tmp_path)))))
    run_updates(start(), batches, loss, optim.adamw(0.1), steps=6, folder=tmp_path, log_every=1, save_every=2)
    assert saved == [(2, 2), (4, 4), (6, 6)]


class Computed:
    """A metric as jax gives it, known after so many seconds."""

    def __init__(self, seconds):
        self.at = time.monotonic() + seconds

    def block_until_ready(self):
        time.sleep(max(0, self.at - time.monotonic()))
        return self

    def __float__(self):
        self.block_until_ready()
        return 1.0


@pytest.mark.parametrize("inline", [False, True], ids=["ahead", "inline"])
def test_the_pace_of_each_update_is_true(tmp_path, inline):
    """Whether an update is computed while the host goes on or before it does, and across a pause."""
    curve = Curve(tmp_path)
    shown = progress.Progress(tmp_path, curve, Span(steps=6), Watch(), every=1, seed=0)
    busy_until = time.monotonic()
    for step in range(6):
        busy_until = max(busy_until, time.monotonic()) + 0.1
        metrics = {name: Computed(busy_until - time.monotonic()) for name in ("loss", "grad_norm", "sound")}
        if inline:
            metrics["loss"].block_until_ready()
        shown.add(step, None, metrics)
        if step == 2:
            with shown.paused():
                time.sleep(0.3)
    shown.catch_up()
    paces = [row["seconds_per_step"] for row in logged(tmp_path)]
    assert len(paces) == 6 and min(paces) > 0.05 and max(paces) < 0.35


@pytest.mark.full
def test_a_killed_worker_is_one_sentence(tmp_path):
    def read(step):
        return {"x": np.full(3, step), "by": os.getpid()}

    found = read_ahead(read, 0, 10**6, workers=2)
    _, batch = next(found)
    os.kill(int(batch["by"]), signal.SIGKILL)
    with pytest.raises(OSError, match="a process of --workers ended before its time"):
        for _ in found:
            pass


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capfd):
    """Nothing of Orbax's threads beside it; what was saved before remains."""
    run_updates(start(), batches, loss, optim.adamw(0.1), steps=1, folder=tmp_path)

    async def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']")

    handlers = pytest.importorskip("orbax.checkpoint._src.serialization.jax_array_handlers")
    monkeypatch.setattr(handlers, "_async_serialize_replica_slices", full)
    capfd.readouterr()
    with pytest.raises(OSError, match="^cannot write .*checkpoints: No space left on device; the checkpoints before"):
        run_updates(start(), batches, loss, optim.adamw(0.1), steps=9, folder=tmp_path, save_every=2)
    assert capfd.readouterr().err == ""
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").latest() == 1
