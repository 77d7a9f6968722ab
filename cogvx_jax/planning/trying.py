"""One mesh in one memory mode: what its programs take, each compiled once, whether that fits, and how long it takes."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from cogvx_jax import cache, sharding
from cogvx_jax.chips import chip_of
from cogvx_jax.configs import Compute, ModelSpec
from cogvx_jax.diffusion.guiders import Guider
from cogvx_jax.diffusion.windows import Laid, Windows
from cogvx_jax.models.tiling import Tiling
from cogvx_jax.pipelines.controlnets import abstract_beside
from cogvx_jax.pipelines.memory_modes import RESIDENT, MemoryMode
from cogvx_jax.pipelines.program_cost import Cost, beside_weights, compile_cost
from cogvx_jax.pipelines.request import laid_windows
from cogvx_jax.pipelines.shortcuts import Wanted
from cogvx_jax.pipelines.stored_programs import COMPONENT
from cogvx_jax.pipelines.weights import device_bytes, host_bytes, weight_bytes
from cogvx_jax.planning import lower as programs
from cogvx_jax.planning.lower import Beside
from cogvx_jax.planning.targets import GIB, Target
from cogvx_jax.planning.trials import CONTROLNETS, TORA, Trial

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What a plan is made for, in one memory mode."""

    spec: ModelSpec
    compute: Compute
    target: Target
    shape: tuple[int, int, int, int, int]  # of the latents
    padding: int  # of their frames, which show nothing
    guided: bool
    sampler: str
    guider: Guider | None = None
    enhance: float | None = None
    short: Wanted | None = None
    edit: bool = False
    windows: Windows | None = None
    evaluations: int = 1  # over which the windows are laid out
    beside: Beside = programs.NOTHING
    mode: MemoryMode = RESIDENT
    strips: int = 1

    @property
    def laid(self) -> Laid | None:
        """The windows of all evaluations; None where the whole clip is seen at once."""
        return laid_windows(self.spec, self.windows, self.shape[1], self.evaluations)

    @property
    def windows_a_step(self) -> float:
        return 1.0 if self.laid is None else float(self.laid.count.mean())

    @property
    def computed(self) -> Compute:
        return dataclasses.replace(self.mode.of(self.compute), strips=self.strips)

    def ways(self, name: str) -> list["Question"]:
        """With every count of strips that the mode has and that makes another program, fewest first."""
        found: dict[Compute, Question] = {}
        for count in self.mode.strips:
            way = dataclasses.replace(self, strips=count)
            found.setdefault(way.computed.of(COMPONENT[name]), way)
        return list(found.values())

    @property
    def timed_only(self) -> tuple[str, ...]:
        """Programs that take less memory than the step, so that only their time counts."""
        skips = self.short is not None and self.short.skips
        return (*(["skipped"] if skips else []), *(["inversion"] if self.edit else []))


class Costs:
    """What programs cost, each compiled once, whichever trials run it. What does not fit is a MemoryError."""

    def __init__(self, report: Report):
        self._report = report
        self._known: dict[Any, list[Cost] | MemoryError] = {}

    def knows(self, wanted: Question, sizes: dict[str, int], name: str) -> bool:
        return self._key(wanted, sizes, name) in self._known

    def find(self, wanted: Question, mesh: Mesh, sizes: dict[str, int], name: str) -> list[Cost] | MemoryError:
        key = self._key(wanted, sizes, name)
        if key not in self._known:
            words = [wanted.mode.name] if wanted.mode != RESIDENT else []
            words += [f"in {wanted.strips} strips of rows"] if wanted.strips > 1 else []
            self._report(" ".join([f"compiling {name} for {sharding.format_mesh(sizes)}", *words]))
            here = wanted.target.slice_chip is None
            with contextlib.nullcontext() if here else cache.nothing_on_disk():
                try:
                    self._known[key] = [_cost(wanted, lowered) for lowered in _lowered(wanted, mesh, name)]
                except MemoryError as error:
                    self._known[key] = error
        return self._known[key]

    @staticmethod
    def _key(wanted: Question, sizes: dict[str, int], name: str) -> Any:
        tiling, computed = wanted.mode.tiling and name == "decode", wanted.computed.of(_component(name))
        # In strips each device works through whole frames, on any mesh of the slice.
        spread = tuple(sizes.items()) if computed.strips == 1 else ()
        return name, spread, computed, tiling, wanted.shape, wanted.windows, wanted.beside


