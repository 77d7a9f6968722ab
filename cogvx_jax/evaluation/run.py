"""All scores of a folder of videos that can be computed here, and what the others need."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.evaluation.folders import composed, find_videos, prompt_of
from cogvx_jax.evaluation.frames import open_frames
from cogvx_jax.evaluation.kept import Kept
from cogvx_jax.evaluation.measures import AS_THE_PACKAGE, MEASURES, Measure, elsewhere
from cogvx_jax.evaluation.samples import Sample
from cogvx_jax.evaluation.scores import MAX_BYTES, Score, VideoScore
from cogvx_jax.evaluation.setup import Judged, Setup
from cogvx_jax.json_files import read_json
from cogvx_jax.metrics import frechet_distance, squared_mmd
from cogvx_jax.metrics.feature_functions import video_features

SETS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "frechet_distance": frechet_distance,
    "squared_mmd": squared_mmd,
}
FLICKERING, STATIC = "temporal_flickering", "static_share_dis"
FILTERED = f"{FLICKERING}_static_dis"  # of the videos that the proxy of the static filter lets pass
NAMES = [*(measure.name for measure in MEASURES), FILTERED, *SETS]


@dataclasses.dataclass
class Outcome:
    """What was computed of a folder.

    Attributes:
      scores: by the names that files of scores have.
      not_computed: what the others need.
      failed: the videos that could not be scored, by measure and name, with what is wrong.
    """

    scores: dict[str, Score] = dataclasses.field(default_factory=dict)
    not_computed: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)


def judged_videos(folder: Path, samples: Sequence[Sample] | None, references: Mapping[str, Path]) -> list[Judged]:
    """The videos of a folder that are scored: those of a board, or all where `samples` is None.

    Raises: as `find_videos`; ValueError where none is there.
    """
    there = find_videos(folder)
    if samples is None:
        found = [Judged(name, path, prompt_of(name), reference=references.get(name)) for name, path in there.items()]
    else:
        found = [
            Judged(name, there[name], one.prompt, one.dimensions, one.index, references.get(name))
            for one in samples
            if (name := composed(one.name)) in there
        ]
    if not found:
        raise ValueError(f"{folder} holds none of the videos" if there else f"{folder} holds no videos")
    return found


def run(
    folder: Path,
    samples: Sequence[Sample] | None,
    setup: Setup,
    only: Sequence[str] = (),
    on_video: Callable[[str, str], object] = lambda measure, video: None,
) -> Outcome:
    """Scores a folder of videos.

    Args:
      samples: of a board, each with its dimensions; None scores every video by every measure.
      only: names of `NAMES`; none is all.
      on_video: called with the measure's and the video's name after each.
    Raises: ValueError for an unknown name, and as `judged_videos`.
    """
    if unknown := [name for name in only if name not in NAMES]:
        raise ValueError(f"there is no measure {unknown[0]}; they are {', '.join(NAMES)}")
    videos, kept, outcome = judged_videos(folder, samples, setup.references), Kept(folder), Outcome()
    for measure in MEASURES:
        if only and measure.name not in only:
            continue
        if (needed := measure.needs(setup)) is not None:
            outcome.not_computed[measure.name] = needed
            continue
        chosen = [video for video in videos if measure.is_of(video, setup)]
        own = _score_all(measure, chosen, setup, kept, outcome, on_video)
        if own:
            asked = _asked(measure, samples, setup, len(chosen))
            outcome.scores[measure.key(setup)] = _score(measure, own, setup, asked)
    if (not only or FILTERED in only) and FLICKERING not in outcome.not_computed:
        _filtered(videos, setup, kept, outcome, on_video)
    if wanted := [name for name in SETS if not only or name in only]:
        _compare_sets(wanted, videos, setup, outcome, on_video)
    if not only:
        dimensions = dict.fromkeys(dimension for one in samples or () for dimension in one.dimensions)
        outcome.not_computed |= {name: needed for name in dimensions if (needed := elsewhere(name)) is not None}
    return outcome


def _score_all(
    measure: Measure,
    videos: Sequence[Judged],
    setup: Setup,
    kept: Kept,
    outcome: Outcome,
    on_video: Callable[[str, str], object],
) -> list[VideoScore]:
    """The scores of videos; those that fail are noted."""
    found = list[VideoScore]()
    for video in videos:
        try:
            value, weight = kept.score(measure, video, setup)
            found.append(VideoScore(video.name, value, weight, video.prompt))
        except (ValueError, OSError) as error:
            outcome.failed.setdefault(measure.name, {})[video.name] = str(error)
        on_video(measure.name, video.name)
    return found


def _score(measure: Measure, videos: Sequence[VideoScore], setup: Setup, asked: int) -> Score:
    # The order of VBench's own sums, so that its number comes out to the last bit.
    if all(one.weight == 1 for one in videos):
        value = float(np.mean([one.value for one in videos]))
    else:
        value = sum(one.value * one.weight for one in videos) / sum(one.weight for one in videos)
    about: dict[str, Any] = {"kind": measure.kind, "measure": measure.about, "version": measure.version}
    about["asked"] = asked  # videos, whether they are there or not
    if measure.name == FLICKERING and setup.static is not None:
        about["filtered"] = True
    if measure.kind == "features":
        names = dataclasses.asdict(setup.encoders)
        about["features"] = {flag: name for flag, name in names.items() if isinstance(name, str)}
    return _told(Score(value, tuple(videos), about))


def _told(score: Score) -> Score:
    """With the interval of the mean, and how many videos and prompts it is of."""
    interval = score.interval()
    if interval is None:
        return score
    more = {"interval": [interval.low, interval.high], "videos": len(score.videos), "prompts": interval.groups}
    return dataclasses.replace(score, about={**score.about, **more})


def _asked(measure: Measure, samples: Sequence[Sample] | None, setup: Setup, there: int) -> int:
    if samples is None or measure.kind == "reference":
        return there
    every = [Judged(composed(one.name), Path(), one.prompt, one.dimensions, one.index) for one in samples]
    return sum(measure.is_of(video, setup) for video in every)


def _filtered(
    videos: Sequence[Judged], setup: Setup, kept: Kept, outcome: Outcome, on_video: Callable[[str, str], object]
) -> None:
    """Flickering of the first five of each prompt that are static by DIS, in the order of VBench's filter."""
    measures = {measure.name: measure for measure in MEASURES}
    own = [video for video in videos if measures[STATIC].is_of(video, setup)]
    passed = list[Judged]()
    for _, group in itertools.groupby(sorted(own, key=lambda one: (one.prompt, one.name)), key=lambda one: one.prompt):
        some = list(group)
        found = _score_all(measures[STATIC], some, setup, kept, outcome, lambda *_: None)
        names = [one.name for one in found if one.value][:AS_THE_PACKAGE]
        passed += [video for video in some if video.name in names]
    if own and not passed:
        outcome.not_computed[FILTERED] = f"a video that is static by DIS; none of {len(own)} is"
    if found := _score_all(measures[FLICKERING], passed, setup, kept, outcome, on_video):
        words = "temporal_flickering of the videos that static_share_dis lets pass"
        proxy = dataclasses.replace(measures[FLICKERING], kind="proxy", about=words)
        outcome.scores[FILTERED] = _score(proxy, found, setup, len(passed))


