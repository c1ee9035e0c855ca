"""Content Credentials: files signed with a certificate, read by the library's own reader."""

import base64
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import BytesIO

import httpx2
import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.pipelines.png import read
from latentc.serving.history import History
from latentc.serving.limits import Limits
from latentc.serving.service import Additions, serve
from latentc.serving.signing import ContentSigner
from latentc.serving.state import open_state

from .conftest import MODEL, asking, running
from .test_checks import SOURCE_TYPE, marks
from .test_jobs import ended, submit

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed (the extra c2pa)")
x509 = pytest.importorskip("cryptography.x509")
hashes, serialization = (
    pytest.importorskip(f"cryptography.hazmat.primitives.{name}") for name in ("hashes", "serialization")
)
ec, ed25519, rsa = (
    pytest.importorskip(f"cryptography.hazmat.primitives.asymmetric.{name}") for name in ("ec", "ed25519", "rsa")
)


def certificates(key, purpose=x509.ExtendedKeyUsageOID.EMAIL_PROTECTION):
    """A certificate for a key, and that of the authority that vouches for it, as PEM."""
    root, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)

    def begun(name, public):
        names = [(x509.NameOID.COMMON_NAME, name), (x509.NameOID.ORGANIZATION_NAME, "Tests")]
        subject, issuer = (
            x509.Name([x509.NameAttribute(kind, value) for kind, value in ((names[0][0], one), names[1])])
            for one in (name, "root")
        )
        return (
            x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        )

    def uses(**named):
        every = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
        rest = dict.fromkeys((*every, "decipher_only", "digital_signature", "key_cert_sign", "crl_sign"), False)
        return x509.KeyUsage(**{**rest, **named})

    own = (
        begun("leaf", key.public_key())
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(uses(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .sign(root, hashes.SHA256())
    )
    above = (
        begun("root", root.public_key())
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(uses(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(root, hashes.SHA256())
    )
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (own, above))


def written(folder, key, chain=None, password=None):
    """The files of a certificate and its key."""
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    (folder / "chain.pem").write_bytes(certificates(key) if chain is None else chain)
    (folder / "key.pem").write_bytes(pem)
    return folder / "chain.pem", folder / "key.pem"


def manifest_of(content, kind="png"):
    """The state of a file's signature by the library's reader, and its manifest."""
    with c2pa.Reader(f"image/{kind}", BytesIO(content)) as reader:
        found = json.loads(reader.json())
    return found["validation_state"], found["manifests"][found["active_manifest"]]


@pytest.fixture
def signer(tmp_path):
    return ContentSigner(*written(tmp_path, ec.generate_private_key(ec.SECP256R1())))


def test_files_are_signed_and_still_hold_their_request(gate, signer, tmp_path):
    expected = gate(asking("a boat", 7)).images[0]
    with open_state(tmp_path / "state") as state, closing(History(state, signer=signer)) as history:
        service = serve({MODEL: gate}, Limits(), Additions(history, signer=signer))
        with running(service) as address, httpx2.Client(base_url=address, timeout=120) as http:
            job = submit(http, "a boat", 7)
            ended(http, job)
            (image,) = http.get(f"{job['poll_url']}/result").json()["images"]
            stem = image["url"].removesuffix("png")
            found = {kind: http.get(stem + kind).content for kind in ("png", "jpeg", "webp")}
            kept = http.get(f"/v1/history/{image['history']}/image").content
    for kind, content in (*found.items(), ("png", kept)):
        state, manifest = manifest_of(content, kind)
        assert state == "Valid", "whole, by a certificate that nobody here trusts"
        assert manifest["claim_generator_info"][0]["name"] == "latentc"
        (actions,) = (
            one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")
        )
        assert [(one["action"], one["digitalSourceType"]) for one in actions] == [("c2pa.created", SOURCE_TYPE)]
        assert read(content).request.prompt == "a boat"
        assert SOURCE_TYPE in marks(content)
        shown = np.asarray(Image.open(BytesIO(content)))
        assert kind == "jpeg" or np.array_equal(shown, expected)
    changed = bytearray(found["png"])
    changed[changed.index(b"IDAT") + 20] ^= 1
    assert manifest_of(bytes(changed))[0] == "Invalid"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_kinds_of_keys(make, tmp_path):
    buffer = BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    signed = ContentSigner(*written(tmp_path, make())).sign(buffer.getvalue(), "png", Request())
    assert manifest_of(signed)[0] == "Valid"


def test_what_cannot_sign_is_refused_at_start(tmp_path):
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    for chain, password in (
        (certificates(other), None),
        (certificates(key, x509.ExtendedKeyUsageOID.SERVER_AUTH), None),
        (b"no certificate", None),
        (None, b"password"),
    ):
        with pytest.raises(RequestError, match="can't sign images"):
            ContentSigner(*written(tmp_path, key, chain, password))
    for broken in (b"", b"no key"):
        chain, path = written(tmp_path, key)
        path.write_bytes(broken)
        with pytest.raises(RequestError, match="can't sign images"):
            ContentSigner(chain, path)
    with pytest.raises(RequestError, match="missing"):
        ContentSigner(tmp_path / "missing.pem", path)


def test_an_image_that_was_changed_was_opened_and_edited(gate, signer):
    """C2PA's first action is then `opened`, and the image is a parent with the credentials that it has."""
    service = serve({MODEL: gate}, Limits(), Additions(signer=signer))
    with running(service) as address, httpx2.Client(base_url=address, timeout=120) as http:

        def made(**fields):
            job = submit(http, "a boat", 7, **fields)
            ended(http, job)
            (image,) = http.get(f"{job['poll_url']}/result").json()["images"]
            return http.get(image["url"]).content

        first = base64.b64encode(made()).decode()
        plain, mask = BytesIO(), BytesIO()
        Image.new("RGB", (64, 64)).save(plain, "BMP")
        Image.linear_gradient("L").resize((64, 64)).save(mask, "PNG")
        white, black = (base64.b64encode(one.getvalue()).decode() for one in (mask, plain))
        changed, part, bare = made(image=first), made(image=first, mask=white), made(image=black)
        edited = {"init_images": [first], "prompt": "x", "steps": 4, "width": 64, "height": 64}
        answer = http.post("/sdapi/v1/img2img", json=edited).json()["images"][0]
    kinds = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")
    every = ((changed, 0, 1), (part, 1, 1), (bare, 0, 0), (base64.b64decode(answer), 0, 1))
    for content, kind, has in every:
        state, manifest = manifest_of(content)
        assert state == "Valid"
        (actions,) = (
            one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")
        )
        assert [one["action"] for one in actions] == ["c2pa.opened", "c2pa.edited"]
        assert actions[1]["digitalSourceType"].endswith(f"/{kinds[kind]}")
        assert f"/{kinds[kind]}" in marks(content)
        (parent,) = manifest["ingredients"]
        assert (parent["relationship"], "active_manifest" in parent) == ("parentOf", bool(has))
        assert actions[0]["parameters"]["ingredients"][0]["url"].endswith(parent["label"])
