"""The frames of a request to CogVideo (2022), as they are made."""

from collections.abc import Iterator

import numpy as np

from cogvx_jax.pipelines.cogvideo2022.generate import Told, enlarge, make_codes, to_pixels, untold
from cogvx_jax.pipelines.cogvideo2022.load import picture_codes
from cogvx_jax.pipelines.cogvideo2022.request import VideoRequest
from cogvx_jax.pipelines.cogvideo2022.system import System


def frames_of(system: System, request: VideoRequest, index: int = 0, *, told: Told = untold) -> Iterator[np.ndarray]:
    """The frames of video `index` of a request, one at a time, (1, H, W, 3) uint8, as they are made.

    Args:
      told: is called with the number of frames whose codes were just made: of those that `frames_to_make` counts.
    Raises: as `make_codes`.
    """
    how, prompts = request.settings, request.prompts
    first = None
    if request.first is not None:
        first = np.repeat(picture_codes(system, request.first), len(prompts), axis=0)
    codes = make_codes(system, prompts, how, seed=request.seed, first=first, told=told)
    for number in range(codes.shape[1]):
        one = codes[index : index + 1, number : number + 1]
        if request.large:
            one = enlarge(
                system, prompts[index : index + 1], one, how, seed=request.seed, first=index * len(codes[0]) + number
            )
            told(1)
        yield to_pixels(system, one)[0]


def frames_to_make(request: VideoRequest) -> int:
    """How many frames' codes are made for a request, small and large ones."""
    frames, given = int(request.asked.frames), request.first is not None
    return len(request.prompts) * (frames - given) + frames * request.large
