"""What a user may say of a model beside its files: where its other parts are, and what no file of them tells."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

# Field of `Given` -> the published configuration it belongs to, and its name there.
FIELDS = {
    "sample_height": ("transformer/config.json", "sample_height"),
    "sample_width": ("transformer/config.json", "sample_width"),
    "sample_frames": ("transformer/config.json", "sample_frames"),
    "text_length": ("transformer/config.json", "max_text_seq_length"),
    "position": ("transformer/config.json", "use_rotary_positional_embeddings"),
    "scaling_factor": ("vae/config.json", "scaling_factor"),
    "groups": ("vae/config.json", "norm_num_groups"),
    "snr_shift": ("scheduler/scheduler_config.json", "snr_shift_scale"),
}
IS_ROTARY = {"sincos": False, "rope": True}  # of `position`, as the configuration says it
RENAMED = {"lora_alpha": "sat_lora_alpha"}  # fields that were called otherwise before -> now
PATHS = ("text_encoder", "vae", "tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What is said of a model that is not in the published layout; None is what its files say.

    What neither says is as in the most similar published model.

    Args:
      text_encoder: T5 of files that lack one, a file or the folder of one.
      vae: a VAE to use, a file or the folder of one.
      tokenizer: folder of the tokenizer; None is that of the text encoder, or one beside it.
      position: kind of the transformer's positions, sincos or rope, where its width is no published model's.
      sample_height: native height in latents, to which positions are scaled.
      sample_width: native width in latents.
      sample_frames: native count of pixel frames.
      text_length: tokens of a prompt.
      scaling_factor: of latents.
      groups: of the VAE's norms.
      snr_shift: of the noise schedule.
      sat_lora_alpha: alpha of the LoRA inside a model's own file of SAT's, which does not tell it; None is SAT's
        default, 1. It was called lora_alpha, and is not that of a LoRA in a file of its own.
      masters: of a folder of DeepSpeed's, take the optimizer's weights in float32, not those in 16 bit.
    Raises: ValueError, one sentence, for a value that cannot be.
    """

    text_encoder: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    position: str | None = None
    sample_height: int | None = None
    sample_width: int | None = None
    sample_frames: int | None = None
    text_length: int | None = None
    scaling_factor: float | None = None
    groups: int | None = None
    snr_shift: float | None = None
    sat_lora_alpha: float | None = None
    masters: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Given":
        """From keywords, `RENAMED` ones too; a path may be any path. Raises: TypeError for an unknown one, or both."""
        known, whole = [field.name for field in dataclasses.fields(cls)], dict[str, Any]()
        for name, value in said.items():
            now = RENAMED.get(name, name)
            if now not in known:
                raise TypeError(f"unknown option {name!r} of a model; the known ones are {', '.join(known)}")
            if whole.get(now) is not None and value is not None:
                raise TypeError(f"{name} is the old name of {now}; give {now} alone")
            if value is not None or now not in whole:
                whole[now] = os.fspath(value) if now in PATHS and isinstance(value, os.PathLike) else value
        return cls(**whole)

    def __post_init__(self):
        if self.position not in (None, *IS_ROTARY):
            raise ValueError(f"position must be {' or '.join(IS_ROTARY)}, got {self.position!r}")
        alpha = self.sat_lora_alpha
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6):
            raise ValueError(f"sat_lora_alpha must be a positive number, got {alpha!r}")
        for name in PATHS:
            if not isinstance(value := getattr(self, name), str | None) or value == "":
                raise ValueError(f"{name} must be the path or URL of a file or folder, got {value!r}")

    def without_parts(self) -> "Given":
        """What is said but for where the other parts are."""
        return dataclasses.replace(self, vae=None, text_encoder=None)

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return bool(self.said())

    def said(self) -> list[str]:
        """The names of the fields that say something."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]

    def of_document(self, path: str) -> dict[str, Any]:
        """What is said that belongs to a published configuration, by its names there."""
        found = {theirs: self._published(field) for field, (document, theirs) in FIELDS.items() if document == path}
        return {theirs: value for theirs, value in found.items() if value is not None}

    def _published(self, field: str) -> Any:
        value = getattr(self, field)
        return IS_ROTARY[value] if field == "position" and value is not None else value

    def __str__(self) -> str:
        """All that is said, the same for the same."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None}, sort_keys=True)


NOTHING = Given()
