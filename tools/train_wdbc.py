"""Trains the embedded default model and writes every file of `farm/embedded` that is made of data.

    python -m venv .venv-train && .venv-train/bin/pip install -r tools/requirements-train.txt
    .venv-train/bin/python tools/train_wdbc.py            # writes
    .venv-train/bin/python tools/train_wdbc.py --check    # exits 1 when a file would differ by a byte

The data is the Breast Cancer Wisconsin (Diagnostic) set as scikit-learn ships it: 569 records of 30 measurements.

With the pinned packages the bytes are the same whatever BLAS kernel and vector instructions numpy picks: training is a
chain of matrix products whose last bits depend on them, so weights are rounded to a grid of 1/4096 before they are
stored as float32. Between the kernels that were tried, weights differ by 1e-16 before rounding, and none of them lies
closer than 6e-9 to where it would round the other way. The held-out records are scored with the rounded weights.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

# One thread, before numpy is imported: how a sum is split between threads changes its last bits.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import onnx
import scipy.special
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent.parent / "farm" / "embedded"
SEED = 7
HELD_OUT = 0.3
HIDDEN = (64, 64)
GRID = 4096.0
GOLDEN_ROWS = 32


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        print("usage: train_wdbc.py [--check]", file=sys.stderr)
        return 2
    files = build()
    differing = []
    for name, content in files.items():
        path = HERE / name
        if not check:
            path.write_bytes(content)
            print(f"wrote {path.name}, {len(content)} bytes")
        elif not path.exists() or path.read_bytes() != content:
            differing.append(name)
    if differing:
        print(f"these would differ: {', '.join(differing)}", file=sys.stderr)
    return 1 if differing else 0


def build() -> dict[str, bytes]:
    """File name to content."""
    data = load_breast_cancer()
    names = [feature_name(str(n)) for n in data.feature_names]
    # scikit-learn's target is 1 for benign; here 1 says malignant, which is what a reader asks for.
    truth = 1 - data.target
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, truth, test_size=HELD_OUT, random_state=SEED, stratify=truth
    )
    weights = train(train_x, train_y)
    graph = export(weights)
    features = test_x.astype(np.float32)
    probability = reference(weights, features)
    report(names, train_x, train_y, test_y, probability)
    golden = io.BytesIO()
    np.savez(golden, features=features[:GOLDEN_ROWS], malignant=probability[:GOLDEN_ROWS].astype(np.float32))
    return {
        "wdbc.onnx": graph,
        "wdbc_records.csv": records(names, test_x, test_y),
        "wdbc_golden.npz": golden.getvalue(),
    }


def feature_name(label: str) -> str:
    """`mean concave points` to `mean_concave_points`."""
    return label.replace(" ", "_")


def train(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """[mean, 1 / deviation, weight, bias, weight, bias, weight, bias], float32."""
    mean, inverse = x.mean(axis=0), 1.0 / x.std(axis=0)
    # tanh and few epochs: a smooth path amplifies the last bits of a BLAS kernel far less than relu's kinks would.
    network = MLPClassifier(HIDDEN, activation="tanh", alpha=1.0, max_iter=60, tol=0.0, random_state=SEED)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that 60 epochs did not converge: they are meant to stop there
        network.fit((x - mean) * inverse, y)
    layers = [a for pair in zip(network.coefs_, network.intercepts_, strict=True) for a in pair]
    # Mean and deviation come from one sum each, whose error is 1e-16: float32 alone is grid enough.
    return [mean.astype(np.float32), inverse.astype(np.float32)] + [
        (np.round(a * GRID) / GRID).astype(np.float32) for a in layers
    ]


def export(weights: list[np.ndarray]) -> bytes:
    """features float32[N, 30] to malignant float32[N], a probability."""
    names = ["mean", "inverse_deviation", "w1", "b1", "w2", "b2", "w3", "b3"]
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "inverse_deviation"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w1", "b1"], ["sum1"]),
        helper.make_node("Tanh", ["sum1"], ["hidden1"]),
        helper.make_node("Gemm", ["hidden1", "w2", "b2"], ["sum2"]),
        helper.make_node("Tanh", ["sum2"], ["hidden2"]),
        helper.make_node("Gemm", ["hidden2", "w3", "b3"], ["sum3"]),
        helper.make_node("Sigmoid", ["sum3"], ["column"]),
        helper.make_node("Squeeze", ["column", "last_axis"], ["malignant"]),
    ]
    constants = [numpy_helper.from_array(w, n) for n, w in zip(names, weights, strict=True)]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "last_axis"))
    graph = helper.make_graph(
        nodes,
        "wdbc",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", weights[0].size])],
        [helper.make_tensor_value_info("malignant", TensorProto.FLOAT, ["N"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="train_wdbc")
    model.ir_version = 8  # the oldest that opset 17 allows: old runtimes can read it
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def reference(weights: list[np.ndarray], features: np.ndarray) -> np.ndarray:
    """The same network in float64, written apart from the graph: golden outputs must not come from the graph itself."""
    mean, inverse, *layers = [w.astype(np.float64) for w in weights]
    value = (features.astype(np.float64) - mean) * inverse
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        value = np.tanh(value @ weight + bias)
    return scipy.special.expit(value @ layers[-2] + layers[-1])[:, 0]


def records(names: list[str], x: np.ndarray, y: np.ndarray) -> bytes:
    """CSV: a header, then one held-out record a line; the last column is the diagnosis."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "diagnosis"])
    for row, malignant in zip(x, y, strict=True):
        writer.writerow([*(repr(float(v)) for v in row), "malignant" if malignant else "benign"])
    return text.getvalue().encode()


def report(names: list[str], x: np.ndarray, y: np.ndarray, truth: np.ndarray, probability: np.ndarray) -> None:
    """What the rule in wdbc.toml and the README state, so that both can be checked against a run."""
    hits = int(((probability > 0.5) == truth).sum())
    print(f"held out: {hits} of {truth.size} right ({hits / truth.size:.1%})")
    column = x[:, names.index("worst_perimeter")]
    for bound in (114.0,):
        above, below = y[column > bound], y[column <= bound]
        print(f"worst_perimeter > {bound}: {above.mean():.3f} of {above.size} malignant; else {below.mean():.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
