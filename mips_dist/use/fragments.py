"""What each fragment adds to a property, over a data set: `mips fragments`.

Under a linear head a prediction is a mean over atoms: y = mean_i a_i with a_i = std (w . x_i + b)
+ mean, so nothing is approximated in giving atoms and fragments their shares. A fragment's
*contribution* is the sum of std w . x_i over its atoms divided by the atoms of the unit; the
contributions of a polymer sum to its prediction less std b + mean. Its *effect* is the mean of a_i
over its atoms less the mean prediction of the data set: how far it pulls a chain, whatever its
size. Weighted by their shares of the atoms, the effects of a polymer sum to its prediction less
that mean. x_i has seen its neighbours, so this says what the model does, and not what a fragment
would do alone.
"""

import html
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D
from rich.console import Console

from mips_dist.chem.fragments import Fragment, fragments
from mips_dist.data.files import table, write_atomically
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import Bundle
from mips_dist.model.mips import PropertyModel
from mips_dist.threads import one_thread
from mips_dist.use.predict import featurized, open_property_model
from mips_dist.use.table import PolymerTable

CSV, PAGE = "fragments.csv", "fragments.html"
COLUMNS = (
    *("fragment", "atoms", "count", "polymers"),
    *("mean_contribution", "sd_contribution", "mean_effect", "sd_effect", "unit"),
)

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shares:
    """One prediction by its parts, in the unit of the property.

    Attributes
    ----------
    parts
        The fragments of the polymer.
    contribution
        (fragments,) sum to ``prediction - intercept``.
    value
        (fragments,) mean over the fragment's atoms; weighted by atoms their mean is ``prediction``.
    """

    parts: list[Fragment]
    contribution: Values
    value: Values
    intercept: float
    prediction: float


@dataclass(frozen=True, slots=True)
class FragmentEffect:
    """What a fragment does over a data set: means and population SDs over its occurrences."""

    smiles: str
    num_atoms: int
    count: int
    num_polymers: int
    mean_contribution: float
    sd_contribution: float
    mean_effect: float
    sd_effect: float


