"""The output folder: overtaken, just begun, of any name."""

from pathlib import Path

import pytest

from mips_dist.config import run
from mips_dist.errors import MipsError
from preprocess import pipeline
from preprocess.output import OutputFolder
from preprocess.rows import inspect
from preprocess.verify import VerifyConfig, verify
from tests.preprocess.inline import InlinePool
from tests.preprocess.test_pipeline import contents, corpus, in_process


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WorkerPool", InlinePool)


def test_a_run_that_was_overtaken_touches_nothing(tmp_path: Path) -> None:
    source, output = corpus(tmp_path / "in.csv", 20), tmp_path / "out"
    config = pipeline.PreprocessConfig(input=str(source), output=str(output), content="topology")
    header = pipeline.manifest_header(config, inspect(str(source), ""))
    late = OutputFolder(str(output), header)
    assert not late.is_finished()
    assert in_process(source, output) == 0
    before = contents(output)
    with pytest.raises(MipsError, match="another run has finished"), late.begun():
        pass
    assert contents(output) == before


def test_what_is_made_is_known_before_work_begins(tmp_path: Path) -> None:
    source, output = corpus(tmp_path / "in.csv", 20), tmp_path / "out"
    (output / "work").mkdir(parents=True)
    (output / "work" / "run.json").write_bytes(b"torn by a power cut")
    assert in_process(source, output) == 0


def test_paths_of_any_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, output = corpus(Path("d'été, 50% (1)=\\.csv"), 5), Path("日本 \\'x\\")
    assert in_process(source, output) == 0
    assert run(verify, VerifyConfig, "verify", [f"output={output}"]) == 0
