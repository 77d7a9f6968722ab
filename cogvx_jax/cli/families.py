"""Models that are not made of CogVideoX's parts: a row for each family of them, with what the verbs do.

A verb asks `family_of` first, and leaves such a model to its row. One whose function a row lacks refuses the model.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cogvx_jax.cli import cogvideo2022, cogvideo2022_plan, cogvideo2022_videos
from cogvx_jax.cli.attempts import Plan
from cogvx_jax.cli.options import GenerateFlags
from cogvx_jax.cli.prompts_file import Job
from cogvx_jax.given import Given
from cogvx_jax.prompting.enhance import Endpoint

if TYPE_CHECKING:
    from cogvx_jax.prompting.enhance import Enhancer

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    name: in messages.
    holds: whether a source, as `--model` names it, is such a model.
    make_videos: as `cli.generate.make_videos`.
    describe: what `info` prints of a model.
    convert: source, target, layout, what is said of parts, and by name what else the verb was told.
    quantize: source, target, the name of a quantisation.
    plan: what `plan` prints, by its arguments' names.
    enhancer: as `cli.enhance.prompt_enhancer`.
    fingerprints: of the parts of a model, as `convert.fingerprints`.
    """

    name: str
    holds: Callable[[str], bool]
    make_videos: Callable[[Sequence[Job], GenerateFlags, Given, Plan], list[Job]]
    describe: Callable[[str, Given], dict[str, Any]]
    convert: Callable[[str, str, str, Given, dict[str, object]], None]
    quantize: Callable[[str, str | None, str, Mapping[str, object]], None]
    plan: Callable[..., None]
    enhancer: "Callable[[str, Given, Endpoint], Enhancer]"
    fingerprints: Callable[[str], dict[str, str]]


FAMILIES = (
    Family(
        name="CogVideo (2022)",
        holds=cogvideo2022.holds,
        make_videos=cogvideo2022_videos.make_videos,
        describe=cogvideo2022.describe,
        convert=cogvideo2022.convert,
        quantize=cogvideo2022.quantize,
        plan=cogvideo2022_plan.plan,
        enhancer=cogvideo2022.enhancer,
        fingerprints=cogvideo2022.fingerprints,
    ),
)


def family_of(model: str) -> Family | None:
    """The family that a model is of, by its files; None of CogVideoX, and of what is not there."""
    return next((family for family in FAMILIES if family.holds(model)), None)
