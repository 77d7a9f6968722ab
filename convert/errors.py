"""The one error of this package."""

from collections.abc import Sequence

LISTED = 20  # problems in a message; the rest are counted
LINE = 300  # characters of one


class ConversionError(ValueError):
    """All that is wrong with a folder or with parameters, a line each; `problems` holds the lines.

    The message lists the first `LISTED` of them and counts the rest.
    """

    def __init__(self, what: str, problems: Sequence[str]):
        self.problems = tuple(map(_line, problems))
        shown = self.problems[:LISTED]
        more = [f"and {len(self.problems) - LISTED} more"] if len(self.problems) > LISTED else []
        super().__init__("\n  ".join([f"{_line(what)}:", *shown, *more]))


def _line(text: str) -> str:
    """One line of bounded length, whatever names out of a file stand in it."""
    if len(text) > LINE:
        text = f"{text[: LINE // 2]} ... {text[-LINE // 2 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
