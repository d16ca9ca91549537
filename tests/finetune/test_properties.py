import gzip

import numpy as np
import pytest

from mips_dist.config import configs_dir
from mips_dist.data.properties import (
    BENCHMARK,
    Property,
    Reject,
    Scaler,
    read_labelled_sets,
    read_property,
)
from mips_dist.errors import MipsError, UsageError
from tests.finetune.learnable import write_csv


def read_one(path, column="value"):
    sets, rejects = read_labelled_sets([Property(name="p", file=str(path), column=column)])
    return sets[0], rejects


def test_the_eight_sets_are_described_with_unit_and_published_row():
    properties = [read_property(configs_dir() / "property", name) for name in BENCHMARK]
    assert {p.stem for p in (configs_dir() / "property").glob("*.yaml")} == set(BENCHMARK)
    assert all(
        p.unit and p.description and p.file and p.name == n
        for p, n in zip(properties, BENCHMARK, strict=True)
    )
    assert {p.published.protocol for p in properties} == {"paper"}
    # The mean of the published table.
    assert np.mean([p.published.r2 for p in properties]) == pytest.approx(0.8555, abs=1e-4)


def test_unknown_property_and_unknown_key(tmp_path):
    with pytest.raises(UsageError, match="no property 'tg'; known are"):
        read_property(configs_dir() / "property", "tg")
    (tmp_path / "x.yaml").write_text("name: x\ncolour: red\n")
    with pytest.raises(UsageError, match="colour"):
        read_property(tmp_path, "x")


def test_rows_are_read_by_column_name_and_never_merged(tmp_path):
    # A trailing empty column, other columns, a byte order mark, two rows of one polymer.
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,psmiles,value,\n"
        b"a,*CC*,1.5,\nb,[*]C[*],2.5,\nc,*CO*,,\nd,*OC*,nan,\ne,*CCO*,-3,\n"
    )
    labelled, rejects = read_one(path)
    assert rejects == []
    assert labelled.row.tolist() == [0, 1, 4]
    assert labelled.value.tolist() == [1.5, 2.5, -3.0]
    assert labelled.canonical[0] == labelled.canonical[1] == "*C*"


def test_bad_rows_are_listed_once_and_do_not_stop(tmp_path):
    rows = [["*CC*", 1, 2], ["CCC", 1, 2], ["*CO*", "abc", 2], ["*CN*", "inf", 4], ["", 1, 1]]
    path = write_csv(tmp_path / "a.csv", ["psmiles", "x", "y"], rows)
    properties = [Property(name=n, file=str(path), column=n) for n in ("x", "y")]
    (x, y), rejects = read_labelled_sets(properties)
    assert x.row.tolist() == [0]
    assert y.row.tolist() == [0, 2, 3]
    assert sorted(r.row for r in rejects) == [1, 2, 3, 4]
    assert Reject(str(path), 2, "x: 'abc' is not a number") in rejects
    assert next(r for r in rejects if r.row == 1).reason.startswith("star_count")


def test_gzip_is_read(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"psmiles,value\n*CC*,1\n"))
    assert read_one(path)[0].value.tolist() == [1.0]


@pytest.mark.parametrize(
    ("content", "column", "error", "message"),
    [
        (None, "value", MipsError, "no file"),
        (
            b"psmiles,value\n*CC*,1\n",
            "tg",
            UsageError,
            "no column tg; its columns are: psmiles, val",
        ),
        (b"unit,value\n*CC*,1\n", "value", UsageError, "no column psmiles or smiles"),
        (b"", "value", UsageError, "is empty"),
        (b"psmiles,value\n", "value", MipsError, "no usable row"),
        (b"psmiles,value\n*CC*,\n", "value", MipsError, "no usable row"),
        (b"psmiles,value\n\xff\xfe,1\n", "value", MipsError, "no usable row"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, content, column, error, message):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_one(path, column)
    assert "\n" not in str(caught.value)


def test_scaler_round_trip_and_constant_values():
    value = np.array([1.0, 2.0, 6.0])
    scaler = Scaler.fit(value)
    z = scaler.to_z(value)
    assert z.mean() == pytest.approx(0)
    assert z.std() == pytest.approx(1)
    assert scaler.to_physical(z) == pytest.approx(value)
    assert Scaler.fit(np.array([4.0, 4.0])) == Scaler(4.0, 1.0)


@pytest.mark.needs_data
def test_the_eight_sets_are_read_whole(data_dir):
    properties = [read_property(configs_dir() / "property", name) for name in BENCHMARK]
    for prop in properties:
        prop.file = str(data_dir / "benchmark" / prop.file)
    sets, rejects = read_labelled_sets(properties)
    assert rejects == []
    assert [len(s.row) for s in sets] == [3380, 561, 368, 370, 432, 382, 382, 390]
