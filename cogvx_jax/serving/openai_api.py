"""OpenAI's videos API, with what SGLang, vLLM-Omni and FastVideo add to it."""

import base64
import dataclasses
import functools
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from cogvx_jax.json_files import quoted
from cogvx_jax.serving import schemas
from cogvx_jax.serving.asking import FILES, Asked, check_prompt, frames_decide, read_asked, read_seconds
from cogvx_jax.serving.bodies import UPLOADS, Fields, read_fields
from cogvx_jax.serving.composed import WHOLE_FILES
from cogvx_jax.serving.files import MAX_CLIP, file_of, most_bytes
from cogvx_jax.serving.jobs import COMPLETED, FAILED, QUEUED, RUNNING, Job, Placed
from cogvx_jax.serving.live import LiveVideo, begun
from cogvx_jax.serving.pictures import VARIANTS, picture_of
from cogvx_jax.serving.ranges import RangedFile
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import no_such
from cogvx_jax.serving.site import address, key_of, placed_of, site_of

router = APIRouter(prefix="/v1", tags=["OpenAI videos"])

STATUSES = {QUEUED: "queued", RUNNING: "in_progress", COMPLETED: "completed", FAILED: "failed"}
MODELS = ("sora-2", "sora-2-pro")  # what the client's users send; they mean whichever is here
PAGE = 100  # videos of a list
TYPES = {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg", "gif": "image/gif"}
SHOWN = ("num_frames", "fps", "num_inference_steps", "guidance_scale", "seed", "task", "notes", "user")


def video(request: Request, job: Job) -> dict[str, Any]:
    """A job as the API's Video. Fields beyond OpenAI's tell where it stands and what is made."""
    shown, service = job.shown, site_of(request).service
    steps = min(99, round(100 * job.step / job.steps)) if job.steps else 0
    expires = service.expires(job)
    found: dict[str, Any] = {
        "id": job.id,
        "object": "video",
        "model": shown["model"],
        "status": STATUSES[job.status],
        "progress": 100 if job.status == COMPLETED else steps,
        "created_at": int(job.created),
        "completed_at": int(job.finished) if job.status == COMPLETED and job.finished else None,
        "expires_at": None if expires is None else int(expires),
        "prompt": shown["prompt"],
        "seconds": shown["seconds"],
        "size": shown["size"],
        "remixed_from_video_id": shown.get("remixed_from_video_id"),
        "error": None if job.error_code is None else {"code": job.error_code, "message": job.error_message},
    }
    found |= {name: shown[name] for name in SHOWN if shown.get(name) not in (None, [])}
    if job.status == COMPLETED:
        return found | {"url": address(request, job), "inference_time_s": shown.get("inference_time_s")}
    if job.ended:
        return found
    return found | {"stage": job.stage, "step": job.step, "steps": job.steps}


def placed(request: Request, job: Job) -> dict[str, Any]:
    """A job as a Video, with its place in the queue."""
    return _at(request, Placed(job, site_of(request).service.queue.position(job)))


def _at(request: Request, now: Placed) -> dict[str, Any]:
    return video(request, now.job) | ({} if now.position is None else {"queue_position": now.position})


def answer(request: Request, job: Job) -> JSONResponse:
    """A job as the answer, with the time after which to ask again."""
    return _answer(request, Placed(job, site_of(request).service.queue.position(job)))


def _answer(request: Request, now: Placed) -> JSONResponse:
    headers = {} if now.job.ended else {"openai-poll-after-ms": str(site_of(request).service.rules.poll)}
    return JSONResponse(_at(request, now), headers=headers)


async def fields_of(request: Request) -> Fields:
    """The fields of a body, in which pictures and clips may stand."""
    most = {field: most_bytes(options) for field, options in FILES.items()}
    most |= {field: most_bytes((field,)) for field in WHOLE_FILES} | {UPLOADS: MAX_CLIP}
    return await read_fields(request, most)


async def submit(request: Request, asked: Asked, **how: Any) -> Job:
    """Puts what is asked for into the queue, in a thread: pictures and clips are read."""
    key = key_of(request)
    request_key = request.headers.get("idempotency-key")
    if request_key is not None and not 0 < len(request_key) <= 256:
        raise Refused("invalid_value", "an Idempotency-Key has from 1 to 256 characters", "Idempotency-Key")
    how = dict(request_key=None if request_key is None else f"header {request_key}") | how
    return await run_in_threadpool(site_of(request).service.submit, asked, key, **how)


def ask(request: Request, fields: Fields) -> Asked:
    """What fields ask of the model that is served. Raises: Refused."""
    service = site_of(request).service
    notes = service.check_model(fields.values.get("model"), MODELS)
    asked = read_asked(fields, service.spec, **service.rules.of_reading)
    return dataclasses.replace(asked, notes=(*notes, *asked.notes))


def own_facts(asked: Asked) -> dict[str, Any]:
    return {} if asked.user is None else {"user": asked.user}


@router.post("/videos", **schemas.posts(schemas.VIDEO, schemas.CREATE))
async def create(request: Request) -> Response:
    """Puts a video into the queue."""
    key_of(request)
    asked = await run_in_threadpool(ask, request, await fields_of(request))
    job = await submit(request, asked, shown=own_facts(asked))
    return await run_in_threadpool(answer, request, job)


@router.post("/videos/sync", **schemas.posts(schemas.FILE, schemas.CREATE, media="video/mp4"))
async def create_and_wait(request: Request) -> Response:
    """Makes a video and answers with its bytes; a client that goes away cancels it."""
    key = key_of(request)
    asked = await run_in_threadpool(ask, request, await fields_of(request))
    job = await submit(request, asked, shown=own_facts(asked))
    site = site_of(request)
    async for now in site.watcher.changes(job, pause=1.0):
        if now is not None:
            job = now
        if await request.is_disconnected():
            await run_in_threadpool(site.service.cancel, job.id, key)
            raise Refused("request_timeout", "the client has gone")
    if not job.ended:
        raise Refused("not_found", f"the video {job.id} was deleted while it was made")
    if job.status == FAILED:
        raise Refused("server_error", job.error_message or "the video could not be made")
    headers = {"X-Video-Id": job.id, "X-Inference-Time-S": str(job.shown.get("inference_time_s"))}
    file = await run_in_threadpool(site.service.video_of, job)
    return FileResponse(file, media_type="video/mp4", headers=headers)


@router.get("/videos", **schemas.gets(schemas.LIST, schemas.PAGING))
def videos(request: Request) -> Response:
    """Lists videos, a page at a time."""
    key, site, query = key_of(request), site_of(request), request.query_params
    limit, order, after = _limit(query), query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise Refused("invalid_value", f"order must be asc or desc, got {order[:60]!r}", "order")
    last = None if after is None else site.service.get(after, key).seq
    jobs = site.service.queue.page(key.name, after=last, limit=limit + 1, newest_first=order == "desc")
    data = [video(request, job) for job in jobs[:limit]]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return JSONResponse({"object": "list", "data": data, "has_more": len(jobs) > limit} | ends)


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", "20")
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= PAGE):
        raise Refused("invalid_value", f"limit must be from 1 to {PAGE}, got {text[:60]!r}", "limit")
    return int(text)


