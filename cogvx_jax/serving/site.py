"""What the endpoints of one server share."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from cogvx_jax.serving.jobs import Job, Placed
from cogvx_jax.serving.keys import Key, Keys
from cogvx_jax.serving.looks import Looks
from cogvx_jax.serving.measures import Measures
from cogvx_jax.serving.service import Service, no_such
from cogvx_jax.serving.store import ID
from cogvx_jax.serving.watching import Watcher

TIDY = 60.0  # seconds between two times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """The state of an app."""

    service: Service
    keys: Keys
    watcher: Watcher
    looks: Looks
    measures: Measures

    async def tidy(self) -> None:
        """Removes now and then what is not kept; runs until it is cancelled."""
        while True:
            with contextlib.suppress(OSError):  # the next time, then
                await run_in_threadpool(self.service.tidy)
            await asyncio.sleep(TIDY)


def site_of(request: Request) -> Site:
    return request.app.state.site


def key_of(request: Request) -> Key:
    """Who asks. Raises: Refused."""
    return site_of(request).keys.of(request.headers.get("authorization"))


async def placed_of(request: Request, id: str) -> Placed:
    """The job of whoever asks, and its place. Raises: Refused where there is no such job of this key."""
    key, site = key_of(request), site_of(request)
    found = await site.looks.job(id, key.name) if ID.fullmatch(id) else None
    if found is None:
        raise no_such(id)
    return found


def address(request: Request, job: Job, variant: str = "video") -> str:
    """Of a file of a job, absolute, and for a while without a key."""
    service = site_of(request).service
    base = (service.rules.public_url or str(request.base_url)).rstrip("/")
    query: Mapping[str, Any] = service.signer.query(job.id, variant, service.expires(job))
    return f"{base}/v1/videos/{job.id}/content?{urlencode(query)}"
