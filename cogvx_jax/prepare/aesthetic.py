"""Step `aesthetic`: how good clips look, by a function of the user's. Without one the score is null."""

import math

from cogvx_jax.metrics.feature_functions import find_function
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings


def aesthetic(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `aesthetic`, what the scorer says of the large frames; `aesthetic_scorer`, its name and version.

    Raises: ValueError where it cannot be imported, raises, or gives no finite number.
    """
    chosen = settings.aesthetic
    if chosen.function is None:
        return {}
    score = find_function(chosen.function)
    try:
        found = float(score(look.large))
    except Exception as error:
        raise ValueError(f"the scorer {chosen.function} failed: {type(error).__name__}: {error}") from None
    if not math.isfinite(found):
        raise ValueError(f"the scorer {chosen.function} gave {found}, no finite number")
    return {"aesthetic": found, "aesthetic_scorer": f"{chosen.function} {chosen.version}"}
