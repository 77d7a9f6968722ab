"""The server as an application of Ray Serve, on a Ray of this machine."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="this needs the extra `ray`")
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="this needs the extra `test-serve`")

import httpx
import ray
import yaml
from ray import serve

from cogvx_jax.cli import ray_app
from cogvx_jax.cli.ray_app import Asked, build

PROMPT = "a red circle moves right on a white background"
REQUESTS = 60
SAYS = """
import os, sys
print(os.environ["TPU_WORKER_ID"], os.environ["JAX_PROCESS_ID"], file=open(sys.argv[1], "a"))
"""


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"port": "1"}, "an argument is not one of"),
        ({"workers": "65"}, "--workers must be from 0 to 64"),
        ({"replicas": "0"}, "replicas must be from 1 to 1000"),
        ({"topology": "4x4"}, "a slice needs mesh"),
    ],
)
def test_arguments_are_checked(arguments, said):
    with pytest.raises(ValueError, match=said):
        build(arguments)


def test_arguments_are_those_of_serve():
    asked = Asked({"model": "2b", "keep_hours": "2", "replicas": "3", "mesh": "cfg=2", "topology": "4x4"})
    assert (asked.run.model, asked.run.keep_hours, asked.run.replicas, asked.run.topology) == ("2b", 2.0, 3, "4x4")


def test_the_manifest_of_the_docs_has_arguments_that_are_taken():
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    manifest = yaml.safe_load(re.search(r"```yaml\n(apiVersion.*?)```", text, re.DOTALL)[1])
    (app,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    asked = Asked(app["args"])
    assert (asked.run.replicas, asked.run.workers, asked.run.mesh) == (2, 1, "cfg=2,sp=8")
    module, name = app["import_path"].split(":")
    assert getattr(sys.modules[module], name) is build


@contextlib.contextmanager
def in_time():
    """Inside, a Ray that does not begin within its own 30 seconds skips the test: no setting makes them more."""
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("Ray has not begun within 30 s: this machine has too much to do")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The address of an application with two replicas and a worker, and its store."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with in_time():
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"store": str(tmp_path / "store"), "replicas": "2", "max_jobs": "1000"}), name="cogvx")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def processes(*words):
    """Numbers of the processes of this machine whose titles have these words."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode() if folder.name.isdecimal() else ""
            if title and all(word in title for word in words):
                found.append(int(folder.name))
    return found


def answered(client, method, url, **how):
    """The answer; a request that met a replica's end is sent again, as the vendors' clients do."""
    for again in range(3):
        with contextlib.suppress(httpx.TransportError):
            answer = client.request(method, url, **how)
            if answer.status_code < 500:
                return answer
        time.sleep(0.2 * 2**again)
    raise AssertionError(f"{url} was not answered")


@pytest.mark.full
def test_a_killed_replica_and_a_killed_worker_lose_nothing(site, tmp_path):
    replicas, store = processes("ray::ServeReplica:cogvx:Api"), str(tmp_path / "store")
    assert len(replicas) == 2
    with httpx.Client(timeout=120) as client:
        new = {"json": {"prompt": PROMPT, "num_inference_steps": 2, "seed": 1}}
        ids = []
        for number in range(REQUESTS):
            key = {"Idempotency-Key": f"job {number}"}
            if number < 2:
                ids.append(answered(client, "POST", f"{site}/v1/videos", headers=key, **new).json()["id"])
            found = answered(client, "GET", f"{site}/v1/videos/{ids[number % len(ids)]}")
            assert found.status_code == 200 and found.json()["prompt"] == PROMPT
            if number == 20:
                os.kill(replicas[0], signal.SIGKILL)
        killed, until = False, time.monotonic() + 1200
        while len(done := [id for id in ids if _status(client, site, id) == "completed"]) < len(ids):
            assert time.monotonic() < until
            if done and not killed:
                killed = True
                for process in processes("cogvx_jax.cli work", store):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.5)
        assert killed
        videos = {answered(client, "GET", f"{site}/v1/videos/{id}/content").content for id in ids}
        assert len(videos) == 1 and b"ftyp" in videos.pop()[:12]
        with client.stream("GET", f"{site}/v1/videos/{ids[0]}/events") as events:
            assert "event: completed" in events.read().decode()
    assert len(set(processes("ray::ServeReplica:cogvx:Api")) - {replicas[0]}) == 2


def _status(client, site, id):
    return answered(client, "GET", f"{site}/v1/videos/{id}").json()["status"]


@pytest.mark.full
def test_the_hosts_of_a_slice_are_reserved_together_and_numbered(tmp_path, monkeypatch):
    """On machines that only say that they have TPUs."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("TPU_NAME", "slice")
    with in_time():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    labels = {"tpu-slice-name": "slice", "tpu-topology": "4x4", "tpu-pod-type": "v6e-16", "accelerator-type": "TPU-V6E"}
    try:
        for number in range(4):
            has = {"TPU": 4} | ({"TPU-v6e-16-head": 1} if number == 0 else {})
            own = {f"ray.io/{name}": value for name, value in (labels | {"tpu-worker-id": str(number)}).items()}
            with in_time():
                cluster.add_node(num_cpus=1, resources=has, labels=own, env_vars={"TPU_WORKER_ID": str(number)})
        ray.init(address=cluster.address)
        reserved = ray_app.reserve("4x4", "v6e")
        hosts = list(ray_app.on_slice(reserved))
        ray_app.start(hosts, [sys.executable, "-c", SAYS, str(tmp_path / "told")], {})
        until = time.monotonic() + 120
        while any(status is None for status in ray.get([host.status.remote() for host in hosts])):
            assert time.monotonic() < until
            time.sleep(0.5)
        assert sorted((tmp_path / "told").read_text().splitlines()) == ["0 0", "1 1", "2 2", "3 3"]
        reserved.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()
