"""Bodies of requests, JSON or forms, as fields: names with plain values or files."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cogvx_jax.json_files import parse_value, quoted
from cogvx_jax.serving.refusals import Refused

MAX_FIELDS = 200
MAX_TEXT = 2**20  # bytes of a field of a form that is no file
MERGED = ("extra_body", "extra_params", "diffusers_kwargs")  # objects whose keys are fields
NESTED = re.compile(r"([^\[\]]+)(\[\])?(?:\[([^\[\]]+)\])?")  # name, [] of a list, [key] of an object
PLAIN = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?|true|false")  # JSON's, but for texts
WORDS = ("prompt", "negative_prompt", "user")  # which may begin as JSON does, and be "null"
UPLOADS = "files"  # of a form: files that other fields name
LISTS = ("loras", "travel", "region", "controlnet", UPLOADS)  # which may stand in a form several times
MAX_FILES = 64
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file of a form, under the name that it was sent with."""

    data: bytes = dataclasses.field(repr=False)
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Fields:
    """What a body says. A field that is null, or an empty text of a form, is not there.

    textual: of a form, where numbers are text, too.
    """

    values: Mapping[str, Any]
    textual: bool = False


async def read_fields(request: Request, files: Mapping[str, int]) -> Fields:
    """The fields of a body.

    Args:
      files: names of fields that may be files, and the most bytes of each.
    Raises: Refused.
    """
    packed = request.headers.get("content-encoding", "").strip().lower()
    if packed not in ("", "identity"):
        said = f"a body is sent as it is, not with the Content-Encoding {packed[:60]!r}"
        raise Refused("unsupported_media_type", said, headers={"Accept-Encoding": "identity"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in FORMS:
        found, textual = await _form(request, files), True
    elif kind in ("application/json", "") or kind.endswith("+json"):
        found, textual = _json(await request.body()), False
    else:
        raise Refused("unsupported_media_type", f"a body is JSON or a form, not {kind[:60]}")
    for name in MERGED:
        found = _merged(found, name)
    return Fields({name: value for name, value in found.items() if value is not None}, textual)


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = parse_value(body)
    except ValueError as error:
        raise Refused("invalid_request", f"the body is {error}") from None
    if not isinstance(found, dict):
        raise Refused("invalid_request", f"the body must be a JSON object, got {quoted(found)}")
    return found


async def _form(request: Request, files: Mapping[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT)
    except HTTPException as error:  # broken, or too many fields
        raise Refused("invalid_request", f"the form cannot be read: {error.detail}") from None
    try:
        for name, value in form.multi_items():
            read = await _file(name, value, files) if isinstance(value, UploadFile) else _text(name, value)
            if "[" in name:
                _put(found, name, read)
            elif name in LISTS and name in found:
                found[name] = [*_several(found[name]), *_several(read)]
            elif name in found:
                raise Refused("invalid_request", f"{name[:60]} stands in the form twice", name[:60])
            else:
                found[name] = read
    finally:
        await form.close()
    return found


def _several(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


async def _file(name: str, file: UploadFile, files: Mapping[str, int]) -> Upload:
    if name not in files:
        raise Refused("invalid_value", f"{name[:60]} must be no file; {UPLOADS} are those that it names", name[:60])
    most = files[name]
    if file.size is not None and file.size > most:
        raise Refused("body_too_large", f"{name} has {file.size:,} bytes, of which at most {most:,} are taken", name)
    return Upload(await file.read(), file.filename or "")


def _text(name: str, value: str) -> Any:
    """A field of a form; what looks like JSON's objects and lists is read as such."""
    if name not in WORDS and value == "null":
        return None
    if name not in WORDS and value[:1] in ("{", "["):
        try:
            return parse_value(value)
        except ValueError as error:
            raise Refused("invalid_value", f"{name[:60]} is {error}", name[:60]) from None
    return value or None


def _put(found: dict[str, Any], name: str, value: Any) -> None:
    """A field such as lora[name], files[] or loras[][weight]: so OpenAI's client sends what lies in objects and lists.

    Raises: Refused for what lies deeper, or stands there twice.
    """
    match = NESTED.fullmatch(name)
    plain = name.partition("[")[0][:60]
    if match is None:
        raise Refused("unknown_parameter", f"give {plain} as one field with JSON text in it", plain)
    field, listed, key = match.groups()
    if isinstance(value, str) and PLAIN.fullmatch(value):
        value = parse_value(value)  # a number was one before it was sent
    holds = found.setdefault(field, [] if listed else {})
    if listed and isinstance(holds, list):
        if key is None:
            holds.append(value)
            return
        if not holds or not isinstance(holds[-1], dict) or key in holds[-1]:
            holds.append({})  # the next object of the list begins
        holds = holds[-1]
    elif listed or not isinstance(holds, dict) or key in holds:
        raise Refused("invalid_request", f"{plain} stands in the form twice", plain)
    holds[key] = value


def _merged(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields with those of an object inside them. Raises: Refused for one that stands in both."""
    inner = found.pop(name, None)
    if inner is None:
        return found
    if not isinstance(inner, dict):
        raise Refused("invalid_value", f"{name} must be a JSON object, got {quoted(inner)}", name)
    if twice := sorted(found.keys() & inner.keys()):
        raise Refused("invalid_request", f"{twice[0][:60]} stands in the body and in {name}", twice[0][:60])
    return found | inner
