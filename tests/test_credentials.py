"""`--sign`: content credentials that C2PA's own library reads back, of a certificate made here."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from profusion_cli.bundle import read_bundle
from profusion_cli.images import read_record
from tests.conftest import ok, run

PEM = serialization.Encoding.PEM
STEPS = ("--steps", 2)


def named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signs, False, False, False, False, not signs, not signs, False, False)


def chain(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[Path, Path]:
    """A certificate for signing and the one above it, and the key."""
    above = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: str, public: object, ca: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named("above")).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=9))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(usage(not ca), True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        if not ca:
            mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())
            builder = builder.add_extension(mail, False).add_extension(issuer, False)
        return builder.sign(above, hashes.SHA256())

    certificates = (certificate("signer", key.public_key(), False), certificate("above", above.public_key(), True))
    (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(PEM) for one in certificates))
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder / "chain.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    certificate, key = chain(tmp_path_factory.mktemp("signer"), ec.generate_private_key(ec.SECP256R1()))
    return "--sign", certificate, "--key", key


def told_by(path: Path, mime: str = "image/png") -> tuple[str, dict]:
    """The state of a picture's credentials, and what they say."""
    with c2pa.Reader(mime, io.BytesIO(path.read_bytes())) as reader:
        everything = json.loads(reader.json())
        return reader.get_validation_state(), everything["manifests"][everything["active_manifest"]]


def test_a_picture_says_what_it_was_made_from(subject, signing, tmp_path):
    """Valid, though by a signer that nobody knows; with its subject and its photo by their SHA-256."""
    ok("sample", subject, "S* at sea", *STEPS, *signing, "-o", tmp_path / "x.png", "--sheet", tmp_path / "sheet.png")
    bundle = read_bundle(subject.read_bytes(), subject.name)
    for name in ("x.png", "sheet.png"):
        state, told = told_by(tmp_path / name)
        assert state == "Valid" and told["signature_info"]["common_name"] == "signer"
        known = {one["instance_id"]: one["title"] for one in told["ingredients"]}
        (photo,) = bundle.manifest["inputs"]
        assert known == {f"sha256:{bundle.sha256}": subject.name, f"sha256:{photo['sha256']}": photo["name"]}
        (action,) = told["assertions"][0]["data"]["actions"]
        assert action["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    assert read_record((tmp_path / "x.png").read_bytes(), "x.png")[1]["prompt"] == "S* at sea"


@pytest.mark.parametrize(("name", "mime"), [("way.gif", "image/gif"), ("way.webp", "image/webp")])
def test_animations_are_signed_too(subject, other_subject, signing, tmp_path, name, mime):
    ok("interpolate", subject, other_subject, "S* at sea", "--frames", 2, *STEPS, *signing, "-o", tmp_path / name)
    assert told_by(tmp_path / name, mime)[0] == "Valid"
    assert read_record((tmp_path / name).read_bytes(), name)[1]["prompt"] == "S* at sea"


def test_what_is_changed_afterwards_is_found_out(subject, signing, tmp_path):
    ok("sample", subject, "S* at sea", *STEPS, *signing, "-o", tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    place = data.rindex(b"IDAT") + 100
    data[place] ^= 1
    (tmp_path / "x.png").write_bytes(data)
    assert told_by(tmp_path / "x.png")[0] == "Invalid"


def test_an_rsa_key_signs(subject, tmp_path):
    certificate, key = chain(tmp_path, rsa.generate_private_key(65537, 2048))
    ok("sample", subject, "S* at sea", *STEPS, "--sign", certificate, "--key", key, "-o", tmp_path / "x.png")
    assert told_by(tmp_path / "x.png")[0] == "Valid"


def test_what_cannot_sign_is_told(subject, signing, photo, tmp_path):
    _, certificate, _, key = signing
    cases = [
        (("--sign", certificate), 2, "--key"),
        (("--key", key), 2, "--sign"),
        (("--sign", certificate, "--key", certificate), 5, "no key"),
        (("--sign", certificate, "--key", tmp_path / "none.pem"), 5, "none.pem"),
        (("--sign", photo, "--key", key), 5, "no certificate"),
    ]
    for options, code, said in cases:
        result = run("sample", subject, "S* at sea", *STEPS, *options, "-o", tmp_path / "x.png")
        assert result.exit_code == code and said in result.stderr, options
    result = run("sample", subject, "S* at sea", *STEPS, *signing, "--no-mark", "-o", tmp_path / "x.png")
    assert result.exit_code == 2
    assert not (tmp_path / "x.png").exists()
