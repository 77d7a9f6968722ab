"""Names with weights in the fields of a request: of LoRAs, ControlNets and Tora."""

from collections.abc import Mapping
from typing import Any

from cogvx_jax.json_files import quoted
from cogvx_jax.serving.refusals import Refused

NAMES, WEIGHTS = ("name", "lora_name", "lora_nickname"), ("weight", "strength", "scale", "lora_scale")
MOST, HEAVIEST = 16, 100.0  # names of a field, and the weight of one


def read_loras(values: Mapping[str, Any]) -> tuple[tuple[str, float], ...] | None:
    """Names and weights of an object, or a list of objects or names; None where none are given. Raises: Refused."""
    if "lora" in values and "loras" in values:
        raise Refused("exclusive_parameters", "give lora or loras, not both", "lora")
    field = "lora" if "lora" in values else "loras"
    given = values.get(field)
    if given is None:
        return None
    several = given if isinstance(given, list) else [given]
    if len(several) > MOST:
        raise Refused("invalid_value", f"{field} has {len(several)} entries, of which at most {MOST} are taken", field)
    return tuple(read_weighted(one, field) for one in several)


def read_weighted(given: Any, field: str) -> tuple[str, float]:
    """The name and the weight of a name alone, or of an object. Raises: Refused."""
    if isinstance(given, str):
        return given, 1.0
    if not isinstance(given, Mapping):
        raise Refused("invalid_value", f"{field} must be a name, or have name and weight, got {quoted(given)}", field)
    names, weights = ([given[k] for k in keys if k in given] for keys in (NAMES, WEIGHTS))
    if len(names) != 1 or len(weights) > 1 or not given.keys() <= {*NAMES, *WEIGHTS}:
        raise Refused(
            "invalid_value", f"{field} must have name and, if not 1, weight; got {quoted(dict(given))}", field
        )
    name, weight = names[0], weights[0] if weights else 1.0
    if not isinstance(name, str) or isinstance(weight, bool) or not isinstance(weight, int | float):
        raise Refused("invalid_value", f"{field} must have a text as name and a number as weight", field)
    if not abs(weight) <= HEAVIEST:
        said = f"the weight of {field} must be from -{HEAVIEST:g} to {HEAVIEST:g}, got {weight:g}"
        raise Refused("invalid_value", said, field)
    return name, float(weight)
