"""Signed pictures: another reader agrees, a change is noticed, and what is set wrongly is told."""

import datetime
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from core import content_credentials
from core.content_credentials import CERTIFICATE, KEY, TIMESTAMPS, Signer, read_manifest
from core.errors import BadInput
from core.marking import UNSIGNED, Marks, mark_with, write_marked
from core.metadata import save_png
from core.provenance import EDITED, GENERATED, MANIFEST, VOCABULARY, main, read_claims
from core.request import GenerationRequest

c2pa = pytest.importorskip("c2pa", reason="pip install -r requirements-c2pa.txt")

KINDS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def pem_of(key):
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def chain_for(key):
    """Return a certificate for a key, and that of the authority that issued it, in PEM."""
    now, authority_key = (
        datetime.datetime.now(datetime.UTC),
        ec.generate_private_key(ec.SECP256R1()),
    )

    def certificate(name, public, is_authority):
        called = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Loop Ltd"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        issuer = called if is_authority else authority.subject
        usage = dict.fromkeys(
            "content_commitment key_encipherment data_encipherment key_agreement encipher_only "
            "decipher_only".split(),
            False,
        )
        built = (
            x509.CertificateBuilder(issuer, called, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, key_cert_sign=is_authority, crl_sign=is_authority,
                    **usage,
                ),
                critical=True,
            )
        )  # fmt: skip
        if not is_authority:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            built = built.add_extension(purpose, critical=False)
        return built.sign(authority_key, hashes.SHA256())

    authority = certificate("Authority", authority_key.public_key(), True)
    signer = certificate("Operator", key.public_key(), False)
    return [one.public_bytes(serialization.Encoding.PEM) for one in (signer, authority)]


@pytest.fixture
def variables(request, tmp_path):
    key = KINDS[getattr(request, "param", "P-256")]()
    (tmp_path / "chain.pem").write_bytes(b"".join(chain_for(key)))
    (tmp_path / "key.pem").write_bytes(pem_of(key))
    return {CERTIFICATE: str(tmp_path / "chain.pem"), KEY: str(tmp_path / "key.pem")}


@pytest.fixture
def signing(variables):
    mark_with(Marks.read(variables))
    yield
    mark_with(Marks())


def written(kind=GENERATED):
    memory = io.BytesIO()
    write_marked(memory, np.full((32, 32, 3), 90, np.uint8), kind, "Diorama", {"parameters": "x"})
    return memory.getvalue()


def actions_in(data):
    with c2pa.Reader("image/png", io.BytesIO(data)) as reader:
        stored = json.loads(reader.json())
    (assertion,) = stored["manifests"][stored["active_manifest"]]["assertions"]
    return assertion["data"]["actions"]


@pytest.mark.parametrize("variables", KINDS, indirect=True)
def test_every_kind_of_key_signs(signing):
    data = written()
    assert "signed by Operator of Loop Ltd: valid, by an issuer that is not known" in (
        read_manifest(data)
    )


@pytest.mark.parametrize("kind", [GENERATED, EDITED])
def test_the_manifest_says_what_xmp_says_and_pixels_and_texts_stay(signing, kind):
    data = written(kind)
    (action,) = actions_in(data)
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == VOCABULARY + kind
    assert action["softwareAgent"]["name"] == "Diorama"
    assert read_claims(data).source_types == (kind,) and read_claims(data).has_manifest
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.text["parameters"] == "x"
        assert set(picture.convert("RGB").tobytes()) == {90}
    mark_with(Marks())
    assert len(data) - len(written(kind)) < 8000


def test_a_result_is_signed_in_a_file_too(signing, pipeline, condition, image, tmp_path):
    request = GenerationRequest.single(condition, image, steps=2, image_resolution=256, seed=1)
    result = pipeline.generate(request)
    save_png(tmp_path / "made.png", result.images[0], result, 0)
    assert "valid, by" in read_manifest((tmp_path / "made.png").read_bytes())
    assert [one.name for one in tmp_path.glob("*.p*")].count("made.png") == 1


def test_one_changed_pixel_is_noticed(signing, tmp_path, capsys):
    data = bytearray(written())
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "changed.png").write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "changed.png")])
    assert ended.value.code == 0
    assert "Loop Ltd: not valid, because the file" in capsys.readouterr().out


def test_a_manifest_that_is_damaged_is_told(signing):
    data = bytearray(written())
    place = data.index(MANIFEST) + len(MANIFEST)
    data[place : place + 60] = b"\xff" * 60
    assert read_manifest(bytes(data)) == "It has a C2PA manifest that cannot be read."


def test_without_variables_nothing_is_signed():
    assert Signer.read({}) is None and not read_claims(written()).has_manifest


def test_what_cannot_be_signed_is_written_and_told(signing, variables, monkeypatch, caplog):
    assert write_marked(io.BytesIO(), np.zeros((8, 8, 3), np.uint8), GENERATED) == ""
    monkeypatch.setattr(Signer, "signed", lambda *_: 1 / 0)
    assert read_claims(written()).source_types == (GENERATED,)
    assert write_marked(io.BytesIO(), np.zeros((8, 8, 3), np.uint8), GENERATED) == UNSIGNED
    assert "could not be signed" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda given: given.pop(KEY), f"Set both {CERTIFICATE} and {KEY}"),
        (lambda given: given.update({KEY: "/none"}), f"{KEY} is '/none'; it must be a PEM file"),
        (lambda given: given.update({KEY: given[CERTIFICATE]}), "must hold a private key"),
        (lambda given: given.update({CERTIFICATE: given[KEY]}), "Pictures cannot be signed with"),
    ],
)
def test_a_bad_setting_is_one_sentence(variables, spoil, sentence):
    spoil(variables)
    with pytest.raises(BadInput, match=sentence):
        Signer.read(variables)


def test_a_key_of_another_certificate_or_kind_is_refused(variables, tmp_path):
    for key, sentence in (
        (KINDS["P-256"](), "Pictures cannot be signed with"),
        (dsa.generate_private_key(1024), "of a kind that C2PA does not take"),
    ):
        (tmp_path / "other.pem").write_bytes(pem_of(key))
        with pytest.raises(BadInput, match=sentence):
            Signer.read(variables | {KEY: str(tmp_path / "other.pem")})


def test_a_timestamp_authority_out_of_reach_is_told(variables):
    with pytest.raises(BadInput, match="Pictures cannot be signed"):
        Signer.read(variables | {TIMESTAMPS: "http://127.0.0.1:9/"})


def test_without_the_library_it_is_named(variables, monkeypatch):
    monkeypatch.setattr(content_credentials, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match=r"pip install -r requirements-c2pa.txt"):
        Signer.read(variables)
    assert "not checked here" in read_manifest(b"")


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
def test_exiftool_reads_the_same_from_manifest_and_xmp(signing, tmp_path):
    (tmp_path / "made.png").write_bytes(written(EDITED))
    done = subprocess.run(
        ["exiftool", "-j", "-n", "-G1", "-Warning", "-all", str(tmp_path / "made.png")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (said,) = json.loads(done.stdout)
    of_manifest = [value for key, value in said.items() if "ActionsDigitalSourceType" in key]
    assert of_manifest == [said["XMP-iptcExt:DigitalSourceType"]] == [VOCABULARY + EDITED]
