"""How the tensors of a component are called in files of many makers, and how each naming becomes the published one.

A dialect is one row of `DIALECTS`. It is asked for a component of the tensors of a file: it gives them under their
published names and in their published shapes, or None where the file does not hold that component in its naming.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.tables import check_component
from cogvx_jax.convert.tensors import Tensors

# Of each component, a name that it always has and that no other naming ends with.
MARKS = {
    "transformer": "transformer_blocks.0.attn1.to_q.weight",
    "vae": "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
    "text_encoder": "encoder.block.0.layer.0.SelfAttention.q.weight",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """A naming: `name` is for messages; `find` is given the tensors of a file and a component."""

    name: str
    find: Callable[[Tensors, str], Tensors | None]


def published(tensors: Tensors, component: str) -> Tensors | None:
    """The published names, maybe all of them after the same text, such as "model.diffusion_model."."""
    mark = MARKS[component]
    found = next((name for name in tensors if name.endswith(mark)), None)
    if found is None:
        return None
    prefix = found.removesuffix(mark)
    if not prefix:
        return tensors
    return tensors.of({name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})


DIALECTS = (Dialect(name="published", find=published),)


def open_component(place: str | Path, component: str) -> Tensors:
    """A component out of a file, or a folder of that component, by published names; no numbers are read.

    Raises: as `open_tensors`; ValueError where the file does not hold the component.
    """
    check_component(component)
    tensors = open_tensors(place)
    for dialect in DIALECTS:
        if (found := dialect.find(tensors, component)) is not None:
            return found
    held = ", ".join(components(tensors))
    instead = f"it holds a {held}" if held else f"its tensors are called {_first(tensors)}"
    raise ValueError(f"{place} holds no {component.replace('_', ' ')}; {instead}")


def components(tensors: Tensors) -> list[str]:
    """Which components a file holds."""
    return [c for c in MARKS if any(dialect.find(tensors, c) is not None for dialect in DIALECTS)]


def without_prefix(tensors: Tensors, wanted: Iterable[str]) -> Tensors:
    """The tensors without the text before known names, such as "module.", where all of them begin with it."""
    keys, names = list(tensors), set(wanted)
    if not keys or names & set(keys):
        return tensors
    ends = (keys[0][dot + 1 :] for dot in range(len(keys[0])) if keys[0][dot] == ".")
    known = next((end for end in ends if end in names), None)
    prefix = keys[0].removesuffix(known) if known else ""
    if not prefix or not all(key.startswith(prefix) for key in keys):
        return tensors
    return tensors.of({key.removeprefix(prefix): tensors[key] for key in keys})


def _first(tensors: Tensors) -> str:
    names = list(tensors)
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "nothing"
