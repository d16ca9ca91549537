"""P-SMILES: validation with named rejections, and one canonical spelling per polymer.

A P-SMILES text draws one repeat unit of an infinite chain, its two ends marked ``*``. One chain has
many spellings: any atom order, either direction, a cut at another backbone bond, a unit written
several times. `canonicalize` maps all of them to one string (law L1 of the design; paper section 3,
defects 9-13 of the released code).

Stereo marks are dropped: a stereo centre of an atactic chain has no fixed sign, and
``*C[C@H](*)C`` equals ``*C[C@@H](*)C`` read backwards. Isotopes are kept.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

MAX_ATOMS = 1000
MAX_CHARACTERS = 20_000

# RDKit reports every text that it cannot read on stderr; here each becomes a named rejection.
rdBase.DisableLog("rdApp.*")

_STAR_QUERY = Chem.MolFromSmarts("[#0]")
_LABELLED_STAR = re.compile(r"\[\d*\*(?::\d+)?\]")
_BRACKETED_STAR = re.compile(r"\[[^\]]*\*[^\]]*\]")
_ATOM_MAP = re.compile(r":\d+(?=\])")
_MEMORY_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_HUGE_ISOTOPE = re.compile(r"\[\d{4,}")
_STEREO_MARK = re.compile(r"@@?(?:(?:TH|AL|SP|TB|OH)\d+)?|[/\\]")
_HYDROGEN_ATOM = re.compile(r"\[\d*(?:H|#)")

_SANITIZE_NO_STEREO = (
    Chem.SanitizeFlags.SANITIZE_ALL
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUPCHIRALITY
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUPATROPISOMERS
)

BOND_OF_ORDER = {
    1.0: Chem.BondType.SINGLE,
    2.0: Chem.BondType.DOUBLE,
    3.0: Chem.BondType.TRIPLE,
}

# Colour refinement: words and multipliers are arbitrary odd constants (any would do; a collision
# costs one more candidate to write out, never a wrong spelling).
_ROUNDS = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(32)
_WORD_OF_TWICE_ORDER = np.zeros(16, dtype=np.uint64)
_WORD_OF_TWICE_ORDER[[2, 3, 4, 6]] = [
    0x8CB92BA72F3D8DD7,
    0xD6E8FEB86659FD93,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
]


class InvalidPolymer(ValueError):
    """A text that is not a polymer; ``code`` is its class, the message says what is wrong.

    Codes: ``empty``, ``too_long``, ``too_large``, ``characters``, ``unparsable``, ``valence``,
    ``fragments``, ``star_count``, ``star_form``, ``star_degree``, ``star_bond``, ``bond_type``,
    ``isotope``, ``no_atoms``,
    ``canonicalization_failed``; ``columns`` for a row of a table that is cut wrong.
    """

    def __init__(self, code: str, explanation: str) -> None:
        super().__init__(f"{code}: {explanation}")
        self.code = code


@dataclass(frozen=True, slots=True)
class RepeatUnit:
    """One open repeat unit, sanitized and without labels or stereo.

    Attributes
    ----------
    mol
        The molecule with its two stars.
    stars, ends
        Atom indices of the attachment points and of the boundary atoms beside them, in the same
        order: ``ends[0]`` is the left boundary atom, ``ends[1]`` the right one.
    order
        Bond order of the link, 1, 2 or 3.
    bond_orders
        (n, n) float64 bond orders of ``mol``, aromatic 1.5.
    """

    mol: Chem.Mol
    stars: tuple[int, int]
    ends: tuple[int, int]
    order: float
    bond_orders: np.ndarray


class Cut(NamedTuple):
    """A backbone bond at which the chain may be cut: ``left`` in one unit, ``right`` in the next.

    ``is_link`` marks the place where the given spelling is cut already.
    """

    left: int
    right: int
    order: float
    is_link: bool


def has_stereo_marks(psmiles: str) -> bool:
    """Tell whether a text carries stereo marks, which `canonicalize` drops."""
    return any(mark in psmiles for mark in "@/\\")


def parse(psmiles: str) -> RepeatUnit:
    """Read and validate a P-SMILES text.

    ``[*]``, ``[*:1]`` and ``[1*]`` are accepted as attachment points; labels, atom maps and stereo
    marks are dropped.

    Raises
    ------
    InvalidPolymer
        With one of its codes; nothing else is raised for any text.
    """
    text = _clean(psmiles)
    mol = _sanitized(text)
    if mol is None:
        raise _why_unreadable(text)
    if "." in text and len(Chem.GetMolFrags(mol)) > 1:
        raise InvalidPolymer("fragments", "more than one molecule; a salt needs its ions removed")
    stars = tuple(match[0] for match in mol.GetSubstructMatches(_STAR_QUERY))
    if len(stars) != 2:
        raise InvalidPolymer("star_count", f"{len(stars)} attachment points, needs exactly 2")
    if mol.GetNumAtoms() - 2 > MAX_ATOMS:
        raise InvalidPolymer(
            "too_large", f"{mol.GetNumAtoms() - 2} atoms, at most {MAX_ATOMS} are supported"
        )
    bond_orders = Chem.GetAdjacencyMatrix(mol, useBO=True)
    if not (bond_orders == bond_orders.T).all():
        # RDKit reads some bonds to metals as dative, which have no order seen from one side.
        raise InvalidPolymer("bond_type", "only single, double, triple and aromatic bonds")
    ends = []
    for star in stars:
        degree = int(np.count_nonzero(bond_orders[star]))
        if degree != 1:
            raise InvalidPolymer(
                "star_degree", f"an attachment point has {degree} bonds, needs exactly 1"
            )
        ends.append(int(bond_orders[star].argmax()))
    if ends[0] == stars[1]:
        raise InvalidPolymer("no_atoms", "nothing between the attachment points")
    orders = [float(bond_orders[star, end]) for star, end in zip(stars, ends, strict=True)]
    if orders[0] != orders[1] or orders[0] not in BOND_OF_ORDER:
        raise InvalidPolymer(
            "star_bond", f"attachment points have bond orders {orders[0]:g} and {orders[1]:g}"
        )
    return RepeatUnit(mol, stars, (ends[0], ends[1]), orders[0], bond_orders)


def _clean(psmiles: str) -> str:
    """Drop labels and stereo marks; refuse texts that RDKit would read but that are no P-SMILES."""
    text = psmiles.strip()
    if not text:
        raise InvalidPolymer("empty", "no text")
    if len(text) > MAX_CHARACTERS:
        raise InvalidPolymer("too_long", f"{len(text)} characters, at most {MAX_CHARACTERS}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidPolymer("characters", "holds a blank, a control or a non-ASCII character")
    if "~" in text or "->" in text or "<-" in text or "$" in text:
        raise InvalidPolymer("bond_type", "only single, double, triple and aromatic bonds")
    if "[" in text:
        if _HUGE_ISOTOPE.search(text):
            raise InvalidPolymer("isotope", "a mass number has at most 3 digits")
        text = _ATOM_MAP.sub("", _LABELLED_STAR.sub("*", text))
        if _BRACKETED_STAR.search(text):
            raise InvalidPolymer(
                "star_form", "an attachment point carries a charge, hydrogens or a stereo mark"
            )
    return _STEREO_MARK.sub("", text) if has_stereo_marks(text) else text


def _sanitized(text: str) -> Chem.Mol | None:
    """Read a text without stereo marks; None if RDKit refuses it."""
    if "[" in text and _HYDROGEN_ATOM.search(text):
        return Chem.MolFromSmiles(text)
    # Without stereo marks and hydrogen atoms this is all that `Chem.MolFromSmiles` does to effect:
    # it would still look for both, which is 0.4 of its time.
    mol = Chem.MolFromSmiles(text, sanitize=False)
    try:
        if mol is not None:
            Chem.SanitizeMol(mol, _SANITIZE_NO_STEREO)
    except (ValueError, RuntimeError):
        return None
    return mol


def _why_unreadable(text: str) -> InvalidPolymer:
    """Name the reason why RDKit refuses a text."""
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        return InvalidPolymer("unparsable", "not a SMILES text")
    problems = Chem.DetectChemistryProblems(mol)
    return InvalidPolymer("valence", problems[0].Message() if problems else "cannot be sanitized")


def canonicalize(psmiles: str) -> str:
    """Return the one canonical P-SMILES of a polymer.

    The unit is reduced to its primitive period, the allowed cuts (acyclic backbone bonds of the
    smallest bond order) are enumerated, and the smallest of their canonical texts is taken. Two
    ``*`` are not told apart, so a cut gives one text for both directions.

    Raises
    ------
    InvalidPolymer
        If the text is not a polymer; nothing else is raised for any text.
    """
    try:
        return _canonicalize(psmiles)
    except InvalidPolymer:
        raise
    except Exception as error:
        # RDKit raises errors of many classes on rare texts; one row must not stop the others.
        raise InvalidPolymer("canonicalization_failed", in_words(error)) from error


def in_words(error: Exception) -> str:
    """Describe an unexpected error in one line that is the same in every process."""
    lines = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return _MEMORY_ADDRESS.sub("0x", words)[:200]


def _canonicalize(psmiles: str) -> str:
    unit = parse(psmiles)
    cuts = allowed_cuts(unit)
    if not cuts[0].is_link:
        # A double link hides a single bond elsewhere. Which rings look aromatic may depend on the
        # cut, so the unit is moved there in its Kekule form and read anew.
        unit = parse(_moved_kekule(unit, cuts[0]))
        cuts = allowed_cuts(unit)
    colours = _quotient_colours(unit)
    ends = [(colours[cut.left], colours[cut.right]) for cut in cuts]
    period = _primitive_period(unit, cuts, ends)
    if period is not None:
        return _canonicalize(period)
    keys = [(min(pair), max(pair)) for pair in ends]
    smallest = min(keys)
    candidates = [cut for cut, key in zip(cuts, keys, strict=True) if key == smallest]
    return min(write_cut(unit, cut) for cut in candidates)


def backbone_path(unit: RepeatUnit) -> list[int]:
    """Return the atoms of one shortest path from left to right boundary atom, both included."""
    if unit.ends[0] == unit.ends[1]:
        return [unit.ends[0]]
    return list(Chem.GetShortestPath(unit.mol, *unit.ends))


def allowed_cuts(unit: RepeatUnit) -> list[Cut]:
    """List the cuts that spell the same polymer, in chain order from the link on.

    Only bonds of the smallest order on the backbone count (single if there is any), so that the six
    double links of the Egc set have one spelling. Ring bonds are no cuts: they give another polymer
    (defect 12). The link comes first unless its order is not the smallest.
    """
    rings = unit.mol.GetRingInfo()
    cuts = [Cut(unit.ends[1], unit.ends[0], unit.order, is_link=True)]
    path = backbone_path(unit)
    for left, right in pairwise(path):
        # Bonded atoms that share a ring are bonded by a ring bond.
        if not rings.AreAtomsInSameRing(left, right):
            cuts.append(Cut(left, right, unit.bond_orders.item(left, right), is_link=False))
    smallest = min(cut.order for cut in cuts)
    return [cut for cut in cuts if cut.order == smallest]


def write_cut(unit: RepeatUnit, cut: Cut) -> str:
    """Write the canonical text of the chain cut at one of its `allowed_cuts`."""
    text = Chem.MolToSmiles(unit.mol if cut.is_link else move_cut(unit.mol, unit, cut))
    # Beside a metal RDKit writes every atom in brackets.
    return text.replace("[*]", "*")


def move_cut(mol: Chem.Mol, unit: RepeatUnit, cut: Cut) -> Chem.RWMol:
    """Close the link and open another backbone bond; the stars move along."""
    edited = Chem.RWMol(mol)
    for star, end in zip(unit.stars, unit.ends, strict=True):
        edited.RemoveBond(star, end)
    # Removed before the link is made: in a unit of two atoms both are bonds of the same pair.
    edited.RemoveBond(cut.left, cut.right)
    edited.AddBond(unit.ends[1], unit.ends[0], BOND_OF_ORDER[unit.order])
    edited.AddBond(cut.right, unit.stars[0], BOND_OF_ORDER[cut.order])
    edited.AddBond(cut.left, unit.stars[1], BOND_OF_ORDER[cut.order])
    return edited


def _moved_kekule(unit: RepeatUnit, cut: Cut) -> str:
    kekule = Chem.Mol(unit.mol)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    return Chem.MolToSmiles(move_cut(kekule, unit, cut))


def _quotient_colours(unit: RepeatUnit) -> list[int]:
    """Colour the atoms of the infinite chain by refinement on its quotient graph.

    Equal for every spelling of the chain, repeats of the unit included: refinement cannot tell a
    graph from its covering. Returns a 64-bit number for each atom; those of the stars mean nothing.
    """
    weights = _WORD_OF_TWICE_ORDER[(2 * unit.bond_orders).astype(np.intp)]
    # Each boundary atom sees the other one where it saw its star. Columns are added: a loop (left =
    # right) counts twice, a parallel bond adds up. What the stars see does not matter.
    for star, end in zip(unit.stars, reversed(unit.ends), strict=True):
        weights[:, end] += weights[:, star]
        weights[:, star] = 0
    # The atom's own colour takes part in the product, which saves two array operations a round.
    weights.flat[:: len(weights) + 1] += _MULTIPLIER
    # The star's bond counts as degree in these invariants, so nothing changes at the cut.
    invariants = rdMolDescriptors.GetConnectivityInvariants(unit.mol)
    colours = np.array(invariants, dtype=np.uint64)
    for _ in range(_ROUNDS):
        colours = weights @ colours
        colours ^= colours >> _SHIFT
        colours *= _MIXER
    return colours.tolist()


def _primitive_period(unit: RepeatUnit, cuts: list[Cut], ends: list[tuple[int, int]]) -> str | None:
    """Return the shorter unit of which this one is a repeat, or None if it is primitive."""
    num_atoms = unit.mol.GetNumAtoms() - 2
    for length in range(1, len(cuts) // 2 + 1):
        copies, rest = divmod(len(cuts), length)
        if rest or num_atoms % copies or ends[length:] != ends[:-length]:
            continue
        # Equal colours are a hint; equal pieces, ends told apart, are the proof.
        pieces = _pieces(unit, cuts[length::length])
        if len(set(pieces)) == 1:
            return pieces[0]
    return None


def _pieces(unit: RepeatUnit, inner_cuts: list[Cut]) -> list[str]:
    """Cut a unit at further bonds; texts of the pieces with ends labelled ``[1*]`` and ``[2*]``."""
    edited = Chem.RWMol(unit.mol)
    edited.GetAtomWithIdx(unit.stars[0]).SetIsotope(1)
    edited.GetAtomWithIdx(unit.stars[1]).SetIsotope(2)
    for cut in inner_cuts:
        edited.RemoveBond(cut.left, cut.right)
        for atom, label in ((cut.left, 2), (cut.right, 1)):
            star = Chem.Atom(0)
            star.SetIsotope(label)
            edited.AddBond(atom, edited.AddAtom(star), BOND_OF_ORDER[cut.order])
    pieces = Chem.GetMolFrags(edited, asMols=True, sanitizeFrags=False)
    return [Chem.MolToSmiles(piece) for piece in pieces]


def repeat(unit: RepeatUnit, copies: int) -> Chem.RWMol:
    """Write a unit several times in a row, head to tail; the outer stars stay.

    Atoms of copy ``k`` stand at ``k * n + i``, the stars inside included but without bonds.
    """
    n = unit.mol.GetNumAtoms()
    chain = Chem.RWMol(unit.mol)
    for k in range(1, copies):
        chain.InsertMol(unit.mol)
        before, after = (k - 1) * n, k * n
        chain.RemoveBond(before + unit.stars[1], before + unit.ends[1])
        chain.RemoveBond(after + unit.stars[0], after + unit.ends[0])
        chain.AddBond(before + unit.ends[1], after + unit.ends[0], BOND_OF_ORDER[unit.order])
    return chain


def oligomer(unit: RepeatUnit, copies: int) -> tuple[Chem.RWMol, list[int]]:
    """Write a unit several times as `repeat` does, without the loose stars inside.

    Returns
    -------
    The chain, not sanitized, and for each of its atoms the index that it has in `repeat`.
    """
    chain = repeat(unit, copies)
    origin = [atom.GetIdx() for atom in chain.GetAtoms() if atom.GetDegree()]
    loose = [atom.GetIdx() for atom in chain.GetAtoms() if not atom.GetDegree()]
    for atom in reversed(loose):
        chain.RemoveAtom(atom)
    return chain, origin
