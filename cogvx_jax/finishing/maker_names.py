"""Who may be asked for sound: what is built in, a function of Python, or an address. Nothing is asked here."""

import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

BUILT_IN = ("tones",)
KEY = "COGVX_SOUND_KEY"  # variable of the environment: sent to an address as a bearer's token where it is set
NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
FUNCTION = re.compile(f"{NAME}:{NAME}")


def maker_name(maker: Any) -> str:
    """A name, `module:function`, or an address without its query. Raises: ValueError for none of these."""
    if callable(maker):
        return f"{maker.__module__}:{getattr(maker, '__qualname__', type(maker).__qualname__)}"
    if maker in BUILT_IN:
        return maker
    if isinstance(maker, str) and FUNCTION.fullmatch(maker):
        return maker
    if isinstance(maker, str) and "://" in maker:
        split_address(maker)
        return where(maker)
    known = ", ".join(BUILT_IN)
    raise ValueError(f"sound_from must be {known}, module:function, or an address of http, got {str(maker)[:200]!r}")


def split_address(address: str) -> SplitResult:
    """Raises: ValueError for what is no address of http or https, and for one that holds a name or a password."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"sound_from must be an address such as http://localhost:8100/sound, got {address[:200]!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the address of sound_from must not hold a name or a password; set {KEY} to the key")
    return parts


def where(address: str) -> str:
    """An address without its query, which may hold a secret."""
    parts = split_address(address)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
