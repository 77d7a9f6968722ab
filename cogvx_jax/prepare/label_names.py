"""The names of the six labels, and of the scores that tell them."""

LABELS = ("editing", "static", "low_quality", "lecture", "text", "screenshot")
# What the rules and the head read of a row.
SCORES = (
    "cut_scores",
    "border_area",
    "logo_area",
    "sharpness",
    "exposure",
    "clipped",
    "contrast",
    "blockiness",
    "brisque",
    "freeze_share",
    "shake",
    "motion_mean",
    "motion_top5",
    "motion_speed",
    "motion_static_share",
    "motion_area",
    "motion_place",
    "camera_shift",
    "text_area",
    "text_share_frames",
)
