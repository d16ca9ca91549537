"""The same file gives the same rows wherever it lies; a lost transfer costs one line."""

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mips_dist.errors import MipsError, UsageError
from preprocess import pipeline
from preprocess.rows import inspect
from tests.polymers import POLYMERS
from tests.preprocess.servers import http_server, s3_file_system
from tests.preprocess.test_pipeline import InlinePool, contents, in_process

NAMES = ["a.csv", "a.csv.gz", "a.txt", "a.parquet"]
TEXTS = [*POLYMERS, "", "CC"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    csv = "psmiles\n" + "".join(f"{text}\n" for text in TEXTS)
    (folder / "a.csv").write_text(csv)
    (folder / "a.csv.gz").write_bytes(gzip.compress(csv.encode()))
    (folder / "a.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    pq.write_table(pa.table({"psmiles": TEXTS}), folder / "a.parquet", row_group_size=20)
    return folder


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[None]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_file_system() as system:
        system.mkdir("corpus")
        for path in folder.iterdir():
            system.put_file(str(path), f"corpus/{path.name}")
        yield


def check(url: str, local: Path) -> None:
    there, here = inspect(url, ""), inspect(str(local), "")
    assert list(there.texts()) == list(here.texts()) == TEXTS
    assert (there.name, there.sha256, there.num_rows) == (here.name, here.sha256, len(TEXTS))


def one_line(url: str, words: str, error: type[Exception] = MipsError) -> str:
    with pytest.raises(error, match=words) as caught:
        list(inspect(url, "").texts())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("s3")
def test_s3(folder: Path, name: str) -> None:
    check(f"s3://corpus/{name}", folder / name)


@pytest.mark.parametrize("has_ranges", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_http(folder: Path, name: str, has_ranges: bool) -> None:
    with http_server(folder) as server:
        server.has_ranges = has_ranges
        check(f"{server.url}/{name}?token=abc", folder / name)


@pytest.mark.usefixtures("s3")
def test_what_is_not_there_or_not_allowed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one_line("s3://corpus/b.csv", "no file s3://corpus/b.csv")
    one_line("s3://nobody/b.csv", "no file s3://nobody/b.csv")
    with http_server(tmp_path) as server:
        url = f"{server.url}/b.csv"
        one_line(url, "no file http://127.0.0.1")
    assert "secret" not in one_line(f"{url}?token=secret", "no file http://127.0.0.1")
    message = one_line("https://me:secret@host/b.csv", "environment", UsageError)
    assert "secret" not in message
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    one_line("s3://corpus/a.csv", "cannot be read.*credentials")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://corpus/a.csv", "s3fs", "s3"), ("https://host/a.csv", "aiohttp", "http")],
)
def test_a_missing_package_is_named(url: str, module: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from preprocess.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, f"input={url}", "output=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {url} needs a package that is not installed")
    assert f"pip install 'mips-dist[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_changes_between_two_readings_is_noticed(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        path = tmp_path / name
        for texts in (["*C*", "*CO*"], ["*C*", "*CN*"]):
            if name == "a.csv":
                path.write_text("psmiles\n" + "\n".join(texts) + "\n")
            else:
                pq.write_table(pa.table({"psmiles": texts}), path)
            if texts[1] == "*CO*":
                source = inspect(str(path), "")
                assert list(source.texts()) == texts
        with pytest.raises(MipsError, match="has changed while it was read"):
            list(source.texts())


@pytest.mark.parametrize("has_ranges", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_cut_transfer_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    has_ranges: bool,
) -> None:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    monkeypatch.setattr(pipeline, "CHUNK_SIZE", 10)
    assert in_process(folder / name, tmp_path / "local") == 0
    output = tmp_path / "out"
    with http_server(folder) as server:
        server.has_ranges = has_ranges
        url = f"{server.url}/{name}?secret"
        size = (folder / name).stat().st_size
        for limits in ([size // 2], [size, size // 2]):  # the first reading, the second
            server.limits = [*limits]
            capsys.readouterr()
            assert in_process(url, output) == 1
            lines = capsys.readouterr().err.splitlines()
            assert "run the same command again" in lines[-1]
            assert lines[-1].startswith("error: http://127.0.0.1")
            assert not any("Traceback" in line for line in lines)
        assert in_process(url, output) == 0
    assert contents(output) == contents(tmp_path / "local")
    assert not any(b"secret" in path.read_bytes() for path in output.iterdir())


@pytest.mark.usefixtures("s3")
def test_shards_from_s3_are_those_of_the_local_file(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)
    assert in_process(folder / "a.csv.gz", tmp_path / "local") == 0
    assert in_process("s3://corpus/a.csv.gz", tmp_path / "s3") == 0
    assert contents(tmp_path / "s3") == contents(tmp_path / "local")
