"""The data card: its numbers are those of RDKit, its page is well-formed, safe and alone."""

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem

from mips_dist.chem.psmiles import canonicalize
from mips_dist.chem.sample import featurize
from mips_dist.data.block import PolymerBlock, stack
from mips_dist.data.shards import Manifest, read_blocks, read_manifest
from preprocess.card import NUM_DRAWN, choose_polymers, shard_statistics, write_card
from tests.page import Page
from tests.polymers import POLYMERS
from tests.shard_folder import write_shards

CANONICAL = sorted({canonicalize(text) for text in POLYMERS})
COMMAND = "python -m preprocess input=polymers.csv output=shards"
HOSTILE = """<script>alert('1')</script><img src=x onerror="x()">&amp;\x00\udcff"""


@pytest.fixture(scope="module")
def block() -> PolymerBlock:
    samples = featurize(CANONICAL, "topology", 2)
    return stack(samples, range(len(samples)))


@pytest.fixture
def card(tmp_path: Path) -> Any:
    """Write the card of a small folder, parts of its manifest changed; return its page."""
    folder = write_shards(tmp_path / "shards")

    def write(command: str = COMMAND, polymers: list[str] | None = None, **changes: Any) -> str:
        manifest: Manifest = dataclasses.replace(read_manifest(folder), **changes)
        statistics = [shard_statistics(list(read_blocks(folder)))]
        drawn = statistics[0]["sample"] if polymers is None else polymers
        write_card(folder, manifest, statistics, drawn, command)
        assert {f.suffix for f in folder.iterdir()} == {".tar", ".npz", ".json", ".html"}
        return (folder / "card.html").read_text(encoding="utf-8")

    return write


def test_statistics_are_what_rdkit_counts(block):
    found = shard_statistics([block])
    heavy: Counter[str] = Counter()
    element_atoms: Counter[str] = Counter()
    element_polymers: Counter[str] = Counter()
    links: Counter[str] = Counter()
    charged = 0
    for psmiles in CANONICAL:
        mol = Chem.MolFromSmiles(psmiles)
        numbers = [a.GetAtomicNum() for a in mol.GetAtoms() if a.GetAtomicNum()]
        heavy[str(sum(number > 1 for number in numbers))] += 1
        element_atoms.update(map(str, numbers))
        element_polymers.update({str(number) for number in numbers})
        star = next(a for a in mol.GetAtoms() if not a.GetAtomicNum())
        links[str(star.GetBonds()[0].GetBondType()).lower()] += 1
        charged += any(a.GetFormalCharge() for a in mol.GetAtoms())
    assert found["num_polymers"] == len(CANONICAL)
    assert found["heavy_atoms"] == heavy
    assert found["element_atoms"] == element_atoms
    assert found["element_polymers"] == element_polymers
    assert found["link_bonds"] == links
    assert found["traits"]["with a charged atom"] == charged > 0
    assert found["conformer_status"] == {}


def test_backbone_lengths_by_hand():
    texts = ["*CC(*)c1ccccc1", "*c1ccc(*)cc1", "*CCO*", "*C*"]
    texts = [canonicalize(text) for text in texts]
    found = shard_statistics([stack(featurize(texts, "topology", 2), range(4))])
    # Polystyrene: two atoms, its ring hangs aside; polyphenylene: the whole ring.
    assert found["backbone_atoms"] == {"1": 1, "2": 1, "3": 1, "6": 1}


def test_statistics_of_parts_add_up(block):
    halves = [block.select(np.arange(k, len(block), 2)) for k in (0, 1)]
    whole = shard_statistics([block])
    assert shard_statistics(halves)["heavy_atoms"] == whole["heavy_atoms"]
    parts = [shard_statistics([half]) for half in halves]
    for name in ("element_atoms", "element_polymers", "backbone_atoms", "traits", "link_bonds"):
        total = sum((Counter(part[name]) for part in parts), Counter())
        assert total == Counter(whole[name]), name
    sample = [text for part in parts for text in part["sample"]]
    assert choose_polymers(sample) == whole["sample"]