@router.post("/videos/edits", **schemas.posts(schemas.VIDEO, schemas.EDIT))
async def edit(request: Request) -> Response:
    """Redraws a video by a prompt."""
    return await _from_video(request, "video", "edited_from_video_id")


@router.post("/videos/extensions", **schemas.posts(schemas.VIDEO, schemas.EXTEND))
async def extend(request: Request) -> Response:
    """Goes on with a video; the answer's seconds are those of the whole."""
    return await _from_video(request, "extend", "extended_from_video_id")


async def _from_video(request: Request, option: str, said: str) -> Response:
    """Makes a video of another one, a file or one that was made here."""
    key_of(request)
    fields = await fields_of(request)
    values = dict(fields.values)
    given, seconds = values.pop("video", None), values.pop("seconds", None) if option == "extend" else None
    more = None if seconds is None else read_seconds(seconds)
    if given is None:
        raise Refused("missing_required_parameter", "video is missing: a file, or the id of one made here", "video")
    suffix, data, source = await run_in_threadpool(_source, request, given)
    asked = await run_in_threadpool(ask, request, dataclasses.replace(fields, values=values))
    if other := sorted(asked.files):
        raise Refused("exclusive_parameters", f"give a video or {other[0]}, not both", other[0])
    asked = dataclasses.replace(asked, files={option: (suffix, data)})
    if more is not None and (frames := asked.options.get("frames")) is not None:
        asked, more = dataclasses.replace(asked, notes=(*asked.notes, frames_decide(frames, more))), None
    facts = own_facts(asked) | ({} if source is None else {said: source})
    job = await submit(request, asked, shown=facts, extra_seconds=more)
    return await run_in_threadpool(answer, request, job)


