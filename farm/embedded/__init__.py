"""The embedded default: a small model, its configuration, held-out records and golden values, shipped in the wheel.

Only paths and loaders are here. What the files are, where the data comes from and its licence: `wdbc.toml`; how they
are made: `tools/train_wdbc.py`. The supervisor reads the paths, so numpy is imported by the loaders alone.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_HERE = Path(__file__).resolve().parent
CONFIG_PATH = _HERE / "wdbc.toml"
MODEL_PATH = _HERE / "wdbc.onnx"
RECORDS_PATH = _HERE / "wdbc_records.csv"
GOLDEN_PATH = _HERE / "wdbc_golden.npz"
MODEL_NAME = "wdbc"


class Records(NamedTuple):
    """Records that the model never saw in training. `features` float32[n, 30], columns as in `names`;
    `malignant` bool[n], the diagnosis that was made."""

    names: tuple[str, ...]
    features: npt.NDArray[np.float32]
    malignant: npt.NDArray[np.bool_]


class Golden(NamedTuple):
    """`features` float32[n, 30] and what the weights give for them, worked out in float64: `malignant` float32[n]."""

    features: npt.NDArray[np.float32]
    malignant: npt.NDArray[np.float32]


def load_records() -> Records:
    import numpy as np

    with RECORDS_PATH.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    return Records(
        names=tuple(header[:-1]),
        features=np.array([[float(value) for value in row[:-1]] for row in rows], np.float32),
        malignant=np.array([row[-1] == "malignant" for row in rows]),
    )


def load_golden() -> Golden:
    import numpy as np

    with np.load(GOLDEN_PATH, allow_pickle=False) as arrays:
        return Golden(features=arrays["features"], malignant=arrays["malignant"])
