"""What `cogvx eval` prints: names that are wrong, scores, totals and comparisons, each as a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cogvx_jax.cli.options import report
from cogvx_jax.evaluation.checking import Checked
from cogvx_jax.evaluation.totals import PUBLISHED, dimensions, totals

if TYPE_CHECKING:
    from cogvx_jax.evaluation.compare import Difference
    from cogvx_jax.evaluation.run import Outcome
    from cogvx_jax.evaluation.scores import Score

SHOWN = 10  # names of a kind that are printed


def print_checked(found: Checked) -> None:
    """What is wrong with a folder, the first names of each kind."""
    kinds = {"missing": found.missing, "extra": found.extra, "unreadable": found.unreadable, "unlike": found.odd}
    for kind, names in kinds.items():
        for name in list(names)[:SHOWN]:
            print(f"{kind}: {name}" + (f": {names[name]}" if isinstance(names, dict) else ""))
        if len(names) > SHOWN:
            print(f"{kind}: and {len(names) - SHOWN} more")


def print_scores(found: "Outcome") -> None:
    """Each score with its interval and what it is; then what the others need."""
    width = max(map(len, (*found.scores, *found.not_computed)), default=0)
    for name, score in found.scores.items():
        low, high = score.about.get("interval", (None, None))
        between = "" if low is None else f"  {low:.5f} to {high:.5f}"
        count, asked = (score.about.get(key) for key in ("videos", "asked"))
        of = f"{count} of {asked}" if asked not in (None, count) else " and ".join(map(str, _listed(count)))
        print(f"{name:{width}}  {score.value:.5f}{between}, {of} videos  [{score.about['kind']}]")
        if "warning" in score.about:
            report(f"warning: {name}: {score.about['warning']}")
    for name, needed in found.not_computed.items():
        print(f"{name:{width}}  not computed: needs {needed}")


def doubt(found: Mapping[str, "Score"], board: str) -> None:
    """Says what may be wrong with scores that can be added up."""
    imaging = found.get("imaging_quality")
    if imaging is not None and 0 < imaging.value < 0.02:
        report("warning: imaging_quality is below 0.02; a run of several processes divides it by 100 twice")
    for name in dimensions(board):
        count, asked = (found[name].about.get(key) if name in found else None for key in ("videos", "asked"))
        if isinstance(count, int) and isinstance(asked, int) and count < asked:
            report(f"warning: {name} is of {count} of {asked} videos")
    flickering = found.get("temporal_flickering")
    if board == "vbench" and flickering is not None and flickering.about and not flickering.about.get("filtered"):
        report("warning: temporal_flickering is of videos that VBench's static filter did not choose; see --static")


def print_total(board: str, scores: Mapping[str, float], whole: Mapping[str, float]) -> None:
    """Scores and totals in percent, beside what is published of CogVideoX."""
    rows = dict(scores) | dict(whole)
    published = {model: row | totals(board, row) for model, row in PUBLISHED.items()} if board == "vbench" else {}
    width = max(map(len, rows))
    print(f"{board:{width}}  {'here':>7}" + "".join(f"  {model:>7}" for model in published))
    for name, value in rows.items():
        others = "".join(f"  {100 * row[name]:7.2f}" for row in published.values())
        print(f"{name:{width}}  {100 * value:7.2f}{others}")


def print_compared(found: Mapping[str, "Difference"]) -> None:
    """Each measure of both, the difference and its interval."""
    width = max(map(len, found))
    print(f"{'':{width}}  {'A':>9}  {'B':>9}  {'B - A':>9}  {'95% interval':>21}  prompts")
    for name, one in found.items():
        between = "" if one.low is None else f"{one.low:+.5f} to {one.high:+.5f}"
        left = f" ({one.left} in one only)" if one.left else ""
        numbers = f"{one.first:9.5f}  {one.second:9.5f}  {one.change:+9.5f}"
        print(f"{name:{width}}  {numbers}  {between:>21}  {one.prompts}{left}, {one.word()}")


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
