"""What a plan is: what was asked for, and each mesh and memory mode that was tried, with its memory and its times."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.json_files import read_json
from cogvx_jax.pipelines.memory_modes import RESIDENT, MemoryMode, find_mode

CONTROLNETS, TORA = "controlnets", "tora"  # beside the components, whose weights lie there while steps are taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One mesh. Memory is GiB on a device; times are seconds, None where nothing is known of the clock."""

    mesh: dict[str, int]  # axis -> size, those above 1
    fits: bool
    weights: dict[str, float]  # by component
    text: float | None = None  # beside the weights, while that program runs; None where it was not compiled
    step: float | None = None
    decode: float | None = None
    step_seconds: float | None = None
    skipped_seconds: float | None = None  # a step that is made of what others computed
    inversion_seconds: float | None = None  # a step of the inversion of an edit's clip
    other_seconds: float | None = None  # text encoder and decoder, a video
    compile_seconds: float = 0.0
    why: str = ""
    mode: str = RESIDENT.name  # of `pipelines.memory_modes`
    strips: int = 1  # of rows that the VAE decodes in; 1 is whole frames
    host: float = 0.0  # GiB of the transformer's kernels that every step brings from the host's memory

    @property
    def memory(self) -> float:
        """GiB at the fullest moment, as far as programs were compiled."""
        beside = {"text_encoder": self.text or 0, "transformer": self.step or 0, "vae": self.decode or 0}
        if find_mode(self.mode).turns:
            return max(self.lying(component) + size for component, size in beside.items())
        return sum(self.weights.values()) + max(beside.values())

    def lying(self, component: str) -> float:
        """GiB of the weights that a component needs: the transformer those of ControlNets and of Tora, too."""
        names = (component, *((CONTROLNETS, TORA) if component == "transformer" else ()))
        return sum(self.weights.get(name, 0.0) for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for, what was tried, and which trial is chosen: the first that fits, if any does."""

    model: str
    topology: str
    devices: int
    memory: float | None  # GiB of a device; None where it does not say
    dtype: str
    quantize: str | None = None
    size: tuple[int, int]
    frames: int
    videos: int
    steps: int
    evaluations: int  # of the transformer, both branches of guidance together: more than steps with some samplers
    flops: int  # of the transformer, all steps
    guider: str = ""  # such as "slg:layers=11,..."
    enhance: float | None = None
    thirds: int = 0  # evaluations that the guider needs beside both branches
    controlnets: str = ""  # such as "6 blocks and 8 blocks"
    tora: bool = False  # the video follows trajectories
    regions: int = 0  # with prompts of their own
    windows: str = ""  # such as "48:8,policy=uniform,..."
    windows_a_step: float = 1.0  # that the transformer sees, in the mean of all evaluations
    trials: tuple[Trial, ...]
    instead: str = ""  # what would fit, where nothing does
    short: str = ""  # what is asked of the steps, such as "reuse every:2"
    computed: int | None = None  # evaluations that are computed; None where that is known only when they run
    inversions: int = 0  # evaluations of one branch that invert the clip of an edit

    @property
    def chosen(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.fits), None)

    @property
    def mesh(self) -> Mesh | None:
        """The chosen mesh on the devices that are here; None is one device.

        Raises: ValueError where nothing fits, or other devices are here than planned for.
        """
        if self.chosen is None:
            raise ValueError(f"{self.model} does not fit {self.topology}; {self.instead}")
        sizes: dict[str, Any] = dict(self.chosen.mesh)
        return sharding.make_mesh(**sizes) if self.devices > 1 else None

    @property
    def mode(self) -> MemoryMode:
        """The chosen memory mode. Raises: ValueError where nothing fits."""
        if self.chosen is None:
            raise ValueError(f"{self.model} does not fit {self.topology}; {self.instead}")
        return find_mode(self.chosen.mode)

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


def read_plan(file: Path) -> Plan | None:
    """A plan that was kept; None if there is none, or it is damaged."""
    try:
        facts = read_json(file)
        trials = tuple(Trial(**trial) for trial in facts.pop("trials"))
        return Plan(**facts | {"size": tuple(facts["size"]), "trials": trials})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
