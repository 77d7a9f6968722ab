"""Zhipu's video API, the hosted CogVideoX, so that its clients work with `base_url` alone."""

import dataclasses
import re
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogvx_jax.configs import ModelSpec
from cogvx_jax.json_files import quoted
from cogvx_jax.serving import schemas
from cogvx_jax.serving.asking import NOTHING, OPTIONS, SOUND, Asked, check_prompt, read_asked
from cogvx_jax.serving.bodies import Fields, read_fields
from cogvx_jax.serving.composed import COMPOSED
from cogvx_jax.serving.files import file_of
from cogvx_jax.serving.finishing import FIELDS as FINISH_FIELDS
from cogvx_jax.serving.finishing import FINISH, INSTALL, interpolates
from cogvx_jax.serving.jobs import COMPLETED, FAILED, Job
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import Rules
from cogvx_jax.serving.site import address, key_of, placed_of, site_of

router = APIRouter(prefix="/api/paas/v4", tags=["Zhipu videos"])

MODELS = ("cogvideox-3", "cogvideox-2", "cogvideox-flash", "cogvideox")  # they mean whichever is here
MAX_PROMPT = 512  # characters
MAX_PICTURE = 5 * 2**20  # bytes
DEFAULT_PROMPT = "the scene of the picture comes to life"  # where there is a picture alone
RATES, DURATIONS = (30, 60), (5, 10)
PASSED = (  # fields that are ours, and mean the same here
    *("model", "prompt", "size", "aspect_ratio", "loras", "video", "mask"),
    *(field for field in (*OPTIONS, *COMPOSED, FINISH, *FINISH_FIELDS, *SOUND) if field != "fps"),
)
OWN = ("image_url", "quality", "fps", "duration", "request_id", "user_id", "sensitive_word_check", "off_peak")
VIDU = {"style": "general", "movement_amplitude": "auto"}  # of other models: the value that asks for nothing
STATUSES = {COMPLETED: "SUCCESS", FAILED: "FAIL"}


def task(request: Request, job: Job) -> dict[str, Any]:
    """A job in the API's shape; the sizes that came of the request stand beside it."""
    shown, status = job.shown, STATUSES.get(job.status, "PROCESSING")
    found = {"id": job.id, "model": shown["model"], "request_id": shown["request_id"], "task_status": status}
    found |= {
        name: shown[name] for name in ("size", "seconds", "fps", "seed", "notes") if shown.get(name) not in (None, [])
    }
    if job.status == COMPLETED:
        cover = address(request, job, "thumbnail")
        found["video_result"] = [{"url": address(request, job), "cover_image_url": cover}]
    if job.status == FAILED:
        found["error"] = {"code": job.error_code, "message": job.error_message}
    return found


@router.post("/videos/generations", **schemas.posts_json(schemas.TASK, schemas.GENERATION))
async def generations(request: Request) -> Response:
    """Puts a video into the queue."""
    key, site = key_of(request), site_of(request)
    fields = await read_fields(request, {})
    values = dict(fields.values)
    if "model" not in values:
        raise Refused("missing_required_parameter", "model is missing", "model")
    of_model = site.service.check_model(values["model"], MODELS)
    request_id = _text(values, "request_id", 1, 256)
    asked = await run_in_threadpool(read_generation, values, site.service.spec, site.service.rules)
    asked = dataclasses.replace(asked, notes=(*of_model, *asked.notes))
    if values.get("quality") == "quality" and "num_inference_steps" not in values:
        asked.options["steps"] = better_steps(site.service.spec)
    how: dict[str, Any] = dict(request_key=request_id and f"id {request_id}", repeated=not site.service.rules.strict)
    how["priority"] = -1 if values.get("off_peak") else 0
    job = await run_in_threadpool(site.service.submit, asked, key, shown={"request_id": request_id}, **how)
    if request_id is None:
        job = await run_in_threadpool(_with_id, site.service.queue, job)
    return JSONResponse(task(request, job))


def _with_id(queue: Any, job: Job) -> Job:
    """The job with an id of the request that was made here: its own."""
    queue.show(job.id, request_id=job.id)
    return queue.get(job.id) or job


