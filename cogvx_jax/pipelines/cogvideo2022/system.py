"""CogVideo (2022) in memory: three transformers that share a base, both tokenizers, the table of clusters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cogvx_jax.models.cogvideo2022.abstract import network_of
from cogvx_jax.models.cogvideo2022.configs import (
    CogVideo2022Config,
    ImageTokenizerConfig,
    SuperResolutionConfig,
)
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.super_resolution import SuperResolution
from cogvx_jax.models.cogvideo2022.transformer import CogVideo2022
from cogvx_jax.pipelines.cogvideo2022.clusters import Clusters
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer

SEQUENTIAL, INTERPOLATION, SUPER_RESOLUTION = "sequential", "interpolation", "super_resolution"


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """All parts.

    Attributes:
      stages: configurations by stage; those but "sequential" may be absent.
      params: parameters by stage. The arrays of the base are the same objects in all of them.
      settings: defaults of a video, fields of `Settings`; none are the reference's.
      dtype: to compute in.
    """

    stages: Mapping[str, CogVideo2022Config]
    params: Mapping[str, Mapping[str, Any]]
    tokenizer: TextTokenizer
    clusters: Clusters
    image_tokenizer: ImageTokenizerConfig
    image_params: Mapping[str, Any]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for stage, cfg in self.stages.items():
            if self.tokenizer.size > cfg.vocab or self.tokenizer.start_of_image != cfg.start_of_image:
                raise ValueError(
                    f"{self.tokenizer.where} has {self.tokenizer.size} ids and {self.tokenizer.start_of_image} for the "
                    f"start of an image; the {stage} transformer has {cfg.vocab} and {cfg.start_of_image}"
                )

    def network(self, stage: str) -> CogVideo2022:
        """The transformer of a stage that makes codes one after the other."""
        network = network_of(self._config(stage), self.dtype)
        assert isinstance(network, CogVideo2022)
        return network

    @property
    def super_resolution(self) -> SuperResolution:
        """The transformer that makes frames larger."""
        cfg = self._config(SUPER_RESOLUTION)
        assert isinstance(cfg, SuperResolutionConfig)
        return SuperResolution(cfg, self.dtype)

    @property
    def images(self) -> ImageTokenizer:
        return ImageTokenizer(self.image_tokenizer)

    def _config(self, stage: str) -> CogVideo2022Config:
        if stage not in self.stages:
            there = ", ".join(self.stages)
            raise ValueError(f"this CogVideo has no {stage} stage, only {there}")
        return self.stages[stage]
