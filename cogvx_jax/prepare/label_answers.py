"""The six labels by a vision model, in one answer of JSON."""

import re

from cogvx_jax.json_files import parse_json
from cogvx_jax.prepare import questions
from cogvx_jax.prepare.captioners import captioner
from cogvx_jax.prepare.label_names import LABELS
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prompting.chat import THOUGHT

MOST, FRAMES = 256, 6  # tokens of an answer, frames of a question
MOST_TEXT = 20_000  # characters of an answer that are looked at


def asked_labels(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: as `labels.labels`; None where no answer was of use.

    Raises: OSError where nobody answers; ValueError where nobody is set.
    """
    ask = captioner(settings.captions)
    if ask is None:
        raise ValueError("labels of a vision model need an endpoint: give --captions URL")
    frames = list(look.large[:: -(-len(look.large) // FRAMES) or 1])
    for _ in range(settings.captions.tries):
        found = read_answer(ask(questions.LABELS, frames, MOST))
        if found is not None:
            return found | {"label_source": f"vlm {ask.name}"}
    return {"label_source": f"vlm {ask.name}", "error": "the model's answers hold no JSON of the six labels"}


def read_answer(text: str) -> dict[str, float] | None:
    """The six numbers of an answer; None where it has not all of them, each from 0 to 1."""
    match = re.search(r"\{[^{}]*\}", THOUGHT.sub("", text[:MOST_TEXT]))
    try:
        said = parse_json(match[0]) if match else {}
    except ValueError:
        return None
    numbers = {name: said.get(name) for name in LABELS}
    found = {name: float(x) for name, x in numbers.items() if isinstance(x, int | float) and 0 <= x <= 1}
    return found if len(found) == len(LABELS) else None
