"""PolymerRegressor: laws of its predictions, and what scikit-learn asks of an estimator."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

import mips_dist
from mips_dist import PolymerRegressor, canonical_groups
from mips_dist.errors import MipsError
from tests.finetune.learnable import label
from tests.polymers import CORNER_CASES
from tests.shard_folder import polymers

NAMES = polymers(50)
TRAIN, TEST = NAMES[:40], NAMES[40:]
LABELS = np.array([label(name) for name in TRAIN])


@pytest.fixture(scope="module")
def fitted() -> PolymerRegressor:
    return PolymerRegressor().fit(TRAIN, LABELS)


def test_it_learns(fitted):
    assert fitted.score(TEST, [label(name) for name in TEST]) > 0.8


def test_the_same_bits_for_any_spelling_order_and_batch_mates(fitted):
    spellings = list(CORNER_CASES)
    together = fitted.predict(spellings)
    assert (together == fitted.predict(list(CORNER_CASES.values()))).all()
    assert (together[::-1] == fitted.predict(spellings[::-1])).all()
    assert together.tolist() == [fitted.predict([text]).item() for text in spellings]
    assert len(set(together)) == len(set(CORNER_CASES.values()))


def test_every_form_of_a_column_gives_the_same(fitted):
    pandas = pytest.importorskip("pandas")
    expected = fitted.predict(TEST)
    frame = pandas.DataFrame({"psmiles": TEST})
    forms = [tuple(TEST), np.array(TEST), np.array(TEST, object)[:, None], frame, frame["psmiles"]]
    for form in forms:
        assert (fitted.predict(form) == expected).all()
    again = PolymerRegressor().fit(pandas.DataFrame({"x": TRAIN}), pandas.Series(LABELS))
    assert (again.predict(frame) == expected).all()


def test_polars_gives_the_same(fitted):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"psmiles": TEST})
    for form in (frame, frame["psmiles"]):
        assert (fitted.predict(form) == fitted.predict(TEST)).all()


def test_works_in_pipelines_searches_and_cross_validation():
    pipeline = Pipeline(
        [
            ("strip", FunctionTransformer(lambda rows: [x.strip() for x in rows])),
            ("p", PolymerRegressor()),
        ]
    )
    spaced = [f" {name} " for name in TRAIN]
    assert cross_val_score(pipeline, spaced, LABELS, cv=3, error_score="raise").mean() > 0.5
    search = GridSearchCV(PolymerRegressor(), {"random_state": [0, 1]}, cv=2, error_score="raise")
    assert search.fit(TRAIN, LABELS).predict(TEST).shape == (len(TEST),)
    both = MultiOutputRegressor(PolymerRegressor()).fit(TRAIN, np.stack([LABELS, -LABELS], 1))
    assert both.predict(TEST).shape == (len(TEST), 2)


def test_spellings_of_a_polymer_are_one_group():
    groups = canonical_groups(list(CORNER_CASES))
    canonicals = list(CORNER_CASES.values())
    assert groups.max() + 1 == len(set(canonicals))
    for i, own in enumerate(canonicals):
        assert [bool(g) for g in groups == groups[i]] == [c == own for c in canonicals]
    for train, test in GroupKFold(4).split(canonicals, groups=groups):
        assert not {canonicals[i] for i in train} & {canonicals[i] for i in test}
    with pytest.raises(ValueError, match=r"1 of 2 rows cannot be used: row 1 \('CCO'\)"):
        canonical_groups(["*CC*", "CCO"])


def test_rows_that_are_no_polymers_are_named(fitted):
    bad = ["*CC*", "CCO", None, "*O*", "*C(C)(C)(C)*", "not", "*CC*"]
    with pytest.raises(ValueError, match=r"^4 of 7 rows cannot be used: row 1 .*; and 1 more; on_"):
        fitted.predict(bad)
    with pytest.raises(ValueError, match=r"row 2 \(None\): no text but NoneType"):
        PolymerRegressor(on_invalid="nan").fit(bad, np.arange(7.0))
    lenient = clone(fitted).set_params(on_invalid="nan").fit(TRAIN, LABELS)
    predicted = lenient.predict(bad)
    assert np.isnan(predicted).tolist() == [False, True, True, False, True, True, False]
    assert (predicted[[0, 3]] == fitted.predict(["*CC*", "*O*"])).all()


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ("*CC*", [1.0], "give a list of P-SMILES"),
        ([["*C*", "*O*"]], [1.0], r"shape \(1, 2\)"),
        (TRAIN, LABELS[1:], "inconsistent numbers of samples"),
        (TRAIN, np.stack([LABELS, LABELS], 1), "MultiOutputRegressor"),
        (TRAIN, np.where(LABELS > 10, np.nan, LABELS), "y contains NaN"),
        (["*CC*", "*C*", "*CCC*", "*CCCC*", "[*]C[*]"], np.arange(5.0), "1 distinct polymers"),
        (TRAIN, None, "requires y"),
    ],
)
def test_what_cannot_be_fitted_says_so(x, y, says):
    with pytest.raises(ValueError, match=says):
        PolymerRegressor().fit(x, y)


def test_a_frame_of_several_columns_is_refused(fitted):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"name": TEST, "psmiles": TEST})
    with pytest.raises(ValueError, match=r"2 columns \(name, psmiles\)"):
        fitted.predict(frame)


def test_labels_that_are_all_equal_give_that_label():
    assert PolymerRegressor().fit(TRAIN, np.full(40, 7.5)).predict(TEST) == pytest.approx(7.5)


def test_a_saved_model_predicts_the_same_and_a_damaged_one_is_refused(fitted, tmp_path):
    folder = tmp_path / "tg"
    fitted.save(folder)
    fitted.save(folder)  # replaces
    loaded = PolymerRegressor.load(folder)
    assert (loaded.predict(TEST) == fitted.predict(TEST)).all()
    assert loaded.get_params() == fitted.get_params()
    assert loaded.num_polymers_ == 40
    weights = folder / "chain_model.safetensors.gz"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(MipsError, match="is not the file that was saved"):
        PolymerRegressor.load(folder)
    (folder / "regressor.json").write_text("{")
    with pytest.raises(MipsError, match=r"regressor\.json is damaged"):
        PolymerRegressor.load(folder)
    with pytest.raises(MipsError, match="is no saved regressor"):
        PolymerRegressor.load(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MipsError, match="holds something else"):
        fitted.save(tmp_path)


def test_the_package_imports_nothing_until_it_is_asked():
    code = "import sys, mips_dist; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "PolymerRegressor" in dir(mips_dist)


class OnNumbers(PolymerRegressor):
    """The regressor behind a translation of numbers, which the checks feed, to polymers.

    Each column is a piece of the unit that stands there the more often the larger the number is.
    All else, and each rule that a check looks for, is the regressor's own.
    """

    PIECES = ("O", "N", "C(=O)", "C(F)", "S", "C(C)", "c1ccc(cc1)", "C(Cl)", "CO", "CN")

    def fit(self, X, y):  # noqa: N803
        if y is not None:
            X, y = validate_data(  # noqa: N806
                self, X, y, dtype=float, y_numeric=True, multi_output=True
            )
            self.centre_, self.width_ = X.mean(0), X.std(0) + 1e-9
        return super().fit(self._polymers(X), y)

    def predict(self, X):  # noqa: N803
        check_is_fitted(self)
        return super().predict(self._polymers(validate_data(self, X, dtype=float, reset=False)))

    def _polymers(self, X):  # noqa: N803
        if not hasattr(self, "centre_"):
            return []
        steps = np.clip(np.rint(2 + 1.3 * (X - self.centre_) / self.width_), 0, 4).astype(int)
        return [
            "*C" + "".join(p * n for p, n in zip(self.PIECES, row, strict=False)) + "*"
            for row in steps
        ]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, True
        tags.input_tags.string = False
        return tags


@parametrize_with_checks([OnNumbers()])
def test_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)
