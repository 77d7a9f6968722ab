"""Content Credentials of C2PA: a signature in the file, which says that a machine made it and finds every later change.

The package c2pa-python does the work. A signature holds the time, so signed files differ from run to run: sign last.
"""

import json
import os
from pathlib import Path
from typing import Any

from cogvx_jax.data.comments import BESIDE, read_tags, sidecar, sidecar_text
from cogvx_jax.data.files import existing
from cogvx_jax.storage import read_file, write_whole
from cogvx_jax.temporaries import temporary_beside, written_place

SUFFIXES = (".mp4", ".gif", ".webp")  # that C2PA can sign, of those that are written here
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
MAX_PEM = 2**20  # bytes
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def sign_video(
    path: str | os.PathLike,
    certificate: str | os.PathLike,
    key: str | os.PathLike,
    *,
    out: str | os.PathLike | None = None,
    algorithm: str = "es256",
    time_url: str | None = None,
) -> Path:
    """Signs a file as made by a model; gives the signed one.

    Args:
      certificate: a PEM file of the chain, its leaf first; the leaf may sign, for e-mail or documents.
      key: a PEM file of the leaf's private key, PKCS 8.
      out: None is the file itself, which is replaced.
      algorithm: of the key: es256 for the curve P-256.
      time_url: of an authority that vouches for the time, by RFC 3161; None asks nobody.
    Raises: ValueError for a file, certificate or key that cannot be used, or where c2pa-python is missing; OSError.
    """
    source, c2pa = existing(path), _package()
    assert isinstance(source, Path)
    target = written_place(source if out is None else out)
    if {source.suffix.lower(), target.suffix.lower()} - set(SUFFIXES) or source.suffix.lower() != target.suffix.lower():
        raise ValueError(f"C2PA signs {', '.join(SUFFIXES)} files, as the same kind; got {source.name}, {target.name}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r} of a key; the known ones are {', '.join(ALGORITHMS)}")
    chain, secret = read_file(Path(certificate), MAX_PEM), read_file(Path(key), MAX_PEM)
    comment = read_tags(source).comment if source.suffix.lower() in BESIDE else None
    about = c2pa.C2paSignerInfo(
        alg=algorithm.encode(), sign_cert=chain, private_key=secret, ta_url=time_url.encode() if time_url else None
    )
    with temporary_beside(target) as partial:
        try:
            with c2pa.Signer.from_info(about) as signer, c2pa.Builder(json.dumps(_manifest())) as builder:
                builder.sign_file(source, partial, signer)
        except c2pa.C2paError as error:
            raise ValueError(f"{source} could not be signed: {' '.join(str(error).split())[:200]}") from None
        beside = None if comment is None else sidecar_text(partial, comment)
    if beside is not None:
        write_whole(sidecar(target), beside.encode())
    return target


def read_signature(path: str | os.PathLike) -> str | None:
    """What the signature of a file says: "valid", or what is wrong; None without one, or without c2pa-python."""
    if Path(path).suffix.lower() not in SUFFIXES:
        return None
    try:
        c2pa = _package()
    except ValueError:
        return None
    try:
        with c2pa.Reader(path) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError:
        return None
    codes = [str(one.get("code")) for one in found.get("validation_status", [])]
    return ", ".join([str(found.get("validation_state", "unknown")).lower(), *codes])


def _manifest() -> dict[str, Any]:
    made = {"action": "c2pa.created", "digitalSourceType": MADE_BY_A_MODEL}
    return {
        "claim_generator_info": [{"name": "cogvx_jax"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [made]}}],
    }


def _package() -> Any:
    try:
        import c2pa
    except ImportError:
        raise ValueError("to sign needs the package c2pa-python: pip install 'cogvx_jax[sign]'") from None
    return c2pa
