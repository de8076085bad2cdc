"""Prints password hashes as the real Django makes and stores them: JSON, a list of {password, hasher, hash}.

Passwords may be given as arguments; without, some that are awkward. `--costs` makes each by Django's own default costs,
otherwise by lower ones, so that many can be checked in a short time.
"""

import json
import sys

from django.conf import settings

settings.configure(
    PASSWORD_HASHERS=[
        "django.contrib.auth.hashers." + name
        for name in (
            "PBKDF2PasswordHasher",
            "PBKDF2SHA1PasswordHasher",
            "Argon2PasswordHasher",
            "BCryptSHA256PasswordHasher",
            "BCryptPasswordHasher",
            "ScryptPasswordHasher",
        )
    ],
)

from django.contrib.auth import hashers  # noqa: E402

AWKWARD = [
    "correct horse battery",
    " spaces at both ends ",
    "pässwörd für Zoë",
    "愛とパスワード🔑",
    "dollars $in$ it",
    "'quotes\" and \\backslashes\\",
    "72 bytes and more: " + "x" * 100,
    "é" * 36,
]

arguments = [argument for argument in sys.argv[1:] if argument != "--costs"]
cheap = "--costs" not in sys.argv[1:]
made = []
for password in arguments or AWKWARD:
    for hasher in hashers.get_hashers():
        if cheap:
            for name, cost in (("iterations", 2_000), ("rounds", 4), ("memory_cost", 1_024), ("work_factor", 2**10)):
                if hasattr(hasher, name):
                    setattr(hasher, name, cost)
        # The library behind it refuses what bcrypt would not look at.
        if hasher.algorithm == "bcrypt" and len(password.encode()) > 72:
            continue
        encoded = hasher.encode(password, hasher.salt())
        assert hashers.check_password(password, encoded)
        made.append({"password": password, "hasher": hasher.algorithm, "hash": encoded})
made.append({"password": None, "hasher": "none", "hash": hashers.make_password(None)})
json.dump(made, sys.stdout)
