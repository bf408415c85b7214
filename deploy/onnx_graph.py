"""LKDN as an ONNX graph of any height and width, for the runtimes that read one."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kernels.fold import block_names, folded, scale_of

OPSET = 20  # the first with Gelu
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
IR_VERSION = 9  # of that opset's time, so that older runtimes read the file


@dataclass
class _Graph:
    """Nodes and weights so far; `half`: in float16 where nothing else is asked for."""

    half: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)


def build(
    net: nn.Module, half: bool = False, height: int | None = None, width: int | None = None
) -> onnx.ModelProto:
    """The graph: `lr` (batch, 3, height, width) float32, RGB, 0..1 -> `sr`, 4 times the size.

    It computes what the network does with less: copies folded, no concatenation of the blocks,
    a normalisation without transposes (see kernels/fold.py).

    Args:
        net: models.team23_LKDN.LKDN, of any width, blocks and scale.
        half: weights and features in float16, but for the attention's product, the
            normalisation behind it and the residual, which stay in float32; input and output too.
        height, width: fix the input's size and a batch of one; by default all three are dynamic.
    """
    weights = folded(net)
    graph = _Graph(half)
    channels = len(weights["fea_conv.bias"])
    images = weights["fea_conv.weight"].shape[1]
    x = _cast(graph, "lr", HALF)
    shallow = _conv(graph, x, weights, "fea_conv")
    features, running = shallow, ""
    for block in block_names(weights):
        features = _block(graph, features, weights, block, channels)
        part = _conv(graph, features, {"weight": weights[f"c1.{block}.weight"]}, "")
        running = _op(graph, "Add", running, part) if running else part
    bias = _constant(graph, weights["c1.bias"].reshape(1, -1, 1, 1))
    fused = _op(graph, "Gelu", _op(graph, "Add", running, bias))
    fused = _op(graph, "Add", _blueprint(graph, fused, weights, "c2"), shallow)
    y = _cast(graph, _conv(graph, fused, weights, "upsampler.0"), SINGLE)
    scale = scale_of(len(weights["upsampler.0.bias"]), images)
    _op(graph, "DepthToSpace", y, name="sr", blocksize=scale, mode="CRD")

    size: list[Any] = ["batch", images, "height", "width"]
    enlarged: list[Any] = ["batch", images, "sr_height", "sr_width"]
    if height and width:
        size, enlarged = [1, images, height, width], [1, images, scale * height, scale * width]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "LKDN",
            [helper.make_tensor_value_info("lr", SINGLE, size)],
            [helper.make_tensor_value_info("sr", SINGLE, enlarged)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="LKDN",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _block(
    graph: _Graph, features: str, weights: dict[str, Tensor], block: str, channels: int
) -> str:
    refined, merged = features, ""
    distilled = channels // 2
    c5 = weights[f"{block}.c5.weight"].split(distilled, dim=1)
    for i in range(4):
        if i < 3:
            part = _conv(graph, refined, weights, f"{block}.c{i + 1}_d")
            refined = _blueprint(graph, refined, weights, f"{block}.c{i + 1}_r")
            refined = _op(graph, "Gelu", refined)
        else:
            part = _blueprint(graph, refined, weights, f"{block}.c4")
        layer = {"weight": c5[i]} if i else {"weight": c5[0], "bias": weights[f"{block}.c5.bias"]}
        part = _conv(graph, _op(graph, "Gelu", part), layer, "")
        merged = _op(graph, "Add", merged, part) if merged else part
    attention = _conv(graph, merged, weights, f"{block}.atten.pointwise")
    attention = _conv(graph, attention, weights, f"{block}.atten.depthwise", groups=channels)
    dilated = f"{block}.atten.depthwise_dilated"
    attention = _conv(graph, attention, weights, dilated, groups=channels, dilation=3)
    gated = _op(graph, "Mul", _cast(graph, merged, SINGLE), _cast(graph, attention, SINGLE))
    z = _conv(graph, gated, weights, f"{block}.c6", single=True)  # of mean zero
    axis = _add(graph, np.array([1], np.int64))
    variance = _op(graph, "ReduceMean", _op(graph, "Mul", z, z), axis)
    eps, scale, shift = (
        _constant(graph, weights[f"{block}.{name}"].reshape(1, -1, 1, 1), single=True)
        for name in ("eps", "pixel_norm.weight", "pixel_norm.bias")
    )
    z = _op(graph, "Div", z, _op(graph, "Sqrt", _op(graph, "Add", variance, eps)))
    z = _op(graph, "Add", _op(graph, "Mul", z, scale), shift)
    return _cast(graph, _op(graph, "Add", z, _cast(graph, features, SINGLE)), HALF)


def _blueprint(graph: _Graph, x: str, weights: dict[str, Tensor], name: str) -> str:
    x = _conv(graph, x, weights, f"{name}.pw")
    return _conv(graph, x, weights, f"{name}.dw", groups=len(weights[f"{name}.dw.bias"]))


def _conv(
    graph: _Graph,
    x: str,
    weights: dict[str, Tensor],
    name: str,
    *,
    groups: int = 1,
    dilation: int = 1,
    single: bool = False,
) -> str:
    """A convolution of equal size in and out, with a bias if there is one."""
    prefix = f"{name}." if name else ""
    weight, bias = weights[f"{prefix}weight"], weights.get(f"{prefix}bias")
    inputs = [x] + [_constant(graph, t, single) for t in (weight, bias) if t is not None]
    size = weight.shape[-1]
    return _op(
        graph,
        "Conv",
        *inputs,
        kernel_shape=[size, size],
        pads=[size // 2 * dilation] * 4,
        dilations=[dilation, dilation],
        group=groups,
    )


def _cast(graph: _Graph, x: str, to: int) -> str:
    return _op(graph, "Cast", x, to=to) if graph.half else x


def _constant(graph: _Graph, value: Tensor, single: bool = False) -> str:
    dtype = np.float16 if graph.half and not single else np.float32
    return _add(graph, np.ascontiguousarray(value.numpy(), dtype))


def _add(graph: _Graph, value: NDArray) -> str:
    """Add a constant; its name."""
    graph.weights.append(numpy_helper.from_array(value, f"weight_{len(graph.weights)}"))
    return graph.weights[-1].name


def _op(graph: _Graph, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
    """Add a node; the name of its output."""
    name = name or f"{kind}_{len(graph.nodes)}"
    graph.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
    return name
