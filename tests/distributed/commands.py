"""Run several pre-training commands in one process; print exit code and stderr of each as JSON."""

import contextlib
import io
import json
import sys

from mips_dist.config import run
from mips_dist.pretrain import main
from mips_dist.train.pretrain_config import PretrainConfig

if __name__ == "__main__":
    results = []
    for argv in json.loads(sys.argv[1]):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            code = run(main, PretrainConfig, "pretrain", argv)
        results.append([code, out.getvalue(), err.getvalue()])
    print(json.dumps(results))
