"""mips embed: laws of its vectors, and files that keep every row."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rdkit import Chem
from torch import nn

from mips_dist import embed
from mips_dist.chem.sample import featurize
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.released import model_directory
from mips_dist.threads import one_thread
from mips_dist.use.embed import embed_given, embed_one
from mips_dist.use.predict import featurized, open_model
from tests.polymers import CORNER_CASES, POLYMERS

TEXTS = ["*CC*", "CCO", *list(CORNER_CASES)[::3], "", "*CC(*)c1ccccc1", "[*]C[*]"]
BAD = [1, len(TEXTS) - 3]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embed") / "in.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["name", "psmiles"], *enumerate(TEXTS)])
    return path


def test_the_same_bits_for_any_spelling_order_and_batch_mates():
    spellings = list(CORNER_CASES)[::2]
    together = embed(spellings)
    assert together.shape == (len(spellings), 128)
    assert together.dtype == np.float32
    assert (together == embed([CORNER_CASES[text] for text in spellings])).all()
    for i in range(0, len(spellings), 5):
        assert (embed([spellings[i]])[0] == together[i]).all()


def test_a_vector_is_what_the_property_head_reads():
    bundle = open_model(model_directory("egc"))
    with one_thread(), torch.inference_mode():
        for canonical in POLYMERS[:8]:
            found = embed_one(bundle, canonical)
            assert found.polymer is not None
            head = bundle.model.head
            assert isinstance(head, nn.Module)
            batch, _ = featurized(bundle, canonical)
            assert torch.equal(head(torch.from_numpy(found.polymer)[None]), bundle.model(batch))
            assert np.allclose(found.atoms.mean(0), found.polymer, atol=1e-5)


def test_atoms_are_those_of_the_canonical_unit():
    bundle = open_model(model_directory("mips-small"))
    for canonical in POLYMERS[::2]:
        (sample,) = featurize([canonical], "topology")
        mol = Chem.MolFromSmiles(canonical)
        with one_thread():
            index = embed_one(bundle, canonical).index.tolist()
        found = [mol.GetAtomWithIdx(i).GetAtomicNum() for i in index]
        assert found == sample.graph.atom_features[:, 0].tolist()


def test_npz_and_parquet_hold_every_row_and_the_same_bits(source, tmp_path):
    npz, parquet = tmp_path / "out.npz", tmp_path / "out.parquet"
    embed_given(str(source), "mips-small", npz, with_atoms=True)
    embed_given(str(source), "mips-small", parquet, with_atoms=True)
    with np.load(npz, allow_pickle=False) as found:
        a = dict(found)
    b = pq.read_table(parquet).to_pydict()
    assert a["row"].tolist() == b["row"] == list(range(len(TEXTS)))
    for name in ("canonical", "status", "reason"):
        assert a[name].tolist() == b[name]
    assert [i for i, status in enumerate(b["status"]) if status == "rejected"] == BAD
    assert b["reason"][1].startswith("star_count")
    assert np.array_equal(a["embedding"], embed(TEXTS), equal_nan=True)
    for i in range(len(TEXTS)):
        atoms = slice(*a["atom_offset"][i : i + 2])
        if i in BAD:
            assert (b["embedding"][i], b["atom_index"][i], b["atom_embedding"][i]) == (None,) * 3
            assert np.isnan(a["embedding"][i]).all()
            assert atoms.start == atoms.stop
        else:
            assert a["embedding"][i].tolist() == b["embedding"][i]
            assert a["atom_index"][atoms].tolist() == b["atom_index"][i]
            assert a["atom_embedding"][atoms].tolist() == b["atom_embedding"][i]
    assert a["atom_offset"][-1] == len(a["atom_embedding"]) == len(a["atom_index"])


def test_row_groups_of_a_parquet_are_read_as_one(source, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    embed_given(str(source), "mips-small", whole, with_atoms=False)
    monkeypatch.setattr("mips_dist.use.embed.ROW_GROUP", 3)
    embed_given(str(source), "mips-small", parts, with_atoms=False)
    assert pq.ParquetFile(parts).num_row_groups == -(-len(TEXTS) // 3)
    assert pq.read_table(parts).equals(pq.read_table(whole))
    assert "atom_index" not in pq.read_table(whole).column_names


def test_a_file_without_any_polymer_is_written_too(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("psmiles\nCCO\nC\n")
    for name in ("out.npz", "out.parquet"):
        embed_given(str(source), "mips-small", tmp_path / name, with_atoms=True)
    assert pq.read_table(tmp_path / "out.parquet")["atom_embedding"].null_count == 2
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found["atom_embedding"].shape == (0, 128)
        assert np.isnan(found["embedding"]).all()


@pytest.mark.parametrize(
    ("model", "output", "error", "says"),
    [
        ("mips-small", "out.csv", UsageError, r"must end in \.npz or \.parquet"),
        ("mips-small", "no/out.npz", UsageError, "is no folder"),
        ("mips-huge", "out.npz", MipsError, "no released model; released: eat, "),
    ],
)
def test_bad_requests_are_refused_in_a_line(source, tmp_path, model, output, error, says):
    with pytest.raises(error, match=says):
        embed_given(str(source), model, tmp_path / output, with_atoms=False)
    assert not (tmp_path / output).exists()


def test_one_polymer_may_stand_in_place_of_a_file(tmp_path):
    embed_given("[*]CC([*])C", "mips-small", tmp_path / "one.npz", with_atoms=False)
    with np.load(tmp_path / "one.npz", allow_pickle=False) as found:
        assert found["canonical"].tolist() == ["*CC(*)C"]
        assert (found["embedding"] == embed(["*CC(*)C"])).all()
    with pytest.raises(MipsError, match=r"\*CC: star_count"):
        embed_given("*CC", "mips-small", tmp_path / "none.npz", with_atoms=False)
