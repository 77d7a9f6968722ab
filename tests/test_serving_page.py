"""Every command, curl line and Python block of docs/serving.md, against a server that runs tiny."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")
pytest.importorskip("openai", reason="tests of the server need the extra `test-serve`")
pytest.importorskip("zai", reason="tests of the server need the extra `test-serve`")

import httpx
from serving import free_port, submit

from cogvx_jax.cli import worker_processes
from cogvx_jax.cli.serve import ServeFlags, serve
from cogvx_jax.cli.work import WorkFlags
from cogvx_jax.cli.worker_processes import Workers, words_of
from cogvx_jax.given import Given
from cogvx_jax.serving.keys import Keys
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.store import Store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.S)
LINES = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
PYTHON = [code for language, code in BLOCKS if language == "python"]


def start(folder, *flags):
    """`cogvx serve` on a free port, once it answers."""
    port = free_port()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "cogvx_jax.cli", "serve", "--port", str(port), *flags]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    assert f"http://127.0.0.1:{port}" in process.stderr.readline()
    return process, f"http://127.0.0.1:{port}"


def wait_until_ready(url):
    until = time.monotonic() + 300
    while httpx.get(f"{url}/ready").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.3)


def here(text, url):
    """A line or block of the page, for a server on another port."""
    return text.replace("http://127.0.0.1:8000", url)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("jq"), reason="no curl, or no jq, is installed")
def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert LINES[0] == "cogvx serve"
    process, url = start(tmp_path)
    try:
        wait_until_ready(url)
        for line in LINES[1:]:
            command = here(line, url).replace("cogvx ", f"{sys.executable} -m cogvx_jax.cli ", 1)
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        for code in PYTHON:
            if "gradio_client" in code and importlib.util.find_spec("gradio") is None:
                continue  # there is no page without the extra `ui`
            exec(compile(here(code, url), "docs/serving.md", "exec"), {})
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    for name in ("circle.mp4", "star.mp4", "openai.mp4"):
        assert (tmp_path / name).read_bytes()[4:8] == b"ftyp", name
    assert (tmp_path / "circle.mp4").read_bytes() == (tmp_path / "openai.mp4").read_bytes()  # one seed, one video
    events = re.findall(r"^data: (.*)$", (tmp_path / "events.txt").read_text(), flags=re.M)
    assert json.loads(events[-1])["status"] == "completed"
    assert {"compiling"} <= {json.loads(event).get("stage") for event in events}


@pytest.mark.full
def test_server_and_worker_are_killed_and_go_on(tmp_path):
    """A video that was asked for is made, though both are killed while it waits or runs."""
    process, url = start(tmp_path)
    fields = {"prompt": "a red circle moves right on a white background", "seed": 3, "num_inference_steps": 4}
    ids = [httpx.post(f"{url}/v1/videos", json=fields | {"num_frames": n}).json()["id"] for n in (9, 17)]
    time.sleep(3)
    process.kill()  # its worker ends by itself
    process.wait()
    process, url = start(tmp_path, "--lease", "5")
    try:
        until = time.monotonic() + 300
        while any(httpx.get(f"{url}/v1/videos/{id}").json()["status"] != "completed" for id in ids):
            assert time.monotonic() < until
            time.sleep(0.5)
        for id in ids:
            assert httpx.get(f"{url}/v1/videos/{id}/content").content[4:8] == b"ftyp"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.kill()


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(host="0.0.0.0"), "give --keys, or --open"),
        (dict(port=70000), "--port must be from 0 to 65535"),
        (dict(keys=Path("none.toml")), "none.toml"),
        (dict(lease=0.0), "--lease must be from 1"),
        (dict(nice=-1), "--nice must be from 0 to 19, got -1"),
        (dict(sound_from="bell"), "sound_from must be tones, module:function"),
        (dict(queue="mysql://x/y"), "a queue is sqlite"),
        (dict(model="none"), "none"),
        (dict(loras=Path("none")), "no folder none"),
        (dict(new_key="a b"), "a name has letters"),
        (dict(memory="none"), "none"),
        (dict(distributed=True), "--distributed needs --mesh"),
        (dict(distributed=True, mesh="cfg=2", workers=2), "one worker of several processes; leave --workers out"),
        (dict(results="ftp://x/y"), "no place known here"),
    ],
)
def test_bad_flags_are_refused(tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", ""))  # which the server sets
    with pytest.raises((ValueError, OSError), match=said):
        serve(run=ServeFlags(**dict(port=0) | flags))


def test_a_port_in_use_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="cannot listen on 127.0.0.1"):
            serve(run=ServeFlags(port=taken.getsockname()[1]))


def test_workers_get_the_flags():
    run = ServeFlags(model="5b", exact=True, lora=("a", "b:0.5"), store=Path("x y"), queue="sqlite:///q", port=1)
    assert words_of(run, WorkFlags) == ["--store=x y", "--model=5b", "--lora=a", "--lora=b:0.5", "--exact"]


KILLED = """
import os
from cogvx_jax.serving.queue import Queue

