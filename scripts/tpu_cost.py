"""The static cost of the programs of a video or of an update, per TPU device, and a gate that holds them to a table.

    python -m cogvx_jax.scripts.tpu_cost --topologies v5e:2x4 --models 5b
    python -m cogvx_jax.scripts.tpu_cost --models 5b --programs lora --mesh fsdp=8 --remat block
    python -m cogvx_jax.scripts.tpu_cost --check          # against scripts/tpu_cost.json; CI runs it

Nothing runs: programs are compiled ahead of time, which needs libtpu. The figures depend on the versions of jax and
libtpu and on nothing else, so the table names them, and the check skips with others. It has a hash of each lowered
program, too: one that did not change is not compiled again. Times are the compiler's
cycles at the nominal clock: optimistic, without transfers between devices, and good for ratios.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cogvx_jax.chips import CHIPS
from cogvx_jax.configs import Remat
from cogvx_jax.pipelines.memory_modes import MODES
from cogvx_jax.quantization import QUANTIZATIONS

TABLE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.02
MODELS = ("2b", "5b", "1.5-5b")
TOPOLOGY = "v5e:2x4"  # a step compiles in one to two minutes, the VAE in about three
TRAINING = ("lora", "full")
ONE = "data=1"  # the mesh of one device, in a word
STRIPS = "strips="  # in a row's name, before how many
QUANTIZED = ("step", "text")  # programs that differ where the model is quantised
KERNELS = tuple(dict.fromkeys(name for chip in CHIPS for name in chip.kernel_cycles))  # those that are counted
MEMORY = tuple(mode.name for mode in MODES if mode.exact)
if TYPE_CHECKING:
    Kernel = str
    Memory = str
else:
    Kernel = Literal[KERNELS]
    Memory = Literal[MEMORY]
Part = Literal["step", "computed", "skipped", "text", "encode", "decode", "lora", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One program on one device. GiB and MiB are binary; `all_seconds` is of its runs in a video, or in an update."""

    model: str
    topology: str
    mesh: str
    program: str
    arguments_gib: float
    temporaries_gib: float
    peak_gib: float
    tflops: float | None  # of the transformer's own formula, on each device
    mega_cycles: float  # of all operations, loops unrolled
    kernel_mega_cycles: float
    milliseconds: float | None  # None for updates: nobody counts the kernels of their backward pass
    all_seconds: float | None
    collectives: dict[str, tuple[int, float]]  # kind -> how many, MiB of results
    compile_seconds: float
    lowered: str = ""  # a hash of what was compiled

    @property
    def key(self) -> str:
        return f"{self.model} {self.topology} {self.mesh} {self.program}"


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program that is not compiled yet; of equal hashes all figures are equal."""

    program: str
    hash: str
    compile: Callable[[], Row]


def main(
    models: tuple[str, ...] = MODELS,
    topologies: tuple[str, ...] = (TOPOLOGY,),
    mesh: str | None = None,
    programs: tuple[Part, ...] = ("step",),
    remat: Remat = "block",
    trained_dtype: Literal["float32", "bfloat16"] = "float32",
    average: bool = True,
    attention: Kernel = "pallas",
    memory: Memory = "resident",
    quantize: str | None = None,
    strips: int = 1,
    check: bool = False,
    write: bool = False,
    json_file: Path | None = None,
) -> None:
    """Prints the static cost of programs.

    Args:
      models: names of presets.
      topologies: TPU slices, such as v5e:2x4.
      mesh: such as cfg=2,sp=4; None is the first candidate of `cogvx plan` without split weights.
      programs: the denoising step, the text encoder, and the VAE's first two frame batches, encoded or decoded; a step
        that keeps what its blocks added, and one that reuses it; an update of a LoRA, or of all parameters by AdamW, on
        a clip for each part of the mesh that takes clips.
      remat: which activations the backward pass of an update recomputes.
      trained_dtype: of parameters and moments in an update of all parameters.
      average: whether an update keeps a moving average.
      attention: the kernel of this package, or to compare with JAX's splash attention or its older flash attention,
        which goes forward only.
      memory: the mode of `generate --memory` whose step or text encoder it is.
      quantize: int8, w8a8 or int4, of the step and the text encoder.
      strips: of rows that the VAE works in, as `generate --strips`.
      check: compare with the table: exit status 1 where a row differs by more than 2%. Programs whose lowered text is
        that of the table are not compiled: the compiler is deterministic.
      write: put the rows into the table, beside its others; with `check`, only the hashes of rows that hold.
      json_file: also write the rows here.
    """
    _prepare()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    table: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {"versions": versions, "rows": {}}
    if check:
        worse = compare(table, versions)
        if write:
            TABLE.write_text(json.dumps(table, indent=1) + "\n")
        raise SystemExit(worse)
    rows = [
        row
        for topology in topologies
        for model in models
        for row in costs(
            model, topology, mesh, programs, remat, attention, trained_dtype, average, memory, quantize, strips
        )
    ]
    if json_file is not None:
        json_file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    if write:
        if table["versions"] != versions:
            table = {"versions": versions, "rows": {}}
        table["rows"] |= {row.key: held(row) for row in rows}
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


def costs(*asked: Any) -> Iterator[Row]:
    """Compiles and prints one model's programs on one slice; `asked` as for `lower`."""
    for program in lower(*asked):
        yield program.compile()


