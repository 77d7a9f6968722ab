"""The verb `cogvx enhance`, and what other verbs need of it."""

from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.options import GivenFlags, ModelFlags
from cogvx_jax.given import Given
from cogvx_jax.prompting.chat import Endpoint, has_endpoint
from cogvx_jax.prompting.enhance import Enhancer, token_counter
from cogvx_jax.prompting.languages import other_language


def enhance(
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")],
    /,
    *,
    image: Path | None = None,
    model: str = "tiny",
    llm: str | None = None,
    url: str | None = None,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Prints a prompt as a long English description, written by a language model. It is translated, too.

    For CogVideo (2022) it is a short Chinese sentence.

    Any endpoint will do that speaks OpenAI's chat completions: OPENAI_BASE_URL and OPENAI_API_KEY name it. The option
    `--enhance` of `generate` is something else, Enhance-A-Video; there `--enhance-prompt` does this.

    Args:
      prompt: what the video is to show, in whatever language.
      image: the first frame, for a language model that sees.
      model: as for `generate`; the description has as many tokens as that reads.
      llm: name of the language model; None is OPENAI_MODEL, or the only one that the server has.
      url: of the endpoint; None is OPENAI_BASE_URL, or OpenAI's.
    """
    enhancer = prompt_enhancer(model, given.checked(), Endpoint(llm=llm, url=url))
    print(enhancer(prompt, image))


def prompt_enhancer(model: str, given: Given, endpoint: Endpoint) -> Enhancer:
    """For the prompts of a model, whose tokenizer alone is read.

    Raises: ValueError where no endpoint is named, before any file is opened; as `load` for the model.
    """
    if (family := family_of(model)) is not None:
        return family.enhancer(model, given, endpoint)
    endpoint = endpoint.filled()
    from cogvx_jax.convert.sources import open_source
    from cogvx_jax.pipelines.model import resolve
    from cogvx_jax.pipelines.tokenizer import read_tokenizer

    files = open_source(resolve(model), given)
    spec = files.spec()
    return Enhancer(endpoint, token_counter(read_tokenizer(files.tokenizer, spec)), spec.transformer.text_length)


def language_note(prompt: str) -> str | None:
    """A sentence where a prompt does not look English; else None."""
    if (language := other_language(prompt)) is None:
        return None
    start = prompt if len(prompt) <= 40 else f"{prompt[:37]}..."
    how = "" if has_endpoint() else " with OPENAI_API_KEY or OPENAI_BASE_URL set"
    return f"{start!r} looks {language}, and the models know English: translate it, or give --enhance-prompt{how}"