Queue(os.environ["COGVX_QUEUE"]).claim(os.environ["COGVX_WORKER"], "tiny", lease=3000)
os.kill(os.getpid(), 9)
"""


def test_a_worker_that_is_killed_frees_its_job_at_once(tmp_path):
    run = ServeFlags(store=tmp_path)
    queue = Queue(run.url)
    job = submit(queue, Store(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    workers = Workers(run, Given(), dict(environment), queue)
    workers._command = [sys.executable, "-c", KILLED]
    with workers:
        until = time.monotonic() + 60
        while (now := queue.get(job.id)).attempts == 0 or now.due > queue.now():
            assert time.monotonic() < until, now
            time.sleep(0.05)
    assert queue.claim("next", "tiny").id == job.id


TOGETHER = """
import os, sys
from pathlib import Path

turn = Path(sys.argv[1])
turn.write_text(f"{turn.read_text()}x" if turn.exists() else "x")
handle = int(os.environ["COGVX_TELL"])
os.write(handle, b"1\\n")
if len(turn.read_text()) == 2:
    os.write(handle, b"ready\\n")
sys.exit(2)
"""


def test_a_process_of_several_is_begun_again_unless_it_never_works(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_processes, "AGAIN", (0.01, 0.01))
    workers = Workers(ServeFlags(store=tmp_path, mesh="cfg=2", distributed=True), Given(), dict(os.environ))
    workers._command = [sys.executable, "-c", TOGETHER, str(tmp_path / "turns")]
    with workers:
        assert workers.index() == 1
        with pytest.raises(ValueError, match="the worker cannot make videos"):
            workers.wait()
    assert len((tmp_path / "turns").read_text()) == 5  # once lost, twice it worked, and three times in a row it did not


def test_a_new_key_stands_in_no_file(tmp_path, capsys):
    serve(run=ServeFlags(new_key="ada"))
    lines, shown = capsys.readouterr()
    key = shown.split()[-1]
    (tmp_path / "keys.toml").write_text(lines + "jobs = 4\n")
    assert key not in lines
    assert Keys(tmp_path / "keys.toml").of(f"Bearer {key}").jobs == 4


def test_keys_that_are_none(tmp_path):
    file = tmp_path / "keys.toml"
    for text, said in (
        ("", "holds no key"),
        ("[", "not TOML"),
        ("a = 1", "a key has sha256"),
        ('[a]\nsha256 = "abc"', "64 hexadecimal"),
        ("[a]\nsha256 = 5", "64 hexadecimal"),
        (f'[a]\nsha256 = "{"0" * 64}"\njobs = 0', "jobs must be"),
        (f'[a]\nsha256 = "{"0" * 64}"\ncolour = 1', "a key has sha256"),
        (f'["a b"]\nsha256 = "{"0" * 64}"', "a name has"),
        (f'[a]\nsha256 = "{"0" * 64}"\n[b]\nsha256 = "{"0" * 64}"', "key of a, too"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said) as caught:
            Keys(file)
        assert str(file) in str(caught.value)