def lower(
    model: str,
    topology: str,
    mesh: str | None,
    parts: tuple[Part, ...],
    remat: Remat = "block",
    attention: Kernel = "pallas",
    trained_dtype: str = "float32",
    average: bool = True,
    memory: str = "resident",
    quantize: str | None = None,
    strips: int = 1,
) -> Iterator[Lowered]:
    """One model's programs on one slice, not compiled yet."""
    from cogvx_jax import sharding
    from cogvx_jax.configs import LoRAConfig
    from cogvx_jax.models.abstract import abstract_params
    from cogvx_jax.models.flops import sequence_tokens, training_flops, transformer_flops
    from cogvx_jax.models.vae import frame_batches
    from cogvx_jax.nn.backend import BY_PLATFORM, using
    from cogvx_jax.pipelines.memory_modes import find_mode
    from cogvx_jax.pipelines.model import choose_compute
    from cogvx_jax.pipelines.program_cost import compile_cost
    from cogvx_jax.pipelines.request import latent_frames, padded_latent_frames
    from cogvx_jax.pipelines.shortcuts import Wanted
    from cogvx_jax.planning import lower as programs
    from cogvx_jax.planning.lower_update import lower_update
    from cogvx_jax.planning.plan import LIKELY_BOUND
    from cogvx_jax.planning.targets import candidates
    from cogvx_jax.presets import PRESETS
    from cogvx_jax.sharding.topologies import topology as find
    from cogvx_jax.train import optim

    slice_ = find(topology)
    chip = slice_.chip
    assert chip is not None and chip.clock is not None
    spec = PRESETS[model]
    compute = dataclasses.replace(choose_compute(spec, None, platform="tpu"), logit_bound=LIKELY_BOUND)
    compute = dataclasses.replace(find_mode(memory).of(compute), quantize=quantize)
    compute = compute if strips == 1 else dataclasses.replace(compute, strips=strips)
    cfg, devices, own = spec.transformer, slice_.devices(), spec.defaults
    sizes = next(candidates(cfg.heads, len(devices), 1, guided=True))
    on, clock = mesh or (sharding.format_mesh(sizes) if sizes else ONE), chip.clock
    made = sharding.parse_mesh(on, devices)
    frames = padded_latent_frames(spec, own.num_frames)
    shape = (1, frames, own.height // 8, own.width // 8, cfg.out_channels)
    padding = frames - latent_frames(spec, own.num_frames)
    tokens = sequence_tokens(cfg, shape[1:4])
    clip = (1, own.num_frames, own.height, own.width, 3)
    clips = math.prod(made.shape[axis] for axis in sharding.RULES["batch"])
    pixels = (clips, frames - padding, *shape[2:])

    def in_batches(part: str, runs: int, batches: Iterator[Any]) -> list[tuple[str, int, Any]]:
        """The first of so many frame batches, which is another program, and one of the others."""
        return [(f"{part} {i}", n, program) for (i, program), n in zip(enumerate(batches), (1, runs - 1), strict=False)]

    def update(part: Part) -> list[tuple[str, int, Any]]:
        # Of weights that change nothing bounds the logits.
        tuned = dataclasses.replace(compute, logit_bound=None, remat=remat, quantize=None)
        lora = LoRAConfig() if part == "lora" else None
        kept: dict[str, Any] = {"trained_dtype": trained_dtype, "average": average}
        name = " ".join([part, remat, *[trained_dtype] * (part == "full"), *["no average"] * (not average)])
        return [(name, 1, lower_update(spec, tuned, made, pixels, lora, optim.adamw(1e-4, None), **kept))]

    def short(name: str) -> Any:
        video = programs.VideoPrograms(spec=spec, compute=compute, mesh=made, shape=shape, short=Wanted("added"))
        return next(video.lower(name))

    def tera_flops(part: Part) -> float | None:
        if part in ("step", "computed"):
            return transformer_flops(cfg, tokens, batch=2) / len(devices) / 1e12
        if part in TRAINING:
            paths = LoRAConfig().paths if part == "lora" else tuple(abstract_params(cfg))
            rank = LoRAConfig().rank if part == "lora" else 0
            return training_flops(cfg, tokens, paths, batch=clips, rank=rank) / len(devices) / 1e12
        return None

    def compiled(part: Part, name: str, runs: int, program: Any, digest: str) -> Row:
        cost = compile_cost(program, chip=chip)
        seconds = (cost.cycles + cost.kernel_cycles) / clock / 1e9
        row = Row(
            model=model,
            topology=topology,
            mesh=on,
            program=name,
            arguments_gib=cost.arguments / 2**30,
            temporaries_gib=cost.temporaries / 2**30,
            peak_gib=cost.peak / 2**30,
            tflops=tera_flops(part),
            mega_cycles=cost.cycles / 1e6,
            kernel_mega_cycles=cost.kernel_cycles / 1e6,
            milliseconds=None if part in TRAINING else 1000 * seconds,
            all_seconds=None if part in TRAINING else runs * seconds,
            collectives={kind: (n, size / 2**20) for kind, (n, size) in cost.collectives.items()},
            compile_seconds=cost.seconds,
            lowered=digest,
        )
        print(line(row), flush=True)
        return row

    choice = dataclasses.replace(BY_PLATFORM["tpu"], attention=attention)
    with programs.compiling_for("tpu", made), using(choice):
        for part in parts:
            lowered = {
                "step": lambda: [
                    ("step", own.num_inference_steps, programs.lower_step(spec, compute, made, shape, guided=True))
                ],
                "computed": lambda: [("computed", own.num_inference_steps, short("step"))],
                "skipped": lambda: [("skipped", own.num_inference_steps, short("skipped"))],
                "text": lambda: [("text", 1, programs.lower_text(spec, compute, made, 1, guided=True))],
                "encode": lambda: in_batches(
                    "encode",
                    len(frame_batches(clip[1], spec.vae.encode_frames)),
                    programs.lower_encode(spec, compute, made, clip),
                ),
                "decode": lambda: in_batches(
                    "decode",
                    len(frame_batches(frames - padding, spec.vae.decode_frames)),
                    programs.lower_decode(spec, compute, made, shape, padding),
                ),
                "lora": lambda: update("lora"),
                "full": lambda: update("full"),
            }[part]
            for name, runs, program in lowered():
                name = name if attention == "pallas" else f"{name} {attention}"
                name = name if memory == "resident" else f"{name} {memory}"
                name = f"{name} {quantize}" if quantize is not None and part in QUANTIZED else name
                name = name if strips == 1 else f"{name} {STRIPS}{strips}"
                digest = text_digest(program.as_text())
                yield Lowered(name, digest, functools.partial(compiled, part, name, runs, program, digest))


def text_digest(text: str) -> str:
    """A hash of a lowered program, whatever Python calls its results."""
    return hashlib.sha256(re.sub(r'jax\.result_info = "[^"]*"', "", text).encode()).hexdigest()[:16]


def line(row: Row) -> str:
    """A row for people."""
    spoken = ", ".join(f"{n} {kind} {size:.0f} MiB" for kind, (n, size) in sorted(row.collectives.items()))
    flops = "" if row.tflops is None else f"{row.tflops:.1f} TFLOP, "
    time = "beside those of kernels"
    if row.milliseconds is not None:
        time = f"+ kernels {row.kernel_mega_cycles:.0f} M = {row.milliseconds:.0f} ms, {row.all_seconds:.1f} s a video"
    return (
        f"{row.key}: arguments {row.arguments_gib:.2f} + temporaries {row.temporaries_gib:.2f}, peak "
        f"{row.peak_gib:.2f} GiB; {flops}{row.mega_cycles:.0f} M cycles {time}; {spoken}; "
        f"compiled in {row.compile_seconds:.0f} s"
    )


def held(row: Row) -> dict[str, Any]:
    """What the table keeps of a row: all that is the same at every compilation."""
    kept: dict[str, Any] = {
        "peak_gib": row.peak_gib,
        "temporaries_gib": row.temporaries_gib,
        "mega_cycles": row.mega_cycles,
        "kernel_mega_cycles": row.kernel_mega_cycles,
    }
    for kind, (count, size) in sorted(row.collectives.items()):
        kept |= {f"{kind} count": count, f"{kind} mib": size}
    return {name: round(value, 4) for name, value in kept.items()} | {"lowered": row.lowered}


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not within the tolerance, better or worse, in words."""
    found = []
    for name in sorted((was.keys() | now.keys()) - {"lowered"}):
        before, after = was.get(name, 0.0), now.get(name, 0.0)
        if not math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=1e-3):
            change = f" ({after / before - 1:+.1%})" if before else ""
            found.append(f"{name} was {before:g} and is {after:g}{change}")
    return found


def compare(table: dict[str, Any], versions: dict[str, str]) -> int:
    """Compiles the table's rows again where what is compiled has changed; 1 if any differs, else 0.

    Hashes of rows that hold are put into `table`.
    """
    if table["versions"] != versions:
        print(f"skipped: the table is of {table['versions']}, here are {versions}")
        return 0
    worse = 0
    lowered: dict[tuple, dict[str, Lowered]] = {}  # the programs of a part come together, and once
    for key, was in table["rows"].items():
        model, topology, mesh, program = key.split(" ", 3)
        part, *rest = program.split()
        remat = rest[0] if part in TRAINING else "block"
        kernel = next((word for word in rest if word in KERNELS), "pallas")
        memory = next((word for word in rest if word in MEMORY), "resident")
        dtype = "bfloat16" if "bfloat16" in rest else "float32"
        quantize = next((word for word in rest if word.partition(":")[0] in QUANTIZATIONS), None)
        strips = next((int(word[len(STRIPS) :]) for word in rest if word.startswith(STRIPS)), 1)
        how = remat, kernel, dtype, "average" not in rest, memory, quantize, strips
        asked: Any = model, topology, mesh, (part,), *how
        if asked not in lowered:
            lowered[asked] = {one.program: one for one in lower(*asked)}
        found = lowered[asked][program]
        if found.hash == was.get("lowered"):
            print(f"{key}: nothing changed in it, as in the table", flush=True)
            continue
        changed = differences(was, held(found.compile()))
        worse += bool(changed)
        if not changed:
            was["lowered"] = found.hash
        print(f"{key}: {'; '.join(changed) or 'as in the table'}", flush=True)
    if worse:
        print(f"{worse} rows differ by more than {TOLERANCE:.0%}; if that is meant, repeat with --write for these rows")
    return min(worse, 1)


def _prepare() -> None:
    """jax must compute on the CPU here, and other processes may compile, too."""
    from cogvx_jax.sharding.topologies import MISSING, has_libtpu

    if not has_libtpu():
        raise SystemExit(MISSING)
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", 0)  # or lines and paths of files would be in the hashes
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


if __name__ == "__main__":
    tyro.cli(main)
