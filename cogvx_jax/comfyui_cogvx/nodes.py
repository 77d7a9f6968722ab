"""What each node does with what it is given."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from . import media
from .declarations import OWN
from .progress import Progress
from .running import make_video
from .server import Server

MAX_GRAPH = 2**20  # characters of a graph that the server takes
HIDDEN = "..."  # in place of a key in a graph
NOT_TOLD = ("preview", "url", "object", "stage", "step", "steps")  # of an answer: `url` lets anyone fetch the video


@dataclasses.dataclass(frozen=True)
class Call:
    """What ComfyUI says of the node that runs: its id, and what is to be saved with files, the graph among it."""

    unique_id: Any = None
    extra_pnginfo: Any = None


def server(call: Call, url: str, key: str) -> tuple[Any, ...]:
    return (Server(url, key),)


def lora(call: Call, name: str, weight: float, loras: Any = None) -> tuple[Any, ...]:
    if not name.strip():
        raise ValueError("name is empty; give a LoRA of the server, of GET /v1/list_loras")
    return ((*(loras or ()), {"name": name.strip(), "weight": weight}),)


def enhance(call: Call, server: Server, prompt: str, image: Any = None) -> tuple[Any, ...]:
    fields = {"prompt": prompt} | ({} if image is None else {"image": media.picture_url(image)})
    return (server.post("/v1/prompts/enhance", fields)["prompt"],)


def text_to_video(call: Call, server: Server, **inputs: Any) -> tuple[Any, ...]:
    return _made(call, server, inputs, {})


def image_to_video(call: Call, server: Server, image: Any, last_image: Any = None, **inputs: Any) -> tuple[Any, ...]:
    files = {"image": media.picture_url(image)}
    if last_image is not None:
        files["last_image"] = media.picture_url(last_image)
    return _made(call, server, inputs, files)


def video_to_video(
    call: Call, server: Server, strength: float, video: Any = None, images: Any = None, **inputs: Any
) -> tuple[Any, ...]:
    fps = {"fps": inputs["fps"]} if inputs["fps"] else {}
    clip = media.clip_url(video, images, **fps)
    return _made(call, server, inputs, {"video": clip, "strength": strength})


RUN: dict[str, Callable[..., tuple[Any, ...]]] = {  # id of a node -> what it does; results in the order of its outputs
    "CogvxServer": server,
    "CogvxTextToVideo": text_to_video,
    "CogvxImageToVideo": image_to_video,
    "CogvxVideoToVideo": video_to_video,
    "CogvxLoRA": lora,
    "CogvxEnhancePrompt": enhance,
}


def _made(call: Call, server: Server, inputs: dict[str, Any], more: dict[str, Any]) -> tuple[Any, ...]:
    """VIDEO, IMAGE, fps and what the server says, of a video that is asked for."""
    fields = fields_of(**inputs) | more
    if (graph := graph_of(call.extra_pnginfo)) is not None:
        fields["workflow"] = graph
    mp4, told = make_video(server, fields, Progress(call.unique_id))
    info = {name: value for name, value in told.items() if name not in NOT_TOLD}
    return media.video_of(mp4), media.images_of(mp4), float(told["fps"]), json.dumps(info, ensure_ascii=False)


def fields_of(
    *, prompt: str, width: int, height: int, sampler: str, seed: int, more: str = "", loras: Any = None, **numbers: Any
) -> dict[str, Any]:
    """Fields of the server's API for the widgets of a node: what is the model's own is left out.

    Raises: ValueError, one sentence.
    """
    if bool(width) != bool(height):
        raise ValueError(f"give width and height, or leave both at 0; got {width}x{height}")
    fields = {"prompt": prompt, "seed": folded(seed)}
    fields |= {"size": f"{width}x{height}"} if width else {}
    fields |= {} if sampler == OWN else {"sampler": sampler}
    fields |= {name: value for name, value in numbers.items() if value}
    fields |= {"loras": list(loras)} if loras else {}
    others = _others(more)
    if twice := sorted(fields.keys() & others.keys()):
        raise ValueError(f"{twice[0]} stands in more, and is a widget or an input, too; give it once")
    return fields | others


def folded(seed: int) -> int:
    """A seed of 64 bits as one of 32, the most that the server tells apart; one below 2^32 stays."""
    return (seed ^ (seed >> 32)) & 0xFFFFFFFF


def _others(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"more must be a JSON object, and is none: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"more must be a JSON object, such as {{}}, got {text[:60]!r}")
    return found


def graph_of(extra_pnginfo: Any) -> dict[str, Any] | None:
    """ComfyUI's graph, without keys of servers that were typed into it; None where there is none, or a huge one."""
    graph = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    if not isinstance(graph, dict) or len(json.dumps(graph)) > MAX_GRAPH:
        return None
    return _without_keys(graph)


def _without_keys(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_keys(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _without_keys(one) for name, one in value.items()}
    values = found.get("widgets_values")
    if found.get("type") == "CogvxServer" and isinstance(values, list):
        found["widgets_values"] = [values[0], *map(_hidden, values[1:])] if values else values
    return found


def _hidden(key: Any) -> Any:
    return key if isinstance(key, str) and key.startswith("$") else HIDDEN
