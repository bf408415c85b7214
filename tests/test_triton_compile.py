"""The Triton kernels compiled for GPUs that are not here: no stack, tensor cores, few kernels."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.bench import modelled
from deploy.bench.ahead import Compiled
from deploy.bench.descriptors import doubtful_products

pytest.importorskip("triton", reason="triton is not installed")

# Each architecture and each precision; `python -m deploy.bench.modelled --compile` does all pairs.
CASES = [(90, "fp16"), (80, "bf16"), (86, "fp32")]
SIZES = [(1, 1, 1), (1, 7, 13), (2, 16, 32), (1, 1, 40), (1, 33, 16)]
SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}  # bytes a program may have, by NVIDIA
WITHOUT_PRODUCTS = {"shallow_kernel", "spread_kernel"}

SCRIPT = """
import json, sys
import torch
from deploy.runners import DTYPES
from deploy.bench.ahead import forward_launches, launches
from kernels.triton_depthwise import depthwise
from models.team23_LKDN import LKDN

net, kernels, held = LKDN().eval().requires_grad_(False), {}, 0
for batch, height, width in json.loads(sys.argv[3]):
    size = batch, height, width
    for launch in forward_launches(net, DTYPES[sys.argv[2]], int(sys.argv[1]), size):
        kernels[launch.kernel.cubin] = launch.kernel
        held = max(held, launch.held_bytes / (batch * height * width))
names = ("name", "stack", "registers", "shared", "multiplies", "late_writes", "doubtful")
kernels = [{name: getattr(k, name) for name in names} for k in kernels.values()]
with launches(int(sys.argv[1])) as made:
    x = torch.zeros(1, 42, 8, 16, dtype=DTYPES[sys.argv[2]], requires_grad=True)
    depthwise(x, torch.zeros(42, 1, 5, 5, requires_grad=True), None, 3).sum().backward()
training = {launch.kernel.name: launch.kernel.stack for launch in made}
print(json.dumps({"kernels": kernels, "held": held, "training": training}))
"""


@pytest.fixture(scope="module")
def compiled(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], dict[str, Any]]:
    """The kernels of each case, two compiled at a time, in an empty cache."""
    folder = tmp_path_factory.mktemp("triton")

    def run(case: tuple[int, str]) -> dict[str, Any]:
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
    case: tuple[int, str], compiled: dict[tuple[int, str], dict[str, Any]]
) -> None:
    kernels = compiled[case]["kernels"]
    assert len({kernel["name"] for kernel in kernels}) == 7
    assert len(kernels) <= 10, "a kernel is compiled anew for another image size"
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        assert 16 <= kernel["registers"] <= 255, kernel  # that they were read at all
        assert kernel["shared"] <= SHARED[case[0]], kernel
        assert not kernel["late_writes"], kernel
        assert not kernel["doubtful"], kernel
        assert kernel["multiplies"] == (kernel["name"] not in WITHOUT_PRODUCTS), kernel


def test_what_a_product_on_hopper_reads_is_written_before_its_fence() -> None:
    """Triton copied the bias that a sum began with behind the fence: fp16 was wrong on a GPU."""
    ptx = """
        mov.b32 %r1, %r9;
        wgmma.fence.sync.aligned;
        {}
        add.s32 %r7, %r8, 1;
        wgmma.mma_async.sync.aligned.m64n16k16 {{%r1,%r2}}, {{%r3,%r4}}, %rd1, %p1, 1, 1, 1;
        wgmma.wait_group.sync.aligned 0;
        mov.b32 %r2, %r1;
    """
    for line, late in (("", []), ("mov.b32 %r2, %r1;", ["%r2"]), ("@%p2 add.f32 %r4, 1;", ["%r4"])):
        compiled = Compiled("kernel", "", ptx.format(line), b"", warps=4, shared=0)
        assert compiled.late_writes == late


# Of merge_kernel by ptxas 12.8 (Triton 3.6): the weights' place is built from what is no place.
PLACED_WRONGLY = """
    2990*/ UMOV UR25, 0x40000040
    29a0*/ UMOV UR27, 0xc0000010
    2ab0*/ HGMMA.64x16x16.F32 R40, gdesc[UR24].tnspB, R40
    2ac0*/ UIADD3 UR26, UP0, UR8, 0x20, URZ
    2ad0*/ UIADD3.X UR27, UR8, -0x3ffffff0, URZ, UP0, !UPT
    2b10*/ HGMMA.64x16x16.F32 R40, gdesc[UR24].tnspB, R40, gsb0