def _source(request: Request, given: Any) -> tuple[str, bytes, str | None]:
    """Suffix and bytes of a video, and its id where it was made here. Raises: Refused."""
    named = isinstance(given, Mapping) and given.keys() == {"id"}
    given = given["id"] if named else given
    if named and not isinstance(given, str):
        raise Refused("invalid_value", f"the id of a video is text, got {quoted(given)}", "video")
    if named or (isinstance(given, str) and given.startswith("video_")):
        service = site_of(request).service
        file = service.video_of(service.get(given, key_of(request)))
        return file.suffix, file.read_bytes(), given
    option, suffix, data = file_of(given, "video", ("video",), site_of(request).service.rules.fetches)
    return suffix, data, None


@router.post("/videos/characters", include_in_schema=False)
async def make_character(request: Request) -> Response:
    """Characters are not there."""
    key_of(request)
    raise Refused("not_implemented", "characters are not there: these models make a video of a prompt and its inputs")


@router.get("/videos/characters/{id}", include_in_schema=False)
async def character(request: Request, id: str) -> Response:
    """Characters are not there."""
    return await make_character(request)


@router.get("/videos/{id}", **schemas.gets(schemas.VIDEO))
async def retrieve(request: Request, id: str) -> Response:
    """Tells of a video."""
    return _answer(request, await placed_of(request, id))


@router.delete("/videos/{id}", **schemas.gets(schemas.DELETED))
def delete(request: Request, id: str) -> Response:
    """Removes a video; one that is being made is stopped first."""
    site_of(request).service.delete(id, key_of(request))
    return JSONResponse(deleted(id))


def deleted(id: str) -> dict[str, Any]:
    """What the API says of a video that is removed."""
    return {"id": id, "object": "video.deleted", "deleted": True}


@router.post("/videos/{id}/cancel", **schemas.gets(schemas.VIDEO))
def cancel(request: Request, id: str) -> Response:
    """Stops a video at its next step; its status is failed then, with the code cancelled."""
    return answer(request, site_of(request).service.cancel(id, key_of(request)))


@router.post("/videos/{id}/remix", **schemas.posts(schemas.VIDEO, schemas.REMIX))
async def remix(request: Request, id: str) -> Response:
    """Makes a video anew by another prompt: redrawn from its frames where the model can."""
    key, service = key_of(request), site_of(request).service
    values = dict((await read_fields(request, {})).values)
    prompt = check_prompt(values.pop("prompt", None))
    if values:
        raise Refused("unknown_parameter", f"a remix has a prompt alone, not {min(values)[:60]!r}", min(values)[:60])
    job = await run_in_threadpool(service.get, id, key)
    asked = await run_in_threadpool(service.again, job, prompt)
    made = await submit(request, asked, shown={"remixed_from_video_id": id})
    return await run_in_threadpool(answer, request, made)


