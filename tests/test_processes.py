"""Two processes of four virtual devices each, joined over loopback."""

import dataclasses
import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from closeness import close
from joined import ROOT, finish, start

import cogvx_jax as cx
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.data.video import VideoWriter, read_image
from cogvx_jax.sharding import coordinator, processes
from cogvx_jax.sharding.coordinator import Address, check_own_address, parse_address, wait_for_coordinator
from cogvx_jax.train.clips.cache import open_cache
from cogvx_jax.train.clips.encode import encode

GENERATE = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from cogvx_jax.sharding import initialize
initialize()
import numpy as np
import cogvx_jax as cx
folder, out = sys.argv[1:]
model = cx.load(folder, mesh=cx.make_mesh(cfg=2, context=2, sp=2))
up = model.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
assert len(up.sharding.device_set) == 8 and len(up.addressable_shards) == 4
latents = cx.generate(model, "a red circle", num_inference_steps=2, sampler="dpm", output="latents", progress=False)
np.save(f"{out}/{jax.process_index()}.npy", latents)
"""
# Each process has only those rows of a batch that its devices compute.
ROWS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from cogvx_jax.sharding import initialize
initialize()
import jax.numpy as jnp, numpy as np
import cogvx_jax as cx
from cogvx_jax.train.placement import Placement
rows = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
for sizes in ({"data": 2, "sp": 2}, {"data": 2, "fsdp": 2}, {"sp": 4}):
    mesh = cx.make_mesh(**sizes)
    placement = Placement(mesh)
    own = placement.rows(8)
    placed = placement.batch({"x": rows[list(own.numbers)]}, own)["x"]
    weighted = jax.jit(lambda x: jnp.sum(x * jnp.arange(8)[:, None]))(placed)
    assert placed.shape == (8, 3) and float(weighted) == np.sum(rows * np.arange(8)[:, None])
    print("rows", *own.numbers, file=sys.stderr)
"""
# One process dies after a first collective; the other waits for it in another, or does something else.
DIE = """
import os, sys, time, jax
jax.config.update("jax_num_cpu_devices", 1)
from cogvx_jax.cli import ends
from cogvx_jax.sharding import initialize
ends.LEAVE["error"] = 0.5
dies, waits = int(sys.argv[1]), sys.argv[2]
with ends.ends("nothing"):
    initialize(heartbeat=10)
    from jax.experimental.multihost_utils import process_allgather
    import numpy as np
    process_allgather(np.ones(1))
    print("together", file=sys.stderr)
    if jax.process_index() == dies:
        os._exit(9)
    if waits == "alone":
        time.sleep(60)
    for _ in range(1000):
        process_allgather(np.ones(1))
    print("not reached")
"""


@pytest.mark.full
def test_two_processes_make_the_same_latents(small, tmp_path):
    folder, model = small("5b")
    running = start(GENERATE, folder, tmp_path)
    said = finish(running)
    assert [process.returncode for process in running] == [0, 0], said
    alone = cx.generate(model, "a red circle", num_inference_steps=2, sampler="dpm", output="latents", progress=False)
    first, second = (np.load(tmp_path / f"{i}.npy") for i in range(2))
    np.testing.assert_array_equal(first, second)
    close(first, alone)


@pytest.mark.full
def test_each_process_reads_its_own_rows():
    running = start(ROWS)
    said = finish(running)
    assert [process.returncode for process in running] == [0, 0], said
    first, second, every = "0 1 2 3", "4 5 6 7", "0 1 2 3 4 5 6 7"
    read = [[line[5:] for line in text.splitlines() if line.startswith("rows ")] for text in said]
    assert read == [[first, first, every], [second, second, every]]


