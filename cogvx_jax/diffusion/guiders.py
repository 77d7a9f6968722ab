"""Guiders: how the predictions of a step are combined. A guider is a value; its numbers are laid out on the host.

In formulas u is the unconditional prediction of the velocity v, c the prompt's, p that of a perturbed model, and w the
guidance weight. `combining` computes them. A new guider is a class here, its name in GUIDERS, and its row there.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cogvx_jax.diffusion.number_text import number_text

MAX_LAYERS = 1000


class Numbers(NamedTuple):
    """What one step of a guider takes; laid out for N steps, with a leading axis of N. None where there is none."""

    weight: Any  # () float32, of the prompt
    own: Mapping[str, Any]  # of the guider by name, () float32 each
    skip: Any = None  # (layers,) float32, 1 where the third evaluation leaves a block out
    values: Any = None  # (layers,) float32, 1 where its attention gives each token its own value
    enhance: Any = None  # (layers, branches) float32, the weight of Enhance-A-Video


def number(default: float, low: float, high: float) -> Any:
    """A field of a guider with its range."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guider:
    """What all guiders have.

    Args:
      rescale: share of the standard deviation of c that the result gets back, 0 to 1; against overexposure.
    Raises: ValueError, one sentence, for a value out of its range.
    Source of rescale: Lin et al. 2024, arXiv:2305.08891, section 3.4.
    """

    kind: ClassVar[str]  # its row of `combining.COMBINE`, which several may share
    third: ClassVar[str] = ""  # what is perturbed in a third evaluation: a field of `Numbers`
    carries: ClassVar[bool] = False  # whether it carries an array like the latents from step to step, zeros at first
    rescale: float = number(0.0, 0, 1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if "range" in field.metadata:
                object.__setattr__(self, field.name, _checked(self.name, field, getattr(self, field.name)))

    def __str__(self) -> str:
        given = [f"{f.name}={_shown(getattr(self, f.name))}" for f in dataclasses.fields(self)]
        return f"{self.name}:{','.join(given)}"

    @property
    def name(self) -> str:
        """Of GUIDERS."""
        return next(name for name, guider in GUIDERS.items() if guider is type(self))

    def own(self, count: int) -> dict[str, np.ndarray]:
        """Its numbers of each of `count` steps."""
        return {"rescale": np.full(count, self.rescale)}

    def active(self, count: int) -> np.ndarray:
        """(count,) bool: the steps that take a third evaluation."""
        return np.zeros(count, bool)

    def check_layers(self, layers: int) -> None:
        """Raises ValueError where it names blocks that a model of so many has not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CFG(Guider):
    """Classifier-free guidance, u + w (c - u), as without a guider but for `rescale`."""

    kind = "cfg"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroStar(Guider):
    """CFG-Zero*: s u + w (c - s u) with s = <c, u> / <u, u>; the first steps predict 0.

    Args:
      zero_steps: how many evaluations predict 0. It was found for flow matching. A v of 0 in the first step of these
        models, whose latents are pure noise, only lessens the noise; 0 leaves the scale s alone.
    Source: Fan et al. 2025, arXiv:2503.18886.
    """

    kind = "zero-star"
    zero_steps: int = number(1, 0, 1000)

    def own(self, count: int) -> dict[str, np.ndarray]:
        return super().own(count) | {"keeps": np.asarray(np.arange(count) >= self.zero_steps, np.float64)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class APG(Guider):
    """Adaptive projected guidance: the part of c - u that is parallel to c, which saturates, is weighed by itself.

    d = c - u, with momentum d + m d_before; then cut to the norm `limit`; u + w (orthogonal + eta parallel).

    Args:
      eta: weight of the parallel part, 1 is guidance as usual.
      limit: of the norm of d; 0 is none.
      momentum: of d over the steps; negative ones push apart.
    Source: Sadat et al. 2024, arXiv:2410.02416; there of x0, here of v, as in diffusers.
    """

    kind = "apg"
    carries = True
    eta: float = number(1.0, -10, 10)
    limit: float = number(15.0, 0, 1e6)
    momentum: float = number(0.0, -1, 1)

    def own(self, count: int) -> dict[str, np.ndarray]:
        names = ("eta", "limit", "momentum")
        return super().own(count) | {name: np.full(count, getattr(self, name)) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Perturbed(Guider):
    """u + w (c - u) + g (c - p), p the prompt's prediction of a model that is perturbed in some blocks.

    Args:
      layers: the blocks, counted from 0.
      scale: g.
      begin, end: shares of the evaluations between which p is computed, which costs half a step more.
    """

    layers: tuple[int, ...] = (11,)
    scale: float = number(2.8, -100, 100)
    begin: float = number(0.01, 0, 1)
    end: float = number(0.2, 0, 1)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "layers", _checked_layers(self.name, self.layers))
        if self.begin >= self.end:
            raise ValueError(f"guider {self.name}: begin must be before end, got {self.begin:g} and {self.end:g}")

    def own(self, count: int) -> dict[str, np.ndarray]:
        return super().own(count) | {"scale": self.scale * self.active(count)}

    def active(self, count: int) -> np.ndarray:
        i = np.arange(count)
        # As diffusers, after the first of the share; from 0 it is all of them.
        first = int(self.begin * count) + 1 if self.begin else 0
        return (i >= first) & (i < int(self.end * count)) & bool(self.scale)

    def check_layers(self, layers: int) -> None:
        if max(self.layers) >= layers:
            raise ValueError(
                f"guider {self.name} names block {max(self.layers)}, but the model's blocks are 0 to {layers - 1}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLG(_Perturbed):
    """Skip-layer guidance: p is without some blocks, for text and video. `STG` has other defaults.

    Source: Hyung et al. 2024, arXiv:2411.18664 (STG-R); diffusers' SkipLayerGuidance.
    """

    kind = "slg"
    third = "skip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class STG(SLG):
    """Spatio-temporal guidance: `SLG` with what its authors chose for CogVideoX, weight 1 in all steps."""

    scale: float = number(1.0, -100, 100)
    begin: float = number(0.0, 0, 1)
    end: float = number(1.0, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PAG(_Perturbed):
    """Perturbed-attention guidance: in some blocks of p attention gives each token its own value.

    Source: Ahn et al. 2024, arXiv:2403.17377.
    """

    kind = "pag"
    third = "values"


def kind_of(guider: Guider | None) -> str:
    """Its row of `combining.COMBINE`; None is guidance as usual."""
    return CFG.kind if guider is None else guider.kind


def parse_guider(text: str) -> Guider:
    """The value of "apg:eta=0.5,limit=15" and so on; what is left out is the default; layers are joined as 7+8+9.

    Raises: ValueError, one sentence.
    """
    name, _, rest = text.partition(":")
    if name not in GUIDERS:
        raise ValueError(f"unknown guider {name[:40]!r}; the known ones are {', '.join(GUIDERS)}")
    make = GUIDERS[name]
    given: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(make())}
    for word in rest.split(",") if rest else []:
        key, _, value = word.partition("=")
        if key not in fields or key in given:
            known = ", ".join(f"{key}=..." for key in fields)
            raise ValueError(f"guider {name} takes {known}, each once; got {word[:40]!r}")
        given[key] = _read(name, key, value)
    return make(**given)


def lay_out(
    guider: Guider | None, weights: np.ndarray, *, layers: int, enhance: float | None = None, branches: int = 2
) -> Any:
    """What the steps of a program take as their weights, a leading axis of N on each array, float32.

    Args:
      weights: (N,) guidance weight of each step.
      layers: of the transformer.
      enhance: weight of Enhance-A-Video.
      branches: that are computed, 2 with guidance.
    Returns: `Numbers`; where nothing beside guidance is asked for, the weights themselves.
    """
    weights, count = np.asarray(weights, np.float32), len(weights)
    if guider is None and enhance is None:
        return weights
    guider = CFG() if guider is None else guider
    made = Numbers(weights, {name: np.float32(values) for name, values in guider.own(count).items()})
    if isinstance(guider, _Perturbed):
        chosen = np.isin(np.arange(layers), guider.layers).astype(np.float32)
        perturbed: dict[str, Any] = {guider.third: np.tile(chosen, (count, 1))}
        made = made._replace(**perturbed)
    if enhance is not None:
        made = made._replace(enhance=np.full((count, layers, branches), enhance, np.float32))
    return made


GUIDERS: Mapping[str, type[Guider]] = {
    "cfg": CFG,
    "zero-star": ZeroStar,
    "apg": APG,
    "slg": SLG,
    "stg": STG,
    "pag": PAG,
}


def _checked(kind: str, field: Any, value: Any) -> Any:
    low, high = field.metadata["range"]
    whole = field.type in (int, "int")
    ok = type(value) is int or type(value) is float and not whole
    if not ok or not math.isfinite(value) or not low <= value <= high:
        words = "a whole number" if whole else "a number"
        raise ValueError(f"guider {kind}: {field.name} must be {words} from {low:g} to {high:g}, got {str(value)[:40]}")
    return value if whole else float(value)


def _checked_layers(kind: str, value: Any) -> tuple[int, ...]:
    several = (value,) if type(value) is int else value
    if (
        not isinstance(several, tuple | list)
        or not 0 < len(several) <= MAX_LAYERS
        or not all(type(i) is int and 0 <= i < MAX_LAYERS for i in several)
    ):
        raise ValueError(f"guider {kind}: layers must be numbers of blocks, such as 7+8+9, got {str(value)[:40]}")
    return tuple(sorted(set(several)))


def _read(name: str, key: str, value: str) -> Any:
    """A number, whole where it is written so, or several that are joined by +."""
    try:
        if len(value) < 200 and key == "layers":
            return tuple(int(word) for word in value.split("+"))
        if len(value) < 40:
            return int(value) if value.lstrip("-").isdecimal() else float(value)
    except ValueError:
        pass
    raise ValueError(f"guider {name}: {key} must be a number, for layers several such as 7+8+9, got {value[:40]!r}")


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else number_text(value)
