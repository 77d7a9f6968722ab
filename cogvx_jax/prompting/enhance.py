"""A prompt rewritten by a language model, at any endpoint that speaks OpenAI's chat completions.

The models were trained on long English descriptions, and a short prompt gives them little. Whatever its language, a
prompt becomes such a description. Source of the idea: the authors' `convert_demo.py`; wording and examples are our own.
"""

import base64
import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from cogvx_jax.prompting.wording import ENGLISH, Message, Wording

URL, KEY, LLM = "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"  # variables of the environment
DEFAULT_LLM = "gpt-4o-mini"  # at OpenAI's own endpoint
NO_KEY = "none"  # for servers that want none; the client insists on one
TRIES = 3  # answers that may be empty or too long
TIMEOUT = 120.0  # seconds
SIDE = 1024  # pixels of a picture that is sent, at most
MAX_PROMPT = 4000  # characters of a prompt that is sent
# Where an answer may be cut, and what its parts are joined by: sentences and words, then letters of other scripts.
CUTS = ((r"(?<=[.!?]) ", " "), (" ", " "), (r"(?<=[。！？，；])", ""), (r"(?<=.)(?=.)", ""))
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)  # which some servers leave in the answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a language model answers; None is what the environment says.

    Args:
      url: such as http://localhost:8000/v1 of vLLM, SGLang, Ollama or llama.cpp; None is OPENAI_BASE_URL, or OpenAI's.
      key: None is OPENAI_API_KEY, which servers of one's own may not need.
      llm: name of the language model; None is OPENAI_MODEL, or the only one that the server has.
    """

    url: str | None = None
    key: str | None = dataclasses.field(default=None, repr=False)
    llm: str | None = None

    def filled(self) -> "Endpoint":
        """With what the environment says. Raises: ValueError where it names no endpoint."""
        url, key = self.url or os.environ.get(URL) or None, self.key or os.environ.get(KEY) or None
        if url is None and key is None:
            raise ValueError(
                f"no language model is named: set {KEY}, or {URL} to a server such as http://localhost:8000/v1"
            )
        return Endpoint(url=url, key=key or NO_KEY, llm=self.llm or os.environ.get(LLM) or None)


def has_endpoint() -> bool:
    """Whether the environment names one."""
    return bool(os.environ.get(URL) or os.environ.get(KEY))


class Enhancer:
    """Rewrites prompts at one endpoint.

    Args:
      count: how many tokens a text has for the model that makes the video.
      limit: of these tokens; the encoder cuts what is beyond.
      wording: of the language that the model reads.
    Raises: ValueError where no endpoint is named, or the package openai is missing.
    """

    def __init__(self, endpoint: Endpoint, count: Callable[[str], int], limit: int, wording: Wording = ENGLISH):
        self._endpoint, self._count, self._limit, self._wording = endpoint.filled(), count, limit, wording
        self._openai = _package()
        self._client = self._openai.OpenAI(
            base_url=self._endpoint.url, api_key=self._endpoint.key, timeout=TIMEOUT, max_retries=2
        )
        self._llm = self._endpoint.llm
        self._plain = False  # whether the endpoint takes no settings beside the messages

    @property
    def llm(self) -> str:
        """The name of the language model. Raises: as `__call__`, as the server may have to be asked."""
        if self._llm is None:
            self._llm = DEFAULT_LLM if self._endpoint.url is None else self._only_one()
        return self._llm

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
            answer = cleaned(self._answer(talk))
            if not answer:
                continue
            if self._count(answer) <= self._limit:
                return answer
            best, words = answer, int(words * 0.8)
            talk = [*talk, *self._wording.shorter(answer, words)]
        if not best:
            raise ValueError(f"{self.llm} gave no answer in {TRIES} tries; use another language model")
        return self._cut(best)

    def _answer(self, talk: list[Message]) -> str:
        """The text of one answer; "" where there is none."""
        settings: dict[str, Any] = {} if self._plain else {"temperature": 0.0, "max_tokens": 2 * self._limit}
        with _told(self._openai, self._endpoint.url):
            try:
                found = self._client.chat.completions.create(model=self.llm, messages=talk, **settings)
            except self._openai.BadRequestError as error:
                if self._plain or not re.search("temperature|max_tokens|max_completion_tokens", str(error)):
                    raise
                self._plain = True  # models that think take none of them
                return self._answer(talk)
        return (found.choices[0].message.content or "") if found.choices else ""

    def _only_one(self) -> str:
        with _told(self._openai, self._endpoint.url):
            names = [model.id for model in self._client.models.list().data]
        if len(names) != 1:
            shown = ", ".join(names[:5]) or "none"
            raise ValueError(f"{self._endpoint.url} has several language models; name one, of {shown}")
        return names[0]

    def _cut(self, answer: str) -> str:
        """As many whole sentences as fit; of one that is too long, words or letters."""
        for mark, between in CUTS:
            parts = re.split(mark, answer)
            while parts and self._count(between.join(parts)) > self._limit:
                parts.pop()
            if any(parts):
                return between.join(parts)
        return answer[:1]


@contextlib.contextmanager
def _told(openai: Any, url: str | None) -> Iterator[None]:
    """Inside, what the client raises becomes one sentence, an OSError."""
    try:
        yield
    except openai.OpenAIError as error:
        said = " ".join(str(error).split())[:200]
        raise OSError(f"the language model at {url or 'api.openai.com'} did not answer: {said}") from None


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


def cleaned(answer: str) -> str:
    """An answer as one line, without what models put around it."""
    text = THOUGHT.sub("", answer).strip().removeprefix("```text").strip("`")
    return " ".join(text.split()).strip("\"“”' ")


def data_url(image: Any) -> str:
    """A picture as a data: URL, JPEG of at most `SIDE` pixels a side. Raises: as `read_image`."""
    import PIL.Image

    from cogvx_jax.data.pictures import read_image

    picture, data = PIL.Image.fromarray(read_image(image)), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(data, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _package() -> Any:
    try:
        import openai
    except ImportError:
        raise ValueError("to enhance prompts needs the package openai: pip install 'cogvx_jax[enhance]'") from None
    return openai
