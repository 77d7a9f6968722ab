"""Which features scores are made of; `metrics.feature_functions` computes them. No weights come with this package."""

import dataclasses

from cogvx_jax.metrics.feature_functions import is_folder, of_frames, of_texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoders:
    """What computes features: MODULE:FUNCTION each, of which the module may lie in the working folder.

    Those of frames and prompts may also be the folder of a CLIP, as transformers saves it.

    Args:
      subject_features: of frames, for subject consistency; VBench's are of DINO ViT-B/16.
      background_features: of frames, for background consistency; VBench's are of CLIP ViT-B/32.
      clip_features: of frames, for CLIPScore.
      text_features: of prompts, for CLIPScore; None is the CLIP of `clip_features`, where that is a folder.
      video_features: of a whole video, for the Fréchet distance (FVD where they are of I3D) and MMD.
      video_frames: from the beginning of each video that these see.
      board_features: the functions for consistency are the board's networks, so that `eval total` takes their scores.
    """

    subject_features: str | None = None
    background_features: str | None = None
    clip_features: str | None = None
    text_features: str | None = None
    video_features: str | None = None
    video_frames: int = 16
    board_features: bool = False

    def __post_init__(self) -> None:
        if self.video_frames < 1:
            raise ValueError(f"video_frames must be at least 1, got {self.video_frames}")
        if self.text_features is None and self.clip_features is not None and is_folder(self.clip_features):
            object.__setattr__(self, "text_features", self.clip_features)
        if (self.clip_features is None) != (self.text_features is None):
            raise ValueError("CLIPScore is of frames and prompts; give both clip_features and text_features")

    def check(self) -> None:
        """Raises: ValueError for a name that stands for no function and no CLIP."""
        for field in dataclasses.fields(self):
            if field.name.endswith("_features") and isinstance(name := getattr(self, field.name), str):
                (of_texts if field.name == "text_features" else of_frames)(name)
