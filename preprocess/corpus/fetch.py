"""``python -m preprocess.corpus fetch pi1m|benchmark output=...``: published sets, as they are.

Only addresses stand here (configs/corpus_pi1m.yaml, configs/corpus_benchmark.yaml); the files come
from their authors, under the licence that is printed. They are kept byte for byte.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from mips_dist.data.records import DAMAGED, find_column, parse, read_header, read_lines
from mips_dist.errors import MipsError, UsageError
from preprocess.corpus.download import Patience, checksum_path, download


@dataclass(kw_only=True, slots=True)
class FetchConfig:
    """What to fetch from where.

    Attributes
    ----------
    output
        The file; or the folder, where ``files`` has names.
    url
        Address of the file, or of the folder that holds ``files``.
    files
        Names of several files; empty for one.
    columns
        Columns that each file must have beside psmiles or smiles.
    source, licence
        What the set is and under which terms it comes; printed.
    retries, retry_seconds, timeout_seconds
        See `preprocess.corpus.download.Patience`.
    """

    output: str = ""
    url: str = ""
    files: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    source: str = ""
    licence: str = ""
    retries: int = 4
    retry_seconds: float = 1.0
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.output or not self.url:
            raise ValueError("output= and url= must not be empty")
        if self.retries < 0 or self.retry_seconds < 0 or self.timeout_seconds <= 0:
            raise ValueError("retries and retry_seconds must be at least 0, timeout_seconds above")
        if any(Path(name).name != name for name in self.files):
            raise ValueError("files: plain names only")


def fetch(config: FetchConfig) -> None:
    """Fetch the files that are not there yet, and check those that are."""
    output = Path(config.output)
    if config.files:
        wanted = {f"{config.url.rstrip('/')}/{name}": output / name for name in config.files}
        if output.is_file():
            raise UsageError(f"output={output} is a file; name a folder")
    else:
        wanted = {config.url: output}
        if output.is_dir():
            raise UsageError(f"output={output} is a folder; name a file")
    print(f"{config.source}\nlicence: {config.licence}")
    patience = Patience(
        retries=config.retries, seconds=config.retry_seconds, timeout=config.timeout_seconds
    )
    for url, path in wanted.items():
        sha256, outcome = download(
            url, path, lambda file: _check_columns(file, config.columns), patience
        )
        print(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256}, {outcome}", flush=True)
    records = ", ".join(checksum_path(path).name for path in wanted.values())
    print(f"checksums are kept beside the files: {records}")


def _check_columns(file: Path, columns: list[str]) -> None:
    """Refuse what is no such table: an error page, or the stand-in that large-file stores serve."""
    name = file.name.removesuffix(".partial")
    try:
        with file.open("rb") as stream:
            header = read_header(name, parse(read_lines(stream, name, is_cut=True)))
        for column in ["", *columns]:
            find_column(name, header, column)
    except (UsageError, csv.Error, *DAMAGED) as error:
        raise MipsError(
            f"what came is not the table that was asked for ({error}); give its address as url="
        ) from error
