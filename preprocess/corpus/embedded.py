"""``python -m preprocess.corpus embedded output=FILE.csv``: a corpus that needs no download.

Real molecules that the RDKit wheel carries (``Data/NCI/first_5K.smi``) are polymerised by the rules
of the package smipoly. The result is made where it is used and never shipped; examples/README.md
says under which terms the two sources come.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, RDConfig
from rdkit.Chem.rdChemReactions import ChemicalReaction, ReactionToSmarts

from mips_dist.chem.psmiles import InvalidPolymer, canonicalize
from mips_dist.errors import MipsError
from preprocess.corpus.table import polymer_table
from preprocess.progress import progress

# Larger units, up to 90 atoms, are rare (1.6 % of 3,000) and their conformers take the longest.
MAX_HEAVY_ATOMS = 60

# Molecules classified between two steps of the progress bar.
_CHUNK = 500


@dataclass(kw_only=True, slots=True)
class EmbeddedConfig:
    """What ``embedded`` makes.

    Attributes
    ----------
    output
        The csv or csv.gz to write, with the one column ``psmiles``; an existing file is replaced.
    num_polymers
        Number of distinct polymers.
    seed
        Decides which pairs of monomers are polymerised, and the order of the rows.
    """

    output: str = "corpus.csv"
    num_polymers: int = 3000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_polymers < 1:
            raise ValueError(f"num_polymers={self.num_polymers}: must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")


@dataclass(frozen=True, slots=True)
class Rule:
    """A polymerisation of one or two monomer classes.

    Attributes
    ----------
    classes
        Monomer classes in the order of the reactants; the second one is ``none`` where one monomer
        is enough.
    reaction
        Reaction from the monomers to the open repeat unit with its two stars.
    """

    classes: tuple[str, str]
    reaction: ChemicalReaction


def read_molecules() -> list[str]:
    """Return the NCI molecules of the RDKit distribution as sorted, distinct SMILES without stereo.

    Salts and mixtures are left out: one reactant is one molecule.
    """
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    if not path.is_file():
        raise MipsError(
            f"this RDKit has no {path}; install rdkit with pip, or use a csv of your own polymers"
        )
    found = set()
    for line in path.read_text(encoding="ascii").splitlines():
        smiles = line.partition("\t")[0]
        mol = None if "." in smiles else Chem.MolFromSmiles(smiles)
        if mol is not None:
            found.add(Chem.MolToSmiles(mol, isomericSmiles=False))
    return sorted(found)


def load_rules(polymer_generator: Any) -> list[Rule]:
    """Return smipoly's rules in a fixed order, whatever order the package keeps them in.

    Parameters
    ----------
    polymer_generator
        The module ``smipoly.smip.polg``.
    """
    rules = [
        Rule((first, second), reaction)
        for polymer_class in polymer_generator.Ps_classL
        for first, second, reaction in polymer_generator.Ps_GenL[polymer_class]
    ]
    return sorted(rules, key=lambda rule: (rule.classes, ReactionToSmarts(rule.reaction)))


def classify(
    monomer_classifier: Any, molecules: list[str], advance: Callable[[int], None]
) -> dict[str, list[str]]:
    """Sort molecules into smipoly's monomer classes.

    Parameters
    ----------
    monomer_classifier
        The module ``smipoly.smip.monc``.
    molecules
        SMILES of single molecules.
    advance
        Called with the number of molecules done since the last call.

    Returns
    -------
    Sorted SMILES of every class; a molecule may stand in several.
    """
    import pandas as pd

    classes: dict[str, set[str]] = {name: set() for name in monomer_classifier.mon_dic}
    for start in range(0, len(molecules), _CHUNK):
        chunk = molecules[start : start + _CHUNK]
        table = monomer_classifier.moncls(pd.DataFrame({"smiles": chunk}), "smiles")
        for name in classes.keys() & set(table.columns):
            classes[name].update(table.loc[table[name], "smip_cand_mons"])
        advance(len(chunk))
    return {name: sorted(members) for name, members in classes.items()}


def polymerise(
    rule: Rule, monomers: dict[str, list[Chem.Mol]], rng: np.random.Generator
) -> Iterator[str]:
    """Yield canonical polymers of one rule, its pairs of monomers in random order.

    Only the first product of each pair is taken: the others differ in which of several equal groups
    has reacted, and third groups stay as they are. A polymer may come more than once.
    """
    first = monomers[rule.classes[0]]
    second = monomers[rule.classes[1]] if rule.classes[1] != "none" else [None]
    for pair in rng.permutation(len(first) * len(second)):
        a, b = divmod(int(pair), len(second))
        reactants = (first[a],) if second[b] is None else (first[a], second[b])
        for (product,) in rule.reaction.RunReactants(reactants, 1):
            if product.GetNumHeavyAtoms() > MAX_HEAVY_ATOMS:
                continue
            if Chem.SanitizeMol(product, catchErrors=True):
                continue
            try:
                yield canonicalize(Chem.MolToSmiles(product))
            except InvalidPolymer:
                # Such as a reaction inside one ring, which leaves two fragments or four stars.
                continue


def take_in_turns(
    streams: list[Iterator[str]], number: int, advance: Callable[[int], None]
) -> list[str]:
    """Take distinct items, one new item of each stream per round, until there are enough.

    Turns keep the few rules with thousands of pairs (vinyl copolymers, polyesters) from crowding
    out the others. Fewer items come back if all streams end before.
    """
    found: dict[str, None] = {}
    while streams and len(found) < number:
        alive = []
        for stream in streams:
            item = next((item for item in stream if item not in found), None)
            if item is None:
                continue
            alive.append(stream)
            if len(found) < number:
                found[item] = None
                advance(1)
        streams = alive
    return list(found)


def embedded_corpus(num_polymers: int, seed: int) -> list[str]:
    """Make distinct polymers of the embedded molecules.

    Parameters
    ----------
    num_polymers
        How many.
    seed
        The same seed and number give the same list in any process.

    Returns
    -------
    Canonical P-SMILES in random order, so that every part of the list is a fair sample of it.
    """
    try:
        # smipoly unpickles its rules when it is imported. They are files of a package that our lock
        # file pins, code of a dependency like its .py files, and not data of a user.
        from smipoly.smip import monc, polg
    except ImportError as error:
        raise MipsError(
            "the embedded corpus needs smipoly; pip install 'mips-dist[quickstart]'"
        ) from error

    molecules = read_molecules()
    with progress("classification", len(molecules), "molecules") as advance:
        classes = classify(monc, molecules, advance)
    monomers = {name: [Chem.MolFromSmiles(s) for s in members] for name, members in classes.items()}
    streams = [
        polymerise(rule, monomers, np.random.default_rng([seed, index]))
        for index, rule in enumerate(load_rules(polg))
    ]
    with progress("polymerisation", num_polymers, "polymers") as advance:
        polymers = take_in_turns(streams, num_polymers, advance)
    if len(polymers) < num_polymers:
        raise MipsError(
            f"the embedded molecules give only {len(polymers)} distinct polymers; "
            f"ask for num_polymers={len(polymers)} or less"
        )
    return [polymers[i] for i in np.random.default_rng(seed).permutation(num_polymers)]


def write_embedded(config: EmbeddedConfig) -> None:
    """Write the embedded corpus as a csv; the file appears complete or not at all."""
    with polymer_table(Path(config.output)) as add:
        for psmiles in embedded_corpus(config.num_polymers, config.seed):
            add(psmiles)
    print(f"wrote {config.num_polymers} distinct polymers to {config.output}")