def test_conformer_status_is_counted(block):
    texts = ["*CC*", "*CC(*)C"]
    samples = featurize([canonicalize(text) for text in texts], "full", 2)
    both = stack(samples, range(2))
    status = shard_statistics([both])["conformer_status"]
    assert sum(status.values()) == 2
    assert all(name.startswith(("mmff94", "uff")) for name in status)
    without = stack([samples[0], featurize(["*CO*"], "topology", 2)[0]], range(2))
    assert shard_statistics([without])["conformer_status"]["failed"] == 1


def test_the_choice_is_distinct_and_knows_no_order():
    polymers = [f"*{'C' * k}O*" for k in range(1, 200)]
    chosen = choose_polymers(polymers)
    assert len(set(chosen)) == NUM_DRAWN
    assert choose_polymers(reversed([*polymers, *polymers])) == chosen
    # Spread over the list, not its head.
    assert max(map(polymers.index, chosen)) > 100
    assert choose_polymers(["*C*"]) == ["*C*"]


def test_the_page_is_well_formed_alone_and_says_it_all(card):
    text = card(rejected_by_reason={"star_count": 7}, num_rejected=7, num_rows=127)
    page = Page(text)
    words = " ".join(page.texts)
    for wanted in (COMMAND, "invented.csv", "0" * 64, "127", "star_count", "120"):
        assert wanted in words, wanted
    assert page.tags["h1"] == 1
    assert page.tags["caption"] == page.tags["table"] > 3
    assert page.tags["svg"] > NUM_DRAWN
    named = re.findall(r'<svg [^>]*role="img"><title>[^<]+</title>', text)
    hidden = re.findall(r'<svg [^>]*aria-hidden="true"', text)
    assert len(named) == 2 + NUM_DRAWN
    assert len(named) + len(hidden) == page.tags["svg"]
    page.check_alone()
    assert text == card(rejected_by_reason={"star_count": 7}, num_rejected=7, num_rows=127)


def test_hostile_text_is_text(card):
    text = card(
        command=HOSTILE,
        polymers=["*C*", HOSTILE.replace("\udcff", "")],
        input={"name": HOSTILE, "sha256": HOSTILE},
        config={HOSTILE: HOSTILE},
        software={HOSTILE: HOSTILE},
        content=HOSTILE,
        descriptors=[dict.fromkeys(("name", "width", "kind", "version"), HOSTILE)],
        rejected_by_reason={HOSTILE: 1},
        num_rejected=1,
        num_rows=121,
    )
    page = Page(text)
    page.check_alone()
    assert "\x00" not in text
    assert sum("<script>alert('1')</script>" in piece for piece in page.texts) > 8


def test_large_and_empty_folders_have_a_page(card, tmp_path):
    manifest = read_manifest(write_shards(tmp_path / "one"))
    empty = dataclasses.replace(
        manifest, num_rows=3, num_samples=0, num_rejected=3, shards=[], rejected_by_reason={"x": 3}
    )
    write_card(tmp_path, empty, [], [], COMMAND)
    page = Page((tmp_path / "card.html").read_text(encoding="utf-8"))
    assert "No polymer." in page.texts
    with pytest.raises(ValueError, match="120 in the manifest"):
        write_card(tmp_path, manifest, [], [], COMMAND)
    wide = {"num_polymers": 120, "heavy_atoms": {"1": 119_000_000, "997": 1}, "sample": []}
    write_card(tmp_path, manifest, [wide], [], COMMAND)
    text = (tmp_path / "card.html").read_text(encoding="utf-8")
    bars = re.findall(r'<rect class="bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', text)
    assert len(bars) == 2
    assert all(float(x) + float(width) <= 400 for x, width in bars)
