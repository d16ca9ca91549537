"""Which element the model takes for which, read from the counts of a validation: rates and image.

Legend: E elements that are shown.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem

from mips_dist.model.embedding import NUM_ATOM_CLASSES

# Fewer masked atoms than these say nothing of an element.
_FEWEST = 5
_OTHERS = "others"

# Pixels of a cell, and of the margins that hold the labels.
_CELL = 52
_LEFT, _TOP, _RIGHT, _BOTTOM = 132, 84, 28, 12
_NARROWEST = 340  # room for what stands above
_INK, _GREY, _PAPER = (33, 37, 41), (108, 117, 125), (255, 255, 255)
_RIGHT_HUE, _WRONG_HUE = (25, 90, 160), (190, 60, 30)  # of the diagonal; of mistakes


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Elements by the number of their masked atoms, most frequent first; the rare ones together.

    ``counts`` (E, E) int64: rows are what the atoms are, columns what they were taken for.
    """

    symbols: list[str]
    counts: npt.NDArray[np.int64]

    @property
    def num_atoms(self) -> npt.NDArray[np.int64]:
        """Return the masked atoms of each element (E,)."""
        return self.counts.sum(axis=1)

    def accuracy(self) -> dict[str, float]:
        """Return the fraction that was recognised of each element; not of the rare ones."""
        rates = self.counts.diagonal() / np.maximum(self.num_atoms, 1)
        return {
            symbol: float(rate)
            for symbol, rate in zip(self.symbols, rates, strict=True)
            if symbol != _OTHERS
        }


def by_element(counts: npt.NDArray[np.int64]) -> Confusion:
    """Sort the counts (101, 101) of all classes, and put rare ones together.

    An element is rare with fewer than five masked atoms; an atom that is taken for a rare element
    counts among the others too.
    """
    occurring = counts.sum(axis=1)
    frequent = np.flatnonzero(occurring >= _FEWEST)
    frequent = frequent[np.argsort(-occurring[frequent], kind="stable")]
    place = np.full(NUM_ATOM_CLASSES, len(frequent))
    place[frequent] = np.arange(len(frequent))
    grouped = np.zeros((len(frequent) + 1,) * 2, dtype=np.int64)
    np.add.at(grouped, (place[:, None], place[None, :]), counts)
    symbols = [_symbol(int(number)) for number in frequent]
    if grouped[-1].any() or grouped[:, -1].any():
        return Confusion(symbols=[*symbols, _OTHERS], counts=grouped)
    return Confusion(symbols=symbols, counts=grouped[:-1, :-1])


def _symbol(number: int) -> str:
    """Return the symbol of a class; the last class is all elements beyond the hundredth."""
    if number == NUM_ATOM_CLASSES - 1:
        return ">Fm"
    return Chem.GetPeriodicTable().GetElementSymbol(number + 1)


def draw(confusion: Confusion) -> npt.NDArray[np.uint8]:
    """Draw each row as fractions of its atoms: an image (height, width, 3) of RGB bytes."""
    size = len(confusion.symbols)
    width = max(_LEFT + size * _CELL + _RIGHT, _NARROWEST)
    image = Image.new("RGB", (width, _TOP + size * _CELL + _BOTTOM), _PAPER)
    pen = ImageDraw.Draw(image)
    large, middle, small = (ImageFont.load_default(points) for points in (22, 20, 17))
    pen.text((_LEFT, 20), "taken for, % of the row", _GREY, small, "lm")
    pen.text((16, _TOP - 30), "masked atom", _GREY, small, "lm")
    for row, (symbol, total) in enumerate(zip(confusion.symbols, confusion.num_atoms, strict=True)):
        middle_of = _TOP + (row + 0.5) * _CELL
        pen.text((_LEFT - 12, middle_of - 10), symbol, _INK, large, "rm")
        pen.text((_LEFT - 12, middle_of + 13), f"{total:,}", _GREY, small, "rm")
        pen.text((_LEFT + (row + 0.5) * _CELL, _TOP - 18), symbol, _INK, large, "mm")
        for column, count in enumerate(confusion.counts[row]):
            share = count / max(total, 1)
            left, top = _LEFT + column * _CELL, _TOP + row * _CELL
            colour = _shade(share, _RIGHT_HUE if row == column else _WRONG_HUE)
            pen.rectangle((left + 1, top + 1, left + _CELL - 2, top + _CELL - 2), colour)
            if count:
                ink = _PAPER if share > 0.55 else _INK
                pen.text((left + _CELL / 2, middle_of), _percent(share), ink, middle, "mm")
    return np.asarray(image)


def _shade(share: float, hue: tuple[int, int, int]) -> tuple[int, int, int]:
    """Mix a hue with light grey; by the square root, so that small mistakes are seen."""
    weight = share**0.5
    red, green, blue = (round(weight * h + (1 - weight) * 243) for h in hue)
    return red, green, blue


def _percent(share: float) -> str:
    """Write a fraction above 0 as a percentage in at most four characters."""
    percent = 100 * share
    if percent < 0.05:
        return "<0.1"
    return f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"
