"""Load and faults of the server: numbers of docs/serving.md, and whether they keep to what is promised.

    python -m cogvx_jax.scripts.benchmark_server --json load.json  # all parts, in less than 20 minutes
    python -m cogvx_jax.scripts.benchmark_server poll listen --sampler tiny --seconds 20

The machine should do nothing else. Each part runs against a server in a process of its own, on SQLite and, where it is
installed, on Postgres.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from cogvx_jax.scripts import postgres
from cogvx_jax.scripts.hostile import faults, silent, upload
from cogvx_jax.scripts.served import FAKE, READY, TINY, Found, Setting, server, submit, worker

PACE = 1 / 7  # seconds from one poll of a client to its next: 50 clients ask 350 times a second
AT_ONCE = 50  # listeners that connect at a time
HEARD = 600.0  # seconds in which all listeners must have heard of the end
ENDS = (b"completed", b"failed", b"deleted")
TINY_STEPS = 8  # of a video of the small model
SIZES = ("64x64", "64x48", "48x64", "48x48", "32x64", "64x32")  # of the small model: each is compiled


def fields(at: Setting, number: int) -> dict[str, Any]:
    """Of a request: of the small model each asks for another size, so that its worker compiles, too."""
    if at.sampler == FAKE:
        return {}
    return {"size": SIZES[number % len(SIZES)], "num_inference_steps": TINY_STEPS}


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


async def poll(at: Setting, clients: int = 50) -> list[Found]:
    """Clients that ask for jobs seven times a second each, while a worker keeps a core."""
    import httpx

    times: list[float] = []
    with server(at.queue) as made, worker(made, at.sampler):
        async with httpx.AsyncClient(timeout=30) as client:
            ids = [await submit(client, made.url, **fields(at, number)) for number in range(10)]
            await _works(client, made.url)
        until, used = time.monotonic() + at.seconds, made.processor()
        asking = [_ask(made.url, ids[number % len(ids)], until, times) for number in range(clients)]
        await asyncio.gather(*asking)
        used = made.processor() - used
    rate, p99 = len(times) / at.seconds, statistics.quantiles(times, n=100)[98]
    who = f"{clients} clients poll{' while tiny compiles and samples' if at.sampler == TINY else ''}"
    return [
        Found(f"{who}: requests a second", f"{rate:.0f}", "300 or more", rate >= 300),
        Found(f"{who}: 99 of 100 are answered within, ms", f"{p99 * 1e3:.0f}", "below 250", p99 < 0.25),
        Found(f"{who}: the server's processor for an answer, ms", f"{used / len(times) * 1e3:.2f}"),
    ]


async def poll_tiny(at: Setting) -> list[Found]:
    """The same while the small model's worker compiles a program for each size, and samples."""
    return await poll(dataclasses.replace(at, sampler=TINY))


async def _works(client: Any, url: str) -> None:
    """Returns when a worker is there. Raises: TimeoutError."""
    async with asyncio.timeout(READY):
        while (await client.get(f"{url}/ready")).status_code != 200:
            await asyncio.sleep(0.1)


async def listen(at: Setting, listeners: int = 1000) -> list[Found]:
    """Listeners of one job's events, until it has ended. The worker begins when all of them have heard of the job."""
    import httpx

    with server(at.queue) as made:
        async with httpx.AsyncClient(timeout=300) as client:
            id = await submit(client, made.url, **fields(at, 0))
        listening = [Listener(made.url, id) for _ in range(listeners)]
        door = asyncio.Semaphore(AT_ONCE)
        heard = [asyncio.create_task(one.hear(door)) for one in listening]
        await asyncio.gather(*(one.begun.wait() for one in listening))
        used = made.processor()
        with worker(made, at.sampler, steps=20, pause=0.1):
            await asyncio.wait_for(asyncio.gather(*heard), HEARD)
        used = made.processor() - used
    count, again = sum(one.last == b"completed" for one in listening), sum(one.lost for one in listening)
    events = sum(one.events for one in listening)
    who = f"{listeners} listeners of a job"
    return [
        Found(f"{who}: heard of its end", f"{count}", "all", count == listeners),
        Found(f"{who}: connections lost", f"{again}"),
        Found(f"{who}: the server's processor for an event, ms", f"{used / max(events, 1) * 1e3:.2f}"),
    ]


class Listener:
    """A client of a job's events, by hand, as a thousand of a library take a core. It comes back as browsers do."""

    def __init__(self, url: str, id: str):
        self._url, self._id = url, id
        self.begun = asyncio.Event()  # it has heard of the job
        self.last, self.events, self.lost, self._seen = b"", 0, 0, b""

    async def hear(self, door: asyncio.Semaphore) -> None:
        while self.last not in ENDS:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._connect(door)
            if self.last not in ENDS:
                self.lost += 1
                await asyncio.sleep(0.5)

    async def _connect(self, door: asyncio.Semaphore) -> None:
        host, port = self._url.removeprefix("http://").split(":")
        again = f"Last-Event-ID: {self._seen.decode()}\r\n" if self._seen else ""
        async with door:  # one that is let in sends its request soon, before the server takes it for silent
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /v1/videos/{self._id}/events HTTP/1.1\r\nHost: {host}\r\n{again}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
        try:
            while self.last not in ENDS:
                self._note(await reader.readuntil(b"\n"))
        finally:
            writer.close()

    def _note(self, line: bytes) -> None:
        name, _, value = line.strip().partition(b": ")
        if name == b"id":
            self._seen = value
        elif name == b"event":
            self.last, self.events = value, self.events + 1
            self.begun.set()


