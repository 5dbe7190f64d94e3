"""C2PA manifests ("content credentials"): signed with the operator's certificate, and read.

A manifest says what XMP says, and that nobody has changed the file since. Optional:
`pip install -r requirements-c2pa.txt`, and CONTROLLOOP_SIGN_CERTIFICATE with CONTROLLOOP_SIGN_KEY,
PEM files of a chain, the signer's first, and of its private key. Readers trust it if they trust the
certificate's issuer (contentcredentials.org). Source: C2PA specification 2.2.
"""

import importlib
import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import BadInput
from core.png_chunks import SIGNATURE, write_png

LOGGER = logging.getLogger(__name__)
CERTIFICATE, KEY = "CONTROLLOOP_SIGN_CERTIFICATE", "CONTROLLOOP_SIGN_KEY"
TIMESTAMPS = "CONTROLLOOP_SIGN_TIMESTAMPS"
"""The address of an authority that signs the time too (RFC 3161); asked for every picture."""
INSTALL = "pip install -r requirements-c2pa.txt"
TRIAL = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
"""What the black picture is that is signed to see whether it can be done."""
# A small picture would be enlarged for it, to many times its bytes: findings/c2pa_thumbnail.sh.
WITHOUT_THUMBNAIL = {"builder": {"thumbnail": {"enabled": False}}}
KINDS = {SIGNATURE: "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
"""The formats in which a manifest is read, by how they begin."""
OF_CURVE = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""The name of the signature for each curve of a key."""


@dataclass(frozen=True)
class Signer:
    """A certificate, its key, and how it signs."""

    certificates: str
    """In PEM, the signer's first."""
    key: str
    """In PEM, PKCS #8."""
    algorithm: str
    timestamps: str | None = None

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> "Signer | None":
        """Return the signer that the environment names; None if it names none.

        Raises:
            BadInput: a file cannot be used, or the library is not installed.
        """
        names = [name for name in (CERTIFICATE, KEY) if variables.get(name)]
        if not names:
            return None
        if len(names) < 2:
            raise BadInput(f"Set both {CERTIFICATE} and {KEY}, or neither: pictures are signed.")
        if find_spec("c2pa") is None:
            raise BadInput(f"{CERTIFICATE} asks for signed pictures: run `{INSTALL}` first.")
        certificates, key = (_pem(name, variables[name]) for name in names)
        signer = cls(certificates, key, _algorithm(key), variables.get(TIMESTAMPS) or None)
        tiny = io.BytesIO()
        write_png(tiny, np.zeros((8, 8, 3), np.uint8), {})
        try:
            signer.signed(tiny.getvalue(), TRIAL, "")
        except importlib.import_module("c2pa").C2paError as error:
            raise BadInput(
                f"Pictures cannot be signed with {CERTIFICATE} and {KEY}: {error}."
            ) from error
        return signer

    def signed(self, png: bytes, source_type: str, system: str) -> bytes:
        """Return a PNG with a manifest: it was created so, by `system`, the model.

        `source_type` is an IPTC term's address. Of a picture that was changed the original is not
        named: it is the visitor's.

        Raises:
            c2pa.C2paError: it cannot be signed; the authority of the time may be out of reach.
        """
        c2pa = importlib.import_module("c2pa")
        created: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": source_type}
        if system:
            created["softwareAgent"] = {"name": system}
        actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
        manifest = {"claim_generator_info": [{"name": "ControlLoop"}], "assertions": [actions]}
        pem = (self.certificates.encode(), self.key.encode())
        info = c2pa.C2paSignerInfo(self.algorithm, *pem, self.timestamps)
        memory = io.BytesIO()
        with (
            c2pa.Context.from_dict(WITHOUT_THUMBNAIL) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(manifest), context=context) as builder,
        ):
            builder.sign(signer, "image/png", io.BytesIO(png), memory)
        return memory.getvalue()


def _pem(name: str, path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise BadInput(f"{name} is {path!r}; it must be a PEM file that can be read.") from error


def _algorithm(key: str) -> str:
    """Return the name of the signature that a private key makes (C2PA 2.2, 13.2.1).

    Raises:
        BadInput: it is no such key.
    """
    serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")
    try:
        loaded = serialization.load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{KEY} must hold a private key in PEM, without a password.") from error
    curve = getattr(loaded, "curve", None)
    if curve is not None and curve.name in OF_CURVE:
        return OF_CURVE[curve.name]
    kind = type(loaded).__name__
    if "RSA" in kind:
        return "ps256"
    if "Ed25519" in kind:
        return "ed25519"
    raise BadInput(f"{KEY} is of a kind that C2PA does not take: use P-256, Ed25519 or RSA.")


def read_manifest(data: bytes) -> str:
    """Return a sentence on a picture's C2PA manifest; it is checked if c2pa-python is here."""
    if find_spec("c2pa") is None:
        return f"It has a C2PA manifest, which is not checked here: run `{INSTALL}` to do so."
    c2pa = importlib.import_module("c2pa")
    kind = next((kind for start, kind in KINDS.items() if data.startswith(start)), "")
    try:
        with c2pa.Reader(kind, io.BytesIO(data)) as reader:
            state, stored = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError as error:
        LOGGER.info("A C2PA manifest could not be read: %s", error)
        return "It has a C2PA manifest that cannot be read."
    active = stored.get("manifests", {}).get(stored.get("active_manifest"), {})
    signature = active.get("signature_info", {})
    who = " of ".join(filter(None, [signature.get("common_name"), signature.get("issuer")]))
    return f"It has a C2PA manifest, signed by {who or 'nobody'}: {MEANING_OF_STATE[state]}."


MEANING_OF_STATE = {
    "Trusted": "valid, by an issuer that is trusted here",
    "Valid": "valid, by an issuer that is not known here",
    "Invalid": "not valid, because the file or the manifest was changed, or the certificate is bad",
    None: "not checked",
}
