"""Whether a prompt is English, which is what the open models know.

The letters tell where they are not Latin. Of Latin ones the package py3langid guesses, where it is installed and the
prompt has words enough. A guess may be wrong: warn of it, never refuse.
"""

import collections
import contextlib
import functools
import unicodedata
from typing import Any

SHARE = 0.2  # of the letters that are not Latin, from which on a prompt is of their language; a sign may show a few
WORDS = 5  # of a prompt in Latin letters: fewer do not tell
SURE = 0.8  # probability of a guess
# The first word of a letter's name in Unicode -> its language. Japanese has CJK beside its own.
SCRIPTS = {
    "CJK": "Chinese",
    "BOPOMOFO": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Russian or a language like it",
    "ARABIC": "Arabic or Persian",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Hindi",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "TELUGU": "Telugu",
    "THAI": "Thai",
    "GEORGIAN": "Georgian",
    "ARMENIAN": "Armenian",
}
LATIN = {"de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch"}
LATIN |= {"pl": "Polish", "tr": "Turkish"}


def other_language(prompt: str) -> str | None:
    """The language of a prompt that does not look English, "Chinese"; None where it does, or nothing tells."""
    return _by_letters(prompt) or _by_words(prompt)


def _by_letters(prompt: str) -> str | None:
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in prompt if letter.isalpha())
    letters = collections.Counter(names)
    others = {name: count for name, count in letters.items() if name not in ("LATIN", "FULLWIDTH", "MATHEMATICAL")}
    if sum(others.values()) <= SHARE * letters.total():
        return None
    kana = [name for name in others if name in ("HIRAGANA", "KATAKANA")]
    name = kana[0] if kana else max(others, key=lambda one: others[one])
    return SCRIPTS.get(name, f"a language in {name.lower()} letters")


def _by_words(prompt: str) -> str | None:
    if len(prompt.split()) < WORDS or (identifier := _identifier()) is None:
        return None
    language, probability = identifier.classify(prompt)
    return LATIN.get(language) if probability >= SURE else None


@functools.cache
def _identifier() -> Any:
    """Of py3langid; None where it is not installed."""
    with contextlib.suppress(ImportError):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        found: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        found.set_languages(["en", *LATIN])
        return found
    return None
