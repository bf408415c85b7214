"""LKDN's loss and gradients on a CPU: native_training.cpp, compiled for the machine at hand."""

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kernels.fold import scale_of
from kernels.native import zeros
from kernels.native_library import ARITHMETICS, CompileError, load_library

LOSSES = ("l1", "l2", "psnr")  # in the order of the kernels' numbers


class _Call(ctypes.Structure):
    """native_calls.h's GradientCall."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("parameters", "lr", "hr", "weights", "memory")),
        *((name, ctypes.c_void_p) for name in ("gradients", "losses", "gradient")),
        *((name, ctypes.c_int) for name in ("batch", "height", "width", "loss", "threads")),
        *((name, ctypes.c_float) for name in ("share", "eps")),
    ]


class NativeGradients:
    """Losses of LKDN's inference form on batches of patches and the gradients of its parameters.

    Keeps its memory from step to step; not for several threads at once. The same arguments give
    the same bits, whatever the number of threads.

    Args:
        net: models.team23_LKDN.LKDN, of any width, blocks and scale.
        arithmetic: of ARITHMETICS; how matrices are multiplied. With bf16 their inputs are rounded
            to it, and all else, sums of products too, is float32.

    Raises:
        kernels.native_library.CompileError: see kernels.native_library.load_library.
    """

    def __init__(self, net: nn.Module, arithmetic: str = "float32") -> None:
        self.threads = torch.get_num_threads()
        self.copies = int(net.copies)  # type: ignore[arg-type]
        shapes = {name: p.shape for name, p in net.named_parameters()}
        self.names = list(shapes)
        norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
        self.eps = norms[0].eps
        assert all(norm.eps == self.eps for norm in norms)
        channels, inputs = shapes["fea_conv.pw.weight"][:2]
        self.channels = inputs // self.copies
        self.scale = scale_of(shapes["upsampler.0.weight"][0], self.channels)
        self.library = load_library(
            "native_training.cpp",
            CHANNELS=channels,
            BLOCKS=len(norms),
            IMAGE=self.channels,
            SCALE=self.scale,
            **ARITHMETICS[arithmetic],
        )
        if not self.library.lkdn_enable():
            raise CompileError(f"expected a system that lets programs use {arithmetic}")
        for query in ("parameters", "training_weights", "gradients", "memory"):
            getattr(self.library, f"lkdn_{query}").restype = ctypes.c_long
        self.library.lkdn_gradient.argtypes = [ctypes.POINTER(_Call)]
        self.library.lkdn_gradient.restype = None
        self.weights = torch.empty(self.library.lkdn_training_weights())
        self.size = (0, 0)
        self.memory = self.gradients = torch.empty(0)

    @torch.no_grad()
    def __call__(
        self, parameters: Mapping[str, Tensor], lr: Tensor, hr: Tensor, loss: str, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a float64 scalar, and its gradients by the parameters' names, float32.

        Args:
            parameters: by the names of the network's, float32.
            lr: (B, C, H, W) uint8, any strides. hr: (B, C, scale*H, scale*W) uint8.
            loss: of LOSSES; the absolute or the squared error of pixels in 0..1, or the patch's
                negative PSNR in dB for each of its values.
            share: what every pixel's error counts; 1 / number of values gives their mean.

        Raises:
            ValueError: patches of another shape or dtype.
        """
        batch, channels, height, width = lr.shape
        expected = (batch, channels, self.scale * height, self.scale * width)
        bytes_alone = lr.dtype == hr.dtype == torch.uint8
        if hr.shape != expected or channels != self.channels or not bytes_alone:
            raise ValueError(
                f"expected uint8 patches of {self.channels} channels, hr {expected}, got "
                f"{lr.dtype} {tuple(lr.shape)}, hr {hr.dtype} {tuple(hr.shape)}"
            )
        values = dict(parameters)
        pointwise, depthwise = values["fea_conv.pw.weight"], values.pop("fea_conv.dw.weight")
        # As one convolution (C, channels, 3, 3), rounded once: what a weight is off by shifts every
        # pixel alike, and sums over pixels do not cancel it.
        summed = pointwise.double().view(len(pointwise), self.copies, channels, 1, 1).sum(1)
        values["fea_conv.pw.weight"] = (summed * depthwise).float()
        names = [name for name in self.names if name in values]
        flat = torch.cat([values[name].flatten() for name in names])
        assert len(flat) == self.library.lkdn_parameters() and flat.dtype == torch.float32
        gradient = torch.empty_like(flat)
        losses = torch.empty(batch, dtype=torch.float64)
        self._take_memory(batch, height, width)
        lr, hr = (x.permute(0, 2, 3, 1).contiguous() for x in (lr, hr))
        call = _Call(
            parameters=flat.data_ptr(),
            lr=lr.data_ptr(),
            hr=hr.data_ptr(),
            weights=self.weights.data_ptr(),
            memory=self.memory.data_ptr(),
            gradients=self.gradients.data_ptr(),
            losses=losses.data_ptr(),
            gradient=gradient.data_ptr(),
            batch=batch,
            height=height,
            width=width,
            loss=LOSSES.index(loss),
            threads=self.threads,
            share=share,
            eps=self.eps,
        )
        self.library.lkdn_gradient(call)
        parts = gradient.split([values[name].numel() for name in names])
        gradients = {n: g.view_as(values[n]) for n, g in zip(names, parts, strict=True)}
        dense = gradients["fea_conv.pw.weight"]
        pointwise = (dense * depthwise).sum((2, 3))  # of one copy of the input; all have the same
        gradients["fea_conv.pw.weight"] = pointwise.repeat(1, self.copies)[:, :, None, None]
        gradients["fea_conv.dw.weight"] = (dense * summed).sum(1, keepdim=True).float()
        return losses.sum(), gradients

    def _take_memory(self, batch: int, height: int, width: int) -> None:
        """Memory for patches of this size: zeros, for what lies around a map stays as it is."""
        if self.size != (height, width):
            self.size, self.memory = (0, 0), torch.empty(0)  # freed before more is taken
            self.memory = zeros(self.threads * self.library.lkdn_memory(height, width))
            self.size = (height, width)  # not before: this may have failed
        if len(self.gradients) < batch * self.library.lkdn_gradients():
            self.gradients = zeros(batch * self.library.lkdn_gradients())


