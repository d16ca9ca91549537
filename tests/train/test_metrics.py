"""What a person sees of a run: the bar, lines of a log, the confusion, pages without a zigzag."""

import io
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from mips_dist.chem.sample import featurize
from mips_dist.model.embedding import NUM_ATOM_CLASSES
from mips_dist.train.bar import Bar, duration, fitting
from mips_dist.train.confusion import by_element, draw
from mips_dist.train.metrics import Recorder, StepReport
from mips_dist.train.validation import Validation, masked_classes, validate
from tests.model.hand import batch_of, masked_atom_model
from tests.train.test_flops import masked

POLYMERS = ["*CC(*)c1ccccc1", "*CCO*", "*NCCCC(=O)*", "*CC(*)(F)Cl", "*C*"]
CARBON, NITROGEN, OXYGEN, CHLORINE = 5, 6, 7, 16


def report(step: int, **changes) -> StepReport:
    values = {
        "loss": 1 / step,
        "accuracy": 0.5,
        "lr": 1e-3,
        "grad_norm": 0.25,
        "is_applied": True,
        "polymers": 64,
        "seconds": 0.5,
        "data_wait": 0.01,
    }
    return StepReport(**values | changes)


def confusion_of(*counted: tuple[int, int, int]) -> torch.Tensor:
    """(true, predicted, count) each."""
    counts = torch.zeros(NUM_ATOM_CLASSES, NUM_ATOM_CLASSES, dtype=torch.int64)
    for true, predicted, count in counted:
        counts[true, predicted] += count
    return counts


def recorder(folder: Path, first_step: int = 0, num_steps: int = 20) -> Recorder:
    return Recorder(folder, first_step, num_steps, True, 1e9, torch.device("cpu"))


# ---- validation


class LoneRanks:
    device = torch.device("cpu")

    def sum(self, *values: float) -> list[float]:
        return [float(v) for v in values]


def test_confusion_is_a_count_of_single_atoms():
    model = masked_atom_model(descriptors=[])
    batches = [
        masked(batch_of(featurize(part, "topology", 2)), 9) for part in (POLYMERS[:2], POLYMERS[2:])
    ]
    loader = SimpleNamespace(
        held_out_samples=range(5), has_descriptors=False, validation_batches=lambda: batches
    )
    result = validate(SimpleNamespace(module=model, ranks=LoneRanks()), loader)

    expected = np.zeros((NUM_ATOM_CLASSES, NUM_ATOM_CLASSES), dtype=np.int64)
    loss = 0.0
    for batch in batches:
        with torch.no_grad():
            logits = model.eval()(batch).double()
        for row, true in zip(logits, masked_classes(batch).tolist(), strict=True):
            expected[true, max(range(NUM_ATOM_CLASSES), key=row.tolist().__getitem__)] += 1
            loss -= float(row.log_softmax(0)[true])
    assert expected.sum() == 18
    assert np.array_equal(result.confusion.numpy(), expected)
    assert result.num_masked == 18
    assert result.accuracy == expected.trace() / 18
    assert result.loss == pytest.approx(loss / 18)


def test_elements_are_sorted_and_the_rare_ones_put_together():
    confusion = by_element(
        confusion_of(
            (OXYGEN, OXYGEN, 4),
            (OXYGEN, CARBON, 6),
            (CARBON, CARBON, 20),
            (CARBON, CHLORINE, 1),  # taken for an element that is rare
            (CHLORINE, CARBON, 3),
            (CHLORINE, CHLORINE, 1),
            (100, 100, 5),
        ).numpy()
    )
    assert confusion.symbols == ["C", "O", ">Fm", "others"]
    assert confusion.counts.tolist() == [[20, 0, 0, 1], [6, 4, 0, 0], [0, 0, 5, 0], [3, 0, 0, 1]]
    assert confusion.accuracy() == {"C": 20 / 21, "O": 0.4, ">Fm": 1.0}


def test_image_shows_the_rows_as_fractions():
    confusion = by_element(
        confusion_of((CARBON, CARBON, 100), (OXYGEN, CARBON, 40), (OXYGEN, OXYGEN, 10)).numpy()
    )
    image = draw(confusion).astype(int)

    def colour(row: int, column: int) -> list[int]:
        """Of the upper left corner of a cell, where no digit is."""
        return image[84 + 52 * row + 3, 132 + 52 * column + 3].tolist()

    carbon, wrong, oxygen, empty = colour(0, 0), colour(1, 0), colour(1, 1), colour(0, 1)
    assert carbon == [25, 90, 160], "every carbon was recognised"
    assert empty == [243, 243, 243]
    assert oxygen[2] > oxygen[0], "right ones are blue"
    assert wrong[0] > wrong[2], "mistakes are red"
    # Four of five are mistakes: more than half way from paper to the full hue, by the square root.
    expected = [0.8**0.5 * hue + (1 - 0.8**0.5) * 243 for hue in (190, 60, 30)]
    assert wrong == pytest.approx(expected, abs=1)


