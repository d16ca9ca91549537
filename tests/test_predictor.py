"""`mips_dist.load(...).predict`: rows in the order given, whatever they are given in."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import mips_dist as mips
from mips_dist.data.schema import feature_schema
from mips_dist.errors import MipsError, UsageError
from mips_dist.model.bundle import save_bundle
from mips_dist.use.predictor import Predictor
from tests.model.hand import property_model

TEXTS = ["*CC(*)C", "nonsense", "[*]CC(C)CC([*])C", "*c1ccc(*)s1", ""]


def save(directory: Path, name: str, unit: str = "eV") -> Path:
    model = property_model(descriptors=[])
    save_bundle(
        directory,
        model,
        feature_schema=feature_schema(2, []),
        metrics={},
        trained_on="A test.",
        scaler={"property": name, "unit": unit, "mean": 4.5, "std": 1.5},
    )
    return directory


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("models")
    return mips.load(save(folder / "a", "egc"), str(save(folder / "b", "tg", "K")))


def test_rows_keep_their_order_and_cost_only_themselves(predictor: Predictor) -> None:
    rows = predictor.predict(TEXTS)
    assert [row.psmiles for row in rows] == TEXTS
    assert [row.status for row in rows] == ["ok", "rejected", "ok", "ok", "rejected"]
    assert [row.reason.partition(":")[0] for row in rows] == [
        *("", "unparsable", "same polymer as row 0", "", "empty"),
    ]
    assert rows[0].values == rows[2].values
    assert rows[0].canonical == rows[2].canonical == "*CC(*)C"
    assert {name: value.unit for name, value in rows[0].values.items()} == {"egc": "eV", "tg": "K"}
    assert rows[1].values == {}
    # Alone, and in another order, the same bits.
    backwards = predictor.predict(TEXTS[::-1])
    assert [row.values for row in backwards] == [row.values for row in rows][::-1]
    assert predictor.predict(["*CC(C)*"])[0].values == rows[0].values


def test_a_table_comes_back_with_its_columns_and_index(predictor: Predictor) -> None:
    given = pd.DataFrame({"n": [1, 2, 3], "PSMILES": ["*CO*", None, "*CO*"]}, index=[7, 7, 9])
    frame = predictor.predict(given).to_frame()
    assert list(frame.columns) == ["n", "PSMILES", *predictor.columns]
    pd.testing.assert_frame_equal(frame[["n", "PSMILES"]], given)
    assert frame["reason"].str.partition(":")[0].tolist() == ["", "empty", "same polymer as row 0"]
    assert str(frame["tg"].dtype) == "float64"
    assert frame["tg"].notna().tolist() == [True, False, True]
    column = predictor.predict(given["PSMILES"]).to_frame()
    pd.testing.assert_frame_equal(column, frame.drop(columns="n"))
    listed = predictor.predict(["*CO*"]).to_pandas()
    assert listed["tg"].tolist() == frame["tg"].tolist()[:1]
    with pytest.raises(UsageError, match="to_pandas"):
        predictor.predict(["*CO*"]).to_frame()


def test_polars_in_is_polars_out(predictor: Predictor) -> None:
    pl = pytest.importorskip("polars")
    given = pl.DataFrame({"n": [1, 2, 3], "psmiles": ["*CO*", None, "*CO*"]})
    frame = predictor.predict(given).to_frame()
    assert frame.columns == ["n", "psmiles", *predictor.columns]
    assert frame.select("n", "psmiles").equals(given)
    assert frame["tg"].is_null().to_list() == [False, True, False]
    column = predictor.predict(given["psmiles"]).to_frame()
    assert column.equals(frame.drop("n"))


def test_wrong_use_is_one_line(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a list"):
        predictor.predict("*CC*")
    with pytest.raises(UsageError, match="no column psmiles or smiles; its columns are: polymer"):
        predictor.predict(pd.DataFrame({"polymer": ["*CC*"]}))
    with pytest.raises(UsageError, match="'egd' \\(did you mean egc"):
        mips.load("egd")
    with pytest.raises(UsageError, match="no released model predicts 'nowhere'"):
        mips.load("nowhere")
    with pytest.raises(MipsError, match="no model directory"):
        mips.load(tmp_path)
    with pytest.raises(UsageError, match="nothing to predict"):
        mips.load()
    with pytest.raises(UsageError, match="two models predict tg"):
        mips.load(save(tmp_path / "c", "tg"), tmp_path / "c")


def test_importing_the_package_imports_no_other() -> None:
    code = "import mips_dist, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
