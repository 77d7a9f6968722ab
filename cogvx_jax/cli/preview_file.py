"""`--preview FILE`: an animation of what is being sampled, written anew while the steps go on."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cogvx_jax.cli.options import report
from cogvx_jax.pipelines.seldom import Seldom

if TYPE_CHECKING:
    from cogvx_jax.pipelines.model import Model
    from cogvx_jax.pipelines.on_step import Step

SHARE = 1 / 50  # of the time that previews take at most
KINDS = (".webp", ".gif")


def check_preview(file: Path, outs: Iterable[Path], *, one_program: bool, distributed: bool) -> None:
    """Raises: ValueError, one sentence, for a file of another kind or of a video, or where steps are not looked at."""
    if file.suffix.lower() not in KINDS:
        raise ValueError(f"a preview is a small animation, {' or '.join(KINDS)}; got {str(file)!r}")
    if os.path.realpath(file) in map(os.path.realpath, outs):
        raise ValueError(f"the preview and the video are both {str(file)!r}; give another file")
    if one_program or distributed:
        flag = "--one-program" if one_program else "--distributed"
        raise ValueError(f"steps are not looked at with {flag}; leave out the preview")


class PreviewFile:
    """A function for `on_step` that writes the first step's preview and the last one's, and those between it has time
    for.

    Args:
      model: whose colours are fitted here, if they are not kept already.
    """

    def __init__(self, model: "Model", file: Path, out_fps: float):
        from cogvx_jax.pipelines.previews import Preview

        self._preview, self._file = Preview(model), file
        self._fps = out_fps / model.spec.vae.temporal_compression
        self._seldom, self._writes = Seldom(SHARE), True

    def __call__(self, step: "Step") -> None:
        if self._writes and (self._seldom.due() or step.number == step.count):
            with self._seldom.doing():
                self._write(step)

    def _write(self, step: "Step") -> None:
        from cogvx_jax.data.video import VideoWriter

        try:
            with VideoWriter(self._file, self._fps) as writer:
                writer.write(self._preview(step)[0])
        except OSError as error:  # the video may still be made
            report(f"previews are not written ({error})")
            self._writes = False
