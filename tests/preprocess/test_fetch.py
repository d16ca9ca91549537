"""Fetching against a server that cuts, lies, changes and refuses."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mips_dist.config import compose, configs_dir
from mips_dist.data.properties import BENCHMARK, read_labelled_sets, read_property
from preprocess.corpus.__main__ import main
from preprocess.corpus.fetch import FetchConfig
from tests.preprocess.flaky_server import STALL, STALL_BYTES, Site, serve

ROOT = Path(__file__).parents[2]
BODY = b"SMILES,SA_score\n" + b"".join(
    b"*CC(*)C%s,3.%d\n" % (b"C" * (i % 40), i) for i in range(9999)
)
OTHER = BODY.replace(b"*CC(*)C", b"*CO(*)N")
QUICK = ["retry_seconds=0.01", "retries=3", "timeout_seconds=5"]


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site({"/pi1m.csv": BODY})) as running:
        yield running


@pytest.fixture
def fetch(site: Site, tmp_path: Path) -> Callable[..., int]:
    def call(*options: str) -> int:
        url = f"url={site.url}/pi1m.csv"
        return main(["fetch", "pi1m", f"output={tmp_path}/x.csv", url, *QUICK, *options])

    return call


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def assert_whole(folder: Path, body: bytes = BODY) -> None:
    assert (folder / "x.csv").read_bytes() == body
    checksum = hashlib.sha256(body).hexdigest()
    assert (folder / "x.csv.sha256").read_text() == f"{checksum}  x.csv\n"
    assert names(folder) == {"x.csv", "x.csv.sha256"}


def cut_every(size: int) -> Callable[[str, int], int]:
    return lambda path, count: -size


def test_the_file_is_kept_as_it_is_and_fetched_once(site, fetch, tmp_path, capsys):
    assert fetch() == 0
    assert_whole(tmp_path)
    output = capsys.readouterr()
    assert "licence: MIT" in output.out
    assert hashlib.sha256(BODY).hexdigest() in output.out
    assert output.err == ""
    assert fetch() == 0
    assert len(site.requests) == 1
    # The record is what sha256sum reads.
    subprocess.run(["sha256sum", "-c", "x.csv.sha256"], cwd=tmp_path, check=True)


def test_cut_connections_are_continued_where_they_broke(site, fetch, tmp_path, capsys):
    step = len(BODY) // 7
    site.fault = cut_every(step)
    assert fetch() == 0
    assert_whole(tmp_path)
    # More cuts than retries: each gained bytes. Nothing was sent twice.
    ranges = [wanted for _, wanted in site.requests]
    assert ranges == ["", *(f"bytes={step * k}-" for k in range(1, 8))]
    assert "bytes came; again in" in capsys.readouterr().err


def test_another_process_continues_what_a_kill_left(site, fetch, tmp_path):
    def hang(path: str, count: int) -> int | None:
        return None if count else -100_000

    site.fault = hang
    command = [sys.executable, "-m", "preprocess.corpus", "fetch", "pi1m"]
    options = [f"output={tmp_path}/x.csv", f"url={site.url}/pi1m.csv", "retry_seconds=60"]
    # Cut after 100 kB, it waits a minute for its retry; killed there.
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL)
    partial = tmp_path / "x.csv.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size == 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert fetch() == 1  # one command at a time
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x.csv").exists()
    assert fetch() == 0
    assert_whole(tmp_path)
    assert site.requests[-1][1] == "bytes=100000-"


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changes_meanwhile_starts_anew(site, fetch, tmp_path, honours_if_range):
    site.honours_if_range = honours_if_range

    def change(path: str, count: int) -> int | None:
        if count == 1:
            site.files["/pi1m.csv"], site.etag = OTHER, '"2"'
        return None if count else -100_000

    site.fault = change
    assert fetch() == 0
    assert_whole(tmp_path, OTHER)


def test_a_file_that_shrinks_meanwhile_starts_anew(site, fetch, tmp_path):
    short = BODY[:50_000]
    site.honours_if_range = False

    def change(path: str, count: int) -> int | None:
        if count == 1:
            site.files["/pi1m.csv"] = short
        return None if count else -100_000

    site.fault = change
    assert fetch() == 0
    assert_whole(tmp_path, short)


@pytest.mark.parametrize("fault", ["no range", "no etag", "weak etag"])
def test_servers_that_cannot_continue_are_asked_for_all(site, fetch, tmp_path, fault):
    site.honours_range = fault != "no range"
    site.etag = {"no etag": "", "weak etag": 'W/"1"'}.get(fault, site.etag)
    site.fault = lambda path, count: -100_000 if count < 2 else None
    assert fetch() == 0
    assert_whole(tmp_path)
    assert len(site.requests) == 3


def test_retries_end_where_nothing_is_gained(site, fetch, tmp_path, capsys):
    site.honours_range = False
    site.fault = cut_every(100_000)
    assert fetch() == 1
    assert len(site.requests) == 1 + 3
    error = one_line_error(capsys)
    assert f"100,000 of {len(BODY):,} bytes came; run the same command again" in error
    assert not (tmp_path / "x.csv").exists()


def test_a_length_that_promises_too_much_is_noticed(site, fetch, tmp_path, capsys):
    site.extra_length = 9
    assert fetch() == 1
    assert len(site.requests) == 1 + 3
    assert f"{len(BODY):,} of {len(BODY) + 9:,} bytes came" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_a_missing_length_is_refused(site, fetch, capsys):
    site.names_length = False
    assert fetch() == 1
    assert "names no Content-Length" in one_line_error(capsys)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 4), (503, 4), (429, 4)])
def test_refusals_are_one_line_and_only_passing_ones_retried(
    site, fetch, tmp_path, capsys, status, requests
):
    site.fault = lambda path, count: status
    assert fetch() == 1
    assert len(site.requests) == requests
    error = one_line_error(capsys)
    assert f"HTTP status {status}" in error
    assert f"put it at {tmp_path}/x.csv" in error
    site.fault = lambda path, count: 500 if count == requests else None
    assert fetch() == 0
    assert_whole(tmp_path)


def test_a_server_that_falls_silent_is_left(site, fetch, tmp_path, capsys):
    site.fault = lambda path, count: STALL if count < 2 else None
    assert fetch("timeout_seconds=0.3") == 0
    assert_whole(tmp_path)
    assert [wanted for _, wanted in site.requests] == [
        "",
        f"bytes={STALL_BYTES}-",
        f"bytes={2 * STALL_BYTES}-",
    ]
    assert "timed out" in capsys.readouterr().err


def test_redirects_are_followed_and_keep_the_range(site, fetch, tmp_path):
    site.redirects = {"/old": f"{site.url}/pi1m.csv"}
    site.fault = lambda path, count: -100_000 if path == "/pi1m.csv" and count == 1 else None
    assert fetch(f"url={site.url}/old") == 0
    assert_whole(tmp_path)
    assert site.requests[-1] == ("/pi1m.csv", "bytes=100000-")


def test_the_first_checksum_is_held_ever_after(site, fetch, tmp_path, capsys):
    old, new = (hashlib.sha256(body).hexdigest() for body in (BODY, OTHER))
    assert fetch() == 0
    (tmp_path / "x.csv").write_bytes(OTHER)
    assert fetch() == 1
    error = one_line_error(capsys)
    assert error.index(new) < error.index(old)
    assert "remove" in error
    # Gone here, and another file there.
    (tmp_path / "x.csv").unlink()
    site.files["/pi1m.csv"] = OTHER
    assert fetch() == 1
    error = one_line_error(capsys)
    assert new in error
    assert old in error
    assert names(tmp_path) == {"x.csv.sha256"}
    site.files["/pi1m.csv"] = BODY
    assert fetch() == 0
    assert_whole(tmp_path)


def test_an_error_page_is_no_table_and_is_not_recorded(site, fetch, tmp_path, capsys):
    site.files["/pi1m.csv"] = b"<html><body>Please log in</body></html>\n"
    assert fetch() == 1
    assert "not the table that was asked for" in one_line_error(capsys)
    assert names(tmp_path) == set()
    site.files["/pi1m.csv"] = BODY
    assert fetch() == 0
    assert_whole(tmp_path)


def test_offline_names_the_address_and_the_way_by_hand(site, fetch, tmp_path, capsys):
    # Nobody listens at port 9 of this machine.
    assert fetch("url=http://127.0.0.1:9/pi1m.csv", "retries=1") == 1
    error = one_line_error(capsys)
    assert "http://127.0.0.1:9/pi1m.csv could not be fetched: no connection" in error
    assert f"put it at {tmp_path}/x.csv and run the same command" in error
    assert names(tmp_path) == set()
    (tmp_path / "x.csv").write_bytes(BODY)
    assert fetch("url=http://127.0.0.1:9/pi1m.csv") == 0
    assert hashlib.sha256(BODY).hexdigest() in (tmp_path / "x.csv.sha256").read_text()
    assert not site.requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fetch", "pl1m"], "usage: "),
        (["fetch", "pi1m", "url=file:///etc/hosts"], "begins with https://"),
        (["fetch", "pi1m", "retries=-1"], "at least 0"),
        (["fetch", "benchmark", "files=[../x.csv]"], "plain names only"),
        (["fetch", "benchmark", f"output={ROOT}/README.md"], "is a file; name a folder"),
    ],
)
def test_wrong_commands_are_one_line(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    assert message in one_line_error(capsys)


def test_public_addresses_are_https_and_name_the_eight_files():
    benchmark = compose(FetchConfig, "corpus_benchmark", [])
    properties = [read_property(configs_dir() / "property", name) for name in BENCHMARK]
    assert benchmark.files == [prop.file for prop in properties]
    for config in (benchmark, compose(FetchConfig, "corpus_pi1m", [])):
        assert config.url.startswith("https://")
        assert config.licence


@pytest.mark.needs_data
def test_the_eight_sets_arrive_as_fine_tuning_reads_them(data_dir, tmp_path, capsys):
    files = {f"/sets/{file.name}": file.read_bytes() for file in (data_dir / "benchmark").iterdir()}
    output = tmp_path / "benchmark"
    with serve(Site(files)) as site:
        site.fault = lambda path, count: -900 if count % 2 else None
        command = ["fetch", "benchmark", f"output={output}", f"url={site.url}/sets", *QUICK]
        assert main(command) == 0
    assert "GPL-3.0" in capsys.readouterr().out
    properties = [read_property(configs_dir() / "property", name) for name in BENCHMARK]
    for prop in properties:
        prop.file = os.fspath(output / prop.file)
    sets, rejects = read_labelled_sets(properties)
    assert sum(len(labelled.row) for labelled in sets) == 6265
    assert not rejects
