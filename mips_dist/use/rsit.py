"""The repeat and shift invariance test (RSIT, Algorithm 2 of the paper): `mips rsit`.

Every polymer gets T = 5 other spellings (Algorithm 1, valid ones only). Of the given spelling and
these the one counts on which a model is furthest from the label: the paper does not say whether the
given one is among them; with it the gap cannot be negative. The gap is R2 on the spellings as given
minus R2 on those that count: 0 for a model that sees the polymer and not its text.

Legend: S spellings (the given one and T others), P polymers.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.chem.respell import Respelling, respell
from mips_dist.chem.sample import Sample
from mips_dist.chem.stars import STAR_STRATEGIES, StarStrategy, build_star_graphs
from mips_dist.data.batch import collate
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.data.files import write_atomically
from mips_dist.data.properties import Scaler
from mips_dist.data.records import Record, find_column, read_csv
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle
from mips_dist.model.gin import GinConfig, GinModel, initial_gin
from mips_dist.threads import one_thread
from mips_dist.use.predict import open_property_model, predict_value

NUM_RESPELLINGS = 5  # the paper's T
DEFAULT_LABEL = "value"
# With fewer labelled polymers there is nothing to train a model on; its weights are then random.
MIN_LABELLED = 20
TEST_SHARE = 5  # one polymer in five is held out, as in a fold of the paper
_MAX_DRAWS = 10  # until a respelling is valid
_BATCH_SIZE = 256

T = TypeVar("T")
Values = npt.NDArray[np.float64]
FitGin = Callable[[PolymerBlock, Values], tuple[GinModel, Scaler]]


@dataclass(frozen=True, slots=True)
class SpelledPolymer:
    """One polymer: its text as given, its T other spellings, and its label (NaN without one)."""

    given: str
    others: list[Respelling]
    label: float

    def spelling(self, s: int) -> str:
        """Return the given spelling (0) or one of the others (from 1)."""
        return self.others[s - 1].psmiles if s else self.given


@dataclass(frozen=True, slots=True)
class Gap:
    """What respelling does to one model.

    Attributes
    ----------
    strategy, model
        One of `STAR_STRATEGIES`; "gin" or "mips".
    labels
        What R2 is measured against: the name of a column, or "given", the model's own predictions
        for the spellings as given (R2 is then 1 on those).
    weights
        How the model got its weights.
    original, respelled, gap
        R2 on the spellings as given, on the worst of each polymer's, and the difference.
    max_abs_difference
        The largest change of a prediction by respelling, in the unit of the labels; of a model with
        random weights, in that of its outputs.
    num_polymers, num_respellings, num_shifted, num_repeated, num_reversed
        Polymers that were predicted; their respellings, and how many are of each kind. One may be
        of several kinds or of none.
    """

    strategy: StarStrategy
    model: str
    labels: str
    weights: str
    metric: str
    original: float
    respelled: float
    gap: float
    max_abs_difference: float
    num_polymers: int
    num_respellings: int
    num_shifted: int
    num_repeated: int
    num_reversed: int


def rsit_file(
    input: Path,
    output: Path,
    fit_gin: FitGin,
    model_dir: Path | None = None,
    label: str | None = None,
    max_polymers: int = 200,
    seed: int = 0,
) -> list[Gap]:
    """Run the test on the polymers of a csv, write it as JSON and show it as a table.

    Parameters
    ----------
    input
        csv or csv.gz with a column of P-SMILES.
    output
        JSON to write; appears when the test is done.
    fit_gin
        Trains the paper's GIN on the spellings as given, where there are labels.
    model_dir
        A property model, tested as `mips predict` runs it, all of its branches on.
    label
        Column of labels; None: ``value``, else the property of the model, where there is one.
    max_polymers
        Distinct polymers that are drawn from the file.
    seed
        Of the drawn polymers, their respellings, the held-out part and the weights of the GIN.

    Raises
    ------
    MipsError
        Also, once the JSON is written, where a prediction of the model depends on the spelling.
    UsageError
        The output cannot be written, or the input has no two polymers.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise UsageError(f"{output} cannot be a file; give a name in a folder that exists")
    opened = open_property_model(model_dir) if model_dir else None
    names = [label] if label else [DEFAULT_LABEL, *([opened[1]["property"]] if opened else [])]
    polymers, column = draw_polymers(input, names, max_polymers, seed, is_needed=bool(label))
    with one_thread():
        gaps = gin_gaps(polymers, column, fit_gin, seed)
        if opened:
            gaps.append(model_gap(polymers, column, opened[0]))
    about = {
        "input": input.name,
        "seed": seed,
        "respellings_per_polymer": NUM_RESPELLINGS,
        "rows": [asdict(gap) for gap in gaps],
    }
    write_atomically(output, json.dumps(about, indent=1, allow_nan=False) + "\n")
    Console().print(render(gaps))
    ours = gaps[-1]
    if ours.model == "mips" and ours.max_abs_difference != 0:
        raise MipsError(
            f"predictions of {model_dir} change by up to {ours.max_abs_difference:g} with the "
            "spelling, which must not happen on one machine; please report it with the csv"
        )
    return gaps


