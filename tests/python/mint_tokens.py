"""Mints tokens by the real packages: SimpleJWT and PyJWT, with keys made by cryptography.

Takes JSON: `user` (an id), `secret` (for HS256), `kids` (names of keys to make, each with its algorithm), `claims`
(further ones for the tokens of PyJWT), and `simple_jwt` (settings of SimpleJWT). Prints JSON: tokens of a shared secret under `shared`, and for each kid its
`jwk`, its `pem`, a token of PyJWT that names it (`token`) and one of SimpleJWT, which names none (`unnamed`).
"""

import json
import sys
import time
from types import SimpleNamespace

import django
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from django.conf import settings

asked = json.loads(sys.argv[1])

settings.configure(
    SECRET_KEY=asked["secret"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "rest_framework_simplejwt"],
    SIMPLE_JWT=asked.get("simple_jwt", {}),
)
django.setup()

from rest_framework_simplejwt.backends import TokenBackend  # noqa: E402
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken  # noqa: E402

user = SimpleNamespace(id=asked["user"], is_active=True)


def shared():
    refresh = RefreshToken.for_user(user)
    integer = AccessToken()
    integer["user_id"] = asked["user"]
    old = AccessToken.for_user(user)
    old["exp"] = int(time.time()) - 1
    return {
        "access": str(AccessToken.for_user(user)),
        "refresh": str(refresh),
        "access_of_refresh": str(refresh.access_token),
        "integer": str(integer),
        "expired": str(old),
    }


def key_for(algorithm):
    if algorithm in ("ES256", "ES384"):
        return ec.generate_private_key(ec.SECP256R1() if algorithm == "ES256" else ec.SECP384R1())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


def issued(kid, algorithm):
    private = key_for(algorithm)
    public = private.public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    now = int(time.time())
    claims = {"token_type": "access", "user_id": asked["user"], "iat": now, "exp": now + 3600}
    claims.update(asked.get("claims", {}))
    claims = {name: value for name, value in claims.items() if value is not None}

    unnamed = AccessToken.for_user(user)
    unnamed._token_backend = TokenBackend(algorithm, signing_key=private_pem, verifying_key=pem)
    refresh = RefreshToken.for_user(user)
    refresh._token_backend = unnamed._token_backend
    return {
        "jwk": {**jwk, "kid": kid, "alg": algorithm, "use": "sig"},
        "pem": pem,
        "token": jwt.encode(claims, private, algorithm=algorithm, headers={"kid": kid}),
        "unnamed": str(unnamed),
        "refresh": str(refresh),
    }


kids = {kid: issued(kid, algorithm) for kid, algorithm in asked.get("kids", {}).items()}
print(json.dumps({"shared": shared(), **kids}))