class NativeOrthogonaliser:
    """train.optim.orthogonalise_all on compiled kernels, for float32 matrices of any shapes.

    Raises:
        kernels.native_library.CompileError: see kernels.native_library.load_library.
    """

    LARGEST = 64  # rows or columns, whichever are fewer

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        # The layers' header wants a network's dimensions, which do not matter here.
        self.library = load_library("native_muon.cpp", CHANNELS=16, BLOCKS=1, IMAGE=1, SCALE=1)
        pointer, whole = ctypes.c_void_p, ctypes.c_int
        self.library.lkdn_orthogonalise.argtypes = [pointer] * 3 + [whole] * 2
        self.library.lkdn_orthogonalise.restype = None

    @torch.no_grad()
    def __call__(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """New matrices (rows, columns), with singular values near 1."""
        if too_large := [m.shape for m in matrices if min(m.shape) > self.LARGEST]:
            raise ValueError(
                f"expected matrices of at most {self.LARGEST} on a side, got {too_large[0]}"
            )
        sizes = torch.tensor([m.shape for m in matrices], dtype=torch.int32).t().contiguous()
        flat = torch.cat([m.flatten() for m in matrices])
        assert flat.dtype == torch.float32
        self.library.lkdn_orthogonalise(
            flat.data_ptr(), sizes[0].data_ptr(), sizes[1].data_ptr(), len(matrices), self.threads
        )
        parts = flat.split([m.numel() for m in matrices])
        return [part.view(m.shape) for part, m in zip(parts, matrices, strict=True)]
