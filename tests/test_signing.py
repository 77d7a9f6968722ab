"""Signatures of C2PA, with certificates made here."""

import datetime
import sys

import numpy as np
import pytest

from cogvx_jax.cli import main as cli
from cogvx_jax.data import signing
from cogvx_jax.data.comments import read_tags
from cogvx_jax.data.signing import read_signature, sign_video
from cogvx_jax.data.video import VideoWriter, read_video

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A chain of certificates and the key of its leaf, as PEM files."""
    pytest.importorskip("c2pa", reason="of the extra `sign`")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem, folder = serialization.Encoding.PEM, tmp_path_factory.mktemp("keys")
    chain = certificate("leaf", leaf, root, ca=False).public_bytes(pem)
    chain += certificate("root", root, root, ca=True).public_bytes(pem)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(leaf.private_bytes(pem, *plain))
    return folder / "chain.pem", folder / "key.pem"


def certificate(name, key, root, ca):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(text):
        names = (NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "Test")
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in names])

    others = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    uses = dict.fromkeys(others.split(), False)
    began = datetime.datetime(2026, 1, 1)
    made = x509.CertificateBuilder(named("root"), named(name), key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(began).not_valid_after(began + datetime.timedelta(days=36500))
    made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
    usage = x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **uses)
    made = made.add_extension(usage, critical=True)
    if not ca:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return made.sign(root, hashes.SHA256())


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x.webp"])
def test_a_signed_video_is_the_same_but_signed(keys, tmp_path, name):
    with VideoWriter(tmp_path / name, 8, comment="how") as writer:
        writer.write(FRAMES)
    plain = (tmp_path / name).read_bytes()
    assert read_signature(tmp_path / name) is None
    sign_video(tmp_path / name, *keys, out=tmp_path / f"signed-{name}")
    assert (tmp_path / name).read_bytes() == plain
    assert sign_video(tmp_path / name, *keys) == tmp_path / name
    for file in (tmp_path / name, tmp_path / f"signed-{name}"):
        assert read_signature(file) == "valid, signingCredential.untrusted" and read_tags(file).comment == "how"
    if name != "x.webp":
        assert len(read_video(tmp_path / name)[0]) == 4


def test_a_changed_byte_is_found(keys, tmp_path):
    with VideoWriter(tmp_path / "x.mp4", 8) as writer:
        writer.write(FRAMES)
    data = bytearray(sign_video(tmp_path / "x.mp4", *keys).read_bytes())
    data[-20] ^= 1
    (tmp_path / "x.mp4").write_bytes(data)
    assert read_signature(tmp_path / "x.mp4").startswith("invalid, ")
    assert "assertion.bmffHash.mismatch" in read_signature(tmp_path / "x.mp4")


def test_what_cannot_be_signed_is_refused_and_left(keys, tmp_path, monkeypatch, capsys):
    chain, key = keys
    for name in ("x.webm", "x.mp4"):
        with VideoWriter(tmp_path / name, 8) as writer:
            writer.write(FRAMES)
    plain = (tmp_path / "x.mp4").read_bytes()
    for arguments, said in (
        (["x.webm", "--certificate", chain, "--key", key], "C2PA signs .mp4, .gif, .webp files"),
        (["x.mp4", "--certificate", chain, "--key", key, "--out", "y.gif"], "as the same kind; got x.mp4, y.gif"),
        (["x.mp4", "--certificate", key, "--key", key], "x.mp4 could not be signed: "),
        (["x.mp4", "--certificate", chain, "--key", chain], "x.mp4 could not be signed: "),
        (["x.mp4", "--certificate", chain, "--key", "none.pem"], "none.pem: No such file"),
        (["x.mp4", "--certificate", chain, "--key", key, "--algorithm", "rsa"], "unknown algorithm 'rsa' of a key"),
        (["none.mp4", "--certificate", chain, "--key", key], "there is no file 'none.mp4'"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cogvx", "sign", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert (tmp_path / "x.mp4").read_bytes() == plain
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.mp4", "x.webm"]
    monkeypatch.setattr(sys, "argv", ["cogvx", "sign", "x.mp4", "--certificate", str(chain), "--key", str(key)])
    cli.main()
    assert capsys.readouterr().out == "x.mp4: signed, valid, signingCredential.untrusted\n"


def test_without_the_package_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with VideoWriter(tmp_path / "x.mp4", 8) as writer:
        writer.write(FRAMES)
    assert signing.read_signature(tmp_path / "x.mp4") is None
    with pytest.raises(ValueError, match=r"c2pa-python: pip install 'cogvx_jax\[sign\]'"):
        sign_video(tmp_path / "x.mp4", "chain.pem", "key.pem")
