"""Text that may be numbers or a path: which of them it is."""

import re

NUMBER = r"[+-]?(?:[0-9.]+(?:e[+-]?[0-9]+)?|nan|inf)"


def is_numbers(text: str) -> bool:
    """Whether text is several numbers, or is meant to be: with commas, semicolons or spaces between, right or not."""
    return re.fullmatch(rf"\s*{NUMBER}(?:[\s,;]+{NUMBER})+[\s,;]*", text, re.IGNORECASE) is not None
