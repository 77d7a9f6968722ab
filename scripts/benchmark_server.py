"""Load and faults of the server: numbers of docs/serving.md, and whether they keep to what is promised.

    python -m cogvx_jax.scripts.benchmark_server            # all parts, with a sampler that samples nothing
    python -m cogvx_jax.scripts.benchmark_server poll claim --seconds 20

The machine should do nothing else. Each part runs against a server in a process of its own.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

PACE = 1 / 7  # seconds from one poll of a client to its next: 50 clients ask 350 times a second
PROMPT = "a red circle moves right on a white background"


@dataclasses.dataclass(frozen=True)
class Found:
    """A measured number."""

    what: str
    value: str
    kept: bool  # to what is promised


class Server:
    """`cogvx serve` without workers, in a folder of its own."""

    def __init__(self, folder: Path, *flags: str):
        self.folder = folder
        command = [sys.executable, "-m", "cogvx_jax.cli", "serve", "--port", "0", "--workers", "0", *flags]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = next(word for word in self.process.stderr.readline().split() if word.startswith("http"))

    @property
    def queue_url(self) -> str:
        return f"sqlite:///{self.folder}/cogvx-videos/queue.sqlite"

    def memory(self) -> float:
        """MiB that are resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def server(*flags: str) -> Iterator[Server]:
    """A new server, with an empty queue."""
    with tempfile.TemporaryDirectory() as folder:
        made = Server(Path(folder), *flags)
        try:
            yield made
        finally:
            made.process.send_signal(signal.SIGTERM)
            made.process.wait(30)


@contextlib.contextmanager
def fake_worker(made: Server, steps: int = 50, pause: float = 0.02) -> Iterator[subprocess.Popen]:
    """A process that takes jobs and samples nothing: of each step it computes for a while in Python."""
    code = f"from cogvx_jax.scripts.benchmark_server import work; work({str(made.folder)!r}, {steps}, {pause})"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def work(folder: str, steps: int, pause: float) -> None:
    """The main function of a fake worker."""
    from cogvx_jax.serving.queue import Queue
    from cogvx_jax.serving.store import Store
    from cogvx_jax.serving.worker import Worker
    from cogvx_jax.temporaries import temporary_beside

    def make(job: Any, place: Path, out: Path, progress: Any) -> None:
        for step in range(steps):
            until = time.monotonic() + pause
            while time.monotonic() < until:  # a step keeps a core
                pass
            progress.tell(stage="sampling", step=step + 1, steps=steps)
        with temporary_beside(out) as partial:
            partial.write_bytes(bytes(10_000))

    store = Path(folder) / "cogvx-videos"
    Worker(Queue(f"sqlite:///{store}/queue.sqlite"), Store(store), make, model="tiny", lease=5.0).run()


async def _submit(client: Any, url: str, **fields: Any) -> str:
    answer = await client.post(f"{url}/v1/videos", json={"prompt": PROMPT} | fields)
    answer.raise_for_status()
    return answer.json()["id"]


