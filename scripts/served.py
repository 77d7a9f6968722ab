"""A server and its workers in processes of their own, for benchmarks: to be measured, killed and begun anew."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STORE = "cogvx-videos"  # as `cogvx serve` calls it
LEASE = 3.0  # seconds; short, as workers are killed
READY = 300.0  # seconds in which a server must listen; it imports for seconds, on a busy machine for minutes
FAKE, TINY = "fake", "tiny"  # samplers: one that samples nothing, and the small model
PROMPT = "a red circle moves right on a white background"
FILE_BYTES = 10_000  # of a fake video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a part runs with.

    Args:
      queue: URL of an empty one; None is a file.
      seconds: for parts that last as long as they are told to.
      sampler: of the worker.
      kills: of workers and server.
    """

    queue: str | None = None
    seconds: float = 15.0
    sampler: str = FAKE
    kills: int = 100


@dataclasses.dataclass(frozen=True)
class Found:
    """A measured number; `bound` is what is promised of it, "" nothing, and `kept` whether it holds."""

    what: str
    value: str
    bound: str = ""
    kept: bool = True


async def submit(client: Any, url: str, **fields: Any) -> str:
    """The id of a new job. Args: client: of httpx."""
    answer = await client.post(f"{url}/v1/videos", json={"prompt": PROMPT} | fields)
    answer.raise_for_status()
    return answer.json()["id"]


class Measured:
    """A process of which the kernel is asked."""

    process: subprocess.Popen

    def memory(self) -> float:
        """MiB that are resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def processor(self) -> float:
        """Seconds of processor that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """By SIGKILL."""
        self.process.kill()
        self.process.wait()


class Server(Measured):
    """`cogvx serve` without workers, in a folder of its own, always on the same port.

    Args:
      queue: its URL; None is a file in the folder.
    """

    def __init__(self, folder: Path, queue: str | None, *flags: str):
        self.folder, self._flags = folder, flags
        (folder / STORE).mkdir(exist_ok=True)
        self.queue = queue or f"sqlite:///{folder}/{STORE}/queue.sqlite"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.begin()

    def begin(self) -> None:
        """Starts it, also again; returns when it listens."""
        command = [sys.executable, "-m", "cogvx_jax.cli", "serve", "--port", str(self.port), "--workers", "0"]
        command.append("--no-page")  # which takes seconds to begin, and no part in this
        environment = os.environ | {"COGVX_QUEUE": self.queue}
        with open(self.folder / "server.log", "a") as log:
            where: dict[str, Any] = dict(cwd=self.folder, env=environment, stderr=log)
            self.process = subprocess.Popen([*command, *self._flags], **where)
        until = time.monotonic() + READY
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {(self.folder / 'server.log').read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not listen within {READY:g} s")


@contextlib.contextmanager
def server(queue: str | None, *flags: str) -> Iterator[Server]:
    """A new server."""
    with tempfile.TemporaryDirectory() as folder:
        made = Server(Path(folder), queue, *flags)
        try:
            yield made
        finally:
            made.process.send_signal(signal.SIGTERM)
            made.process.wait(30)


class Worker(Measured):
    """A worker of a server; what it completes is a line of the folder's worker.log."""

    def __init__(self, of: Server, sampler: str, steps: int = 50, pause: float = 0.02):
        code = f"from cogvx_jax.scripts.served import work; work({str(of.folder)!r}, {steps}, {pause})"
        command = [sys.executable, "-c", code]
        if sampler == TINY:
            command = [sys.executable, "-m", "cogvx_jax.cli", "work", "--store", STORE, f"--lease={LEASE}"]
        with open(of.folder / "worker.log", "a") as log:
            # A cache of its own: what an earlier run compiled would not be compiled.
            environment = os.environ | {"COGVX_QUEUE": of.queue, "JAX_COMPILATION_CACHE_DIR": f"{of.folder}/xla"}
            self.process = subprocess.Popen(command, cwd=of.folder, env=environment, stderr=log)


@contextlib.contextmanager
def worker(of: Server, sampler: str = FAKE, steps: int = 50, pause: float = 0.02) -> Iterator[Worker]:
    """A worker that is killed at the end; a fake one computes in Python for `pause` seconds in each step."""
    made = Worker(of, sampler, steps, pause)
    try:
        yield made
    finally:
        made.kill()


def work(folder: str, steps: int, pause: float) -> None:
    """The main function of a fake worker, whose videos are the ids of their jobs. It gives no job up."""
    from cogvx_jax.serving.queue import Queue
    from cogvx_jax.serving.store import Store
    from cogvx_jax.serving.worker import Worker as Working
    from cogvx_jax.temporaries import temporary_beside

    def make(job: Any, place: Path, out: Path, progress: Any) -> None:
        for step in range(steps):
            until = time.monotonic() + pause
            while time.monotonic() < until:  # a step keeps a core
                pass
            progress.tell(stage="sampling", step=step + 1, steps=steps)
        with temporary_beside(out) as partial:
            partial.write_bytes(fake_video(job.id))

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    queue = Queue(os.environ["COGVX_QUEUE"], attempts=10**6)
    Working(queue, Store(Path(folder) / STORE), make, model="tiny", lease=LEASE, report=report).run()


def fake_video(id: str) -> bytes:
    """What a fake worker makes of a job."""
    return f"{id}\n".encode() * (FILE_BYTES // (len(id) + 1))
