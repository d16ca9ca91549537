"""What makes a Ray of our own private: this machine alone, and a token that nobody else has.

Ray reads it when it is imported or first used, so ``os.environ`` is updated before.
"""

import os
import secrets


def private_environment() -> dict[str, str]:
    """Return what to add to the environment of a Ray that is started here; the user's stays."""
    # Made for desktops; it is what binds a local Ray to 127.0.0.1. An address given to ray.init is
    # replaced by one that other machines can reach.
    wanted = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    # Without one Ray leaves a token in the home folder, readable by everyone. That of a cluster
    # (RAY_AUTH_TOKEN_PATH) is not for a Ray of our own.
    wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {name: value for name, value in wanted.items() if name not in os.environ}
