"""The one error of this package."""

from collections.abc import Sequence


class ConversionError(ValueError):
    """All that is wrong with a folder or with parameters, a line each; `problems` holds the lines."""

    def __init__(self, what: str, problems: Sequence[str]):
        super().__init__("\n  ".join([f"{what}:", *problems]))
        self.problems = tuple(problems)
