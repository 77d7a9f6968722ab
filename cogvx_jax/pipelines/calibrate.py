"""Measures how what the blocks add changes from step to step, for reuse by magcache and teacache."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cogvx_jax.diffusion.reuse import Calibration, relative_changes
from cogvx_jax.models.flops import sequence_tokens
from cogvx_jax.models.kept import Kept
from cogvx_jax.pipelines.generate import sample, sampler_of
from cogvx_jax.pipelines.model import Model
from cogvx_jax.pipelines.request import Request
from cogvx_jax.pipelines.short_schedule import embeddings
from cogvx_jax.presets import SHIPPED
from cogvx_jax.tiny import shapes

FEWEST_STEPS = 10  # of a polynomial of degree 4, and of ratios that other counts of steps stretch
DEGREE = 4
PROMPTS = (  # for models that know words
    "A panda in a red jacket plays a small guitar in a bamboo forest, sunlight through the leaves.",
    "Waves break on black rocks at dusk, filmed from a drone that rises slowly.",
    "A woman walks through a busy market in the rain and opens a yellow umbrella.",
    "A toy ship with carved masts glides over a thick blue rug that looks like the sea.",
    "Close-up of a chef's hands cutting carrots on a wooden board in a bright kitchen.",
    "A white train crosses a stone bridge over a valley in autumn, seen from the side.",
)


def default_prompts(model: str) -> list[str]:
    """Prompts to measure on where none are given; for `tiny` and what is made of it, of scenes of its training."""
    if model not in SHIPPED:
        return list(PROMPTS)
    trained, _ = shapes.split()
    return [str(trained[i]) for i in np.random.default_rng(5).permutation(len(trained))[:8]]


def calibrate(
    model: Model, requests: Sequence[Request], report: Callable[[str], None] = lambda line: None
) -> Calibration:
    """Makes the latents of each request, every step computed, and measures on the way.

    Args:
      requests: of full runs of equal numbers of steps, of `check_request`.
      report: gets a line before each video.
    Raises: ValueError for requests that are no such; NotFiniteError.
    """
    check_requests(requests)
    ratios, changes = [], []
    for number, request in enumerate(requests, 1):
        report(f"video {number} of {len(requests)}")
        watch = _Watch(sequence_tokens(model.spec.transformer, request.shape[:3]))
        sample(model, request, progress=False, watch=watch)
        ratios.append(np.asarray(watch.ratios, np.float64))
        changes.append(np.asarray(watch.changes, np.float64))
    timesteps = sampler_of(model, requests[0]).timesteps
    distances = relative_changes(embeddings(model, timesteps))[1:]
    polynomial = np.polynomial.Polynomial.fit(distances, np.mean(changes, axis=0), DEGREE).convert().coef
    polynomial = np.pad(polynomial, (0, DEGREE + 1 - len(polynomial)))[::-1]  # the highest power first
    return Calibration(
        model=model.spec.name,
        ratios=(1.0, *map(float, np.mean(ratios, axis=0))),
        polynomial=tuple(map(float, polynomial)),
    )


class _Watch:
    """Compares what each step kept with the step before."""

    def __init__(self, tokens: int):
        self._tokens = tokens
        self._before: jax.Array | None = None
        self.ratios: list[jax.Array] = []
        self.changes: list[jax.Array] = []

    def __call__(self, kept: Kept) -> None:
        before, self._before = self._before, jnp.copy(kept.parts[0])  # what is kept is donated to the next step
        if before is not None:
            ratio, change = _compare(self._before, before, self._tokens)
            self.ratios.append(ratio)
            self.changes.append(change)


@jax.jit
def _compare(now: jax.Array, before: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Means over tokens of |r_i| / |r_(i-1)|, and mean|r_i - r_(i-1)| / mean|r_(i-1)|; `tokens` of S count."""
    now, before = now.astype(jnp.float32), before.astype(jnp.float32)
    real = jnp.arange(now.shape[1])[None] < tokens
    ratio = jnp.linalg.norm(now, axis=-1) / jnp.linalg.norm(before, axis=-1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(real, x, 0)) / (tokens * now.shape[0])

    return mean(ratio), mean(jnp.abs(now - before).mean(-1)) / mean(jnp.abs(before).mean(-1))


CHANGES = (  # fields that change what steps do
    *("guider", "enhance", "windows", "positions"),
    *("controls", "extend", "travel", "regions", "motion"),
)


def check_requests(requests: Sequence[Request]) -> None:
    """Raises ValueError for requests that `calibrate` does not take."""
    for request in requests:
        if request.strength < 1 or request.reuse is not None or request.way is not None:
            raise ValueError("a calibration needs full runs, every step computed: no video, reuse or way of guidance")
        if request.task == "edit" or any(getattr(request, name) is not None for name in CHANGES):
            raise ValueError(
                "a calibration is of the model's own steps: no guider, enhance, windows, positions, ControlNet, "
                "travel, region, trajectory or clip to edit or extend"
            )
        if request.steps < FEWEST_STEPS:
            raise ValueError(f"a calibration needs at least {FEWEST_STEPS} steps, got {request.steps}")
        if request.steps != requests[0].steps:
            raise ValueError(f"all prompts must have {requests[0].steps} steps, one has {request.steps}")