@pytest.mark.full
def test_the_command_writes_once(small, tmp_path):
    folder, model = small("5b")
    out = tmp_path / "out"  # of PNGs
    options = ["--out", out, "--model", folder, "--steps", "2", "--mesh", "cfg=2", "--distributed", "--no-progress"]
    running = start("cogvx_jax.cli", "generate", "a red circle", "--seed", "random", *options)
    said = finish(running)
    assert [process.returncode for process in running] == [0, 0], said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "out: 9 frames" in said[0] and "out:" not in said[1]
    # Each computes a branch of guidance, of the seed that the first one has drawn.
    seed = int(said[0].split("out: --seed ")[1].split()[0])
    alone = cx.generate(model, "a red circle", num_inference_steps=2, seed=seed, progress=False).frames[0]
    made = np.stack([read_image(path) for path in sorted(out.iterdir())])
    assert np.abs(np.int16(made) - alone).max() <= 1


@pytest.mark.full
def test_each_process_encodes_a_part_of_the_videos_on_devices_of_its_own(small, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    folder, model = small("5b")
    (tmp_path / "broken.mp4").write_bytes(b"x" * 100)
    for i in range(3):
        with VideoWriter(tmp_path / f"{i}.mp4", 8) as writer:
            writer.write(np.random.default_rng(i).integers(0, 255, (9, 32, 48, 3), np.uint8))
    names = ["0.mp4", "broken.mp4", "1.mp4", "2.mp4", "0.mp4"]
    lines = [json.dumps({"video": name, "prompt": f"video {i}"}) for i, name in enumerate(names)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    running = start(
        "cogvx_jax.cli", "encode", "--data", tmp_path / "list.jsonl", "--out", tmp_path / "cache", "--model", folder,
        "--distributed", "--mesh", "sp=2",
    )  # fmt: skip
    said = finish(running)
    assert [process.returncode for process in running] == [0, 0], said
    assert "4 clips in" in said[0] and "1 of 5 videos skipped (1 unreadable)" in said[0] and "4 clips" not in said[1]
    together = open_cache(tmp_path / "cache")
    alone = encode(model, read_sources(tmp_path / "list.jsonl"), tmp_path / "alone", together.shape, lines.append)
    assert dataclasses.replace(together, folder=alone.folder) == alone
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["arrays", "cache.json"]
    for mine, theirs in zip(together.batch(range(4)).values(), alone.batch(range(4)).values(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.full  # a minute of compiling
def test_two_processes_train_a_vae_and_one_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    folder, _ = small("5b")
    with VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), np.uint8))
    with VideoWriter(tmp_path / "b.mp4", 8) as writer:
        writer.write(np.random.default_rng(1).integers(0, 255, (9, 32, 48, 3), np.uint8))
    lines = [json.dumps({"video": f"{name}.mp4", "prompt": "x"}) for name in "ab"]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    options = ["train-vae", "--data", tmp_path / "list.jsonl", "--model", folder, "--size", "16x16", "--frames", 1]
    options += ["--batch-size", 2, "--log-every", 1, "--validation", 1, "--validate-every", 1, "--warmup", 0]
    options += ["--learning-rate", "0.01", "--decoder-only"]
    together = [*options, "--out", tmp_path / "run", "--mesh", "data=2", "--distributed"]
    running = start("cogvx_jax.cli", *together, "--steps", 2)
    said = finish(running, 600)
    assert [process.returncode for process in running] == [0, 0], said
    assert "trained to update 2" in said[0] and "trained to" not in said[1]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    alone = tmp_path / "alone"
    for out, steps in ((tmp_path / "run", 3), (alone, 3)):
        command = [sys.executable, "-m", "cogvx_jax.cli", *options, "--out", out, "--steps", steps, "--mesh", "data=2"]
        subprocess.run([str(word) for word in command], check=True, cwd=ROOT)

    def losses(run):
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [row[name] for name in ("loss", "validation_loss") for row in rows if name in row]

    assert len(losses(alone)) == 6
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-4)


