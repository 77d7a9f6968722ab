"""Step `captions`: clips described by a model that sees, in two levels as for CogVideoX, or by one question."""

import re
from collections.abc import Callable

from cogvx_jax.prepare import questions
from cogvx_jax.prepare.captioners import Captioner, captioner
from cogvx_jax.prepare.check import token_counter
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings
from cogvx_jax.prompting.chat import cleaned

FIELDS = ("caption", "caption_short", "caption_frames", "caption_model", "tokens", "refused")
WORDS_A_TOKEN = 0.7
SENTENCE, PARAGRAPH = 128, 640  # tokens that answers may have
MOST_FRAMES = 12  # of a question
MOST = 4000  # characters of an answer that is taken
REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable|not able)|i (can(no|')t|cannot|won't|apologi[sz]e)|as an ai\b|"
    r"(unable|not able) to (assist|describe|help|view|see))",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"(^|\n)\s*([#*>-]|\d+\.)\s|```|\*\*|\|\s*-{3}")
SHOWS = re.compile(
    r"^(the|this) (video|clip|footage|image|picture|frame)s? (shows?|depicts?|features?) ", re.IGNORECASE
)


class NoUse(ValueError):
    """An answer that is no description; the sentence says why."""


def captions(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `caption`, one paragraph; `caption_short` and `caption_frames`, [{t, text}], of which it was merged;
    `caption_model`; `tokens`, of T5; `refused`, whether no answer was of use, and then no caption.

    Raises: OSError where nobody answers: that is tried again in the next run.
    """
    ask = captioner(settings.captions)
    if ask is None or not len(look.large):
        return {}
    try:
        found = (
            _merged(ask, clip, look, settings) if settings.captions.way == "merged" else _direct(ask, look, settings)
        )
    except NoUse as error:
        return {"caption_model": ask.name, "refused": True, "error": str(error)}
    count = token_counter(settings.captions.tokenizer)
    return found | {"caption_model": ask.name, "refused": False, "tokens": count(found["caption"])}


def _direct(ask: Captioner, look: Look, settings: Settings) -> Row:
    return {"caption": _fitting(ask, questions.DIRECT, list(look.large[:: _every(look)]), settings)}


def _merged(ask: Captioner, clip: Row, look: Look, settings: Settings) -> Row:
    tries, step = settings.captions.tries, _every(look)
    chosen = list(zip(look.times[::step], look.large[::step], strict=True))
    short = _asked(ask, questions.SHORT, [frame for _, frame in chosen], SENTENCE, tries)
    frames = [(time, _asked(ask, questions.FRAME, [frame], SENTENCE, tries)) for time, frame in chosen]
    words = int(settings.captions.tokens * WORDS_A_TOKEN)
    text = questions.merge(short, frames, clip["end"] - clip["start"], words, clip.get("camera"))
    told = [{"t": round(time, 3), "text": text} for time, text in frames]
    return {"caption": _fitting(ask, text, [], settings), "caption_short": short, "caption_frames": told}


def _every(look: Look) -> int:
    return -(-len(look.large) // MOST_FRAMES)


def _fitting(ask: Captioner, text: str, frames: list, settings: Settings) -> str:
    """An answer that fits the tokens; the shortest one, where none of some tries does: `check` tells of it."""
    limit, found = settings.captions.tokens, list[str]()
    count: Callable[[str], int] = token_counter(settings.captions.tokenizer)
    words = int(limit * WORDS_A_TOKEN)
    for _ in range(settings.captions.tries):
        asked = text if not found else f"{text}\n\n{questions.SHORTER.format(words=words)}"
        found.append(_asked(ask, asked, frames, PARAGRAPH, settings.captions.tries))
        if count(found[-1]) <= limit:
            return found[-1]
        words = int(words * 0.8)
    return min(found, key=count)


def _asked(ask: Captioner, text: str, frames: list, most: int, tries: int) -> str:
    """The first answer of use. Raises: NoUse; OSError."""
    for left in reversed(range(tries)):
        try:
            return useful(ask(text, frames, most))
        except NoUse:
            if not left:
                raise
    raise AssertionError


def useful(answer: str) -> str:
    """An answer as one paragraph. Raises: NoUse for none, a refusal, markdown, and what is no text."""
    text = cleaned(answer[: 2 * MOST])
    if len(text.split()) < 3:
        raise NoUse("the captioner gave no description")
    if REFUSAL.search(text[:200]):
        raise NoUse(f"the captioner refused: {text[:80]!r}")
    if MARKDOWN.search(answer):
        raise NoUse("the captioner wrote a list or headings")
    if len(text) > MOST:
        raise NoUse(f"the captioner wrote more than {MOST} characters")
    if not text.isprintable() or sum(c.isalpha() or c.isspace() for c in text) < 0.6 * len(text):
        raise NoUse("the captioner wrote what is no text")
    text = SHOWS.sub("", text)
    return text[0].upper() + text[1:]
