"""Who asks: API keys that are stored as hashes, Zhipu's tokens, and signed addresses of files."""

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json
import math
import re
import secrets
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

from cogvx_jax.json_files import parse_json
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.storage import read_file

MAX_BYTES = 2**20  # of a file of keys
BLOCK = 64  # bytes: HMAC-SHA256 replaces a longer key by its SHA-256, which is what is stored
AHEAD = 600.0  # seconds by which a token's clock may be ahead, and by which it may outlast the client's 210
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """Who may ask, and for how much.

    Args:
      name: of the owner; jobs are shown to their owner alone.
      jobs: that may wait or run at a time; None is without a bound.
      priority: of its jobs; higher ones come first.
      sha256: of the key, in hexadecimal.
      secret_sha256: of the part after its dot, with which Zhipu's tokens are checked; None takes none. It is enough to
        make such tokens: keep the file secret.
    """

    name: str = ""
    jobs: int | None = None
    priority: int = 0
    sha256: str = ""
    secret_sha256: str | None = None

    def __post_init__(self):
        for field, low in (("jobs", 1), ("priority", -100)):
            value = getattr(self, field)
            if value is not None and (type(value) is not int or not low <= value <= 10**6):
                raise ValueError(f"{field} must be a whole number from {low}, got {value!r:.60}")
        for field in ("sha256", "secret_sha256"):
            value = getattr(self, field)
            if value and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
                raise ValueError(f"{field} must be 64 hexadecimal digits, got {value!r:.60}")


ANYONE = Key()


class Keys:
    """The keys of a file, or none: then anyone may ask, and sees all jobs.

    Raises: ValueError, naming the file, for one that is no such file; OSError.
    """

    def __init__(self, file: Path | None = None):
        self._all = {} if file is None else _read(file)
        self._open = file is None

    def of(self, authorization: str | None) -> Key:
        """Who sent this header. Raises: Refused."""
        if self._open:
            return ANYONE
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else authorization or ""
        if not token:
            raise Refused("no_api_key", "give an API key, as the header `Authorization: Bearer KEY`")
        found = self._all.get(hashlib.sha256(token.encode()).hexdigest())
        if found is None and token.count(".") == 2:
            found = self._of_token(token)
        if found is None:
            raise Refused("invalid_api_key", "this API key is not known here")
        return found

    @property
    def open(self) -> bool:
        """Whether anyone may ask."""
        return self._open

    def named(self, name: str | None) -> Key:
        """The key of an owner who has shown it before. Raises: Refused for a name that is none."""
        if self._open:
            return ANYONE
        found = next((key for key in self._all.values() if key.name == name), None)
        if found is None:
            raise Refused("invalid_api_key", "this API key is not known here")
        return found

    def _of_token(self, token: str) -> Key | None:
        """Whoever signed a token of Zhipu's clients, whose times are milliseconds. Raises: Refused for an old one."""
        head, body, signature = token.split(".")
        try:
            header, claims = parse_json(_decoded(head)), parse_json(_decoded(body))
            given = _decoded(signature)
        except ValueError:
            return None
        if header.get("alg") != "HS256":  # "none", say
            return None
        for key in self._all.values():
            if key.secret_sha256 is None:
                continue
            made = hmac.digest(bytes.fromhex(key.secret_sha256), f"{head}.{body}".encode(), "sha256")
            if hmac.compare_digest(made, given):
                _check_times(claims)
                return key
        return None


def _check_times(claims: Mapping[str, object]) -> None:
    expires = claims.get("exp")
    if not isinstance(expires, int | float):
        raise Refused("invalid_api_key", "this token says not when it expires")
    left = expires / 1000 - time.time()
    if left <= 0:
        raise Refused("token_expired", "this token has expired; make a new one")
    if left > AHEAD:  # as of one whose times are seconds times a million: it would never expire
        raise Refused("invalid_api_key", f"this token is valid for more than {AHEAD:g} s; exp is in milliseconds")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None


def _read(file: Path) -> dict[str, Key]:
    """Keys by hash."""
    try:
        table = tomllib.loads(read_file(file, MAX_BYTES).decode())
    except ValueError as error:
        raise ValueError(f"{file}: not TOML, {str(error)[:200]}") from None
    names = [field.name for field in dataclasses.fields(Key)][1:]
    found: dict[str, Key] = {}
    for name, entry in table.items():
        where = f"{file}: [{name[:80]}]"
        if not NAME.fullmatch(name):
            raise ValueError(f"{where}: a name has letters, digits, dots, dashes and underscores")
        if not isinstance(entry, dict) or not entry.keys() <= set(names) or not entry.get("sha256"):
            raise ValueError(f"{where}: a key has sha256, and may have {', '.join(n for n in names if n != 'sha256')}")
        try:
            key = Key(name=name, **entry)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if key.sha256 in found:
            raise ValueError(f"{where}: this is the key of {found[key.sha256].name}, too")
        found[key.sha256] = key
    if not found:
        raise ValueError(f"{file} holds no key; `cogvx serve --new-key NAME` prints one")
    return found


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the lines of a file of keys for it. Raises: ValueError for a name that cannot be."""
    if not NAME.fullmatch(name):
        raise ValueError(f"a name has letters, digits, dots, dashes and underscores, got {name!r:.60}")
    identity, secret = secrets.token_hex(16), secrets.token_hex(BLOCK)
    key = f"{identity}.{secret}"
    lines = [
        f'["{name}"]',
        f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"',
        f'secret_sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"  # for Zhipu\'s tokens; leave it out without',
    ]
    return key, "\n".join(lines)


class Signer:
    """Addresses of files that need no key, for a while."""

    def __init__(self, secret: str, seconds: float):
        self._secret, self._seconds = secret.encode(), seconds

    def query(self, id: str, variant: str, until: float | None = None) -> dict[str, str]:
        """Parameters of the address; `until` is when the file goes, in seconds since 1970."""
        # Whole steps: what is answered stays the same for a while, and so does what is kept of it.
        expires = math.ceil((time.time() + self._seconds) / 60) * 60
        expires = expires if until is None else min(expires, int(until))
        return {"variant": variant, "expires": str(expires), "signature": self._sign(id, variant, str(expires))}

    def check(self, id: str, variant: str, expires: str, signature: str) -> None:
        """Raises: Refused."""
        if not hmac.compare_digest(self._sign(id, variant, expires).encode(), signature.encode()):
            raise Refused("invalid_api_key", "the signature of this address is wrong")
        if int(expires) < time.time():
            raise Refused("token_expired", "this address has expired; ask for the video again")

    def _sign(self, id: str, variant: str, expires: str) -> str:
        return hmac.digest(self._secret, json.dumps([id, variant, expires]).encode(), "sha256").hex()
