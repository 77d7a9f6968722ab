"""Compiled programs in a folder: `cogvx compile` writes it, `load(..., programs=FOLDER)` runs what it holds.

The folder has a file a program and `programs.json`, which says what they were compiled for and what each takes.
The files are machine code: use folders that you wrote yourself, or trust as you trust a program. The digests find
damage, not malice. A folder that another user may write to is refused.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

from cogvx_jax.cache import versions
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.diffusion.reuse import MODES
from cogvx_jax.json_files import Json, parse_json, quoted
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.pipelines.memory_modes import modes_of
from cogvx_jax.pipelines.program_pickle import dump_program, load_program
from cogvx_jax.sharding import format_mesh
from cogvx_jax.storage import file_size, new_folder
from cogvx_jax.temporaries import check_local

MANIFEST = "programs.json"
FORMAT = 2
OTHERS = stat.S_IWGRP | stat.S_IWOTH  # who else may write
# The code that decides what a program does.
SOURCES = ("axes.py", "chips.py", "configs.py", "nn", "models", "diffusion", "sharding", "pipelines", "quantization.py")
COMPONENT = {  # program -> whose weights it takes
    "text": "text_encoder",
    "encode": "vae",
    "step": "transformer",
    "loop": "transformer",
    "decode": "vae",
    **{f"{part}-{mode}": "transformer" for mode in MODES for part in ("computed", "skipped", "loop")},
}
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredProgram:
    """A compiled program. `takes` are its arguments but for the weights, see `takes`, behind its `beside`."""

    name: str
    takes: str
    compiled: jax.stages.Compiled


class StoredPrograms:
    """The programs of a folder, ready to run; `read_programs` makes it."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        compute: Compute,
        programs: Iterable[StoredProgram],
        decode: dict[str, Any],
    ):
        self._folder, self._spec, self._decode = folder, spec, decode
        self._compute = dataclasses.replace(compute, strips=self.strips)
        self._programs = {(program.name, program.takes): program.compiled for program in programs}
        self._missing: set[tuple[str, str]] = set()

    @property
    def strips(self) -> int:
        """Of rows that the VAE's programs work in; 1 is whole frames."""
        return self._decode["strips"]

    def before(
        self, function: Function, name: str, spec: ModelSpec, compute: Compute, branches: Sequence[ControlBranch] = ()
    ) -> Function:
        """A jitted `function` (weights, ...), but where there is a program for what it is called with, that one.

        Warns once of each that is not there.

        Args:
          branches: the ControlNets that the function has.
        """
        component = COMPONENT[name]
        same = getattr(spec, component) == getattr(self._spec, component)
        if not same or compute.of(component) != self._compute.of(component):
            return function

        def run(weights, *arguments, **named):
            key = name, beside(branches) + takes(arguments, named)
            if key in self._programs:
                return self._programs[key](weights, *arguments, **named)
            if key not in self._missing:
                self._missing.add(key)
                what = "shapes and ControlNets" if branches else "shapes"
                warnings.warn(f"{self._folder} has no program {name!r} for these {what}; it is compiled", stacklevel=2)
            return function(weights, *arguments, **named)

        return run

    def check_mode(self, mode: str, asked: str) -> None:
        """Raises ValueError where the folder's sampling steps are of other modes alone.

        Args:
          mode: of `diffusion.reuse.MODES`; "" is that of plain steps.
          asked: what needs it, in the words of the options.
        """
        steps = [name for name, _ in self._programs if COMPONENT[name] == "transformer"]
        found = {name.partition("-")[2] for name in steps}
        if found and mode not in found:
            words = " and ".join(sorted(name or "plain" for name in found))
            raise ValueError(
                f"the programs in {self._folder} make {words} steps and cannot make those of {asked}; repeat "
                f"`cogvx compile` with {asked}, or leave out the programs"
            )

    def decode_bytes(self, shape: tuple[int, ...], padding: int, compute: Compute) -> int | None:
        """What decoding one video takes beside the weights; None for shapes (B, T, h, w, 16) that are not here."""
        same = self._compute.of("vae") == compute.of("vae")
        known = same and self._decode["latents"] == list(shape[1:]) and self._decode["padding"] == padding
        return self._decode["bytes"] if known else None


