"""Parts of the server's benchmark in which processes are killed, and clients do what they should not."""

import asyncio
import contextlib
import random
import re
import sqlite3
import time
from pathlib import Path

from cogvx_jax.scripts.served import FAKE, STORE, Found, Server, Setting, Worker, fake_video, server

WORKERS = 3
OF_SERVER = 4  # each so manieth kill; the others are of workers
JOBS, STEPS = 3, 15  # jobs for each kill, and steps of each: so workers have work when they are killed
PAUSE = (0.2, 1.5)  # seconds between two kills
DONE = 600.0  # seconds in which all jobs must have been made after the last kill
MOST = 4 * 2**20  # bytes of a request in `upload`
WAIT = 15.0  # seconds in which silent connections must be closed


async def faults(at: Setting) -> list[Found]:
    """Workers and server are killed at random while clients send jobs: each is made once, and no file is half."""
    with server(at.queue) as made:
        workers, due = [Worker(made, FAKE, STEPS) for _ in range(WORKERS)], asyncio.Semaphore(0)
        try:
            sending = asyncio.create_task(_send(made, JOBS * at.kills, due))
            killed = await _kill(made, workers, at.kills, due)
            ids = await sending
            await asyncio.to_thread(_wait, made, len(ids))
        finally:
            for one in workers:
                one.kill()
        faulty = _faulty(made, ids)
        again = _made_again(made.folder / "worker.log")
        whole = at.queue is not None or _is_sound(made)
    what = f"{killed} kills of the server, {at.kills - killed} of workers, {len(ids)} jobs"
    return [
        Found(f"{what}: not made, or a half file", f"{len(faulty)}", "0", not faulty),
        Found(f"{what}: finished twice", f"{again}", "0", again == 0),
        Found(f"{what}: sound database", "yes" if whole else "no", "yes", whole),
    ]


async def _send(made: Server, count: int, due: asyncio.Semaphore) -> list[str]:
    """Sends jobs that are due as a client that tries each until it is answered; gives their ids."""
    import httpx

    ids = []
    async with httpx.AsyncClient(timeout=30) as client:
        for number in range(count):
            await due.acquire()
            while True:
                with contextlib.suppress(httpx.TransportError):
                    body, headers = {"prompt": f"job {number}"}, {"Idempotency-Key": f"job {number}"}
                    answer = await client.post(f"{made.url}/v1/videos", json=body, headers=headers)
                    if answer.status_code < 500:
                        answer.raise_for_status()
                        ids.append(answer.json()["id"])
                        break
                await asyncio.sleep(0.05)
    return ids


async def _kill(made: Server, workers: list[Worker], kills: int, due: asyncio.Semaphore) -> int:
    """Kills at random moments, and begins anew what was killed; gives how often that was the server.

    Before each kill some more jobs are due.
    """
    draw, killed = random.Random(0), 0
    for number in range(1, kills + 1):
        for _ in range(JOBS):
            due.release()
        await asyncio.sleep(draw.uniform(*PAUSE))
        if number % OF_SERVER == 0:
            killed += 1
            made.kill()
            await asyncio.to_thread(made.begin)
        else:
            place = draw.randrange(len(workers))
            workers[place].kill()
            workers[place] = Worker(made, FAKE, STEPS)
    return killed


def _wait(made: Server, count: int) -> None:
    """Returns once no job waits or runs. Raises: RuntimeError where that does not come."""
    from cogvx_jax.serving.jobs import COMPLETED, FAILED
    from cogvx_jax.serving.queue import Queue

    queue, until = Queue(made.queue), time.monotonic() + DONE
    try:
        while (counts := queue.counts())[COMPLETED] + counts[FAILED] < count:
            if time.monotonic() > until:
                raise RuntimeError(f"of {count} jobs there are {counts} {DONE:g} s after the last kill")
            time.sleep(0.2)
    finally:
        queue.close()


def _faulty(made: Server, ids: list[str]) -> list[str]:
    """Jobs that are not there, not completed, or whose file is not what it should be."""
    from cogvx_jax.serving.jobs import COMPLETED, Job
    from cogvx_jax.serving.queue import Queue

    queue, found = Queue(made.queue), dict[str, Job]()
    for some in (ids[i : i + 500] for i in range(0, len(ids), 500)):
        found |= queue.several(some)
    queue.close()
    faulty = [id for id in ids if id not in found or found[id].status != COMPLETED] + ids[len(set(ids)) :]
    for id in set(found) - set(faulty):
        file = made.folder / STORE / "jobs" / id / (found[id].result or "")
        if not file.is_file() or file.read_bytes() != fake_video(id):
            faulty.append(id)
    return faulty


def _made_again(log: Path) -> int:
    """How many jobs several workers believe to have completed."""
    made = re.findall(r"(video_\w+): made in", log.read_text())
    return len(made) - len(set(made))


def _is_sound(made: Server) -> bool:
    with contextlib.closing(sqlite3.connect(made.folder / STORE / "queue.sqlite")) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def upload(at: Setting) -> list[Found]:
    """A body without an end, whose length is not told: how much is sent until it is refused."""
    with server(None, f"--max-upload-mb={MOST / 2**20:g}") as made:
        sent, status = await _endless(made)
    over = (sent - MOST) / 2**20
    what = f"a body without an end, {MOST // 2**20} MiB allowed"
    return [
        Found(f"{what}: refused after so many MiB more", f"{over:.2f}", "below 1", over < 1),
        Found(f"{what}: status", status, "413", status == "413"),
    ]


async def _endless(made: Server) -> tuple[int, str]:
    """Bytes that were sent when the answer came, and its status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    head = (
        "POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="video"; filename="v.mp4"\r\n\r\n'
    writer.write(head.encode() + b"%x\r\n%s\r\n" % (len(part), part))
    answer, sent, chunk = asyncio.create_task(reader.readline()), 0, bytes(2**14)
    with contextlib.suppress(ConnectionError):
        while not answer.done():
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            sent += len(chunk)
            await asyncio.sleep(0.002)  # as the bytes that wait in sockets would count otherwise
    line = await answer
    writer.close()
    return sent, (line.decode().split() + ["none", "none"])[1]


async def silent(at: Setting, count: int = 200) -> list[Found]:
    """Connections that send nothing, or half of a request: all are closed."""
    with server(None) as made:
        began = time.monotonic()
        closed = await asyncio.gather(*(_closed(made, began, number) for number in range(count)))
    last = max(closed)
    return [Found(f"{count} silent connections: the last is closed after, s", f"{last:.1f}", "below 15", last < WAIT)]


async def _closed(made: Server, began: float, number: int) -> float:
    """Seconds until the server closes a connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    if number % 2:
        writer.write(b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
    with contextlib.suppress(ConnectionError, TimeoutError):
        await asyncio.wait_for(reader.read(), 4 * WAIT)
    writer.close()
    return time.monotonic() - began
