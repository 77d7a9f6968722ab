"""Fields that have a video enlarged or interpolated, in the words of several vendors, as the option `finish`."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from cogvx_jax.configs import ModelSpec
from cogvx_jax.finishing.asked import Finishing, parse_finishing
from cogvx_jax.finishing.options import SCALES
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS, find_weights
from cogvx_jax.json_files import quoted
from cogvx_jax.pipelines.request import Request
from cogvx_jax.serving.refusals import Refused

TEXT, WHOLE, NUMBER, YES = "string", "integer", "number", "boolean"
FINISH = "finish"
FIELDS = {  # those beside `finish` itself; SGLang's and vLLM-Omni's, but for the last
    "enable_upscaling": YES,
    "upscaling_scale": WHOLE,
    "upscaling_model_path": TEXT,
    "enable_frame_interpolation": YES,
    "frame_interpolation_exp": WHOLE,
    "frame_interpolation_scale": NUMBER,
    "frame_interpolation_model_path": TEXT,
    "output_fps": NUMBER,
}
KEYS = (  # of `finish` that a request may have: nothing that names a file or a device of the server
    *("scale", "size", "fit", "fps", "hold", "upscaler", "interpolator", "interpolate_first", "cuts"),
    *("codec", "crf"),
)
CODECS = ("h264", "hevc", "av1")  # of an .mp4
EXPONENTS = (1, 6)  # of two: how many times as many frames
FURTHEST = 6  # times as large as the model's own; what no network makes of it is resized
INSTALL = "pip install 'cogvx_jax[finish]'"


def offered() -> dict[str, list[str]]:
    """The networks whose weights are here, for `upscaler` and `interpolator`."""
    known = {"upscalers": UPSCALERS, "interpolators": INTERPOLATORS}
    return {kind: [name for name in names if _is_here(name, names)] for kind, names in known.items()}


def enlarges() -> bool:
    """Whether videos can be enlarged here by the usual network."""
    return _is_here(Finishing().pictures.upscaler, UPSCALERS)


def interpolates() -> bool:
    """The same of frames in between."""
    return _is_here(Finishing().pictures.interpolator, INTERPOLATORS)


def _is_here(name: str, known: Any) -> bool:
    try:
        find_weights(name, known)
    except FileNotFoundError:
        return False
    return True


def read_finish(values: Mapping[str, Any], own_fps: float) -> dict[str, Any]:
    """The option `finish` of fields that have their kinds already, as JSON; {} asks for nothing. Raises: Refused."""
    named = {name: values[name] for name in FIELDS if name in values}
    if FINISH in values:
        if named:
            raise Refused("exclusive_parameters", f"give finish or {next(iter(named))}, not both", FINISH)
        return _whole(values[FINISH])
    found = _larger(named) | _smoother(named, own_fps)
    return _whole(found) if found else {}


def _whole(given: Any) -> dict[str, Any]:
    """Checked, as it is stored. Raises: Refused."""
    if not isinstance(given, str | Mapping):
        raise Refused("invalid_value", f"finish must be text such as scale=2,fps=32, got {quoted(given)}", FINISH)
    try:
        found = parse_finishing(given).as_json
    except (ValueError, OverflowError) as error:
        raise Refused("invalid_value", str(error), FINISH) from None
    if other := next((name for name in found if name not in KEYS), None):
        raise Refused("invalid_value", f"{other} of finish is not for requests; they take {', '.join(KEYS)}", FINISH)
    for name, known in (("upscaler", tuple(UPSCALERS)), ("interpolator", tuple(INTERPOLATORS)), ("codec", CODECS)):
        if found.get(name, known[0]) not in known:
            said = f"{name} of finish must be one of {', '.join(known)}, got {quoted(found[name])}"
            raise Refused("invalid_value", said, FINISH)
    return found


def _larger(named: Mapping[str, Any]) -> dict[str, Any]:
    asked = named.get("enable_upscaling", "upscaling_scale" in named)
    if not asked:
        return {}
    scale = named.get("upscaling_scale", SCALES[-1])
    if type(scale) is not int or scale not in SCALES:
        said = f"upscaling_scale must be one of {', '.join(map(str, SCALES))}, got {quoted(scale)}"
        raise Refused("invalid_value", said, "upscaling_scale")
    model = named.get("upscaling_model_path")
    _check_name("upscaling_model_path", model, UPSCALERS)
    return {"scale": scale} | ({} if model is None else {"upscaler": model})


def _smoother(named: Mapping[str, Any], own_fps: float) -> dict[str, Any]:
    exponent, rate = named.get("frame_interpolation_exp"), named.get("output_fps")
    if named.get("frame_interpolation_scale") not in (None, 1, 1.0):
        said = "frame_interpolation_scale cannot be had: flow is found at half the size where a side is above 2048"
        raise Refused("invalid_value", said, "frame_interpolation_scale")
    _check_name("frame_interpolation_model_path", named.get("frame_interpolation_model_path"), INTERPOLATORS)
    if rate is not None:
        if exponent is not None:
            raise Refused("exclusive_parameters", "give output_fps or frame_interpolation_exp, not both", "output_fps")
        return {"fps": str(Fraction(str(rate)))}
    if not named.get("enable_frame_interpolation", exponent is not None):
        return {}
    low, high = EXPONENTS
    exponent = low if exponent is None else exponent
    if type(exponent) is not int or not low <= exponent <= high:
        said = f"frame_interpolation_exp must be from {low} to {high}, got {quoted(exponent)}"
        raise Refused("invalid_value", said, "frame_interpolation_exp")
    return {"fps": str(Fraction(str(own_fps)) * 2**exponent)}


def _check_name(field: str, value: Any, known: Mapping[str, Any]) -> None:
    if value is not None and value not in known:
        raise Refused("invalid_value", f"{field} must be one of {', '.join(known)}, got {quoted(value)}", field)


def to_size(spec: ModelSpec, width: int, height: int) -> dict[str, Any] | None:
    """What of `finish` makes a vendor's size of the model's own; None where that is too far, or no larger."""
    own = sorted((spec.defaults.height, spec.defaults.width))
    asked = sorted((height, width))
    factor = max(side / ours for side, ours in zip(asked, own, strict=True))
    if not 1 < factor <= FURTHEST:
        return None
    return {"size": f"{height}x{width}", "scale": min(math.ceil(factor), SCALES[-1])}


def finished_facts(request: Request, frames: int) -> dict[str, Any]:
    """Of a request's finished video, what the APIs answer; sizes have the width first."""
    finish = request.finish
    if finish is None:
        return {}
    size = finish.geometry(request.height, request.width).final
    return _facts(size, finish.count(frames, request.fps), finish.rate(request.fps))


def facts_of(request: Request, frames: int) -> dict[str, Any]:
    """The same of the video before that."""
    return _facts((request.height, request.width), frames, request.fps)


def _facts(size: tuple[int, int], count: int, rate: Fraction) -> dict[str, Any]:
    height, width = size
    return {
        "size": f"{width}x{height}",
        "num_frames": count,
        "fps": round(float(rate), 3),
        "seconds": f"{float(count / rate):.4g}",
    }
