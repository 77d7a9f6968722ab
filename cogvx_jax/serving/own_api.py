"""What a server tells of itself: models, health, numbers; and SGLang's calls for LoRAs."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogvx_jax.json_files import quoted
from cogvx_jax.serving import schemas
from cogvx_jax.serving.asking import MAX_ENHANCED, check_prompt
from cogvx_jax.serving.bodies import read_fields
from cogvx_jax.serving.files import MAX_PICTURE, file_of, opened_picture
from cogvx_jax.serving.finishing import offered
from cogvx_jax.serving.measures import TYPE
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.site import Site, key_of, site_of

router = APIRouter(tags=["Server"])
TARGETS = ("all", "transformer")


@router.get("/health", **schemas.gets(schemas.ANY))
async def health(request: Request) -> Response:
    """This process answers."""
    return JSONResponse({"status": "ok", "version": request.app.version})


@router.get("/ready", **schemas.gets(schemas.ANY))
def ready(request: Request) -> Response:
    """The queue can be reached and a worker lives; 503 otherwise."""
    workers = site_of(request).service.queue.workers()
    if not workers:
        raise Refused("unavailable", "no worker has been seen of late; the jobs wait")
    return JSONResponse({"status": "ready", "workers": sorted(workers.values())})


@router.get("/metrics", **schemas.gets(schemas.TEXT, media="text/plain"))
def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    site = site_of(request)
    return Response(site.measures.text(site.service.queue), media_type=TYPE)


def _model(site: Site, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cogvx_jax", "finish": offered()}


@router.get("/v1/models", **schemas.gets(schemas.ANY))
def models(request: Request) -> Response:
    """The model, under each of its names."""
    key_of(request)
    site = site_of(request)
    return JSONResponse({"object": "list", "data": [_model(site, name) for name in site.service.names]})


@router.get("/v1/models/{id}", **schemas.gets(schemas.ANY))
def model(request: Request, id: str) -> Response:
    """A model by its name."""
    key_of(request)
    site = site_of(request)
    site.service.check_model(id)
    return JSONResponse(_model(site, id))


@router.get("/models", **schemas.gets(schemas.ANY))
def model_info(request: Request) -> Response:
    """What the model is and makes."""
    key_of(request)
    service = site_of(request).service
    own, names = service.spec.defaults, service.adapters.names()
    sizes = {"size": f"{own.width}x{own.height}", "num_frames": own.num_frames, "fps": own.fps}
    steps = {"num_inference_steps": own.num_inference_steps, "guidance_scale": own.guidance_scale}
    about = {"model_path": service.model, "name": service.spec.name, "task_type": service.spec.kind}
    parts = {f"{option}s": sorted(part.names()) for option, part in service.parts.items()}
    return JSONResponse(about | {"defaults": sizes | steps, "loras": sorted(names), "finish": offered()} | parts)


@router.post("/v1/prompts/enhance", **schemas.posts_json(schemas.ENHANCED, schemas.ENHANCE))
async def enhance(request: Request) -> Response:
    """Lets a language model write a long English description of a prompt, and of a first frame."""
    key_of(request)
    fields = await read_fields(request, {"image": MAX_PICTURE})
    if unknown := sorted(fields.values.keys() - {"prompt", "image"}):
        raise Refused("unknown_parameter", f"unknown field {unknown[0][:60]!r}; give prompt and image", unknown[0][:60])
    return JSONResponse(await run_in_threadpool(_enhanced, request, fields.values))


def _enhanced(request: Request, values: Mapping[str, Any]) -> dict[str, str]:
    service, image = site_of(request).service, None
    prompt = check_prompt(values.get("prompt"), MAX_ENHANCED)
    if "image" in values:
        _, _, data = file_of(values["image"], "image", ("image",), service.rules.fetches)
        image = opened_picture(data, "image")
    return {"prompt": service.enhanced(prompt, image), "wish": prompt}


@router.post("/v1/set_lora", **schemas.posts_json(schemas.ANY, schemas.SET_LORA))
async def set_lora(request: Request) -> Response:
    """Makes LoRAs active for all requests of this key that name none, in place of those that were."""
    key, service = key_of(request), site_of(request).service
    active = read_loras((await read_fields(request, {})).values)
    await run_in_threadpool(service.set_active, active, key)
    return JSONResponse({"status": "ok", "message": f"{len(active)} LoRAs are active"})


def read_loras(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and weights of SGLang's fields, each of which is a value or a list. Raises: Refused."""
    if unknown := sorted(values.keys() - {"lora_nickname", "lora_path", "target", "strength"}):
        raise Refused("unknown_parameter", f"unknown field {unknown[0][:60]!r}", unknown[0][:60])
    if values.get("lora_nickname") is None:
        said = "lora_nickname is missing: a name of GET /v1/list_loras, or a list of them"
        raise Refused("missing_required_parameter", said, "lora_nickname")
    names = _several(values.get("lora_nickname"), "lora_nickname", str)
    given = values.get("strength", 1.0)
    weights = _several(given if isinstance(given, list) else [given] * len(names), "strength", int | float)
    if len(weights) != len(names):
        raise Refused("invalid_value", "lora_nickname and strength must be of one length", "strength")
    if _several(values.get("lora_path", names), "lora_path", str) != names:
        raise Refused("invalid_value", "a LoRA is named by its nickname, of GET /v1/list_loras", "lora_path")
    for target in _several(values.get("target", "all"), "target", str):
        if target not in TARGETS:
            raise Refused("invalid_value", f"target must be {' or '.join(TARGETS)}, got {quoted(target)}", "target")
    if not all(abs(weight) <= 100 for weight in weights):
        raise Refused("invalid_value", "strength must be from -100 to 100", "strength")
    return [(name, float(weight)) for name, weight in zip(names, weights, strict=True)]


def _several(value: Any, name: str, kind: Any) -> list[Any]:
    several = value if isinstance(value, list) else [value]
    if not several or len(several) > 16 or any(isinstance(v, bool) or not isinstance(v, kind) for v in several):
        raise Refused("invalid_value", f"{name} must be a value, or a list of at most 16, got {quoted(value)}", name)
    return several


@router.post("/v1/unmerge_lora_weights", **schemas.gets(schemas.ANY))
async def unset_loras(request: Request) -> Response:
    """Lets no LoRA be active for requests of this key that name none."""
    await run_in_threadpool(site_of(request).service.set_active, [], key_of(request))
    return JSONResponse({"status": "ok", "message": "no LoRA is active"})


@router.post("/v1/merge_lora_weights", include_in_schema=False)
async def merge_loras(request: Request) -> Response:
    """LoRAs are not merged: each request may have others."""
    key_of(request)
    raise Refused("not_implemented", "LoRAs stay beside the weights here: each request may have others; leave this out")


@router.get("/v1/list_loras", **schemas.gets(schemas.ANY))
def list_loras(request: Request) -> Response:
    """The LoRAs that requests may name, and those that are active."""
    key, service = key_of(request), site_of(request).service
    adapters = [{"nickname": name, "path": name} for name in sorted(service.adapters.names())]
    active = [
        {"nickname": name, "path": name, "merged": False, "strength": weight} for name, weight in service.active(key)
    ]
    return JSONResponse({"loaded_adapters": adapters, "active": {"transformer": active}})
