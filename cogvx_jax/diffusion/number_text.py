"""Numbers in the text of options."""

import numpy as np


def number_text(value: float) -> str:
    """The shortest decimal text that is read back as the same number, without an exponent: "0.2", "2"."""
    return np.format_float_positional(value, trim="-")
