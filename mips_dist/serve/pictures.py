"""Pictures of a polymer as whole SVG documents: no script, no font, no link."""

from typing import Any

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from mips_dist.chem.bands import band_structure
from mips_dist.chem.tight_binding import NoBands
from mips_dist.model.bundle import Bundle
from mips_dist.use.explain.bands import draw_bands
from mips_dist.use.explain.contributions import explain
from mips_dist.use.explain.picture import draw_explanation

# Kind -> what it shows; the page offers them in this order.
KINDS = {
    "unit": "repeat unit",
    "bands": "band structure and density of states",
    "why": "what each part adds to a prediction",
}
_WIDTH, _HEIGHT = 240, 150
_NUM_K = 129


class NoPicture(ValueError):
    """A polymer that cannot be drawn so; the message says why."""


def draw(canonical: str, kind: str, bundle: Bundle) -> str:
    """Draw a polymer; call it on one thread.

    Parameters
    ----------
    canonical
        Canonical P-SMILES.
    kind
        One of `KINDS`.
    bundle
        The model whose prediction is explained.

    Raises
    ------
    NoPicture
        The bands of its elements are not known, chemistry fails on it, or RDKit cannot place its
        atoms.
    """
    if kind == "bands":
        try:
            return draw_bands(canonical, band_structure(canonical, _NUM_K))
        except NoBands as error:
            raise NoPicture(f"no bands: {error}") from error
    if kind == "why":
        explanation, reason = explain(bundle, canonical)
        if explanation is None:
            raise NoPicture(f"cannot be explained: {reason}")
        return draw_explanation(explanation)
    return draw_unit(canonical)


def draw_unit(canonical: str) -> str:
    """Draw the repeat unit of a canonical P-SMILES; the attachment points are wavy cuts."""
    mol = Chem.MolFromSmiles(canonical)
    drawer = rdMolDraw2D.MolDraw2DSVG(_WIDTH, _HEIGHT)
    options: Any = drawer.drawOptions()
    options.dummiesAreAttachments = True
    options.useBWAtomPalette()  # yellow sulphur on white cannot be read
    options.maxFontSize = 16
    options.fixedBondLength = 25
    try:
        drawer.DrawMolecule(rdMolDraw2D.PrepareMolForDrawing(mol))
    except (ValueError, RuntimeError) as error:
        raise NoPicture(f"cannot be drawn: {str(error).splitlines()[0]}") from error
    drawer.FinishDrawing()
    svg: str = drawer.GetDrawingText()
    return svg[svg.index("<svg") :]  # the header above it names an encoding that is not used
