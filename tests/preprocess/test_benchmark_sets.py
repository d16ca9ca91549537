"""All 6,265 rows of the eight benchmark sets become samples: laws L7 and L9 on real data."""

import csv
import json
import subprocess
import sys

import pytest

from mips_dist.chem.graph import build_graph
from mips_dist.chem.psmiles import canonicalize
from mips_dist.data.shards import load


@pytest.mark.needs_data
def test_every_row_of_the_eight_sets_is_a_sample(data_dir, tmp_path):
    texts = []
    for path in sorted((data_dir / "benchmark").glob("*.csv")):
        with path.open(newline="") as file:
            texts += [row["psmiles"] for row in csv.DictReader(file)]
    source, output = tmp_path / "all.csv", tmp_path / "shards"
    source.write_text("\n".join(["psmiles", *texts]) + "\n")
    command = [sys.executable, "-m", "preprocess", f"input={source}", f"output={output}"]
    subprocess.run([*command, "content=topology", "num_actors=2"], check=True, timeout=300)

    manifest = json.loads((output / "manifest.json").read_text())
    counts = [manifest[f"num_{name}"] for name in ("rows", "samples", "merged", "rejected")]
    assert counts == [6265, 3649, 2616, 0]
    with (output / "merged.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert canonicalize(texts[int(row["row"])]) == canonicalize(texts[int(row["equals"])])
    block = load(output)
    for k in range(0, len(block), 100):
        graph = build_graph(canonicalize(texts[block.row[k]]))
        assert block.psmiles[k] == graph.psmiles
        atoms = slice(*block.offsets["num_atoms"][k : k + 2])
        assert (block.atom_features[atoms] == graph.atom_features).all()
