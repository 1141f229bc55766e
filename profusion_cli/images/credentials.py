"""C2PA content credentials: who says of a picture how it was made, signed (https://spec.c2pa.org, by c2pa-python)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profusion_cli import __version__
from profusion_cli.errors import InputError, OutputError, UnavailableError, first_line
from profusion_cli.files import read_source
from profusion_cli.images.marks import SOURCE_TYPE, TRAINED

MIME = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
"""By the ending of a file's name."""
_GENERATOR = {"name": "profusion", "version": __version__}
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}


class Credentials:
    """A certificate and its key, by which pictures are signed; nothing is asked of the network.

    Args:
        certificate: name of a PEM file of the signer's certificate and those above it.
        key: name of a PEM file of its private key, without a password.

    Raises:
        UnavailableError: c2pa-python is not installed.
        InputError: a file that is no certificate, or no key.
    """

    def __init__(self, certificate: str, key: str) -> None:
        try:
            import c2pa
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
            from cryptography.x509 import load_pem_x509_certificates
        except ImportError as error:
            hint = "Install it with `pip install 'profusion[sign]'`, or leave --sign out."
            raise UnavailableError(f"--sign needs the library c2pa-python: {error}.", hint) from error
        chain, private = (bytes(read_source(name)) for name in (certificate, key))
        try:
            opened = load_pem_private_key(private, None)
            algorithm = _algorithm(opened)
        except (ValueError, TypeError) as error:
            hint = "Give a private key as PEM, without a password."
            raise InputError(f"'{key}' is no key: {first_line(error)}", hint) from error
        try:
            if load_pem_x509_certificates(chain)[0].public_key() != opened.public_key():
                raise ValueError("its first one is of another key.")
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, private, None))
        except (ValueError, c2pa.C2paError) as error:
            hint = "Give the signer's certificate and those above it, as PEM."
            raise InputError(f"'{certificate}' is no certificate for '{key}': {first_line(error)}", hint) from error
        self._library, self._context = c2pa, c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))

    def sign(self, data: bytes, target: str, record: Mapping[str, Any]) -> bytes:
        """A picture's file with its credentials.

        Args:
            data: the file.
            target: its name, of which the ending counts.
            record: how it was made: its subjects and their photos are told as what it was made from, by their SHA-256.

        Raises:
            OutputError: it cannot be signed.
        """
        mime = MIME.get(Path(target).suffix.lower(), MIME[".png"])
        out = io.BytesIO()
        try:
            builder = self._library.Builder(json.dumps(manifest_of(record, Path(target).name, mime)), self._context)
            builder.sign(self._signer, mime, io.BytesIO(data), out)
        except self._library.C2paError as error:
            hint = "The certificate must be one for signing, as C2PA asks for, and not be out of date."
            raise OutputError(f"'{target}' cannot be signed: {first_line(error)}", hint) from error
        return out.getvalue()


def signed(data: bytes, target: str, record: Mapping[str, Any], credentials: Credentials | None) -> bytes:
    """A picture's file with its credentials, as `Credentials.sign`; without any, as it is."""
    return data if credentials is None else credentials.sign(data, target, record)


def manifest_of(record: Mapping[str, Any], title: str, mime: str) -> dict[str, Any]:
    """What is signed."""
    made_of = {}
    for subject in record.get("subjects", []):
        made_of[subject["sha256"]] = (subject["name"], "application/zip")
        made_of |= {one["sha256"]: (one["name"], "image") for one in subject["inputs"]}
    if "start" in record:
        made_of[record["start"]["sha256"]] = (record["start"]["name"], "image")
    ingredients = [
        {"title": name, "format": kind, "instance_id": f"sha256:{digits}", "relationship": "inputTo"}
        for digits, (name, kind) in made_of.items()
    ]
    source_type = record.get(SOURCE_TYPE, TRAINED)
    action = {"action": "c2pa.created", "digitalSourceType": source_type, "softwareAgent": _GENERATOR}
    return {
        "claim_generator_info": [_GENERATOR],
        "title": title,
        "format": mime,
        "ingredients": ingredients,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _algorithm(key: Any) -> bytes:
    """Of a private key, as C2PA calls it.

    Raises:
        ValueError: one that it does not know.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size in (256, 384, 521):
        return {256: b"es256", 384: b"es384", 521: b"es512"}[key.curve.key_size]
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise ValueError("It is of a kind that C2PA does not know.")
