"""The API as OpenAPI describes it: bodies, parameters and answers. What is checked is in `asking`."""

from typing import Any

from cogvx_jax.finishing.options import SCALES
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS
from cogvx_jax.serving.asking import FILES, MAX_ENHANCED, MAX_PROMPT, NOTHING, NUMBERS, OPTIONS, RATIOS, SOUND
from cogvx_jax.serving.finishing import EXPONENTS
from cogvx_jax.serving.openapi_bounds import BOUNDS

Schema = dict[str, Any]


def _object(required: tuple[str, ...] = (), closed: bool = False, **properties: Schema) -> Schema:
    found: Schema = {"type": "object", "properties": properties}
    found |= {"required": list(required)} if required else {}
    return found | ({"additionalProperties": False} if closed else {})


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _null(schema: Schema) -> Schema:
    """The schema, or null, which is as if the field were not there."""
    return _any(schema, {"type": "null"})


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
REAL: Schema = {"type": "number"}
PROMPT: Schema = TEXT | {"minLength": 1, "maxLength": MAX_PROMPT, "pattern": r"\S"}
FILE_TEXT: Schema = TEXT | {
    "description": "a data URL, or base64",
    "pattern": r"^(data:[^,]*;base64,)?[A-Za-z0-9+/]+=*$",
}
ERROR = _object(("error",), error=_object(message=TEXT, code=TEXT, type=TEXT, param=_null(TEXT)))
VIDEO = _object(
    ("id", "object", "model", "status", "progress", "created_at", "seconds", "size"),
    id=TEXT,
    object=TEXT | {"const": "video"},
    model=TEXT,
    status=TEXT | {"enum": ["queued", "in_progress", "completed", "failed"]},
    progress=WHOLE | {"minimum": 0, "maximum": 100},
    created_at=WHOLE,
    completed_at=_null(WHOLE),
    expires_at=_null(WHOLE),
    prompt=_null(TEXT),
    seconds=TEXT,
    size=TEXT,
    remixed_from_video_id=_null(TEXT),
    error=_null(_object(code=TEXT, message=TEXT)),
    url=TEXT | {"description": "of the mp4, signed: it needs no key for a while"},
    queue_position=WHOLE,
    stage=TEXT | {"description": "what the worker does, in words"},
)
LIST = _object(
    ("object", "data", "has_more"),
    object=TEXT | {"const": "list"},
    data={"type": "array", "items": VIDEO},
    first_id=_null(TEXT),
    last_id=_null(TEXT),
    has_more={"type": "boolean"},
)
DELETED = _object(("id", "object", "deleted"), id=TEXT, object=TEXT, deleted={"type": "boolean"})
FILE: Schema = TEXT | {"format": "binary"}

_LORA = _object(closed=True, required=("name",), name=TEXT, weight=REAL | {"minimum": -100, "maximum": 100})
_ONE_OR_SEVERAL: dict[str, Schema] = {  # fields of several kinds of values
    "travel": _any(TEXT, _list(TEXT), {"type": "object", "additionalProperties": PROMPT}),
    "region": _any(TEXT, _list(_any(TEXT, {"type": "array", "minItems": 2, "maxItems": 2}))),
    "keyframes": _any(TEXT, {"type": "object", "additionalProperties": FILE_TEXT}),
    "control": _any(FILE_TEXT, _list(FILE_TEXT)),
    "trajectory": _any(TEXT, _list({})),
    "tora": _any(TEXT, _LORA),
    "controlnet": _any(TEXT, _LORA, _list(_any(TEXT, _LORA))),
    "calibration": TEXT,
    "noises": TEXT | {"description": "a .npy file as data URL or base64, and :KEY=VALUE,..."},
    "flow": TEXT | {"description": "a .npy file as data URL or base64, and :KEY=VALUE,..."},
}


_FINISH: dict[str, Schema] = {
    "finish": _any(TEXT | {"description": "such as scale=2,fps=32"}, {"type": "object"}),
    "enable_upscaling": {"type": "boolean"},
    "upscaling_scale": WHOLE | {"enum": list(SCALES)},
    "upscaling_model_path": TEXT | {"enum": list(UPSCALERS)},
    "enable_frame_interpolation": {"type": "boolean"},
    "frame_interpolation_exp": WHOLE | dict(zip(("minimum", "maximum"), EXPONENTS, strict=True)),
    "frame_interpolation_scale": REAL | {"enum": [1]},
    "frame_interpolation_model_path": TEXT | {"enum": list(INTERPOLATORS)},
    "output_fps": REAL | {"exclusiveMinimum": 0, "description": "frames a second, those in between interpolated"},
}


def field_of(option: str) -> Schema:
    """The schema of an option's values, without null."""
    kind = OPTIONS[option]
    if kind != NUMBERS:
        return {"type": kind} | BOUNDS.get(option, {})
    number = REAL | BOUNDS[option]
    return _any(number, {"type": "array", "items": number, "minItems": 1})


