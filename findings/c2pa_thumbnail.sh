#!/usr/bin/env bash
# One would guess: a signed C2PA manifest that only says "made by this model" adds a few kilobytes to a
# picture, whatever it shows.
# c2pa-python puts the whole picture into it once more, as a JPEG, and enlarges a small picture for
# that: the "thumbnail" of 256 pixels has 1024, and takes many times the bytes of the PNG.
# "builder.thumbnail.enabled": false leaves it out, and the manifest has three kilobytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q c2pa-python==0.38.1 cryptography==50.0.2 numpy==2.4.6 pillow==12.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import io
import json
from importlib.metadata import version

import c2pa
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

print(*(f"{name} {version(name)}" for name in ("c2pa-python", "pillow")))
now, authority, key = datetime.datetime.now(datetime.UTC), *(
    ec.generate_private_key(ec.SECP256R1()) for _ in range(2)
)


def named(name):
    names = ((NameOID.ORGANIZATION_NAME, "Test"), (NameOID.COMMON_NAME, name))
    return x509.Name([x509.NameAttribute(*one) for one in names])


def certificate(name, public, is_authority):
    uses = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )
    uses |= {"digital_signature": True, "key_cert_sign": is_authority, "crl_sign": is_authority}
    built = (
        x509.CertificateBuilder(named("Authority"), named(name), public, 1 + is_authority)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
    )
    if not is_authority:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        built = built.add_extension(purpose, critical=False)
    return built.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


chain = certificate("Signer", key.public_key(), False)
chain += certificate("Authority", authority.public_key(), True)
private = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
made = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
created = {"action": "c2pa.created", "digitalSourceType": made}
manifest = {
    "claim_generator_info": [{"name": "test"}],
    "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
}
rng = np.random.default_rng(0)
pictures = {
    "noise": rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
    "blocks": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1),
}
grown = {}
for name, pixels in pictures.items():
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    before = len(png.getvalue())
    for kind, settings in (
        ("as usual", {}), ("without thumbnail", {"builder": {"thumbnail": {"enabled": False}}}),
    ):
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", chain, private, None))
        builder = c2pa.Builder(json.dumps(manifest), context=c2pa.Context.from_dict(settings))
        signed = io.BytesIO()
        png.seek(0)
        builder.sign(signer, "image/png", png, signed)
        grown[name, kind] = len(signed.getvalue()) - before
        print(f"{name}, {kind}: {before} bytes, {grown[name, kind]} more")
        signed.seek(0)
        with c2pa.Reader("image/png", signed) as reader:
            assert reader.get_validation_state() == "Valid"
            active = json.loads(reader.json())["manifests"].popitem()[1]
            if "thumbnail" in active:
                small = io.BytesIO()
                reader.resource_to_stream(active["thumbnail"]["identifier"], small)
                size = Image.open(small).size
                print(f"its thumbnail has {size[0]} x {size[1]} pixels")
                assert size[0] > len(pixels)
    assert grown[name, "as usual"] > 0.8 * before
    assert grown[name, "without thumbnail"] < 5000
PYTHON
# Seen (the sizes vary by a few bytes):
# c2pa-python 0.38.1 pillow 12.3.0
# noise, as usual: 197174 bytes, 617188 more
# its thumbnail has 1024 x 1024 pixels
# noise, without thumbnail: 197174 bytes, 3050 more
# blocks, as usual: 5692 bytes, 148814 more
# its thumbnail has 1024 x 1024 pixels
# blocks, without thumbnail: 5692 bytes, 3050 more
