"""The embedded files agree with each other and with the runtime that will serve them."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import msgspec
import numpy as np
import onnxruntime
import pytest

from farm import embedded
from router.config import RulesConfig

# The golden values were worked out in float64 from the same float32 weights. Runtimes differ from them, and from each
# other by CPU kind (other kernels, other order of sums): 30 to 64 products a sum, two layers, at most 1/4 of slope in
# the sigmoid. Measured 2e-7; a wrong weight or a wrong node is off by more than 1e-3.
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(embedded.MODEL_PATH), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def config():
    return tomllib.loads(embedded.CONFIG_PATH.read_text())


def test_golden_values_come_out_of_the_model(session):
    golden = embedded.load_golden()
    (malignant,) = session.run(["malignant"], {"features": golden.features})
    assert malignant.dtype == np.float32
    np.testing.assert_allclose(malignant, golden.malignant, rtol=0, atol=TOLERANCE)


def test_golden_features_are_the_first_held_out_records():
    golden = embedded.load_golden()
    np.testing.assert_array_equal(golden.features, embedded.load_records().features[: len(golden.features)])


def test_model_takes_any_number_of_rows_and_no_zipmap(session):
    (features,), (malignant,) = session.get_inputs(), session.get_outputs()
    assert (features.name, features.type, features.shape) == ("features", "tensor(float)", ["N", 30])
    assert (malignant.name, malignant.type, malignant.shape) == ("malignant", "tensor(float)", ["N"])
    for rows in (1, 7, 32):
        (answer,) = session.run(None, {"features": np.zeros((rows, 30), np.float32)})
        assert answer.shape == (rows,)


def test_model_is_right_about_nineteen_of_twenty_held_out_records(session):
    records = embedded.load_records()
    (malignant,) = session.run(None, {"features": records.features})
    assert ((malignant > 0.5) == records.malignant).mean() > 0.95


def test_rules_name_the_columns_as_the_records_do(config):
    rules = msgspec.convert(config["models"]["wdbc"]["rules"], RulesConfig)
    records = embedded.load_records()
    assert tuple(rules.features["features"]) == records.names
    assert records.features.shape == (len(records.malignant), len(records.names))


def test_last_rule_always_answers(config, session):
    rules = msgspec.convert(config["models"]["wdbc"]["rules"], RulesConfig).rules
    assert rules[-1].when is None
    assert all(rule.answer.keys() == {o.name for o in session.get_outputs()} for rule in rules)


def test_configuration_names_its_source_and_licence():
    text = embedded.CONFIG_PATH.read_text()
    assert "CC BY 4.0" in text
    assert "BSD-3-Clause" in text


def test_paths_cost_no_numpy():
    script = "import sys, farm.embedded; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0