def takes(arguments: Any, named: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The shapes of a tree of arguments, in words: "[0].latents float32(1, 5, 8, 8, 16); ..."."""
    leaves, _ = jax.tree_util.tree_flatten_with_path((*arguments, dict(named)) if named else tuple(arguments))
    return "; ".join(f"{jax.tree_util.keystr(path)} {_shape(leaf)}" for path, leaf in leaves)


def beside(branches: Sequence[ControlBranch]) -> str:
    """By what a program with ControlNets is known: a hash of their sizes and kinds; nothing for one without.

    Their parameters are its arguments.
    """
    if not branches:
        return ""
    own = [(branch.cfg, branch.base, branch.compute) for branch in branches]
    return f"{len(own)} ControlNets {_digest(repr(own).encode())[:12]}: "


def conditions(spec: ModelSpec, compute: Compute, mesh: Mesh | None, devices: Sequence[Any]) -> dict[str, str]:
    """All that must be the same where programs are compiled and where they run, in words.

    Args:
      compute: with the bound on attention's logits, and as it is loaded: in whole frames.
      devices: those of the mesh, in its order, or the one.
    """
    kind = devices[0].platform
    found = {
        "platform": kind,
        "mesh": format_mesh({} if mesh is None else mesh.shape),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "hosts": str(len({device.process_index for device in devices})),
        "order of devices": ",".join(str(device.id) for device in devices),
        "memory mode": modes_of(compute),
        "model": f"{spec.name} in {compute.dtype}, {_digest(repr((spec, compute)).encode())[:12]}",
        "quantization": compute.quantize or "none",
        "code of cogvx_jax": _code(),
    } | versions()
    if kind == "cpu":
        found["processor"] = _processor()
    if kind != "tpu":  # without one, libtpu decides nothing
        del found["libtpu"]
    if kind in ("gpu", "cuda", "rocm"):
        found["runtime"] = devices[0].client.platform_version
    return found


def write_programs(
    folder: str | os.PathLike,
    programs: Iterable[StoredProgram],
    made_for: dict[str, str],
    request: dict[str, Any],
    decode: Callable[[], dict[str, Any]],
) -> None:
    """Writes programs as they come; the folder appears under its name only when whole.

    Args:
      made_for: of `conditions`.
      request: what they make, for people.
      decode: called after the last program: "latents" (T, h, w, C), "padding", "bytes" and "strips" of decoding them.
    Raises: FileExistsError; ValueError where the platform's programs cannot be stored.
    """
    with new_folder(folder) as partial:
        entries = []
        for number, program in enumerate(programs):
            data = dump_program(program.compiled)
            file = f"{number}-{program.name}.pickle"
            _write(partial / file, data)
            entry = {"name": program.name, "takes": program.takes, "file": file, "sha256": _digest(data)}
            entries.append(entry)
        manifest = {"format": FORMAT, "made_for": made_for, "request": request}
        manifest |= {"decode": decode(), "programs": entries}
        _write(partial / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        partial.chmod(partial.stat().st_mode & ~OTHERS)


def read_programs(folder: str | os.PathLike, spec: ModelSpec, compute: Compute, mesh: Mesh | None) -> StoredPrograms:
    """Loads the programs of a folder onto the devices that they were compiled for. It must be trusted, see above.

    Args:
      spec, compute, mesh: of the model they are for.
    Raises: FileNotFoundError; ValueError where they were compiled for something else, naming all that differs, a
      file is damaged, or others can write to the folder.
    """
    check_local(folder, "a folder of programs")
    folder = Path(folder)
    manifest = read_manifest(folder)
    devices = list(mesh.devices.flat) if mesh is not None else jax.devices()[:1]
    here, theirs = conditions(spec, compute, mesh, devices), manifest["made_for"]
    names = [*here, *(name for name in theirs if name not in here)]
    differ = [name for name in names if theirs.get(name) != here.get(name)]
    if differ:
        first, *others = differ
        more = f", and of other {', '.join(others)}" if others else ""
        raise ValueError(
            f"the programs in {folder} are for {first[:99]} {theirs.get(first, 'none')[:99]} "
            f"(here {here.get(first, 'none')[:99]}){more[:999]}; `cogvx compile` makes new ones"
        )
    loaded = []
    for entry in manifest["programs"]:
        file = folder / entry["file"]
        data = _read_own(file)
        if _digest(data) != entry["sha256"]:
            raise ValueError(f"{file} is not what `cogvx compile` wrote: its digest differs; make the folder anew")
        try:
            compiled = load_program(data, devices)
        except ValueError as error:
            raise ValueError(f"{file} cannot be loaded: {error}") from None
        loaded.append(StoredProgram(name=entry["name"], takes=entry["takes"], compiled=compiled))
    return StoredPrograms(folder, spec, compute, loaded, manifest["decode"])


def read_manifest(folder: Path) -> Json:
    """What `programs.json` says, its form checked; nobody else may write to the folder."""
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is not a folder of `cogvx compile`")
    _check_own(folder, folder.stat())
    data = _read_own(file)
    try:
        manifest = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{file} is not of format {FORMAT}, which is what this version reads")
    made_for, entries, decode = (manifest.get(key) for key in ("made_for", "programs", "decode"))
    wrong = [
        *([] if _is_text(made_for) else ["made_for"]),
        *([] if isinstance(entries, list) and all(map(_is_entry, entries)) else ["programs"]),
        *([] if _is_decode(decode) else ["decode"]),
    ]
    if wrong:
        raise ValueError(f"{file} is damaged: its {wrong[0]} is {quoted(manifest.get(wrong[0]))}; make the folder anew")
    return manifest


def _is_text(found: Any) -> bool:
    """Whether it is an object of a few lines of text; that of a pod's devices is long."""
    if not isinstance(found, dict) or len(found) > 50:
        return False
    texts = [*found, *found.values()]
    return all(isinstance(text, str) and len(text) < 2**16 and text.isprintable() for text in texts)


def _is_entry(found: Any) -> bool:
    """Whether it describes a program in a file of the folder itself."""
    if not isinstance(found, dict) or not all(
        isinstance(found.get(k), str) for k in ("name", "takes", "file", "sha256")
    ):
        return False
    return found["name"] in COMPONENT and re.fullmatch(r"\w[\w-]*\.pickle", found["file"], re.ASCII) is not None


def _is_decode(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("latents"), list):
        return False
    numbers = *found["latents"], *(found.get(name) for name in ("padding", "bytes", "strips"))
    return all(type(n) is int and n >= 0 for n in numbers)


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    file.chmod(file.stat().st_mode & ~OTHERS)


def _read_own(file: Path) -> bytes:
    """A file's bytes. Raises: FileNotFoundError; ValueError for a file that others can write to, or that is none."""
    if file.is_symlink():
        raise ValueError(f"{file} is a link, and may lead out of the folder; `cogvx compile` writes none")
    try:
        file_size(file)  # of a FIFO, opening would wait
    except ValueError as error:
        raise ValueError(f"{file} is {error}") from None
    with file.open("rb") as opened:
        _check_own(file, os.fstat(opened.fileno()))
        return opened.read()


def _check_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise ValueError(f"{path} is another user's, and programs are code; copy the folder if you trust that user")
    if found.st_mode & OTHERS:
        raise ValueError(
            f"others can write to {path}, and programs are code; forbid it by `chmod -R go-w` of the folder"
        )


def _shape(leaf: Any) -> str:
    array = leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)
    return f"{jax.dtypes.canonicalize_dtype(array.dtype)}{tuple(array.shape)}"


def _code() -> str:
    """Of the names and the content of all files in `SOURCES`."""
    digest, top = hashlib.sha256(), Path(__file__).parents[1]
    for source in (top / name for name in SOURCES):
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(f"{path.relative_to(top)} {_digest(path.read_bytes())}\n".encode())
    return digest.hexdigest()[:12]


def _processor() -> str:
    """CPU programs use the instructions of the processor that they were compiled on."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        flags = None
    return f"{platform.machine()}, {_digest(flags[1].encode())[:12] if flags else platform.processor()}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