def fragments_file(input: Path, model_dir: Path, folder: Path) -> list[FragmentEffect]:
    """Analyse the polymers of a csv, each distinct one once; write a csv and a page.

    Parameters
    ----------
    input
        csv or csv.gz with a column of P-SMILES.
    model_dir
        A property model with a linear head.
    folder
        Made here; one that holds other files is refused.

    Returns
    -------
    The fragments, from the largest mean effect to the least.
    """
    bundle, scaler = open_property_model(model_dir)
    if bundle.model.config.head != "linear":
        raise MipsError(
            f"{model_dir} has a two-layer head, which cannot be divided among fragments exactly; "
            "fine-tune one with model.head=linear"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder with -o")
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {CSV, PAGE}:
        raise UsageError(f"{folder} holds other files; give another folder with -o")
    polymers = PolymerTable.open(input)
    num_rows = 0
    shares: dict[str, Shares | None] = {}
    with one_thread():
        for _, canonical, reason in polymers.rows("fragments"):
            num_rows += 1
            if not reason and canonical not in shares:
                shares[canonical] = divide(bundle, canonical)
    found = [share for share in shares.values() if share is not None]
    if not found:
        raise MipsError(f"{input}: none of its {num_rows} rows is a polymer that can be predicted")
    effects = summarize(found)
    folder.mkdir(parents=True, exist_ok=True)
    unit = scaler["unit"]
    with table(folder / CSV, COLUMNS) as writer:
        writer.writerows(_row(effect, unit) for effect in effects)
    about = (
        f"{len(effects)} fragments of {len(found)} polymers ({num_rows} rows of {input.name}); "
        f"mean prediction {_mean(found):.4g} {unit}"
    )
    write_atomically(folder / PAGE, page(scaler["property"], unit, about, effects))
    Console().print(f"{about}\n{folder / CSV}\n{folder / PAGE}", soft_wrap=True, highlight=False)
    return effects


def divide(bundle: Bundle, canonical: str) -> Shares | None:
    """Divide the prediction for a polymer among its fragments; None where chemistry fails on it.

    Parameters
    ----------
    bundle
        A property model with a linear head.
    canonical
        Canonical P-SMILES.
    """
    model, scaler = bundle.model, bundle.scaler
    assert isinstance(model, PropertyModel)
    assert scaler is not None
    batch, _ = featurized(bundle, canonical)
    if batch is None:
        return None
    with torch.inference_mode():
        atoms = model.encode(batch)
        z = model(batch).item()
        share = (atoms.double() @ model.head.output.weight[0].double()).numpy()
        bias = model.head.output.bias.item()
    parts = fragments(canonical)
    of_atom = scaler["std"] * share
    intercept = scaler["std"] * bias + scaler["mean"]
    sums = np.array([of_atom[list(part.atoms)].sum() for part in parts])
    sizes = np.array([len(part.atoms) for part in parts])
    return Shares(
        parts=parts,
        contribution=sums / sizes.sum(),
        value=sums / sizes + intercept,
        intercept=intercept,
        prediction=z * scaler["std"] + scaler["mean"],
    )


def _mean(shares: list[Shares]) -> float:
    return float(np.mean([share.prediction for share in shares]))


def summarize(shares: list[Shares]) -> list[FragmentEffect]:
    """Take means over the occurrences of each fragment; from the largest effect to the least."""
    mean = _mean(shares)
    contributions, effects = defaultdict(list), defaultdict(list)
    polymers, sizes = defaultdict(set), {}
    for number, share in enumerate(shares):
        for part, contribution, value in zip(
            share.parts, share.contribution, share.value, strict=True
        ):
            contributions[part.smiles].append(contribution)
            effects[part.smiles].append(value - mean)
            polymers[part.smiles].add(number)
            sizes[part.smiles] = len(part.atoms)
    found = [
        FragmentEffect(
            smiles=smiles,
            num_atoms=sizes[smiles],
            count=len(contributions[smiles]),
            num_polymers=len(polymers[smiles]),
            mean_contribution=float(np.mean(contributions[smiles])),
            sd_contribution=float(np.std(contributions[smiles])),
            mean_effect=float(np.mean(effects[smiles])),
            sd_effect=float(np.std(effects[smiles])),
        )
        for smiles in contributions
    ]
    return sorted(found, key=lambda effect: (-effect.mean_effect, effect.smiles))


def _row(effect: FragmentEffect, unit: str) -> list[str]:
    counts = effect.num_atoms, effect.count, effect.num_polymers
    numbers = (
        *(effect.mean_contribution, effect.sd_contribution),
        *(effect.mean_effect, effect.sd_effect),
    )
    return [effect.smiles, *map(str, counts), *(format(x, ".6g") for x in numbers), unit]


def page(name: str, unit: str, about: str, effects: list[FragmentEffect]) -> str:
    """Return one HTML page that needs no other file: a table with the fragments drawn."""
    largest = max(abs(effect.mean_effect) for effect in effects) or 1.0
    rows = "\n".join(_html_row(effect, largest) for effect in effects)
    title = html.escape(f"Fragments and {name}" + (f" ({unit})" if unit else ""))
    return _PAGE.format(title=title, about=html.escape(about), rows=rows)


def _html_row(effect: FragmentEffect, largest: float) -> str:
    width = 100 * abs(effect.mean_effect) / largest
    side = "up" if effect.mean_effect >= 0 else "down"
    cells = (
        draw(effect.smiles),
        f"<code>{html.escape(effect.smiles)}</code>",
        f'<div class="bar {side}" style="width:{width:.1f}px"></div>',
        f"{effect.mean_effect:+.3g} ± {effect.sd_effect:.2g}",
        f"{effect.mean_contribution:+.3g} ± {effect.sd_contribution:.2g}",
        str(effect.count),
        str(effect.num_polymers),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def draw(smiles: str) -> str:
    """Draw a fragment as SVG; its text where RDKit cannot."""
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        return html.escape(smiles)
    drawer = rdMolDraw2D.MolDraw2DSVG(150, 90)
    options: Any = drawer.drawOptions()
    options.prepareMolsBeforeDrawing = False
    options.clearBackground = False
    options.maxFontSize = 14
    options.fixedBondLength = 22
    try:
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
        drawer.DrawMolecule(rdMolDraw2D.PrepareMolForDrawing(mol, kekulize=False))
        drawer.FinishDrawing()
    except (ValueError, RuntimeError):
        return html.escape(smiles)
    # Without the XML header, which may stand at the top of a file alone.
    svg: str = drawer.GetDrawingText()
    return svg[svg.index("<svg") :]


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: 2px 10px; border-bottom: 1px solid #ddd; text-align: left }}
code {{ overflow-wrap: anywhere }} td:nth-child(n+4) {{ white-space: nowrap }}
.bar {{ height: 12px }} .up {{ background: #2a6fb0 }} .down {{ background: #c4572b }}
</style></head><body>
<h1>{title}</h1>
<p>{about}.</p>
<p>Effect: the mean over a fragment's atoms less the mean prediction. Contribution: its share in
the sum that makes a prediction, less a constant. Both are exact, for the model has a linear head;
± is the standard deviation over occurrences. They say what the model does, with the
surroundings that the fragment has in these polymers.</p>
<table><thead><tr><th></th><th>fragment</th><th></th><th>mean effect</th><th>mean contribution</th>
<th>count</th><th>polymers</th></tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""
