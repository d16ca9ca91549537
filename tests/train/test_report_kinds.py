"""Pages of pre-training runs, sweeps, ablations and shards: whole, alone, escaped, and right."""

import json
import shlex
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from mips_dist.config import compose, save_resolved
from mips_dist.errors import MipsError, UsageError
from mips_dist.train.finetune_config import FinetuneConfig
from mips_dist.train.pretrain_config import PretrainConfig
from mips_dist.use.report.command import pretraining_command
from mips_dist.use.report.events import read_events, thinned
from mips_dist.use.report.folder import read_config
from mips_dist.use.report.write import write_report
from tests.page import Page

HOSTILE = """<script>alert('1')</script><img src=x onerror="x()">"""
STEPS = 6


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    """Write what a run of 6 steps leaves that was stopped after step 4 and did it again."""
    run_dir = tmp_path / "run"
    config = compose(PretrainConfig, "pretrain", ["model=debug", "num_steps=6"])
    config.shards, config.run_dir, config.global_batch_size = HOSTILE, str(run_dir), 32
    run_dir.mkdir()
    save_resolved(config, run_dir / "config.yaml")
    for first, last in ((1, 4), (4, STEPS)):
        writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first)
        writer.add_text("run", f"**From**\n\n- **corpus** {HOSTILE}\n- **device** CPU\n", first)
        for step in range(first, last + 1):
            values = {
                "train/loss": 4.0 / step + first / 1000,
                "train/accuracy": 0.1 * step,
                "train/lr": 1e-3,
                "train/grad_norm": 2.0,
                "perf/polymers_per_s": 64.0,
                "perf/data_wait_fraction": 0.25,
                "perf/memory_gib": 0.5,
            }
            if step % 3 == 0:
                values |= {"val/loss": 5.0 / step, "val/loss_topology": 6.0 / step}
                values |= {"val/accuracy": 0.625, f"val_element/{HOSTILE}": 0.375}
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
        writer.close()
    checkpoint = run_dir / "checkpoints" / "step-00000006"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (run_dir / "checkpoints" / "damaged-step-00000004").mkdir()
    return run_dir


def page_of(run_dir: Path) -> tuple[str, Page]:
    text = write_report(run_dir, None, None).read_text(encoding="utf-8")
    page = Page(text)
    page.check_alone()
    assert any("<script>" in piece for piece in page.texts), "what a user supplied is shown"
    assert page.tags["h1"] == 1
    assert page.tags["caption"] == page.tags["table"]
    return text, page


def test_a_pretraining_run(pretraining: Path) -> None:
    events = read_events(pretraining / "tensorboard")
    # Step 4 was done twice, and the second time counts.
    assert [x for x, _ in events.curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert events.curves["train/loss"][3][1] == pytest.approx(1.004)
    assert [step for step, _ in events.facts] == [1, 4]
    text, page = page_of(pretraining)
    words = " ".join(page.texts)
    for number in ("0.8333", "1.0000", "0.6250", "0.375", "500.0 ms", "25.00%", "step-00000006"):
        assert number in words
    assert "Not finished" not in text
    assert "held out, without descriptors" in text
    assert text.count("<polyline") >= 8


def test_an_unfinished_run_says_so_and_one_without_steps_is_one_line(pretraining: Path) -> None:
    path = pretraining / "config.yaml"
    path.write_text(path.read_text().replace("num_steps: 6", "num_steps: 60"))
    assert "6 of 60 steps" in page_of(pretraining)[0]
    for file in (pretraining / "tensorboard").iterdir():
        file.unlink()
    with pytest.raises(MipsError, match="has no events") as caught:
        write_report(pretraining, None, None)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="leave out --data"):
        write_report(pretraining, None, Path("x.csv"))


def test_the_command_of_a_run_gives_its_configuration(pretraining: Path) -> None:
    config = read_config(pretraining / "config.yaml", ("shards",))
    words = shlex.split(pretraining_command(config))
    composed = compose(PretrainConfig, "pretrain", words[2:])
    assert composed.shards == HOSTILE
    assert composed.global_batch_size == 32
    assert composed.model.hidden_dim == 64


def test_thinned_curves_keep_their_mean() -> None:
    curve = [(float(i), float(i % 7)) for i in range(3000)] + [(3000.0, float("nan"))]
    few = thinned(curve)
    assert len(few) == 300
    assert sum(y for _, y in few) / 300 == pytest.approx(sum(y for _, y in curve[:-1]) / 3000)


def test_a_sweep(tmp_path: Path) -> None:
    config = compose(FinetuneConfig, "finetune", ["search=asha", "num_folds=2"])
    config.input, config.targets = HOSTILE, [HOSTILE]
    save_resolved(config, tmp_path / "config.yaml")
    points = [({"lr": 10.0**-k, "kind": HOSTILE}, [0.5 + 0.1 * k, 0.5]) for k in range(1, 4)]
    lines = [
        {"property": HOSTILE, "values": values, "fold": fold, "score": score, "failure": ""}
        for values, scores in points
        for fold, score in enumerate(scores)
    ]
    lines += [
        {"property": HOSTILE, "values": {"lr": 0.5, "kind": "b"}, "fold": 0, "failure": HOSTILE},
        {"property": HOSTILE, "values": {"lr": 0.2, "kind": "b"}, "fold": 0, "score": 0.25,
         "failure": ""},
    ]  # fmt: skip
    ledger = tmp_path / "search.jsonl"
    # A sweep that is at work has perhaps written half a line, which a reader must not cut off.
    content = "".join(json.dumps(line) + "\n" for line in lines) + '{"prop'
    ledger.write_text(content)
    _, page = page_of(tmp_path)
    assert ledger.read_text() == content
    words = " ".join(page.texts)
    for number in ("0.6500", "0.6000", "0.5500", "0.2500"):
        assert number in words
    # In the table, which stands below the drawings.
    assert words.rindex("0.6500") < words.rindex("0.5500") < words.rindex("0.2500")
    assert "log10 of lr" in words
    assert "3 complete" in " ".join(words.split())
    ledger.write_text("{}\n")
    with pytest.raises(MipsError, match="line 1, is damaged"):
        write_report(tmp_path, None, None)


def test_an_ablation(tmp_path: Path) -> None:
    row = {"component": HOSTILE, "variant": HOSTILE, "property": HOSTILE, "r2": 0.5, "r2_sd": 0.125}
    rows = [row, {**row, "variant": "other", "r2": 0.75, "published": 0.875}]
    (tmp_path / "ablation.json").write_text(json.dumps(rows))
    _, page = page_of(tmp_path)
    words = " ".join(page.texts)
    for number in ("0.500 ± 0.125", "0.750 ± 0.125", "0.875"):
        assert number in words
    (tmp_path / "ablation.json").write_text("[]")
    with pytest.raises(MipsError, match="has no rows yet"):
        write_report(tmp_path, None, None)


def test_shards_have_their_page_already(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"num_samples": 3}))
    with pytest.raises(MipsError, match=r"has no card\.html"):
        write_report(tmp_path, None, None)
    (tmp_path / "card.html").write_text("the card")
    assert write_report(tmp_path, None, None) == tmp_path / "card.html"
    copy = write_report(tmp_path, tmp_path / "copy.html", None)
    assert copy.read_text() == "the card"
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(MipsError, match="is no run of this library"):
        write_report(tmp_path, None, None)