def draw_polymers(
    path: Path, labels: list[str], max_polymers: int, seed: int, is_needed: bool
) -> tuple[list[SpelledPolymer], str | None]:
    """Draw distinct polymers of a csv, in random order, with their other spellings.

    Rows that are no polymer, that spell one drawn before, or that lack a label are passed over.

    Parameters
    ----------
    labels
        Names of the column of labels, the first that the file has counts.
    is_needed
        Whether it is an error that the file has none of them.

    Returns
    -------
    The polymers, and the column of labels.
    """
    header, records = read_csv(path)
    psmiles_column = find_column(str(path), header)
    column = next((name for name in labels if name in (text.strip() for text in header)), None)
    if is_needed and column is None:
        find_column(str(path), header, labels[0])  # names the columns that there are
    label_column = find_column(str(path), header, column) if column else None
    rows = list(records)
    rng = np.random.default_rng(seed)
    polymers: dict[str, SpelledPolymer] = {}
    for number in rng.permutation(len(rows)).tolist():
        if len(polymers) == max_polymers:
            break
        try:
            text = rows[number].text(psmiles_column, len(header))
            canonical = canonicalize(text)
            label = _label(rows[number], label_column, len(header))
        except InvalidPolymer:
            continue
        if canonical in polymers or (column and not math.isfinite(label)):
            continue
        others = _respellings(text, canonical, rng)
        if others:
            polymers[canonical] = SpelledPolymer(text, others, label)
    if len(polymers) < 2:
        with_label = f" with a number in column {column}" if column else ""
        raise UsageError(f"{path} has not two different polymers{with_label}; R2 needs them")
    return list(polymers.values()), column


def _label(record: Record, column: int | None, num_columns: int) -> float:
    try:
        return math.nan if column is None else float(record.text(column, num_columns))
    except ValueError:
        return math.nan


def _respellings(text: str, canonical: str, rng: np.random.Generator) -> list[Respelling]:
    """Draw T spellings of the same polymer; none where too many draws turn out to be another."""
    others = []
    for _ in range(_MAX_DRAWS * NUM_RESPELLINGS):
        drawn = respell(text, rng)
        if canonicalize(drawn.psmiles) == canonical:
            others.append(drawn)
        if len(others) == NUM_RESPELLINGS:
            return others
    return []