@router.head("/videos/{id}/content", include_in_schema=False)
@router.get("/videos/{id}/content", **schemas.gets(schemas.FILE, schemas.VARIANT, media=" ".join(TYPES.values())))
async def content(request: Request, id: str) -> Response:
    """The video's bytes, ranges of them too, or a picture of it; without a key for an address that is signed.

    With `stream=true` a video that is not ready is waited for, and sent in fragments while it is decoded.
    """
    query = request.query_params
    variant, live = query.get("variant", "video"), query.get("stream", "false")
    if variant not in VARIANTS:
        raise Refused("invalid_value", f"variant must be one of {', '.join(VARIANTS)}, got {variant[:60]!r}", "variant")
    if live not in ("true", "false") or (live == "true" and variant != "video"):
        raise Refused(
            "invalid_value", f"stream must be true or false, and true of the video, got {live[:60]!r}", "stream"
        )
    job = await run_in_threadpool(_job_of, request, id, variant)
    if live == "true" and request.method == "GET" and not job.ended:
        job, file = await begun(site_of(request), job, request)
        if file is not None:
            return LiveVideo(site_of(request), job, file, headers={"Cache-Control": "no-store"})
        if not job.ended:  # it was removed while it was waited for
            raise no_such(id)
    return await run_in_threadpool(_whole, request, job, variant)


def _job_of(request: Request, id: str, variant: str) -> Job:
    """The job whose file is asked for, by its owner or by a signed address. Raises: Refused."""
    service, query = site_of(request).service, request.query_params
    if "signature" not in query:
        return service.get(id, key_of(request))
    service.signer.check(id, variant, query.get("expires", ""), query["signature"])
    job = service.queue.get(id)
    if job is None:
        raise no_such(id)
    return job


def _whole(request: Request, job: Job, variant: str) -> Response:
    file = site_of(request).service.video_of(job)
    if variant != "video":
        return Response(picture_of(file, variant), media_type=TYPES[variant])
    how: dict[str, Any] = dict(filename=f"{job.id}.mp4", content_disposition_type="inline", stat_result=file.stat())
    return RangedFile(file, media_type=TYPES[variant], **how)


@router.get("/videos/{id}/events", **schemas.gets({}, media="text/event-stream"))
async def events(request: Request, id: str) -> Response:
    """Server-sent events: the video at each change, with previews, until it has ended.

    An event's id is the job's revision; a client that comes back with `Last-Event-ID` gets what is newer. Of a video
    that is removed before it has ended the last event is `deleted`.
    """
    key, site = key_of(request), site_of(request)
    job = await run_in_threadpool(site.service.get, id, key)
    last = request.headers.get("last-event-id", "")
    seen = int(last) if last.isascii() and last.isdecimal() and len(last) < 12 else None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request, job, seen), media_type="text/event-stream", headers=headers)


async def _events(request: Request, job: Job, seen: int | None) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    ended = job.ended
    async for now in site_of(request).watcher.changes(job, seen):
        if now is None:
            yield f": {int(time.time())}\n\n"  # keeps proxies from closing the connection
            continue
        ended = now.ended
        # One that runs has no place, and a thousand listeners would ask the queue for it at each of its steps.
        waits = now.status == QUEUED
        told = await run_in_threadpool(placed, request, now) if waits else video(request, now)
        if now.preview is not None:
            told["preview"] = preview_url(now.preview)
        yield f"id: {now.revision}\nevent: {told['status']}\ndata: {json.dumps(told)}\n\n"
    if not ended:
        yield f"event: deleted\ndata: {json.dumps(deleted(job.id))}\n\n"


@functools.lru_cache(maxsize=64)  # all who listen to a job get the same
def preview_url(data: bytes) -> str:
    """A small picture as a data URL."""
    kind = "webp" if data[8:12] == b"WEBP" else "jpeg" if data.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