# Where a transfer fails, JAX raises; where its service is lost, which the first process runs, it aborts. The service
# itself misses another process only after a while.
@pytest.mark.parametrize(
    "dies, waits", [(1, "together"), *(pytest.param(dies, "alone", marks=pytest.mark.full) for dies in (0, 1))]
)
def test_a_dead_process_ends_the_others(dies, waits, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "4")  # as the command line sets it
    running = start(DIE, dies, waits)
    began = time.monotonic()
    said = finish(running, 120)
    assert running[dies].returncode == 9 and running[1 - dies].returncode == 2, said
    lines = [line for line in said[1 - dies].splitlines() if "Gloo]" not in line]
    assert lines[0] == "together" and len(lines) == 2, lines
    assert lines[1].startswith("cogvx: another process of this run has ended, or can't be reached")
    assert time.monotonic() - began < 100


@pytest.mark.full
@pytest.mark.parametrize("index", ["0", "1"])
def test_absent_processes_are_not_waited_for_for_ever(index, monkeypatch, tmp_path):
    for name, value in (("COGVX_JOIN_TIMEOUT", "2"), ("TF_CPP_MIN_LOG_LEVEL", "4"), ("JAX_PROCESS_ID", index)):
        monkeypatch.setenv(name, value)
    running = start("cogvx_jax.cli", "generate", "x", "--distributed", "--out", tmp_path / "x.mp4", only=int(index))
    began = time.monotonic()
    (said,) = finish(running, 120)
    assert running[0].returncode == 2 and time.monotonic() - began < 60
    (line,) = said.splitlines()
    expected = ("not the 2 processes of this run have joined within 2 s", "process 0 at 127.0.0.1:")
    assert line.startswith(f"cogvx: {expected[int(index)]}") and "start" in line


@pytest.mark.parametrize(
    "address", ["localhost", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", ":1", "a b:1", "::1:5", "a:x"]
)
def test_addresses_must_have_a_host_and_a_port(address):
    with pytest.raises(ValueError, match="it must be HOST:PORT, such as 10.0.0.1:1234"):
        parse_address(address)


def test_addresses():
    assert parse_address("10.0.0.1:65535") == ("10.0.0.1", 65535)
    assert str(parse_address("host.example:1")) == "host.example:1" and str(parse_address("[::1]:2")) == "[::1]:2"


def test_the_coordinator_is_waited_for_so_long(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
        wait_for_coordinator(address, 5)
        with pytest.raises(OSError, match=f"cannot listen on port {address.port} .*already in use; give all"):
            check_own_address(address, 5)
    monkeypatch.setattr(coordinator, "WARN", 0.2)
    with (
        pytest.warns(UserWarning, match="waiting up to 0.5 s for process 0 at 127.0.0.1"),
        pytest.raises(TimeoutError, match="did not answer in 0.5 s: Connection refused; start it, or correct JAX_"),
    ):
        wait_for_coordinator(address, 0.5)
    check_own_address(address, 5)

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for check in (wait_for_coordinator, check_own_address):
        with pytest.raises(TimeoutError, match="at nohost:1234 did not answer in 0 s: Name or service not known"):
            check(Address("nohost", 1234), 0)


def test_the_first_process_must_be_where_its_address_leads(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, socket.create_server(("127.0.0.1", 0)) as free:
        address, connect = Address("127.0.0.1", free.getsockname()[1]), socket.create_connection
        free.close()
        monkeypatch.setattr(socket, "create_connection", lambda _, **more: connect(elsewhere.getsockname(), **more))
        monkeypatch.setattr(coordinator, "TRY", 0.2)
        with pytest.raises(TimeoutError, match="this process, number 0, at 127.0.0.1:.* did not answer"):
            check_own_address(address, 0)


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID must be set, too"):
        processes.initialize()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID is 2 of JAX_NUM_PROCESSES 2"):
        processes.initialize()
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS is '127.0.0.1'; it must be HOST:PORT"):
        processes.initialize()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    for seconds in ("soon", "0", "-1"):
        monkeypatch.setenv("COGVX_JOIN_TIMEOUT", seconds)
        with pytest.raises(
            ValueError, match=f"COGVX_JOIN_TIMEOUT must be a number of seconds, at least 1, got '{seconds}"
        ):
            processes.initialize()