def gin_gaps(
    polymers: list[SpelledPolymer], column: str | None, fit_gin: FitGin, seed: int
) -> list[Gap]:
    """Measure the paper's GIN under each star strategy.

    With labels it is trained on the given spellings of four fifths of the polymers and tested on
    the others; without, its weights are random and all polymers are tested.
    """
    is_trained = column is not None and len(polymers) >= MIN_LABELLED
    train = polymers[len(polymers) // TEST_SHARE :] if is_trained else []
    tested = polymers[: len(polymers) // TEST_SHARE] if is_trained else polymers
    gaps = []
    for strategy in _shown(STAR_STRATEGIES, "GIN by star strategy"):
        if is_trained:
            block = _block([p.given for p in train], strategy)
            model, scaler = fit_gin(block, np.array([p.label for p in train]))
            weights = f"trained on {len(train)} other polymers as given"
        else:
            model, scaler = initial_gin(GinConfig(), seed), Scaler(mean=0.0, std=1.0)
            weights = "random"
        predictions = np.stack(
            [
                _predict_gin(model, scaler, [p.spelling(s) for p in tested], strategy)
                for s in range(NUM_RESPELLINGS + 1)
            ]
        )
        labels = column if is_trained else None
        gaps.append(measure(predictions, tested, strategy, "gin", labels, weights))
    return gaps


def _block(texts: list[str], strategy: StarStrategy) -> PolymerBlock:
    graphs = build_star_graphs(texts, strategy)
    return stack([Sample(graph) for graph in graphs], range(len(graphs)))


def _predict_gin(
    model: GinModel, scaler: Scaler, texts: list[str], strategy: StarStrategy
) -> Values:
    # Batches of the same polymers for every spelling: a sum's last bits depend on its batch mates.
    parts = [texts[start : start + _BATCH_SIZE] for start in range(0, len(texts), _BATCH_SIZE)]
    with torch.inference_mode():
        z = torch.cat([model(collate(_block(part, strategy)))[:, 0] for part in parts])
    return scaler.to_physical(z.numpy().astype(np.float64))


def model_gap(polymers: list[SpelledPolymer], column: str | None, bundle: Bundle) -> Gap:
    """Measure a property model: each text is predicted from scratch, as `mips predict` does it.

    Nothing is kept of other spellings of the polymer: graph, conformer and descriptors are made
    again from every different text. Polymers for which chemistry fails are left out.
    """
    tested, predictions = [], []
    for polymer in _shown(polymers, "model"):
        known: dict[str, float | None] = {}
        for s in range(NUM_RESPELLINGS + 1):
            text = polymer.spelling(s)
            if text not in known:
                known[text] = predict_value(bundle, canonicalize(text))[0]
        values = [known[polymer.spelling(s)] for s in range(NUM_RESPELLINGS + 1)]
        if None not in values:
            tested.append(polymer)
            predictions.append(values)
    if len(tested) < 2:
        raise MipsError("the model can predict no two of the polymers, so nothing was measured")
    branches = ", ".join(["graph", *bundle.model.config.descriptors])
    return measure(
        np.array(predictions, dtype=np.float64).T,
        tested,
        "link",
        "mips",
        column,
        f"those of the model ({branches})",
    )


def measure(
    predictions: Values,
    polymers: list[SpelledPolymer],
    strategy: StarStrategy,
    model: str,
    column: str | None,
    weights: str,
) -> Gap:
    """Score the predictions for all spellings: the second half of Algorithm 2.

    Parameters
    ----------
    predictions
        (S, P); the first row is of the spellings as given.
    column
        Where the labels come from; None: the first row of `predictions` takes their place.
    """
    target = predictions[0] if column is None else np.array([p.label for p in polymers])
    worst = np.abs(predictions - target).argmax(axis=0)
    original = _r2(target, predictions[0])
    respelled = _r2(target, predictions[worst, np.arange(len(polymers))])
    others = [other for polymer in polymers for other in polymer.others]
    return Gap(
        strategy=strategy,
        model=model,
        labels=column or "given",
        weights=weights,
        metric="r2",
        original=original,
        respelled=respelled,
        gap=original - respelled,
        max_abs_difference=float(np.abs(predictions - predictions[0]).max()),
        num_polymers=len(polymers),
        num_respellings=len(others),
        num_shifted=sum(other.is_shifted for other in others),
        num_repeated=sum(other.is_repeated for other in others),
        num_reversed=sum(other.is_reversed for other in others),
    )


def _r2(target: Values, prediction: Values) -> float:
    """Return R2; where all targets are equal 1 for a perfect prediction, else 0."""
    squares = float(((prediction - target) ** 2).sum())
    spread = float(((target - target.mean()) ** 2).sum())
    return 1.0 - squares / spread if spread > 0 else float(squares == 0)


def render(gaps: list[Gap]) -> Table:
    """Show what was measured, one strategy a row."""
    table = Table(title=f"R2 as given and on the worst of {NUM_RESPELLINGS} respellings")
    table.add_column("strategy", no_wrap=True)
    table.add_column("model")
    for name in ("given", "respelled", "gap", "change", "polymers"):
        table.add_column(name, justify="right")
    for gap in gaps:
        numbers = f"{gap.original:.4f}", f"{gap.respelled:.4f}", f"{gap.gap:.4f}"
        difference = f"{gap.max_abs_difference:.3g}"
        table.add_row(gap.strategy, gap.model, *numbers, difference, str(gap.num_polymers))
    return table


def _shown(items: Sequence[T], description: str) -> Iterable[T]:
    """Go through items with a progress bar, where stderr is a terminal."""
    console = Console(stderr=True)
    return track(items, description, console=console, disable=not sys.stderr.isatty())
