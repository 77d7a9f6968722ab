"""A prompt rewritten by a language model, at any endpoint that speaks OpenAI's chat completions.

The models were trained on long English descriptions, and a short prompt gives them little. Whatever its language, a
prompt becomes such a description. Source of the idea: the authors' `convert_demo.py`; wording and examples are our own.
"""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

from cogvx_jax.prompting.chat import Chat, Endpoint, cleaned
from cogvx_jax.prompting.wording import ENGLISH, Wording

TRIES = 3  # answers that may be empty or too long
SIDE = 1024  # pixels of a picture that is sent, at most
MAX_PROMPT = 4000  # characters of a prompt that is sent
# Where an answer may be cut, and what its parts are joined by: sentences and words, then letters of other scripts.
CUTS = ((r"(?<=[.!?]) ", " "), (" ", " "), (r"(?<=[。！？，；])", ""), (r"(?<=.)(?=.)", ""))


class Enhancer:
    """Rewrites prompts at one endpoint.

    Args:
      count: how many tokens a text has for the model that makes the video.
      limit: of these tokens; the encoder cuts what is beyond.
      wording: of the language that the model reads.
    Raises: ValueError where no endpoint is named, or the package openai is missing.
    """

    def __init__(self, endpoint: Endpoint, count: Callable[[str], int], limit: int, wording: Wording = ENGLISH):
        self._chat, self._count, self._limit, self._wording = Chat(endpoint), count, limit, wording

    @property
    def llm(self) -> str:
        """The name of the language model. Raises: as `__call__`, as the server may have to be asked."""
        return self._chat.llm

    def __call__(self, prompt: str, image: Any = None) -> str:
        """The description of a prompt, and of the first frame where there is one, that fits the limit of tokens.

        Args:
          image: what `read_image` takes.
        Raises: ValueError for a prompt that is empty or too long, or where no answer is of use; OSError where the
          endpoint cannot be reached or refuses.
        """
        if not prompt.strip() and image is None:
            raise ValueError("the prompt is empty; say what the video is to show, or give a picture")
        if len(prompt) > MAX_PROMPT:
            raise ValueError(f"a prompt to enhance may have {MAX_PROMPT:,} characters, got {len(prompt):,}")
        talk = self._wording.messages(prompt, None if image is None else data_url(image))
        best, words = "", int(self._limit * self._wording.unit)
        for _ in range(TRIES):
            answer = cleaned(self._chat.answer(talk, 2 * self._limit))
            if not answer:
                continue
            if self._count(answer) <= self._limit:
                return answer
            best, words = answer, int(words * 0.8)
            talk = [*talk, *self._wording.shorter(answer, words)]
        if not best:
            raise ValueError(f"{self.llm} gave no answer in {TRIES} tries; use another language model")
        return self._cut(best)

    def _cut(self, answer: str) -> str:
        """As many whole sentences as fit; of one that is too long, words or letters."""
        for mark, between in CUTS:
            parts = re.split(mark, answer)
            while parts and self._count(between.join(parts)) > self._limit:
                parts.pop()
            if any(parts):
                return between.join(parts)
        return answer[:1]


def enhance_prompt(
    model: Any,
    prompt: str,
    *,
    image: Any = None,
    url: str | None = None,
    key: str | None = None,
    llm: str | None = None,
) -> str:
    """A prompt as a long English description, in as many tokens as the model reads; by a language model.

    Args:
      model: of `cogvx_jax.load`, with its text encoder.
      image: the first frame, for image-to-video models: what `generate` takes.
      url, key, llm: of the endpoint; see `Endpoint`.
    Raises: as `Enhancer`.
    """
    count, limit = token_counter(model.tokenizer), model.spec.transformer.text_length
    return Enhancer(Endpoint(url=url, key=key, llm=llm), count, limit)(prompt, image)


def token_counter(tokenizer: Any) -> Callable[[str], int]:
    """How many tokens a text has, the one that ends it included."""
    return lambda text: len(tokenizer(text, verbose=False)["input_ids"])


def data_url(image: Any) -> str:
    """A picture as a data: URL, JPEG of at most `SIDE` pixels a side. Raises: as `read_image`."""
    import PIL.Image

    from cogvx_jax.data.pictures import read_image

    picture, data = PIL.Image.fromarray(read_image(image)), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(data, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
