"""The totals of the boards, by their own constants, and what is published of CogVideoX.

A score is normalised, (x - least) / (most - least) times its weight, and may then lie beyond 0 and 1. A group is the
sum of its scores over the sum of their weights; the total weighs the groups.

Source: `scripts/constant.py` and `scripts/cal_*_score.py` of VBench at 45e79ec, Apache-2.0.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Dimension:
    """How a score of a board counts."""

    least: float = 0.0
    most: float = 1.0
    weight: float = 1.0

    def __call__(self, score: float) -> float:
        return (score - self.least) / (self.most - self.least) * self.weight


@dataclasses.dataclass(frozen=True)
class Group:
    """Dimensions that are one number of the board, and how much that counts."""

    dimensions: Mapping[str, Dimension]
    weight: float = 1.0

    def score(self, scores: Mapping[str, float]) -> float:
        whole = sum(dimension.weight for dimension in self.dimensions.values())
        return sum(dimension(scores[name]) for name, dimension in self.dimensions.items()) / whole


SUBJECT, BACKGROUND = Dimension(0.1462), Dimension(0.2615)
SMOOTHNESS, DYNAMIC = Dimension(0.706, 0.9975), Dimension(weight=0.5)
PLAIN = Dimension()


def _plain(names: str) -> Group:
    return Group(dict.fromkeys(names.split(), PLAIN))


TOTALS: dict[str, dict[str, Group]] = {
    "vbench": {
        "quality": Group(
            {
                "subject_consistency": SUBJECT,
                "background_consistency": BACKGROUND,
                "temporal_flickering": Dimension(0.6293),
                "motion_smoothness": SMOOTHNESS,
                "dynamic_degree": DYNAMIC,
                "aesthetic_quality": PLAIN,
                "imaging_quality": PLAIN,
            },
            weight=4,
        ),
        "semantic": Group(
            {
                "object_class": PLAIN,
                "multiple_objects": PLAIN,
                "human_action": PLAIN,
                "color": PLAIN,
                "spatial_relationship": PLAIN,
                "scene": Dimension(0, 0.8222),
                "appearance_style": Dimension(0.0009, 0.2855),
                "temporal_style": Dimension(0, 0.364),
                "overall_consistency": Dimension(0, 0.364),
            }
        ),
    },
    "vbench-i2v": {
        "i2v": Group(
            {"camera_motion": Dimension(weight=0.1), "i2v_subject": SUBJECT, "i2v_background": BACKGROUND},
        ),
        "quality": Group(
            {
                "subject_consistency": SUBJECT,
                "background_consistency": BACKGROUND,
                "motion_smoothness": SMOOTHNESS,
                "dynamic_degree": DYNAMIC,
                "aesthetic_quality": PLAIN,
                "imaging_quality": PLAIN,
            }
        ),
    },
    "vbench2": {
        "creativity": _plain("composition diversity"),
        "commonsense": _plain("instance_preservation motion_rationality"),
        "controllability": _plain(
            "camera_motion complex_landscape complex_plot dynamic_attribute dynamic_spatial_relationship "
            "human_interaction motion_order_understanding"
        ),
        "human_fidelity": _plain("human_anatomy human_clothes human_identity"),
        "physics": _plain("material mechanics multi-view_consistency thermotics"),
    },
}

# Names that the boards' tables print, beside those of their tools.
ALIASES = {
    "video-text_camera_motion": "camera_motion",
    "video-image_subject_consistency": "i2v_subject",
    "video-image_background_consistency": "i2v_background",
    "multi_view_consistency": "multi-view_consistency",
}

_ORDER = [name for group in TOTALS["vbench"].values() for name in group.dimensions]


def _row(numbers: str) -> dict[str, float]:
    return dict(zip(_ORDER, (float(number) / 100 for number in numbers.split()), strict=True))


# VBench's board, sampled by SAT from the longer prompts; of 1.5, 84 frames. In the order of `TOTALS`.
PUBLISHED = {
    "2b": _row("96.78 96.63 98.89 97.73 59.86 60.82 61.68 83.37 62.63 98.00 79.41 69.90 51.14 24.80 24.36 26.66"),
    "5b": _row("96.23 96.52 98.66 96.92 70.97 61.98 62.90 85.23 62.11 99.40 82.81 66.35 53.20 24.91 25.38 27.59"),
    "1.5-5b": _row("96.87 97.35 98.88 98.31 50.93 62.79 65.02 87.47 69.65 97.20 87.55 80.25 52.91 24.89 25.19 27.30"),
}


def canonical(name: str) -> str:
    """A dimension's name, however a tool or a table writes it: "Human Action" is human_action."""
    plain = name.strip().lower().replace(" ", "_")
    return ALIASES.get(plain, plain)


def dimensions(board: str) -> list[str]:
    """All that a board's total needs."""
    return [name for group in TOTALS[board].values() for name in group.dimensions]


def missing(board: str, scores: Mapping[str, float]) -> list[str]:
    """What a board's total needs beside these scores."""
    return [name for name in dimensions(board) if name not in scores]


def totals(board: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The groups' scores and the total, fractions, of scores that are fractions.

    Raises: ValueError for missing dimensions, of which the board's own script makes 0.
    """
    if lacking := missing(board, scores):
        count = len(dimensions(board))
        raise ValueError(
            f"{count - len(lacking)} of the {count} dimensions of {board} are there, and a total of fewer is none; "
            f"missing: {', '.join(lacking)}"
        )
    groups = TOTALS[board]
    found = {name: group.score(scores) for name, group in groups.items()}
    whole = sum(group.weight for group in groups.values())
    return found | {"total": sum(found[name] * group.weight for name, group in groups.items()) / whole}


def guess_board(names: list[str]) -> str:
    """The board that most of these dimensions are of; of ties the first, which is VBench.

    Raises: ValueError where no board has any of them.
    """
    counts = {board: len(set(names) & set(dimensions(board))) for board in TOTALS}
    if not any(counts.values()):
        raise ValueError(f"no board has a dimension of these: {', '.join(names[:8]) or 'none are there'}")
    return max(counts, key=lambda board: counts[board])
