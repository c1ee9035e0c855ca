"""Content Credentials: images signed with the operator's certificate (C2PA), without a time-stamp server.

Needs the extra `c2pa`. Nothing is fetched: neither manifests elsewhere nor the state of certificates.
"""

from __future__ import annotations

import json
import logging
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import RequestError, RuntimeMissing
from ..core.install import install
from ..core.reading import read_small
from ..core.record import in_a_line
from ..core.request import Request
from ..core.version import __version__
from ..pipelines.save import source_type

PEM_BYTES = 1 << 18
TRIAL_SIDE = 64
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Kinds of files that the server answers with."""
SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
PARENT = "parent"
"""Label by which an action names an ingredient until both are signed."""

log = logging.getLogger("latentc.serving")


class ContentSigner:
    """Signs files with a certificate. May be used from any thread."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read a certificate with the chain that vouches for it and its private key, files of PEM, and sign a trial.

        Raises `RequestError` if they can't be used, and `RuntimeMissing` without the library.
        """
        try:
            import c2pa
        except ImportError as exc:
            raise RuntimeMissing(f"Signing needs {exc.name}, which is not installed. {install('c2pa')}") from exc
        advice = "Use a file of PEM."
        chain, secret = (read_small(path, PEM_BYTES, RequestError, advice) for path in (certificate, key))
        self._library: Any = c2pa
        self._turn = Lock()
        try:
            info = self._library.C2paSignerInfo(_algorithm(secret), chain, secret, None)
            settings = self._library.Settings.from_json(json.dumps(SETTINGS))
            self._context = self._library.Context(settings, self._library.Signer.from_info(info))
            self._check()
        except (self._library.C2paError, ValueError, TypeError) as exc:
            raise RequestError(
                f"{certificate} and {key} can't sign images ({in_a_line(exc)}). Use a certificate for signing content, "
                "with its chain, and its private key without a password."
            ) from exc

    def sign(self, content: bytes, kind: str, request: Request, source: bytes | None = None) -> bytes:
        """The file of an image, png, jpeg or webp, with a signed manifest; its other metadata is kept.

        `request` is what it was made by, completed. If that changes another image, the manifest has it as its parent,
        with the credentials in `source`, its file, if C2PA can read that.
        """
        if source is not None and request.image_sha256 is not None:
            try:
                return self._signed(content, kind, request, source)
            except (self._library.C2paError, OSError, ValueError) as exc:
                log.warning("the credentials of an image that was changed are left out: %a", in_a_line(exc))
        return self._signed(content, kind, request, None)

    def _signed(self, content: bytes, kind: str, request: Request, source: bytes | None) -> bytes:
        signed, changed = BytesIO(), request.image_sha256 is not None
        parent = {"title": "image", "relationship": "parentOf", "label": PARENT}
        manifest = {
            "claim_generator_info": [{"name": "latentc", "version": __version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": _actions(request)}}],
            "ingredients": [parent] if changed and source is None else [],
        }
        with self._turn, self._library.Builder(manifest, self._context) as builder:
            if changed and source is not None:
                with Image.open(BytesIO(source)) as opened:
                    # of several pictures in a file, such as a phone's with a gain map, the first one is a JPEG
                    kind_of = TYPES["jpeg"] if opened.format == "MPO" else opened.get_format_mimetype()
                    builder.add_ingredient(parent, kind_of, BytesIO(source))
            builder.sign(TYPES[kind], BytesIO(content), signed)
        return signed.getvalue()

    def _check(self) -> None:
        """Raise `ValueError` if what is signed isn't valid."""
        plain = BytesIO()
        Image.fromarray(np.zeros((TRIAL_SIDE, TRIAL_SIDE, 3), np.uint8)).save(plain, "PNG")
        signed = BytesIO(self.sign(plain.getvalue(), "png", Request()))
        with self._library.Reader(TYPES["png"], signed) as reader:
            found = json.loads(reader.json())
        if found.get("validation_state") not in ("Valid", "Trusted"):
            codes = ", ".join(one.get("code", "") for one in found.get("validation_status", ()))
            raise ValueError(f"the signature is not valid: {codes}")


def _actions(request: Request) -> list[dict[str, Any]]:
    """What was done, in C2PA's terms: an image was created, or another one was opened and edited.

    Source: https://spec.c2pa.org, Actions: the first action is one of these two.
    """
    made = {"digitalSourceType": source_type(request)}
    if request.image_sha256 is None:
        return [{"action": "c2pa.created", **made}]
    return [{"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}}, {"action": "c2pa.edited", **made}]


def _algorithm(key: bytes) -> str:
    """C2PA's name of the algorithm of a private key; raises `ValueError` and `TypeError` for others."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    found = load_pem_private_key(key, None)
    if isinstance(found, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(found, ed25519.Ed25519PrivateKey):
        return "ed25519"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(found, ec.EllipticCurvePrivateKey) and found.curve.name in curves:
        return curves[found.curve.name]
    raise ValueError("the key is of no kind that C2PA uses: ECDSA, RSA or Ed25519")