async def claim(at: Setting, jobs: int = 10_000) -> list[Found]:
    """Claims from a long queue."""
    from cogvx_jax.serving.jobs import JOBS, QUEUED, new_id
    from cogvx_jax.serving.queue import Queue

    with tempfile.TemporaryDirectory() as folder:
        queue = Queue(at.queue or f"sqlite:///{folder}/queue.sqlite")
        new = dict(owner="", fingerprint="", model="tiny", priority=0, asked={}, shown={}, status=QUEUED)
        with queue.database.writes() as connection:
            now = queue.now()
            rows = [new | dict(id=new_id(), created=now, due=now, attempts=0, stage="") for _ in range(jobs)]
            connection.execute(JOBS.insert(), rows)
        times = []
        for _ in range(min(100, jobs)):
            began = time.monotonic()
            job = queue.claim("w", "tiny")
            times.append(time.monotonic() - began)
            assert job is not None
        queue.close()
    median = statistics.median(times)
    return [Found(f"{jobs} jobs wait: a claim, ms (median)", f"{median * 1e3:.1f}", "below 10", median < 0.01)]


async def soak(at: Setting) -> list[Found]:
    """Jobs, polls, listeners and bad requests for a while: memory and open files stay."""
    import httpx

    with server(at.queue, "--keep-videos", "5") as made, worker(made, at.sampler, steps=5) as making:
        async with httpx.AsyncClient(timeout=300) as client:
            marks, until = [], time.monotonic() + at.seconds
            while time.monotonic() < until:
                id = await submit(client, made.url, **fields(at, 0))
                async with client.stream("GET", f"{made.url}/v1/videos/{id}/events") as answer:
                    async for _ in answer.aiter_lines():
                        pass
                await client.get(f"{made.url}/v1/videos/{id}/content")
                await client.post(f"{made.url}/v1/videos", content=b"{" * 10_000)
                await client.get(f"{made.url}/metrics")
                marks.append([(one.memory(), one.descriptors()) for one in (made, making)])
    half = marks[len(marks) // 2 :]
    found = [Found("soak: videos", f"{len(marks)} in {at.seconds:g} s")]
    for who, first, last in zip(("server", "worker"), half[0], half[-1], strict=True):
        grown, files = last[0] - first[0], last[1] - first[1]
        what = f"soak: {who}, second half"
        found += [
            Found(f"{what}: memory grew, MiB", f"{grown:.1f}", "below 10", grown < 10),
            Found(f"{what}: open files grew", f"{files}", "at most 3", files <= 3),
        ]
    return found


async def preview(at: Setting, steps: int = 50) -> list[Found]:
    """What showing a preview takes of the time of sampling, of the small model in its own size."""
    from cogvx_jax.scripts.preview_cost import preview_cost

    share, one = await asyncio.to_thread(preview_cost, steps)
    return [
        Found("previews of tiny, of its sampling, %", f"{share * 100:.2f}", "below 2", share < 0.02),
        Found("one preview of tiny, of a step, %", f"{one * 100:.0f}"),
    ]


Part = Callable[[Setting], Coroutine[Any, Any, list[Found]]]
PARTS: dict[str, Part] = {
    "poll": poll,
    "poll-tiny": poll_tiny,
    "listen": listen,
    "claim": claim,
    "soak": soak,
    "faults": faults,
    "upload": upload,
    "silent": silent,
    "preview": preview,
}
LONG = {("soak", "SQLite"): 300.0, ("soak", "Postgres"): 60.0}  # seconds, where the others take `SECONDS`
SECONDS = 15.0
ONCE = ("upload", "silent", "preview")  # parts in which no database takes part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, help=f"of poll and soak; {SECONDS:g} and minutes without it")
    parser.add_argument("--kills", type=int, default=100, help="of workers and server, in the part faults")
    parser.add_argument("--sampler", choices=(FAKE, TINY), default=FAKE, help="of poll, listen and soak")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[str, Found]] = {}
    for name in options.parts:
        for database in _databases(name):
            with _setting(database, name, options) as at:
                for one in asyncio.run(PARTS[name](at)):
                    print(f"{database}: {one.what}: {one.value}{'' if one.kept else '  MISSED'}", flush=True)
                    table.setdefault(one.what, {})[database] = one
    print(_as_table(table))
    if options.json is not None:
        found = [{"database": name} | dataclasses.asdict(one) for row in table.values() for name, one in row.items()]
        options.json.write_text(json.dumps(found, indent=2))
    if not all(one.kept for row in table.values() for one in row.values()):
        sys.exit(1)


def _databases(part: str) -> list[str]:
    if part in ONCE or postgres.find("initdb") is None:
        return ["SQLite"]
    return ["SQLite", "Postgres"]


@contextlib.contextmanager
def _setting(database: str, part: str, options: Any) -> Iterator[Setting]:
    seconds = options.seconds or LONG.get((part, database), SECONDS)
    at = Setting(queue=None, seconds=seconds, sampler=options.sampler, kills=options.kills)
    if database == "SQLite":
        yield at
        return
    with postgres.running() as url:
        yield dataclasses.replace(at, queue=url)


def _as_table(table: dict[str, dict[str, Found]]) -> str:
    """In Markdown, the databases side by side."""
    lines = ["| what | must be | SQLite | Postgres |", "|---|---|---|---|"]
    for what, row in table.items():
        values = [row[name].value if name in row else "" for name in ("SQLite", "Postgres")]
        lines.append(f"| {what} | {next(iter(row.values())).bound} | {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
