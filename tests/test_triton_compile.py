"""The Triton kernels compiled for GPUs that are not here: no stack, tensor cores, few kernels."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

# Each architecture and each precision; `python -m deploy.bench.modelled --compile` does all pairs.
CASES = [(90, "fp16"), (80, "bf16"), (86, "fp32")]
SIZES = [(1, 1, 1), (1, 7, 13), (2, 16, 32), (1, 1, 40), (1, 33, 16)]
SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}  # bytes a program may have, by NVIDIA
WITHOUT_PRODUCTS = {"shallow_kernel", "spread_kernel"}

SCRIPT = """
import json, sys
from deploy.backends import DTYPES
from deploy.bench.ahead import forward_launches
from models.team23_LKDN import LKDN

net, kernels = LKDN().eval().requires_grad_(False), {}
for size in json.loads(sys.argv[3]):
    for launch in forward_launches(net, DTYPES[sys.argv[2]], int(sys.argv[1]), tuple(size)):
        kernels[launch.kernel.cubin] = launch.kernel
names = ("name", "stack", "registers", "shared", "multiplies")
print(json.dumps([{name: getattr(k, name) for name in names} for k in kernels.values()]))
"""


@pytest.fixture(scope="module")
def compiled(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """The kernels of each case, two compiled at a time, in an empty cache."""
    folder = tmp_path_factory.mktemp("triton")

    def run(case: tuple[int, str]) -> list[dict[str, Any]]:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, case), json.dumps(SIZES)],
            cwd=root,
            env=environment | {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_kernels_stay_in_registers_and_multiply_on_tensor_cores(
    case: tuple[int, str], compiled: dict[tuple[int, str], list[dict[str, Any]]]
) -> None:
    kernels = compiled[case]
    assert len({kernel["name"] for kernel in kernels}) == 7
    assert len(kernels) <= 10, "a kernel is compiled anew for another image size"
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        assert 16 <= kernel["registers"] <= 255, kernel  # that they were read at all
        assert kernel["shared"] <= SHARED[case[0]], kernel
        assert kernel["multiplies"] == (kernel["name"] not in WITHOUT_PRODUCTS), kernel
