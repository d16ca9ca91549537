"""A process that predicts for `mips_dist.use.workers`: a molecule that ends it ends nothing else.

Run as ``python -m mips_dist.use.predict_worker DESCRIPTOR``: it reads requests from the connection
of that file descriptor, and ends when the other end is closed.
"""

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from mips_dist.errors import MipsError


def serve(connection: Connection) -> None:
    """Load the models that the first message names, then answer requests.

    The first answer is (properties, those without calibration), or the error of a model. Each
    request (seconds, method, texts) is answered by one result for each text; ``seconds`` of the
    processor are then allowed, after which the kernel ends this process, whatever it is doing.
    """
    models: Sequence[Any] = connection.recv()
    # After the parent's message: what is imported here takes seconds.
    from mips_dist.threads import one_thread
    from mips_dist.use.predictor import Predictor, spell

    try:
        predictor = Predictor.open(models)
    except (MipsError, OSError) as error:
        connection.send(error)
        return
    uncalibrated = [name for name, b in predictor.bundles.items() if b.calibration is None]
    methods = {"spell": spell, "predict": predictor.predict_canonical}
    connection.send((predictor.properties, uncalibrated))
    with one_thread():
        while True:
            seconds, method, texts = connection.recv()
            # Processor time: a crowded machine condemns nobody.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            results = [methods[method](text) for text in texts]
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(results)


def main() -> None:
    """Serve until the parent is gone; Ctrl-C is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
