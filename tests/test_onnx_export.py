"""ONNX files: what they compute, and what is said where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deploy import onnx_export
from models.team23_LKDN import LKDN
from utils.weights import load_weights


@pytest.mark.parametrize("options", [(), ("--precision", "fp16"), ("--size", "24x31")])
def test_export_writes_a_file_that_computes_the_network(
    options: tuple[str, ...], tmp_path: Path, python: Callable, root: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    done = python(root, "-m", "deploy.onnx_export", "-o", tmp_path / "net.onnx", *options)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "within" in done.stdout
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (source,) = session.get_inputs()
    assert source.shape == (
        [1, 3, 24, 31] if "--size" in options else ["batch", 3, "height", "width"]
    )
    net = LKDN().eval()
    load_weights(net, root / "model_zoo" / "team23_LKDN.pth")
    net.double()
    for height, width in [(24, 31)] if "--size" in options else [(24, 31), (1, 1), (53, 8)]:
        x = torch.rand(1, 3, height, width)
        (y,) = session.run(None, {"lr": x.numpy()})
        with torch.inference_mode():
            error = float((torch.from_numpy(y) - net(x.double())).abs().max())
        assert error < (1e-2 if "fp16" in options else 1e-4), (height, width, error)


def test_export_refuses_and_says_why(tmp_path: Path, python: Callable, root: Path) -> None:
    for options, code in (
        (["--size", "24"], 2),
        (["--size", f"{10**13}x{10**13}"], 2),
        (["--checkpoint", "absent.pth"], 2),
        (["-o", tmp_path / "file" / "net.onnx"], 2),
    ):
        (tmp_path / "file").write_text("")
        done = python(root, "-m", "deploy.onnx_export", *options)
        assert done.returncode == code, (options, done.stderr)
        assert "Traceback" not in done.stderr and done.stderr.strip()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_export_says_where_memory_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In the words of ONNX Runtime; none of our own mistakes is taken for it."""

    def run_out(*_: object) -> float:
        raise RuntimeError("Non-zero status: Failed to allocate memory for requested buffer")

    monkeypatch.setattr(onnx_export, "export", run_out)
    arguments = ["--size", "9000x9000", "-o", str(tmp_path / "net.onnx")]
    assert onnx_export.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory to run the graph of 9000x9000, too little" in line and "smaller --size" in line
    monkeypatch.setattr(onnx_export, "export", lambda *_: {}["a mistake"])
    with pytest.raises(KeyError):
        onnx_export.main(arguments)


def test_export_does_not_write_what_differs_at_one_size(tmp_path: Path) -> None:
    """By something that is no number, which is larger than none."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    class Odd(LKDN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y * torch.nan if x.shape[-2:] == onnx_export.SIZES[-1] else y

    with pytest.raises(ArithmeticError, match="got nan: .* is not written"):
        onnx_export.export(Odd(4, 1).eval(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_export_does_not_write_a_wrong_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    net = LKDN(4, 1).eval().requires_grad_(False)
    monkeypatch.setattr(onnx_export, "TOLERANCES", {"fp32": 0.0})
    with pytest.raises(ArithmeticError, match="is not written"):
        onnx_export.export(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
