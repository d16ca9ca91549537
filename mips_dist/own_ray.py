"""What makes a Ray of our own private: this machine alone, and a token that nobody else has.

Ray reads all of it when it is imported or first used, so it is set before.
"""

import os
import secrets


def make_private() -> None:
    """Set the environment of a Ray that is about to be started here, and of its processes.

    What the user has set stays.
    """
    # Made for desktops; it is what binds a local Ray to 127.0.0.1. An address given to ray.init is
    # replaced by one that other machines can reach.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        # Without one Ray would leave a token in the home folder, readable by everyone.
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
