"""What run.json says of a run that trains a transformer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from cogvx_jax.pipelines.model import Model
from cogvx_jax.sharding import params_digest
from cogvx_jax.storage import is_bucket
from cogvx_jax.train.clips.batches import Share
from cogvx_jax.train.run_folder import as_json
from cogvx_jax.train.transformer.settings import StageSettings
from cogvx_jax.train.transformer.stages import Stage


def describe(
    model: Model, config: Any, stages: Sequence[Stage], shares: Sequence[Sequence[Share]], source: str
) -> dict[str, Any]:
    """What stands in run.json.

    Args:
      config: the run's other settings, a dataclass.
      shares: the data of each stage.
      source: what the model was loaded from.
    """
    cfg = model.spec.transformer
    facts = {
        "source": source,
        "name": model.spec.name,
        "width": cfg.width,
        "layers": cfg.layers,
        "dtype": model.compute.dtype,
        "transformer": params_digest(model.params["transformer"]),
    }
    described = [_stage(stage, of) for stage, of in zip(stages, shares, strict=True)]
    return as_json(facts | dataclasses.asdict(config) | {"stages": described})


def _stage(stage: Stage, shares: Sequence[Share]) -> dict[str, Any]:
    data = [
        {
            "clips": len(of.clips),
            "digest": of.digest,
            "shape": dataclasses.asdict(of.shape),
            "weight": share.weight,
            "folder": str(of.folder if is_bucket(of.folder) else of.folder.absolute()),
        }
        for share in shares
        for of in [share.cache]
    ]
    return {"data": data} | {field.name: getattr(stage, field.name) for field in dataclasses.fields(StageSettings)}