async def _ask(url: str, id: str, until: float, times: list[float]) -> None:
    """Asks for a job on one connection; by hand, as a client's library would take most of a core."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET /v1/videos/{id} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    while time.monotonic() < until:
        began = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        times.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, began + PACE - time.monotonic()))
    writer.close()


async def poll(seconds: float, clients: int = 50) -> list[Found]:
    """Clients that ask for jobs seven times a second each, while a worker keeps a core."""
    import httpx

    times: list[float] = []
    with server() as made, fake_worker(made):
        async with httpx.AsyncClient(timeout=30) as client:
            ids = [await _submit(client, made.url) for _ in range(10)]
        until = time.monotonic() + seconds
        asking = [_ask(made.url, ids[number % len(ids)], until, times) for number in range(clients)]
        await asyncio.gather(*asking)
    rate, p99 = len(times) / seconds, statistics.quantiles(times, n=100)[98]
    return [
        Found(f"{clients} clients that poll: requests a second", f"{rate:.0f}", rate >= 300),
        Found(f"{clients} clients that poll: p99 of an answer, ms", f"{p99 * 1e3:.0f}", p99 < 0.25),
    ]


async def listen(seconds: float, listeners: int = 1000) -> list[Found]:
    """Listeners of one job's events, until it has ended."""
    import httpx

    with server() as made:
        limits = httpx.Limits(max_connections=listeners + 10)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            id = await _submit(client, made.url)
            counts: list[int] = []

            async def hear() -> None:
                count = 0
                async with client.stream("GET", f"{made.url}/v1/videos/{id}/events") as answer:
                    async for line in answer.aiter_lines():
                        count += line.startswith("data:")
                counts.append(count)

            heard = [asyncio.create_task(hear()) for _ in range(listeners)]
            await asyncio.sleep(5)
            with fake_worker(made, steps=20, pause=0.1):
                began = time.monotonic()
                await asyncio.gather(*heard)
            took = time.monotonic() - began
    return [Found(f"{listeners} listeners: heard to the end, in {took:.1f} s", f"{len(counts)}", min(counts) > 1)]


async def claim(seconds: float, jobs: int = 10_000) -> list[Found]:
    """Claims from a long queue."""
    from cogvx_jax.serving.queue import JOBS, QUEUED, Queue, new_id

    with tempfile.TemporaryDirectory() as folder:
        queue = Queue(f"sqlite:///{folder}/queue.sqlite")
        new = dict(owner="", fingerprint="", model="tiny", priority=0, asked={}, shown={}, status=QUEUED)
        with queue.database.writes() as connection:
            now = queue.now()
            rows = [new | dict(id=new_id(), created=now, due=now, attempts=0, stage="") for _ in range(jobs)]
            connection.execute(JOBS.insert(), rows)
        times = []
        for _ in range(100):
            began = time.monotonic()
            job = queue.claim("w", "tiny")
            times.append(time.monotonic() - began)
            assert job is not None
    median = statistics.median(times)
    return [Found(f"{jobs} jobs wait: a claim, ms (median of 100)", f"{median * 1e3:.1f}", median < 0.01)]


async def soak(seconds: float) -> list[Found]:
    """Jobs, polls, listeners and bad requests for a while: memory and open files stay."""
    import httpx

    with server("--keep-videos", "5") as made, fake_worker(made, steps=5):
        async with httpx.AsyncClient(timeout=30) as client:
            marks, until = [], time.monotonic() + seconds
            while time.monotonic() < until:
                id = await _submit(client, made.url)
                async with client.stream("GET", f"{made.url}/v1/videos/{id}/events") as answer:
                    async for _ in answer.aiter_lines():
                        pass
                await client.get(f"{made.url}/v1/videos/{id}/content")
                await client.post(f"{made.url}/v1/videos", content=b"{" * 10_000)
                await client.get(f"{made.url}/metrics")
                marks.append((made.memory(), made.descriptors()))
    half = marks[len(marks) // 2 :]
    grown, files = half[-1][0] - half[0][0], half[-1][1] - half[0][1]
    what = f"{len(marks)} videos in {seconds:g} s"
    return [
        Found(f"{what}: memory grew in the second half, MiB", f"{grown:.1f}", grown < 10),
        Found(f"{what}: open files grew", f"{files}", abs(files) <= 3),
    ]


Part = Callable[[float], Awaitable[list[Found]]]
PARTS: dict[str, Part] = {"poll": poll, "listen": listen, "claim": claim, "soak": soak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of the parts that last as long as they are told to"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [one for name in options.parts for one in asyncio.run(_run(PARTS[name], options.seconds))]
    if options.json is not None:
        options.json.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    if not all(one.kept for one in found):
        sys.exit(1)


async def _run(part: Part, seconds: float) -> list[Found]:
    found = await part(seconds)
    for one in found:
        print(f"{one.what}: {one.value}{'' if one.kept else '  MISSED'}", flush=True)
    return found


if __name__ == "__main__":
    main()