# ---- terminal and log


def test_lines_of_a_log(tmp_path, capsys):
    with recorder(tmp_path, num_steps=40) as run:
        for step in range(1, 41):
            run.step(step, report(step, data_wait=0.1), work=2.5e8)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/40", *(f"{n}/40" for n in range(2, 41, 2))]
    last = lines[-1]
    assert last == (
        f"step 40/40  loss {sum(1 / n for n in range(21, 41)) / 20:.4f}  accuracy 0.500  "
        "128 polymers/s  50% of peak  data wait 20.0%"
    )
    assert all(line.endswith(" left") for line in lines[1:-1])
    assert max(map(len, lines)) <= 100


def rendered(bar: Bar, width: int) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    console.print(bar)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_the_bar_fits(width):
    bar = Bar(0, 20_000)
    long = ["loss 0.7123", "accuracy 0.781", "12,345 polymers/s", "45% of peak", "data wait 0.6%"]
    short = ["loss 0.7123", "acc 0.781", "12,345/s", "45% peak", "wait 0.6%"]
    assert len(rendered(bar, width)) == 1
    bar.show(5_000, 3_723.4, long, short)
    above, below = rendered(bar, width)
    assert len(above) < width
    assert len(below) < width
    assert below.startswith("loss 0.7123")
    if width >= 60:
        assert above.endswith("  5000/20000  1:02:03 left")
        shown = above.removesuffix("  5000/20000  1:02:03 left")
        assert set(shown) == {"━"}
        assert below.count("  ") == 4, "all five numbers are there"


def test_the_least_important_goes_first():
    long, short = ["first number", "second number"], ["1st", "2nd", "3rd"]
    assert fitting(27, long, short) == "first number  second number"
    assert fitting(26, long, short) == "1st  2nd  3rd"
    assert fitting(12, long, short) == "1st  2nd"
    assert fitting(1, long, short) == "1st"


def test_durations():
    assert [duration(s) for s in (0, 9.6, 61, 3599.9, 86_400)] == [
        "0:00",
        "0:10",
        "1:01",
        "1:00:00",
        "24:00:00",
    ]


# ---- pages


def log(run: Recorder, steps: range, loss: float) -> None:
    run.text("run", f"from {steps.start}, loss {loss}")
    for step in steps:
        run.step(step, report(step, loss=loss), work=1e8)
        if step % 5 == 0:
            counts = confusion_of((CARBON, CARBON, 90), (NITROGEN, CARBON, 10))
            run.validation(step, Validation(loss=loss, accuracy=0.9, confusion=counts))
    run.flush()


def next_second() -> None:
    """Event files are read in the order of the seconds of their names."""
    began = int(time.time())
    while int(time.time()) == began:
        time.sleep(0.01)


def test_a_killed_run_goes_on_without_a_zigzag(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_accumulator import (
        EventAccumulator as PageAccumulator,  # what TensorBoard itself reads with
    )

    # Twice killed: steps and validations after the checkpoints (4, then 8) are on the disk already.
    log(recorder(tmp_path), range(1, 12), loss=1.0)
    next_second()
    log(recorder(tmp_path, first_step=4), range(5, 17), loss=2.0)
    next_second()
    with recorder(tmp_path, first_step=8) as last:
        log(last, range(9, 21), loss=3.0)

    everything = {"scalars": 0, "images": 0, "tensors": 0}
    main = EventAccumulator(str(tmp_path), size_guidance=everything).Reload()
    tags = main.Tags()["scalars"]
    assert {"perf/fraction_of_peak", "perf/memory_gib", "val_element/C", "val_element/N"} < {*tags}
    for tag in tags:
        steps = [point.step for point in main.Scalars(tag)]
        every = 5 if tag.startswith("val") else 1
        assert steps == list(range(every, 21, every)), tag
    losses = [point.value for point in main.Scalars("train/loss")]
    assert losses == [1.0] * 4 + [2.0] * 4 + [3.0] * 12
    assert [point.value for point in main.Scalars("perf/fraction_of_peak")] == pytest.approx(
        [0.2] * 20
    )
    assert [image.step for image in main.Images("val/confusion")] == [5, 10, 15, 20]
    for run, every in (("training", 1), ("held_out", 5)):
        beside = EventAccumulator(str(tmp_path / run), size_guidance=everything).Reload()
        assert [p.step for p in beside.Scalars("learning/loss")] == list(range(every, 21, every))

    pages = PageAccumulator(str(tmp_path), size_guidance=everything).Reload()
    texts = pages.Tensors("run/text_summary")
    assert [text.step for text in texts] == [1, 5, 9]
    assert [text.tensor_proto.string_val[0].decode() for text in texts] == [
        "from 1, loss 1.0",
        "from 5, loss 2.0",
        "from 9, loss 3.0",
    ]
    assert [image.step for image in pages.Tensors("val/confusion")] == [5, 10, 15, 20]
