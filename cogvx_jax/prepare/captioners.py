"""Who answers questions about pictures: an endpoint of chat completions, or a model of transformers on this machine."""

import base64
import functools
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image

from cogvx_jax.prepare.questions import with_pictures
from cogvx_jax.prepare.settings import Captions
from cogvx_jax.prompting.chat import Chat, Endpoint

SIDE = 512  # pixels of the longer side of a picture that is sent
RETRIES = 4


class Captioner(Protocol):
    """Called by several threads at once."""

    @property
    def name(self) -> str:
        """Of the model, for the rows."""

    def __call__(self, text: str, frames: Sequence[np.ndarray], most: int) -> str:
        """The answer to a question about frames (H, W, 3) uint8, of at most `most` tokens.

        Raises: OSError where nobody answers.
        """


class Asked:
    """At an endpoint. Raises: as `prompting.chat.Chat`."""

    def __init__(self, settings: Captions):
        endpoint = Endpoint(url=settings.url, llm=settings.model)
        self.chat = Chat(endpoint, timeout=settings.timeout, retries=RETRIES)

    @property
    def name(self) -> str:
        return self.chat.llm

    def __call__(self, text: str, frames: Sequence[np.ndarray], most: int) -> str:
        return self.chat.answer(with_pictures(text, [data_url(frame) for frame in frames]), most)


class Local:
    """A folder that transformers opens as image-text-to-text, by torch. One question is answered at a time.

    Raises: FileNotFoundError; ValueError where it cannot be opened. Weights are safetensors alone, and no code of the
      folder is run.
    """

    def __init__(self, settings: Captions):
        check_folder(settings.local or "")
        try:
            import transformers

            self._pipe: Any = transformers.pipeline(  # type: ignore[call-overload]
                "image-text-to-text",
                model=settings.local,
                model_kwargs={"use_safetensors": True},
                trust_remote_code=False,
            )
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{settings.local} does not open as a model of image-text-to-text: {said}") from None
        self.name, self._alone = str(settings.local), threading.Lock()

    def __call__(self, text: str, frames: Sequence[np.ndarray], most: int) -> str:
        parts = [{"type": "image", "image": PIL.Image.fromarray(frame)} for frame in frames]
        talk = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        greedy = {"do_sample": False, "max_new_tokens": most}
        with self._alone:
            found = self._pipe(text=talk, return_full_text=False, generate_kwargs=greedy)
        return str(found[0]["generated_text"])


def check_folder(place: str) -> None:
    """Raises: FileNotFoundError where no folder is there, which transformers would look for elsewhere."""
    if not Path(place).is_dir():
        raise FileNotFoundError(f"there is no folder {place}; give that of a model of image-text-to-text")


def captioner(settings: Captions) -> Captioner | None:
    """Who is set; None where nobody is. Raises: as the classes do."""
    with _OPENING:  # threads that ask at the same time must not each read the model
        return _captioner(settings)


_OPENING = threading.Lock()


@functools.lru_cache(maxsize=1)
def _captioner(settings: Captions) -> Captioner | None:
    if settings.local is not None:
        return Local(settings)
    return None if settings.url is None else Asked(settings)


def data_url(frame: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data: URL, a JPEG."""
    picture, data = PIL.Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