"""
# .. and by the same with the kernel's products in another order: the sum of two layouts.
ADDED_TWICE = """
    1de0*/ UMOV UR11, 0x80000020
    1df0*/ UIADD3.X UR11, UR11, -0x3ffffff0, URZ, UP0, !UPT
    1e00*/ HGMMA.64x16x16.F32 R40, R48, gdesc[UR8].tnspB, RZ, !UPT
"""
# Ways in which layouts come to their registers.
PLACED = """
    1610*/ ULOP3.LUT UR18, UR54, 0x3fff, URZ, 0xc0, !UPT
    1630*/ UMOV UR22, 0xffffffc0
    1640*/ UMOV UR23, 0x7fffffdf
    1650*/ UMOV UR19, URZ
    17c0*/ UIADD3.64 UR22, UR18, -UR22, URZ
    17d0*/ MOV R21, UR23
    1820*/ UMOV UR4, URZ
    1830*/ UIADD3.X UR31, UR4, -0x7fffffe0, URZ, UP0, !UPT
    2280*/ HGMMA.64x32x16.F32 R24, R48, gdesc[UR20].tnspB, RZ, !UPT
    2290*/ HGMMA.64x32x16.F32 R24, R52, gdesc[UR28].tnspB, R24, gsb0
    22a0*/ R2UR UR7, R21
    22b0*/ HGMMA.64x32x16.F32 R24, R52, gdesc[UR4].tnspB, R24, gsb0
"""
IN_A_LOOP = """
    0100*/ UMOV UR7, 0x80000020
    0110*/ HGMMA.64x32x16.F32 R24, R48, gdesc[UR4].tnspB, RZ, !UPT
    0120*/ R2UR UR7, R90
    0130*/ @P1 BRA 0x110
"""
OF_ANOTHER_THREAD = """
    00f0*/ MOV R5, 0x80000020
    0100*/ SHFL.IDX PT, R5, R5, RZ, 0x1f
    0110*/ R2UR UR7, R5
    0120*/ HGMMA.64x32x16.F32 R24, R48, gdesc[UR4].tnspB, RZ, !UPT
"""


@pytest.mark.parametrize(
    ("code", "doubtful"),
    [
        (PLACED, []),
        (PLACED_WRONGLY, ["2b10"]),
        (ADDED_TWICE, ["1e00"]),
        (IN_A_LOOP, ["0110"]),
        (OF_ANOTHER_THREAD, ["0120"]),
    ],
)
def test_it_is_told_where_a_product_on_hopper_has_its_matrices(
    code: str, doubtful: list[str]
) -> None:
    sass = [line.strip() for line in code.strip().splitlines()]
    assert [line.split("*/")[0] for line in doubtful_products(sass)] == doubtful


def test_training_s_kernels_stay_in_registers(
    compiled: dict[tuple[int, str], dict[str, Any]],
) -> None:
    for case, result in compiled.items():
        assert result["training"] == {"_convolve": 0, "_correlate": 0}, case


def test_features_take_little_memory(compiled: dict[tuple[int, str], dict[str, Any]]) -> None:
    """At most 120 MiB in half precision at 340x510, the image included."""
    for (_, precision), result in compiled.items():
        most = 120 * 2**20 / (340 * 510) * (2 if precision == "fp32" else 1)
        assert most / 2 < result["held"] <= most, (precision, result["held"])


def test_the_model_counts_loops_as_often_as_they_run() -> None:
    trips = modelled.loop_trips("%r = scf.for %i = %c0_i32 to %c3_i32 step %c1_i32 iter_args(")
    sass = [
        "0000*/                   MOV R1, c[0x0][0x28] ",
        "0010*/               @P0 LDG.E.128 R4, desc[UR4][R2.64] ",
        "0020*/                   LDSM.16.M88.4 R8, [R1] ",
        "0030*/                   HGMMA.64x32x16.F32 R24, gdesc[UR4], R24 ",
        "0040*/              @!P1 BRA 0x10 ",
        "0050*/                   STG.E.64 desc[UR4][R2.64], R4 ",
        "0060*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64] ",
        "0070*/                   LDG.E R6, desc[UR4][R2.64] ",
        "0080*/                   STG.E.U16 desc[UR4][R2.64], R6 ",
        "0090*/                   EXIT ",
        "00a0*/                   BRA 0xa0 ",
    ]
    counts = modelled.count(sass, trips)
    assert counts.instructions == 1 + 3 * 4 + 6
    assert counts.l1_bytes == 32 * (3 * 16 + 3 * 16 + 8 + 16 + 4 + 2)
    assert counts.l2_bytes == 32 * 16
    assert counts.flops == 3 * 2 * 64 * 32 * 16 / 4
    with pytest.raises(ValueError, match="expected 0 loops, got 1"):
        modelled.count(sass, [])
