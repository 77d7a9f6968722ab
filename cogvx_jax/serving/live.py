"""A video whose frames are still decoded, sent as far as it is: the worker writes fragments, and readers follow."""

import os
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from cogvx_jax.serving.jobs import COMPLETED, RUNNING, Job
from cogvx_jax.serving.site import Site
from cogvx_jax.serving.store import live_of

LOOK = 0.2  # seconds between two looks at the file
CHUNK = 2**18  # bytes


class Broken(Exception):
    """The rest of a video does not come: its job failed, was deleted, or is made anew."""


async def begun(site: Site, job: Job, request: Request) -> tuple[Job, BinaryIO | None]:
    """The job and the file of its fragments when there are some; or the job when it has ended, or is wanted no more."""
    async for now in site.watcher.changes(job, pause=LOOK):
        job = job if now is None else now
        if job.ended or await request.is_disconnected():
            break
        if (file := await run_in_threadpool(_opened, site, job)) is not None:
            return job, file
    return job, None


def _opened(site: Site, job: Job) -> BinaryIO | None:
    if job.status != RUNNING:
        return None
    try:
        file = live_of(site.service.store.folder_of(job.id) / job.file).open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size:
        return file
    file.close()
    return None


class LiveVideo(StreamingResponse):
    """The answer with a video of which more is written meanwhile.

    Where the rest does not come the connection is closed in the middle of the answer, so that no client takes it for
    the whole video.
    """

    def __init__(self, site: Site, job: Job, file: BinaryIO, **how: Any):
        super().__init__(_parts(site, job, file), media_type="video/mp4", **how)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except Broken:
            return  # without the message that ends the answer


async def _parts(site: Site, job: Job, file: BinaryIO) -> AsyncIterator[bytes]:
    """The bytes of a file as they come, until its job is completed. Raises: Broken."""
    attempt = job.attempts
    with file:
        async for now in site.watcher.changes(job, pause=LOOK):
            job = job if now is None else now
            if job.attempts != attempt or job.status not in (RUNNING, COMPLETED):
                raise Broken
            while chunk := await run_in_threadpool(file.read, CHUNK):
                yield chunk
            if job.status == COMPLETED:  # the file was whole before the row said so
                return
    raise Broken
