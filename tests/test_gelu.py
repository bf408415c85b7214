"""GELU and its slope in the CPU kernels against the error function in float64."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.native_library import ARITHMETICS, COMPILERS, FLAGS
from utils.files import ROOT

COMPILER = next(filter(shutil.which, COMPILERS), None)
SOURCE = """
#include "native_training.h"
extern "C" void run(const float* x, float* value, float* slope, float* alone, int count) {
    for (int i = 0; i < count; i += LANES) {
        const Gelu both = gelu_and_slope(load(x + i));
        store(value + i, both.value);
        store(slope + i, both.slope);
        store(alone + i, gelu(load(x + i)));
    }
}
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("arithmetic", "bound", "slope_bound"),
    [("float32", 3e-7, 3e-7), ("amx_bf16 emulated", 1e-4, 2e-4)],
)
def test_gelu_and_slope(arithmetic: str, bound: float, slope_bound: float, tmp_path: Path) -> None:
    sizes = {"CHANNELS": 42, "BLOCKS": 5, "IMAGE": 3, "SCALE": 4, **ARITHMETICS[arithmetic]}
    (tmp_path / "gelu.cpp").write_text(SOURCE)
    command = [str(COMPILER), *FLAGS, f"-I{ROOT / 'kernels'}", "gelu.cpp", "-o", "gelu.so"]
    command += [f"-D{name}={value}" for name, value in sizes.items()]
    subprocess.run(command, cwd=tmp_path, check=True)
    x = np.concatenate((np.linspace(-13, 13, 260_000), [0, -0.0, 1e-30, -1e-30, 100, -100]))
    x = np.resize(x, 16 * (len(x) // 16 + 1)).astype(np.float32)
    library = ctypes.CDLL(str(tmp_path / "gelu.so"))

    def run(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        results = [np.empty_like(x) for _ in range(3)]
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, *results))
        library.run(*pointers, len(x))
        return results

    value, slope, alone = run(x)
    exact = x.astype(np.float64)
    share = np.array([math.erfc(-number / math.sqrt(2)) / 2 for number in exact])
    density = np.exp(-exact * exact / 2) / math.sqrt(2 * math.pi)
    # Relative to numbers above 1: a GELU of 100 is rounded to float32, too.
    size = np.maximum(1, np.abs(exact))
    assert (np.abs(value - exact * share) / size).max() < bound
    assert np.abs(slope - (share + exact * density)).max() < slope_bound
    assert np.array_equal(alone, value)
    assert not value[x == 0].any()  # or the channels that pad others would be none of zeros
    assert np.isnan(run(np.full(16, np.nan, np.float32))).all()  # or nobody would see that it is
