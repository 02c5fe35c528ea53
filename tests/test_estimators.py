from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pared import ParedClassifier, ParedRegressor

QUICK: dict[str, Any] = {"hidden": (16,), "epochs": 40, "batch_size": 16, "lr": 0.02, "fine_tune": 10}
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "mini-batches and the split see a repeated row twice, a weighted row once",
}


@pytest.mark.filterwarnings("ignore:.*steps left .* more than half")  # some checks train on a handful of rows
@parametrize_with_checks(
    [ParedClassifier(**QUICK), ParedRegressor(**QUICK)], expected_failed_checks=lambda estimator: EXPECTED
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_front_is_at_hand_in_pipelines_and_cross_validation() -> None:
    x, y = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), ParedClassifier(**QUICK))
    assert cross_val_score(model, x, y, cv=3).mean() > 0.9
    fitted: Any = model.fit(x, y)[-1]
    sizes = [point["params"] for point in fitted.front_]
    assert sizes == sorted(sizes, reverse=True)
    assert fitted.n_features_in_ == 4
    assert fitted.feature_importances_.shape == (4,)
    assert fitted.feature_importances_.sum() == pytest.approx(1.0)
    assert set(np.flatnonzero(fitted.feature_importances_)) <= set(fitted.inputs_)


def test_a_budget_is_kept() -> None:
    x, y = load_iris(return_X_y=True)
    budget = ParedClassifier(**QUICK, max_params=60).fit(x, y)
    assert sum(p.numel() for p in budget.model_.parameters()) <= 60
    names = np.array(["a", "b", "c"])[y]
    assert set(ParedClassifier(**QUICK, max_drop=5.0).fit(x, names).predict(x)) <= {"a", "b", "c"}


def test_several_targets_are_regressed_in_their_own_units() -> None:
    x, y = load_diabetes(return_X_y=True)
    both = np.c_[y, -100 * y]
    model = ParedRegressor(**QUICK).fit(x, both)
    assert model.predict(x).shape == both.shape
    assert model.score(x, both) > 0.3


def test_a_run_too_short_to_shrink_says_so_at_the_users_line() -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.warns(UserWarning, match=r"steps left \d+ of \d+ parameters, more than half; raise epochs") as told:
        ParedClassifier(hidden=(16,), epochs=1, batch_size=16, lr=0.02, fine_tune=1).fit(x, y)
    assert [one.filename for one in told] == [__file__]
