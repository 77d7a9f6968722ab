"""How the tensors of a component are called in files of many makers, and how each naming becomes the published one.

A dialect is one row of `DIALECTS`. It is asked for a component of the tensors of a file: it gives them under their
published names and in their published shapes, or None where the file does not hold that component in its naming.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.llama_cpp import MARK, read_t5
from cogvx_jax.convert.packed import unpacked
from cogvx_jax.convert.sat import WHOLE, read_sat
from cogvx_jax.convert.sat_folder import STATES, check_rank, check_share, read_masters
from cogvx_jax.convert.tables import ALIASES, check_component
from cogvx_jax.convert.taehv import is_taehv
from cogvx_jax.convert.tensors import Renamed, Tensors
from cogvx_jax.given import NOTHING, Given
from cogvx_jax.storage import parent_and_name

# Of each component, a name that it always has and that no other naming ends with.
MARKS = {
    "transformer": "transformer_blocks.0.attn1.to_q.weight",
    "vae": "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
    "text_encoder": "encoder.block.0.layer.0.SelfAttention.q.weight",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """A naming: `name` is for messages; `find` gets the tensors of a file, a component and what the user says."""

    name: str
    find: Callable[[Tensors, str, Given], Tensors | None]


def published(tensors: Tensors, component: str, given: Given = NOTHING) -> Tensors | None:
    """The published names, maybe all of them after the same text, such as "model.diffusion_model."."""
    mark = MARKS[component]
    found = next((name for name in tensors if name.endswith(mark)), None)
    if found is None:
        return None
    prefix = found.removesuffix(mark)
    # What is of no component at all is kept: it is spare.
    own = Renamed()
    for name in tensors:
        if name.startswith(prefix) or not name.startswith(WHOLE):
            own.add(name.removeprefix(prefix), tensors[name], name)
    if component != "text_encoder":
        return tensors.of(own)
    # Of files that hold all of T5, the encoder.
    encoder = {name: entry for name, entry in own.items() if not name.startswith(("decoder.", "lm_head."))}
    for second, first in ALIASES[component].items():  # of a tensor with two names, some writers keep the second
        if first not in encoder and second in encoder:
            encoder[first] = encoder.pop(second)
    return tensors.of(encoder)


DIALECTS = (
    Dialect(name="published", find=published),
    Dialect(
        name="taehv",
        find=lambda tensors, component, given: tensors if component == "vae" and is_taehv(tensors) else None,
    ),
    Dialect(
        name="llama.cpp",
        find=lambda tensors, component, given: (
            read_t5(tensors) if component == "text_encoder" and MARK in tensors else None
        ),
    ),
    Dialect(name="SAT", find=lambda tensors, component, given: read_sat(tensors, component, given.sat_lora_alpha)),
)


def open_component(place: str | Path, component: str, given: Given = NOTHING) -> Tensors:
    """A component out of a file, or a folder of that component, by published names; no numbers are read.

    Raises: as `open_tensors`; ValueError where the file does not hold the component.
    """
    check_component(component)
    name = component.replace("_", " ")
    try:
        tensors = open_whole(place, given)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the {name} is missing: {error}; give its file, or the folder that it is in") from None
    if (dialect := find_dialect(tensors, component, given)) is not None:
        found = dialect.find(tensors, component, given)
        assert found is not None
        check_share(found)
        return found
    raise ValueError(f"{place} holds no {name}; {_instead(tensors)}")


def open_whole(place: str | Path, given: Given = NOTHING) -> Tensors:
    """All tensors of a file, or of a folder of one component, by the names they have there; weights are unpacked."""
    check_rank(place)
    is_state = parent_and_name(place)[1] == STATES
    return unpacked(read_masters(place) if given.masters and is_state else open_tensors(place))


def components(tensors: Tensors) -> list[str]:
    """Which components a file holds, by its tensors' own names."""
    return [component for component in MARKS if find_dialect(tensors, component) is not None]


def find_dialect(tensors: Tensors, component: str, given: Given = NOTHING) -> Dialect | None:
    """The row of `DIALECTS` in which tensors hold a component; None where they do not."""
    return next((dialect for dialect in DIALECTS if dialect.find(tensors, component, given) is not None), None)


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


def _instead(tensors: Tensors) -> str:
    """What a file holds that does not hold what it should."""
    if held := components(tensors):
        return f"it holds the {' and the '.join(c.replace('_', ' ') for c in held)}"
    names = list(tensors)
    if any("lora" in name.lower() for name in names):
        return "it looks like a LoRA, for --lora"
    return called(names)


def called(names: Sequence[str]) -> str:
    """What tensors are called that nobody knows."""
    some = ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
    return f"its tensors are called {some}" if any(names) else "there are no tensors with names in it"
