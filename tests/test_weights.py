"""Checkpoints load whole or not at all, and say why not."""

import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from train.reparam import training_form
from utils.networks import NetworkError, call
from utils.weights import CheckpointError, load_weights, named_weights, read_checkpoint


def net() -> LKDN:
    return LKDN(channels=4, blocks=1)


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return net().state_dict()


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (state(1), 1),
        (OrderedDict(state(1)), 1),
        ({"params": state(1)}, 1),
        ({"state_dict": state(1), "epoch": 3}, 1),
        ({"params": state(1), "params_ema": state(2)}, 2),
        ({"params": state(1), "params_ema": None}, 1),
        ({"model": state(1), "epoch": 1}, 1),
        ({f"module.{k}": v for k, v in state(1).items()}, 1),
        ({"state_dict": {f"net._orig_mod.{k}": v for k, v in state(1).items()}}, 1),
        ({k: v.double() for k, v in state(1).items()}, 1),
        ({"params": state(1), "params_ema": state(2), "step": 5, "history": [{"a": "b"}]}, 2),
        ({"state_dict": state(1), "arguments": {"dtype": torch.float16}}, 1),
    ],
    ids=[
        "bare",
        "ordered",
        "params",
        "state_dict",
        "average first",
        "no average",
        "model",
        "prefix",
        "prefixes",
        "double",
        "training state",
        "arguments",
    ],
)
def test_weights_load_from_where_programs_put_them(
    tmp_path: Path, content: object, expected: int
) -> None:
    loaded = net()
    load_weights(loaded, write(tmp_path / "w.pth", content))
    for name, value in state(expected).items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_one_of_several_state_dicts_can_be_chosen(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", {"params": state(1), "params_ema": state(2)})
    for key, seed in (("params", 1), ("params_ema", 2)):
        path, chosen = named_weights(f"{file}:{key}")
        assert (path, chosen) == (file, key)
        loaded = net()
        load_weights(loaded, path, chosen)
        assert torch.equal(loaded.state_dict()["c1.weight"], state(seed)["c1.weight"])
    assert named_weights("C:/w.pth") == (Path("C:/w.pth"), None)
    with pytest.raises(CheckpointError, match="expected state_dict in .*, got the keys params, "):
        load_weights(net(), file, "state_dict")


class Layer(torch.nn.Module):
    deployed = 0

    def switch_to_deploy(self) -> None:
        self.deployed += 1


def test_a_step_after_loading_is_the_networks_or_its_layers() -> None:
    layers = torch.nn.Sequential(Layer(), torch.nn.ReLU(), Layer())
    call(layers, "switch_to_deploy")
    assert [layer.deployed for layer in (layers[0], layers[2])] == [1, 1]
    own = Layer()
    own.inner = Layer()
    call(own, "switch_to_deploy")
    assert own.deployed == 1 and own.inner.deployed == 0  # the network does it for its layers
    with pytest.raises(NetworkError, match="expected a method repa in ReLU"):
        call(torch.nn.ReLU(), "repa")


def failure(path: Path) -> str:
    """What loading says; the network must be as it was before."""
    target = net()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, path)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    weights: dict[str, Any] = state(0)
    del weights["c1.weight"]
    weights["extra.bias"] = torch.zeros(1)
    weights["c2.dw.bias"] = torch.zeros(9)
    message = failure(write(tmp_path / "w.pth", weights))
    assert re.search(r"missing:? c1\.weight", message)
    assert re.search(r"unexpected:? extra\.bias", message)
    assert re.search(r"c2\.dw\.bias.*\(9,\), expected \(4,\)", message)


