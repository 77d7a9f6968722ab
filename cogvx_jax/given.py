"""What a user may say of a model beside its files: where its other parts are, and what no file of them tells."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Field of `Given` -> the published configuration it belongs to, and its name there.
FIELDS = {
    "sample_height": ("transformer/config.json", "sample_height"),
    "sample_width": ("transformer/config.json", "sample_width"),
    "sample_frames": ("transformer/config.json", "sample_frames"),
    "text_length": ("transformer/config.json", "max_text_seq_length"),
    "scaling_factor": ("vae/config.json", "scaling_factor"),
    "groups": ("vae/config.json", "norm_num_groups"),
    "snr_shift": ("scheduler/scheduler_config.json", "snr_shift_scale"),
}


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
      lora_alpha: of the LoRA that a file of SAT's holds beside its weights, which does not tell it; SAT's default is 1.
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
    lora_alpha: float = 1.0
    masters: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Given":
        """From keywords; a path may be any path. Raises: TypeError for an unknown one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in said:
            if name not in known:
                raise TypeError(f"unknown option {name!r} of a model; the known ones are {', '.join(known)}")
        paths = ("text_encoder", "vae", "tokenizer")
        whole: dict[str, Any] = {n: str(v) if n in paths and isinstance(v, Path) else v for n, v in said.items()}
        return cls(**whole)

    def __post_init__(self):
        if self.position not in (None, "sincos", "rope"):
            raise ValueError(f"position must be sincos or rope, got {self.position!r}")
        if not isinstance(self.lora_alpha, int | float) or not 0 < self.lora_alpha < 1e6:
            raise ValueError(f"lora_alpha must be a positive number, got {self.lora_alpha!r}")

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return self != Given()

    def of_document(self, path: str) -> dict[str, Any]:
        """What is said that belongs to a published configuration, by its names there."""
        found = {theirs: getattr(self, field) for field, (document, theirs) in FIELDS.items() if document == path}
        return {theirs: value for theirs, value in found.items() if value is not None}

    def __str__(self) -> str:
        """All that is said, the same for the same."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None}, sort_keys=True)


NOTHING = Given()
