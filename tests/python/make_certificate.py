"""Makes an authority and a certificate of it for this machine, and prints both, and the key, as PEM in JSON."""

import datetime
import ipaddress
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

now = datetime.datetime.now(datetime.timezone.utc)


def certificate(subject, key, issuer, signing, extensions):
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    made = builder.sign(signing, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
authority = certificate(
    "authority", authority_key, "authority", authority_key, [(x509.BasicConstraints(True, None), True)]
)
names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
own = certificate(
    "localhost",
    key,
    "authority",
    authority_key,
    [(x509.BasicConstraints(False, None), True), (x509.SubjectAlternativeName(names), False)],
)
private = key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
print(json.dumps({"authority": authority, "certificate": own, "key": private}))