def test_training_form_is_recognised(tmp_path: Path) -> None:
    weights = training_form(net()).state_dict()
    assert "train/export.py" in failure(write(tmp_path / "w.pth", {"params_ema": weights}))
    assert "train/export.py" not in failure(write(tmp_path / "v.pth", {"c1.weight": torch.ones(1)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_values_are_named(tmp_path: Path, value: float) -> None:
    weights = state(0)
    weights["B1.c5.bias"][1] = value
    assert "B1.c5.bias" in failure(write(tmp_path / "w.pth", weights))


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [1, 2], {"params": 3}, {"params": {"a": 1}}, {"step": 7}],
    ids=["tensor", "list", "number in params", "numbers in params", "other keys"],
)
def test_content_without_a_state_dict_is_an_error(tmp_path: Path, content: object) -> None:
    failure(write(tmp_path / "w.pth", content))


class Wrapped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.BatchNorm2d(3)


def test_names_that_the_network_has_itself_and_its_counters_are_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", Wrapped().state_dict() | {"model.bias": torch.ones(3)})
    loaded = Wrapped()
    load_weights(loaded, file)
    assert torch.equal(loaded.model.bias, torch.ones(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"hello\n", "damaged"),
        (b"\n<!DOCTYPE html>\n<html></html>\n", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a picture"),
        (b"PK\x03\x04" + bytes(100), "a damaged archive"),
    ],
    ids=["empty", "text", "html", "pointer", "png", "zip"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_that_is_no_checkpoint_is_named(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert message in failure(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_programs_and_pickled_models_are_named_without_bad_advice(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pth")
    torch.jit.trace(net(), torch.zeros(1, 3, 4, 4)).save(tmp_path / "traced.pth")
    assert "state_dict()" in (message := failure(tmp_path / "model.pth"))
    assert "weights_only" not in message and message.isprintable()
    assert "a TorchScript program" in failure(tmp_path / "traced.pth")


def test_every_changed_byte_is_noticed_or_means_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", state(1))
    good, rng = file.read_bytes(), random.Random(3)
    noticed = 0
    for at in rng.sample(range(len(good)), 60):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
        loaded = net()
        try:
            load_weights(loaded, file)
        except CheckpointError:
            noticed += 1
        else:  # in the padding between parts, or a date
            assert all(torch.equal(v, state(1)[k]) for k, v in loaded.state_dict().items())
    assert noticed > 10


def test_archives_that_declare_more_than_they_hold_are_not_unpacked(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", state(1))
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "c.pth", "w", 8) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    assert "a compressed archive" in failure(tmp_path / "c.pth")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, dtype=torch.int8),
        torch.zeros(4, dtype=torch.complex64),
    ],
    ids=["bool", "int8", "complex"],
)
def test_tensors_of_other_kinds_are_named(tmp_path: Path, value: Tensor) -> None:
    message = failure(write(tmp_path / "w.pth", state(1) | {"c1.bias": value}))
    assert "not floating-point numbers: c1.bias" in message


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.zeros(4).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.zeros(4, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.zeros(4).to(torch.float8_e5m2), "torch."),
        (bytearray(4), "bytearray"),
        (os.getcwd, "getcwd"),
        (torch.zeros(1).expand(2**40), "a tensor of 1099511627776 values in a storage of 1"),
        (torch.zeros(1).expand(2), "a tensor of 2 values in a storage of 1"),
    ],
    ids=["sparse", "meta", "float8", "bytearray", "function", "huge", "shared"],
)
def test_what_is_made_of_few_bytes_is_refused_before_it_is_made(
    tmp_path: Path, value: object, named: str
) -> None:
    for legacy in (False, True):
        file = tmp_path / "w.pth"
        torch.save({"a": value}, file, _use_new_zipfile_serialization=not legacy)
        assert named in failure(file)


def test_names_are_made_fit_to_be_printed(tmp_path: Path) -> None:
    weights: dict[Any, Tensor] = state(1) | {"\x1b[2J" + "n" * 3_000_000: torch.zeros(1)}
    message = failure(write(tmp_path / "w.pth", weights))
    assert message.isprintable() and len(message) < 500 and r"\x1b[2Jnnn" in message
    failure(write(tmp_path / "w.pth", state(1) | {7: torch.zeros(1)}))


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    failure(tmp_path / "missing.pth")
    failure(tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_checkpoint_is_an_error_at_any_length(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"params": state(0)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    # The last bytes of the legacy format are a tensor's, so it may end anywhere before.
    for length in [*range(0, 400, 7), *range(400, len(whole) - 8, len(whole) // 60)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, writer: str) -> None:
    trace = tmp_path / "code was run"

    class Harmful:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(trace),)

    path = tmp_path / "w.pth"
    if writer == "torch":
        torch.save({"params": Harmful()}, path)
    else:
        path.write_bytes(pickle.dumps({"params": Harmful()}, protocol=2))
    failure(path)
    assert not trace.exists()
