"""A disk fills up while checkpoints are written: one line, exit 1; with room it goes on."""

import shlex
import subprocess

import pytest

from tests.distributed.conftest import PRETRAIN, TINY, command, curve, execute

# A checkpoint of TINY takes 1.5 MB: the second one does not fit.
SCRIPT = """
mount -t tmpfs -o size=2m tmpfs {disk}
{run} > {logs}/1.out 2> {logs}/1.err
echo $?
ls {disk}/run/checkpoints
cat /dev/zero > {disk}/full 2> /dev/null
{run} > {logs}/2.out 2> {logs}/2.err
echo $?
rm {disk}/full
mount -o remount,size=64m {disk}
{run} > {logs}/3.out 2> {logs}/3.err
echo $?
cp -r {disk}/run {logs}
"""


def test_a_full_disk(shards, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own on this machine")
    disk, logs = tmp_path / "disk", tmp_path / "logs"
    disk.mkdir()
    logs.mkdir()
    argv = command(PRETRAIN, *TINY, f"shards={shards}", f"run_dir={disk / 'run'}")
    script = SCRIPT.format(disk=disk, logs=logs, run=shlex.join(argv))
    outcome = execute(["unshare", "-rm", "sh", "-c", script])
    assert outcome.out.split() == ["1", "step-00000004", "1", "0"], outcome
    for number in (1, 2):
        lines = (logs / f"{number}.err").read_text().splitlines()
        assert len(lines) == 1, lines
        assert "No space left on device" in lines[0]
        assert "run the same command again" in lines[0]
    assert (logs / "3.err").read_text() == ""
    assert list(curve(logs / "run")) == list(range(1, 11))