def read_generation(values: dict[str, Any], spec: ModelSpec, rules: Rules) -> Asked:
    """What fields of this API ask for. Raises: Refused."""
    _check(values)
    given = {name: values[name] for name in (*PASSED, *NOTHING) if name in values}
    files = _pictures(values.get("image_url"), rules.fetches)
    if not str(given.get("prompt", "")).strip() and files:
        given["prompt"] = DEFAULT_PROMPT
    check_prompt(given.get("prompt"), MAX_PROMPT, "prompt_too_long")
    if (duration := values.get("duration")) is not None:
        given["seconds"] = _one_of(duration, "duration", DURATIONS)
    rate, notes = _one_of(values.get("fps"), "fps", RATES), list[str]()
    smoother = {} if rate is None or rate <= spec.defaults.fps else {"output_fps": rate}
    if smoother and "finish" not in given and interpolates():
        given |= smoother
    elif rate is not None and rate != spec.defaults.fps and "finish" not in given:
        missing = f"; what interpolates frames is not installed on the server: {INSTALL} brings it" * bool(smoother)
        if rules.strict:
            raise Refused(
                "invalid_value", f"{spec.name} makes {spec.defaults.fps} frames a second, not {rate}{missing}", "fps"
            )
        notes.append(f"{rate} frames a second became {spec.defaults.fps}, which {spec.name} makes{missing}")
    given["user"] = _text(values, "user_id", 6, 128)
    fields = Fields({name: value for name, value in given.items() if value is not None})
    asked = read_asked(fields, spec, **rules.of_reading)
    return dataclasses.replace(asked, files=asked.files | files, notes=(*asked.notes, *notes))


def better_steps(spec: ModelSpec) -> int:
    """Sampling steps of quality "quality": twice the model's own, but of a model that was distilled to few its own."""
    own = spec.defaults
    return own.num_inference_steps if own.distilled else min(2 * own.num_inference_steps, spec.schedule.steps)


def _check(values: dict[str, Any]) -> None:
    """Refuses fields that are not known, and values that cannot be had."""
    for name, harmless in VIDU.items():
        if values.get(name) not in (None, harmless):
            raise Refused("invalid_value", f"{name} cannot be had: it is of other models", name)
    _one_of(values.get("quality"), "quality", ("speed", "quality"))
    _one_of(values.get("off_peak"), "off_peak", (True, False))
    asked = values.get("sensitive_word_check")
    if asked is not None and (not isinstance(asked, dict) or asked.get("status", "DISABLE") != "DISABLE"):
        raise Refused("invalid_value", "words are not checked here; sensitive_word_check must say DISABLE", None)
    known = {*PASSED, *OWN, *VIDU, *NOTHING}
    if unknown := sorted(values.keys() - known):
        said = f"unknown field {unknown[0][:60]!r}; the known ones are {', '.join((*PASSED, *OWN, *VIDU))}"
        raise Refused("unknown_parameter", said, unknown[0][:60])


def _one_of(value: Any, name: str, among: tuple[Any, ...]) -> Any:
    if value is None or any(type(value) is type(one) and value == one for one in among):
        return value
    words = " or ".join(str(one).lower() if isinstance(one, bool) else str(one) for one in among)
    raise Refused("invalid_value", f"{name} must be {words}, got {quoted(value)}", name)


def _text(values: dict[str, Any], name: str, low: int, high: int) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not low <= len(value) <= high or not re.fullmatch(r"[^\0]*", value):
        raise Refused(
            "invalid_value", f"{name} must be a text of {low} to {high} characters, got {quoted(value)}", name
        )
    return value


def _pictures(given: Any, fetches: bool) -> dict[str, tuple[str, bytes]]:
    """The first picture, and the last one where there are two. Raises: Refused."""
    several = given if isinstance(given, list) else [] if given in (None, "") else [given]
    if len(several) > 2:
        raise Refused("invalid_value", f"image_url has {len(several)} pictures; give the first, or first and last")
    found = {}
    for option, value in zip(("image", "last_image"), several, strict=False):
        _, suffix, data = file_of(value, "image_url", ("image",), fetches)
        if len(data) > MAX_PICTURE:
            raise Refused("invalid_value", f"image_url has {len(data):,} bytes, of which 5 MiB are taken", "image_url")
        found[option] = suffix, data
    return found


@router.get("/async-result/{id}", **schemas.gets(schemas.TASK))
async def async_result(request: Request, id: str) -> Response:
    """Tells of a video."""
    job = (await placed_of(request, id)).job
    if "request_id" not in job.shown:  # one of the other API
        job = dataclasses.replace(job, shown=dict(job.shown) | {"request_id": job.id})
    return JSONResponse(task(request, job))
