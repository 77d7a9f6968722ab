"""What run.json says of a run that trains a VAE."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.data.clips import Source
from cogvx_jax.pipelines.model import Model
from cogvx_jax.sharding import params_digest
from cogvx_jax.train.run_folder import as_json
from cogvx_jax.train.vae.settings import VAERunConfig, VAEStageSettings
from cogvx_jax.train.vae.stages import VAEStage

STAGE = [field.name for field in dataclasses.fields(VAEStageSettings)]


def describe(
    model: Model,
    config: VAERunConfig,
    stages: Sequence[VAEStage],
    sources: Sequence[Sequence[Source]],
    source: str,
    lpips: Any,
) -> dict[str, Any]:
    """What stands in run.json.

    Args:
      sources: the videos of each stage.
      source: what the model was loaded from.
      lpips: the weights of LPIPS, or None.
    """
    facts = {
        "trains": "vae",
        "source": source,
        "name": model.spec.name,
        "dtype": model.compute.dtype,
        "vae": params_digest(model.params["vae"]),
        "lpips": None if lpips is None else params_digest(lpips),
    }
    described = [_stage(stage, of) for stage, of in zip(stages, sources, strict=True)]
    return as_json(facts | dataclasses.asdict(config) | {"stages": described})


def modern(said: dict[str, Any]) -> dict[str, Any]:
    """What run.json says, where before there were stages what they hold stood beside the rest."""
    if "stages" in said:
        return said
    stage = {name: said[name] for name in (*STAGE, "videos", "data") if name in said}
    return {name: value for name, value in said.items() if name not in stage} | {"stages": [stage]}


def _stage(stage: VAEStage, sources: Sequence[Source]) -> dict[str, Any]:
    names = "\n".join(sorted(Path(str(source.video)).name for source in sources))
    found = {"videos": len(sources), "data": hashlib.sha256(names.encode()).hexdigest()[:16]}
    return {name: getattr(stage, name) for name in STAGE} | found | {"folder": str(stage.data.absolute())}