def _compare_sets(
    names: Sequence[str],
    videos: Sequence[Judged],
    setup: Setup,
    outcome: Outcome,
    on_video: Callable[[str, str], object],
) -> None:
    """Distances of the set of all videos and that of all references."""
    function = setup.encoders.video_features
    lacking = [] if function else ["--video-features MODULE:FUNCTION"]
    lacking += [] if setup.references else ["--reference FOLDER, the other set"]
    if lacking or function is None:
        outcome.not_computed |= dict.fromkeys(names, " and ".join(lacking))
        return
    sides = [{video.name: video.path for video in videos}, dict(setup.references)]
    features = []
    for files in sides:
        rows = list[np.ndarray]()
        for name, path in files.items():
            try:
                frames = np.stack(list(itertools.islice(open_frames(path).frames, setup.encoders.video_frames)))
                rows.append(video_features(function, frames))
            except (ValueError, OSError) as error:
                outcome.failed.setdefault(names[0], {})[str(path)] = str(error)
            on_video(names[0], name)
        if len(rows) < 2:
            outcome.not_computed |= dict.fromkeys(names, "two videos or more on each side")
            return
        features.append(np.stack(rows))
    counts, size = [len(one) for one in features], features[0].shape[1]
    about: dict[str, Any] = {"kind": "set", "features": function, "videos": counts, "dimensions": size}
    about["frames"] = setup.encoders.video_frames
    for name in names:
        own = dict(about)
        if name == "frechet_distance" and min(counts) <= size:
            own["warning"] = f"{min(counts)} videos give a singular covariance of {size} features; take more videos"
        outcome.scores[name] = Score(SETS[name](*features), (), own)


def read_static(path: Path) -> frozenset[str]:
    """Names of the videos that VBench's static filter kept, of the file that it writes.

    Raises: FileNotFoundError; ValueError, with the file's name, for what is no such file.
    """
    kept = list[str]()
    for row in read_json(path, limit=MAX_BYTES).values():
        paths = row.get("static_path") if isinstance(row, dict) else None
        if not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
            raise ValueError(f"{path} is no file of VBench's static filter: a prompt has no list static_path")
        kept += paths[:AS_THE_PACKAGE]
    return frozenset(composed(Path(one).name) for one in kept)
