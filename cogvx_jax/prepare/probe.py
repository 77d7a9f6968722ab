"""Step `probe`: what a film is."""

from pathlib import Path

from cogvx_jax.prepare.films import facts
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings


def probe(film: Row, settings: Settings) -> Row:
    """What `data.probe.probe` tells of the file `source`. Raises: as `films.ask`."""
    return facts(Path(film["source"]), settings.limit)
