"""The steps of a generation that was stopped, in a file: with it, sampling goes on bit for bit.

The file holds what goes from step to step, and names of all that must be the same. What a request alone decides, such
as states of texts, an image's latents or the noise, is computed again.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.convert.safetensors import Tensor, read_safetensors, write_file
from cogvx_jax.convert.tensors import Tensors
from cogvx_jax.diffusion.update import SamplerState
from cogvx_jax.json_files import parse_json, printable, quoted
from cogvx_jax.models.kept import Kept
from cogvx_jax.pipelines.stored_programs import conditions
from cogvx_jax.pipelines.weights import on_host
from cogvx_jax.sharding import first_process, on_every_host
from cogvx_jax.storage import check_place, open_files
from cogvx_jax.temporaries import check_local, temporary_beside

FORMAT = "cogvx steps 1"  # changes when an older program could not read the file
SUFFIX = ".steps.safetensors"
OF_A_MESH = ("mesh", "devices", "hosts", "order of devices")  # conditions that exact results do not depend on
MAX_STEPS = 10**6
OF_COMPUTE = ("memory mode", "model", "quantization")  # conditions that a loaded model tells
TOLD = ("prompt", "seed", "steps", "sampler", "size")  # facts of a request for people; `request` is its hash
ALONG = 8  # numbers of a parameter in each of its axes that its name depends on


class Carried(NamedTuple):
    """All that goes from step to step."""

    steps: int  # that were taken
    state: SamplerState
    kept: Kept | None = None  # of steps that others are made of


class Identity(NamedTuple):
    """What must be the same where sampling goes on."""

    facts: Mapping[str, str]  # in words: what is asked for, of which weights, computed how
    inputs: str = ""  # a hash of what is computed again


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedSteps:
    """A file of saved steps: what it says; its arrays are read by `restore`.

    file: for messages.
    steps: that were taken, of `count`.
    """

    file: str
    steps: int
    count: int
    computed: int | None  # of `Kept`
    identity: Identity
    sha256: str
    tensors: Tensors = dataclasses.field(repr=False)

    @property
    def seed(self) -> int:
        """Of the request. Raises: ValueError, naming the file, where it says none."""
        text = self.identity.facts.get("seed", "")
        if not re.fullmatch("[0-9]{1,20}", text):
            raise ValueError(f"{self.file} is damaged: its seed is {quoted(text)}")
        return int(text)

    def check(self, facts: Mapping[str, str], anew: str = "delete it") -> None:
        """Raises ValueError, one sentence, where the steps were taken of something else; of `facts` those count.

        Args:
          anew: what to do for a run that begins anew.
        """
        theirs = self.identity.facts
        differ = [name for name in facts if name not in TOLD and theirs.get(name) != facts[name]]
        if not differ:
            return
        name = differ[0]
        of = {"request": self._other_request(facts), "weights": "other weights"}.get(name)
        was, here = str(theirs.get(name, "none"))[:99], facts[name][:99]
        of = of or f"a run with {name} {was} (here {here}), and would not go on bit for bit"
        raise ValueError(f"{self.file} holds {self.steps} of {self.count} steps of {of}; {anew} to begin anew")

    def _other_request(self, facts: Mapping[str, str]) -> str:
        """What the request was in which the steps were taken, where it differs from the one here."""
        theirs = self.identity.facts
        differ = [name for name in TOLD if name in theirs and theirs[name] != facts.get(name)]
        words = [f"{name} {_said(name, theirs)}, here {_said(name, facts)}" for name in differ]
        return f"another request ({'; '.join(words) or 'its inputs or further options differ'})"

    def restore(self, fresh: Carried) -> Carried:
        """What the file holds, where the arrays of a sampling that has not begun lie.

        Raises: ValueError, naming the file, where it is damaged.
        """
        arrays = {name: self._read(name, like) for name, like in _arrays(fresh)}
        if _digest(arrays) != self.sha256:
            raise ValueError(f"{self.file} is damaged: its numbers are not those that were written")
        places = {name: like.sharding for name, like in _arrays(fresh)}
        # Not the file's memory: the next step writes over it.
        put = {name: jax.device_put(array, places[name], may_alias=False) for name, array in arrays.items()}
        history = tuple(put[f"history.{i}"] for i in range(len(fresh.state.history)))
        kept = fresh.kept
        if kept is not None:
            count = jax.device_put(np.int32(self.computed or 0), kept.computed.sharding)
            kept = Kept(put.get("kept", kept.parts), count)
        return Carried(self.steps, SamplerState(put["latents"], history, put.get("guider")), kept)

    def _read(self, name: str, like: jax.Array) -> np.ndarray:
        entry = self.tensors.get(name)
        if entry is None or entry.shape != like.shape or entry.dtype != like.dtype:
            found = "nothing" if entry is None else f"{entry.shape} {entry.dtype}"
            raise ValueError(f"{self.file} is damaged: {name} must be {like.shape} {like.dtype}, it has {found}")
        return self.tensors.read(name)


def _said(name: str, facts: Mapping[str, str]) -> str:
    text = facts.get(name, "none")
    return quoted(text) if name == "prompt" else printable(text)[:60]


def save_steps(file: str | os.PathLike, carried: Carried, count: int, identity: Identity) -> None:
    """Writes a safetensors file, which appears under its name only when whole.

    Several processes must call it together; the first one writes.
    Raises: OSError, naming the file.
    """
    arrays = {name: on_every_host(array) for name, array in _arrays(carried)}
    about = {
        "steps": carried.steps,
        "count": count,
        "computed": None if carried.kept is None else int(carried.kept.computed),
        "facts": dict(identity.facts),
        "inputs": identity.inputs,
        "sha256": _digest(arrays),
    }
    if not first_process():
        return
    tensors = [Tensor.of(name, array) for name, array in arrays.items()]
    with temporary_beside(file) as partial:
        write_file(partial, tensors, {"format": FORMAT, "run": json.dumps(about)})


def read_steps(path: str | os.PathLike) -> SavedSteps:
    """What a file of `save_steps` says, before any of its arrays is read.

    Raises: FileNotFoundError; ValueError, naming the file, where it is not one of ours or is damaged.
    """
    check_local(path, "a file of saved steps")
    check_place(path)
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give the file of steps that was saved")
    try:
        tensors = read_safetensors(open_files(Path(path).parent), Path(path).name)
    except ValueError as error:
        raise ValueError(f"{path} holds no saved steps: {error}") from None
    if tensors.metadata.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold steps that were saved")
    try:
        return _checked(str(path), tensors, parse_json(tensors.metadata.get("run", "")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {str(error)[:200]}") from None


def run_facts(spec: ModelSpec, compute: Compute, mesh: Mesh | None, *, exact: bool) -> dict[str, str]:
    """In words, how steps are computed: all that decides their bits beside the request and the weights.

    Args:
      compute: that of a loaded model, with the bound on attention's logits.
    """
    devices = list(mesh.devices.flat) if mesh is not None else jax.devices()[:1]
    found = conditions(spec, compute.of("transformer"), mesh, devices)
    if exact:
        found = {name: value for name, value in found.items() if name not in OF_A_MESH}
        found["devices"] = devices[0].device_kind
    return {"exact": "yes" if exact else "no"} | found


def early_facts(spec: ModelSpec, mesh: Mesh | None, *, exact: bool) -> dict[str, str]:
    """Those of `run_facts` that are known before a model is loaded."""
    found = run_facts(spec, Compute(), mesh, exact=exact)
    return {name: value for name, value in found.items() if name not in OF_COMPUTE}


def identify(facts: Mapping[str, str], params: Any, inputs: Any) -> Identity:
    """The identity of a run.

    Args:
      facts: of the request, and of `run_facts`.
      params: of the networks that sampling evaluates. Some of their numbers are looked at: it is to tell one model from
        another, not to find damage.
      inputs: arrays that are computed of the request.
    """
    return Identity(dict(facts) | {"weights": _weights_digest(params)}, inputs_digest(inputs))


def inputs_digest(inputs: Any) -> str:
    """A hash of arrays that are computed of a request."""
    return _digest({str(i): on_every_host(x) for i, x in enumerate(jax.tree.leaves(inputs))})


def _arrays(carried: Carried) -> Iterator[tuple[str, jax.Array]]:
    """By name; none that are empty."""
    yield "latents", carried.state.latents
    for i, estimate in enumerate(carried.state.history):
        yield f"history.{i}", estimate
    if carried.state.guider is not None:
        yield "guider", carried.state.guider
    if carried.kept is not None and carried.kept.parts.size:
        yield "kept", carried.kept.parts


def _checked(file: str, tensors: Tensors, about: Mapping[str, Any]) -> SavedSteps:
    """Raises: ValueError where the metadata is of another kind."""
    steps, count, computed, facts = (about.get(name) for name in ("steps", "count", "computed", "facts"))
    if type(steps) is not int or type(count) is not int or not 0 < steps <= count <= MAX_STEPS:
        raise ValueError(f"it says {quoted(steps)} of {quoted(count)} steps")
    if computed is not None and (type(computed) is not int or not 0 <= computed <= steps):
        raise ValueError(f"it says {quoted(computed)} of {steps} steps were computed")
    if not isinstance(facts, dict) or not all(isinstance(text, str) for text in facts.values()):
        raise ValueError("its facts must be text")
    identity = Identity(facts, str(about.get("inputs")))
    return SavedSteps(
        file=file,
        steps=steps,
        count=count,
        computed=computed,
        identity=identity,
        sha256=str(about.get("sha256")),
        tensors=tensors,
    )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _weights_digest(params: Any) -> str:
    """The same on every mesh; of each parameter a few numbers, evenly spread."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    waiting = {name: leaf for name, leaf in named.items() if on_host(leaf)}
    found = {name: _few(np.asarray(leaf)) for name, leaf in waiting.items()}
    found |= {name: on_every_host(part) for name, part in _few_of_all(_others(named, waiting)).items()}
    shapes = {name: str(leaf.shape) for name, leaf in named.items()}
    return _digest(found)[:16] + hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:16]


def _others(named: Mapping[str, Any], without: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in named.items() if name not in without}


def _few(x: Any) -> Any:
    return x[tuple(slice(None, None, -(-n // ALONG)) for n in x.shape)]


@jax.jit
def _few_of_all(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: _few(leaf) for name, leaf in leaves.items()}
