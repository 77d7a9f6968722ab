"""A language model at any endpoint that speaks OpenAI's chat completions."""

import contextlib
import dataclasses
import importlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from cogvx_jax.prompting.wording import Message

URL, KEY, LLM = "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"  # variables of the environment
DEFAULT_LLM = "gpt-4o-mini"  # at OpenAI's own endpoint
NO_KEY = "none"  # for servers that want none; the client insists on one
TIMEOUT = 120.0  # seconds
RETRIES = 2  # of an answer with status 408, 409, 429 or 5xx, after what the server says or longer and longer
MOST_BYTES = 4 * 2**20  # of an answer
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


class Chat:
    """Answers of one endpoint; several threads may ask.

    Attributes:
      tokens: of questions and of answers so far, as the server counts them.
    Raises: ValueError where no endpoint is named, or the package openai is missing.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float = TIMEOUT, retries: int = RETRIES):
        self._endpoint = endpoint.filled()
        self._openai = _package()
        self._client = self._openai.OpenAI(
            base_url=self._endpoint.url,
            api_key=self._endpoint.key,
            timeout=timeout,
            max_retries=retries,
            http_client=_bounded_client(self._openai),
        )
        self._llm = self._endpoint.llm
        self._plain = False  # whether the endpoint takes no settings beside the messages
        self._lock = threading.Lock()
        self.tokens = [0, 0]

    @property
    def llm(self) -> str:
        """The name of the language model. Raises: as `answer`, as the server may have to be asked."""
        with self._lock:
            if self._llm is None:
                self._llm = DEFAULT_LLM if self._endpoint.url is None else self._only_one()
            return self._llm

    def answer(self, talk: Sequence[Message], most: int) -> str:
        """The text of one answer; "" where there is none.

        Args:
          most: tokens that it may have.
        Raises: OSError, one sentence, where the endpoint cannot be reached or refuses.
        """
        settings: dict[str, Any] = {} if self._plain else {"temperature": 0.0, "max_tokens": most}
        llm = self.llm
        with self._told():
            try:
                found = self._client.chat.completions.create(model=llm, messages=talk, **settings)  # type: ignore[call-overload]
            except self._openai.BadRequestError as error:
                if self._plain or not re.search("temperature|max_tokens|max_completion_tokens", str(error)):
                    raise
                self._plain = True  # models that think take none of them
                return self.answer(talk, most)
        self._count(found)
        message = found.choices[0].message if getattr(found, "choices", None) else None
        text = getattr(message, "content", None)
        return text if isinstance(text, str) else ""

    def _count(self, found: Any) -> None:
        used = getattr(found, "usage", None)
        for n, name in enumerate(("prompt_tokens", "completion_tokens")):
            count = getattr(used, name, None)
            if isinstance(count, int):
                with self._lock:
                    self.tokens[n] += count

    def _only_one(self) -> str:
        with self._told():
            names = [model.id for model in self._client.models.list().data]
        if len(names) != 1:
            shown = ", ".join(names[:5]) or "none"
            raise ValueError(f"{self._endpoint.url} has several language models; name one, of {shown}")
        return names[0]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Inside, what the client raises becomes one sentence, an OSError."""
        try:
            yield
        except (self._openai.OpenAIError, TypeError, AttributeError, ValueError) as error:
            if type(error) is ValueError and "language model" in str(error):
                raise
            said = " ".join(str(error).split())[:200]
            where = self._endpoint.url or "api.openai.com"
            raise OSError(f"the language model at {where} did not answer: {said}") from None


def cleaned(answer: str) -> str:
    """An answer as one line, without what models put around it."""
    text = THOUGHT.sub("", answer).strip().removeprefix("```text").strip("`")
    return " ".join(text.split()).strip("\"“”' ")


def _bounded_client(openai: Any) -> Any:
    """The client of HTTP, which reads no more than `MOST_BYTES` of an answer."""
    http = _http_of(openai)

    class Bounded(http.SyncByteStream):  # type: ignore[name-defined]
        def __init__(self, stream: Any):
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for chunk in self._stream:
                count += len(chunk)
                if count > MOST_BYTES:
                    raise http.ReadError(f"the answer has more than {MOST_BYTES} bytes")
                yield chunk

        def close(self) -> None:
            self._stream.close()

    class Transport(http.HTTPTransport):  # type: ignore[name-defined]
        def handle_request(self, request: Any) -> Any:
            response = super().handle_request(request)
            response.stream = Bounded(response.stream)
            return response

    return http.Client(transport=Transport(), follow_redirects=False)


def _http_of(openai: Any) -> Any:
    """The package under openai's own client, whose errors it knows: httpx or, from 3 on, httpx2."""
    modules = (base.__module__.partition(".")[0] for base in openai.DefaultHttpxClient.__mro__)
    return importlib.import_module(next(name for name in modules if name.startswith("httpx")))


def _package() -> Any:
    try:
        import openai
    except ImportError:
        raise ValueError("to enhance prompts needs the package openai: pip install 'cogvx_jax[enhance]'") from None
    return openai
