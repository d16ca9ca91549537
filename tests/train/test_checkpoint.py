"""Checkpoints: complete or absent, checked before use, the newest good one wins."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mips_dist.errors import MipsError
from mips_dist.train import checkpoint

PROBE = {"atom_features": torch.arange(6)}


def tensors(step: int) -> list[tuple[str, dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(step)

    def draw() -> torch.Tensor:
        return torch.randn(3, 4, generator=generator)

    return [
        (name, {"weight": draw(), "exp_avg": draw(), "exp_avg_sq": draw()}) for name in ("a.w", "b")
    ]


def write(root: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(root, step, tensors(step), PROBE, {"adam_steps": step})


def newest(root: Path) -> tuple[int | None, list[str]]:
    lines: list[str] = []
    found = checkpoint.find_newest(root, lines.append)
    return (found.step if found else None), lines


def test_round_trip_is_exact_and_keeps_two(tmp_path):
    write(tmp_path, 5, 10, 15)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000015"]
    found = checkpoint.find_newest(tmp_path, print)
    assert (found.step, found.state) == (15, {"adam_steps": 15})
    for opened in (found, checkpoint.open_at(tmp_path, 15)):
        assert torch.equal(opened.probe()["atom_features"], PROBE["atom_features"])
        for name, whole in tensors(15):
            for key, tensor in whole.items():
                assert torch.equal(opened.read(name)[key], tensor)


def test_none_at_all(tmp_path):
    assert newest(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize(
    "name", ["state.json", "weights.safetensors", "moments.safetensors", "probe.safetensors"]
)
@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "empty"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, name, harm):
    write(tmp_path, 5, 10)
    file = tmp_path / "step-00000010" / name
    data = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif harm == "remove":
        file.unlink()
    else:
        file.write_bytes(b"")
    step, lines = newest(tmp_path)
    assert step == 5
    assert len(lines) == 1
    assert "step-00000010 is damaged" in lines[0]
    # The bad one must not count among the two that are kept.
    write(tmp_path, 7)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000005", "step-00000007"]


def test_an_interrupted_save_leaves_nothing_that_counts(tmp_path):
    write(tmp_path, 5)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".step-00000010.partial")
    assert newest(tmp_path) == (5, [])
    write(tmp_path, 10)
    assert newest(tmp_path) == (10, [])


def test_all_damaged_is_an_error_and_stays_one(tmp_path):
    write(tmp_path, 5)
    (tmp_path / "step-00000005" / "state.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(MipsError, match="is complete; restore"):
            newest(tmp_path)


def test_a_format_of_the_future_is_refused_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    write(tmp_path, 5)
    monkeypatch.undo()
    with pytest.raises(MipsError, match="format 3"):
        newest(tmp_path)


def test_a_full_disk_is_one_line_and_keeps_the_one_before(tmp_path, monkeypatch):
    write(tmp_path, 5)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(MipsError, match="No space left on device"):
        write(tmp_path, 10)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_state_is_plain_json(tmp_path):
    write(tmp_path, 5)
    values = json.loads((tmp_path / "step-00000005" / "state.json").read_text())
    assert values["step"] == 5
    assert set(values["files"]) == {
        "weights.safetensors",
        "moments.safetensors",
        "probe.safetensors",
    }