def try_mesh(wanted: Question, sizes: dict[str, int], costs: Costs) -> Trial:
    """Compiles what a video takes on one mesh in one memory mode, as far as it fits."""
    mesh = sharding.make_mesh(**sizes, devices=wanted.target.devices)
    limit, compute = wanted.target.memory, wanted.computed
    weights = {name: size / GIB for name, size in weight_bytes(wanted.spec, compute, mesh).items()}
    if (beside := wanted.beside).nets:
        lying = sum(device_bytes(abstract_beside(net, compute, mesh)) for net in beside.nets)
        weights[CONTROLNETS] = lying / GIB
    if beside.tora is not None:
        weights[TORA] = device_bytes(abstract_beside(beside.tora, compute, mesh)["fusers"]) / GIB
    host = host_bytes(wanted.spec, compute, mesh)["transformer"] / GIB
    trial = Trial(mesh=sizes, fits=False, weights=weights, mode=wanted.mode.name, host=host)
    if limit is not None and trial.memory > limit:
        return dataclasses.replace(trial, why=f"the weights alone take {trial.memory:.1f} of {limit:.1f} GiB")
    found: dict[str, list[Cost]] = {}
    # What needs the most is compiled first, after what is known already.
    names = sorted(("step", "text", "decode"), key=lambda name: not costs.knows(wanted, sizes, name))
    with programs.compiling_for(wanted.target.platform, mesh):
        for name in names:
            tried = []
            for way in wanted.ways(name):
                cost = costs.find(way, mesh, sizes, name)
                tried.append(_with(trial, way, name, cost, limit))
                if not tried[-1].why:
                    break
            if isinstance(cost, MemoryError) or tried[-1].why:
                return min(tried, key=lambda trial: getattr(trial, name) or math.inf)
            trial, found[name] = tried[-1], cost
        for name in wanted.timed_only if wanted.target.slice_chip and wanted.target.slice_chip.clock else ():
            other = costs.find(wanted, mesh, sizes, name)
            if not isinstance(other, MemoryError):
                found[name] = other
    return dataclasses.replace(
        trial,
        **_seconds(wanted, found),
        fits=True,
        compile_seconds=sum(cost.seconds for some in found.values() for cost in some),
    )


def _with(trial: Trial, way: Question, name: str, cost: list[Cost] | MemoryError, limit: float | None) -> Trial:
    """The trial with what a program takes beside its component's weights, and why that does not fit, if so."""
    weight, how = trial.lying(COMPONENT[name]), f" in {way.strips} strips of rows" if way.strips > 1 else ""
    made: dict[str, Any] = {"strips": max(trial.strips, way.strips)}
    if isinstance(cost, MemoryError):
        made |= {name: _beside_at_least(cost, weight), "why": f"{name}{how} does not fit: {cost}"}
        return dataclasses.replace(trial, **made)
    made[name] = beside_weights(cost, weight * GIB) / GIB
    trial = dataclasses.replace(trial, **made)
    if limit is not None and trial.memory > limit:
        return dataclasses.replace(trial, why=f"{name}{how} takes {trial.memory:.1f} of {limit:.1f} GiB")
    return trial


def _beside_at_least(error: MemoryError, weights: float) -> float | None:
    """GiB beside the weights that the compiler says it would need; None where it does not."""
    said = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
    if said is None:
        return None
    return max(float(said[1]) * 2.0 ** {"K": -20, "M": -10, "G": 0, "T": 10}[said[2]] - weights, 0.0)


def _seconds(wanted: Question, found: dict[str, list[Cost]]) -> dict[str, Any]:
    """Of a step, of one that is skipped, and of text encoder and decoder; nothing where nobody knows the clock."""
    clock = wanted.target.slice_chip and wanted.target.slice_chip.clock
    if not clock:
        return {}
    times = {name: [(c.cycles + c.kernel_cycles) / clock / 1e9 for c in costs] for name, costs in found.items()}
    (step,), (text,), decode = (times[name] for name in ("step", "text", "decode"))
    step *= wanted.windows_a_step  # of the loop over them, whose length the program is told, one counts
    vae = wanted.spec.vae
    batches = max(wanted.shape[1] - wanted.padding, 1) // (vae.decode_frames or wanted.shape[1])
    tiles = Tiling.of(vae).count(*wanted.shape[2:4]) if wanted.mode.tiling else 1
    video = tiles * (decode[0] + max(batches - 1, 0) * decode[-1])
    made: dict[str, Any] = {"step_seconds": step, "other_seconds": text + wanted.shape[0] * video}
    own = {"skipped": 1.0, "inversion": wanted.windows_a_step}  # how often a step runs it
    return made | {f"{name}_seconds": own[name] * times[name][0] for name in wanted.timed_only if name in times}


def _lowered(wanted: Question, mesh: Mesh, name: str) -> Iterator[Any]:
    shape: tuple[int, ...] = wanted.shape
    if wanted.mode.tiling and name == "decode":  # the largest tile
        shape = Tiling.of(wanted.spec.vae).largest(shape)
    video = programs.VideoPrograms(
        spec=wanted.spec,
        compute=wanted.computed,
        mesh=mesh,
        shape=shape,
        padding=wanted.padding,
        guided=wanted.guided,
        sampler=wanted.sampler,
        guider=wanted.guider,
        enhance=wanted.enhance,
        short=wanted.short,
        edit=wanted.edit,
        windows=wanted.laid,
        beside=wanted.beside,
    )
    return video.lower(name)


def _cost(wanted: Question, lowered: Any) -> Cost:
    return compile_cost(lowered, chip=wanted.target.slice_chip or chip_of(wanted.target.devices[0].device_kind))


def _component(program: str) -> str:
    """Whose weights a program takes; kinds of steps have no programs of their own names."""
    return COMPONENT.get(program, "transformer")
