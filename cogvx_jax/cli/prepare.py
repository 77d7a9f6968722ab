"""`cogvx prepare`: films to a training set, its report, selections, and heads for labels."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cogvx_jax.cli.actions import one_of

Source = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
Set = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
Names = Annotated[str | None, tyro.conf.arg(metavar="STEP,...")]
DEFAULT = "films"  # the action that needs no name


def films(
    src: Source,
    /,
    *,
    out: Path,
    steps: Names = None,
    config: Path | None = None,
    detector: Literal["scdet", "content", "adaptive", "transnetv2"] | None = None,
    labels: Literal["rules", "vlm", "head"] | None = None,
    label_head: str | None = None,
    captions: str | None = None,
    caption_model: str | None = None,
    model: str | None = None,
    engine: Literal["process", "daft"] = "process",
) -> None:
    """Cuts films into clips, scores, labels, describes and writes them. `cogvx prepare films SRC` is the same.

    What is done is kept in DIR/prepare.sqlite: the same command goes on after Ctrl-C, and does only what is new.

    Args:
      src: a film, a folder of them, or a .json or .jsonl list, ours, VideoX-Fun's or data-juicer's.
      out: the folder of the set: films.jsonl, clips.jsonl and clips/.
      steps: some of probe, shots, borders, duplicates, quality, motion, text, aesthetic, embedding, labels, captions,
        check and write, such as probe,shots,motion,write. None is all.
      config: a .toml file with a table for each step that is set; docs/prepare.md lists what can be.
      detector: of scene cuts: ffmpeg's scdet, PySceneDetect's content or adaptive, TransNetV2.
      labels: where the six labels come from: rules, one answer of the captions' model, or a head of `fit-labels`.
      label_head: the file of that head.
      captions: URL of an endpoint of chat completions that sees, such as http://localhost:8000/v1.
      caption_model: name of its language model; None is the only one that it has.
      model: as for `train`; captions are counted in its tokens.
      engine: this process, or Daft, which does films at the same time.
    """
    from cogvx_jax.prepare.run import prepare
    from cogvx_jax.prepare.settings import read_settings

    settings = read_settings(
        config,
        [name.strip() for name in steps.split(",")] if steps else (),
        shots={"detector": detector},
        labels={"source": labels, "head": label_head},
        captions={"url": captions, "model": caption_model, "tokenizer": model},
    )
    counts = prepare(src, out, settings, _report, "" if engine == "process" else engine)
    print(f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


def report(folder: Set, /, *, where: str | None = None, out: Path | None = None) -> None:
    """Writes a page about a set: counts and hours per reason, histograms, and frames of clips near each threshold.

    Args:
      folder: of the set.
      where: as for `select`; None has thresholds that docs/prepare.md names.
      out: an .html file; None is DIR/report.html.
    """
    from cogvx_jax.prepare.report import write_report

    target = out or folder / "report.html"
    for line in write_report(folder, where, target):
        print(line)
    print(f"{target}: open it in a browser")


def select(
    folder: Set,
    /,
    *,
    out: Path,
    where: str | None = None,
    prompt: str | None = None,
    copies: bool = False,
) -> None:
    """Writes the clips that an expression chooses, as a list that `cogvx train --data` takes. Nothing is deleted.

    Args:
      folder: of the set.
      out: a .jsonl file; .json is VideoX-Fun's list, .parquet a table, .tar webdataset.
      where: such as "motion_mean > 1 and text_area < 0.02 and static < 0.5". A comparison with a score that is missing
        is not true.
      prompt: of clips without a caption, which are left out otherwise.
      copies: choose clips that are copies of others, too.
    """
    from cogvx_jax.prepare.select import select as choose

    counts = choose(folder, where, out, prompt, copies)
    left = [f"{counts.without_prompt} without a caption"] * bool(counts.without_prompt)
    left += [f"{counts.without_video} that were not written"] * bool(counts.without_video)
    more = f"; left out were {' and '.join(left)}" if left else ""
    print(f"{out}: {counts.chosen} of {counts.clips} clips{more}")


def fit_labels(
    folder: Set,
    csv: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CSV")],
    /,
    *,
    out: Path,
    on: Literal["scores", "embedding", "both"] = "scores",
) -> None:
    """Trains a head for the labels on a set's clips and a hand-labelled table, and prints its held-out accuracy.

    The table has a line for each clip: clip_id, and 0 or 1 for any of editing, static, low_quality, lecture, text and
    screenshot. The accuracy of the set's own labels is printed beside it.

    Args:
      folder: of the set.
      csv: the table.
      out: a .json file, for --label-head.
      on: what it reads of a clip: its scores, the vector of the step embedding, or both.
    """
    from cogvx_jax.prepare.label_head import fit

    for line in fit(folder, csv, out, on):
        print(line)


def _report(line: str) -> None:
    print(f"cogvx: {line}" if line.startswith("skipped") else line, file=sys.stderr, flush=True)


ACTIONS: Mapping[str, Callable[..., None]] = {
    DEFAULT: films,
    "report": report,
    "select": select,
    "fit-labels": fit_labels,
}


def prepare(action: Any) -> None:
    """Films to clips with scores, labels and captions; reports about them, and selections."""
    action()


prepare.__annotations__["action"] = one_of(ACTIONS)