_FIELDS: dict[str, Schema] = {
    "model": _null(TEXT),
    "prompt": PROMPT,
    "seconds": _null(TEXT | {"pattern": r"^[1-9][0-9]{0,2}$"}),
    "size": _null(TEXT | {"pattern": r"^[1-9][0-9]{1,3}x[1-9][0-9]{1,3}$", "description": "WIDTHxHEIGHT"}),
    "width": _null(WHOLE | {"minimum": 1, "maximum": 16384}),
    "height": _null(WHOLE | {"minimum": 1, "maximum": 16384}),
    "aspect_ratio": _null(TEXT | {"enum": list(RATIOS)}),
    "user": _null(TEXT),
    "workflow": _null({"type": "object", "description": "ComfyUI's graph, which the video carries"}),
    "loras": _null({"type": "array", "items": _LORA, "maxItems": 16}),
    "lora": _null(_LORA),
    **{name: _null(field_of(name)) for name in OPTIONS},
    **{name: _null(schema) for name, schema in _ONE_OR_SEVERAL.items()},
    **{name: _null(schema) for name, schema in _FINISH.items()},
    **{name: _null(FILE_TEXT) for name in FILES},
    **{name: _null({"type": "boolean", "description": "needs a maker of sound"}) for name in SOUND},
    **{name: {"enum": list(dict.fromkeys((value, None)))} for name, (value, _) in NOTHING.items()},
}
CREATE = _object(("prompt",), closed=True, **_FIELDS)
_WITHOUT = {name: schema for name, schema in _FIELDS.items() if name not in FILES}
EDIT = _object(("prompt", "video"), closed=True, **_WITHOUT, video=FILE_TEXT | {"pattern": "^video_[0-9a-f]{32}$"})
EXTEND = EDIT
REMIX = _object(("prompt",), closed=True, prompt=PROMPT)
PAGING = (
    {"name": "limit", "in": "query", "schema": WHOLE | {"minimum": 1, "maximum": 100}},
    {"name": "order", "in": "query", "schema": TEXT | {"enum": ["asc", "desc"]}},
    {"name": "after", "in": "query", "schema": TEXT},
)
VARIANT = (
    {"name": "variant", "in": "query", "schema": TEXT | {"enum": ["video", "thumbnail", "spritesheet", "gif"]}},
    {"name": "stream", "in": "query", "schema": TEXT | {"enum": ["true", "false"]}},
    {"name": "expires", "in": "query", "schema": TEXT},
    {"name": "signature", "in": "query", "schema": TEXT},
)
STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 429, 500, 501, 503, 507)


def gets(schema: Schema, parameters: tuple = (), media: str = "application/json") -> dict[str, Any]:
    """Arguments of a route without a body; of several kinds of answers, `media` has a space between them."""
    return _route(schema, media, {"parameters": list(parameters)} if parameters else {})


def posts(schema: Schema, body: Schema, media: str = "application/json") -> dict[str, Any]:
    """Arguments of a route with a body of JSON, or a form of the same fields."""
    return _route(schema, media, {"requestBody": _body(body, "application/json", "multipart/form-data")})


def posts_json(schema: Schema, body: Schema) -> dict[str, Any]:
    """Arguments of a route with a body of JSON alone."""
    return _route(schema, "application/json", {"requestBody": _body(body, "application/json")})


def _body(schema: Schema, *media: str) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": schema} for kind in media}}


def _route(schema: Schema, media: str, extra: dict[str, Any]) -> dict[str, Any]:
    errors: dict[int | str, Any] = {
        code: {"content": {"application/json": {"schema": ERROR}}, "description": "Error"} for code in STATUSES
    }
    errors[200] = {
        "content": {kind: {"schema": schema} for kind in media.split()},
        "description": "Successful Response",
    }
    return {"responses": errors, "openapi_extra": extra, "response_model": None}


_RESULT = _object(("url", "cover_image_url"), url=TEXT, cover_image_url=TEXT)
TASK = _object(
    ("id", "model", "request_id", "task_status"),
    id=TEXT,
    model=TEXT,
    request_id=TEXT,
    task_status=TEXT | {"enum": ["PROCESSING", "SUCCESS", "FAIL"]},
    video_result={"type": "array", "items": _RESULT},
)
GENERATION = _object(
    ("model", "prompt"),
    closed=True,
    model=TEXT,
    prompt=PROMPT | {"maxLength": 512},
    image_url=_null({"anyOf": [FILE_TEXT, {"type": "array", "items": FILE_TEXT, "minItems": 1, "maxItems": 2}]}),
    quality=_null(TEXT | {"enum": ["speed", "quality"]}),
    with_audio=_null({"type": "boolean", "description": "needs a maker of sound"}),
    watermark_enabled={"enum": [False, None]},
    size=_FIELDS["size"],
    fps={"enum": [30, 60, None]},
    duration={"enum": [5, 10, None]},
    request_id=_null(TEXT | {"minLength": 1, "maxLength": 256}),
    user_id=_null(TEXT | {"minLength": 6, "maxLength": 128}),
    off_peak=_null({"type": "boolean"}),
)
ANY: Schema = {"type": "object"}
_SEVERAL_TEXTS = {"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 16}]}
ENHANCE = _object(("prompt",), closed=True, prompt=PROMPT | {"maxLength": MAX_ENHANCED}, image=_null(FILE_TEXT))
ENHANCED = _object(("prompt", "wish"), prompt=TEXT, wish=TEXT | {"description": "the prompt that was sent"})
SET_LORA = _object(("lora_nickname",), closed=True, lora_nickname=_SEVERAL_TEXTS, strength=REAL)
