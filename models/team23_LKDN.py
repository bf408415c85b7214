"""LKDN: Large Kernel Distillation Network for x4 image super-resolution, inference form.

Xie et al., "Large Kernel Distillation Network for Efficient Single Image Super-Resolution",
CVPRW 2023, pp. 1283-1292. The topology follows BSRN (Li et al., 2022), pixel normalisation
follows VapSR (Zhou et al., 2022). Attribute names are those of the released checkpoints; the
paper's term stands beside each definition.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BSConv(nn.Module):
    """Blueprint separable convolution: a 1x1 without bias, then a depthwise 3x3.

    (B, in_channels, H, W) -> (B, out_channels, H, W), zero padding.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dw = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pointwise, then depthwise."""
        return self.dw(self.pw(x))


class LKA(nn.Module):
    """Large kernel attention: the input times a 17x17 depthwise view of itself.

    (B, C, H, W) -> (B, C, H, W). The large kernel is a 5x5 followed by a 5x5 of dilation 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.depthwise_dilated = nn.Conv2d(
            channels, channels, 5, padding=6, groups=channels, dilation=3
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weigh x by the attention to it."""
        return x * self.depthwise_dilated(self.depthwise(self.pointwise(x)))


class PixelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel. (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C); torch.jit.script knows no super().forward
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LKDB(nn.Module):
    """Large kernel distillation block. (B, C, H, W) -> (B, C, H, W).

    Three times, half the channels are distilled (`c*_d`) while the rest is refined by a
    re-parameterised blueprint separable block, RBSB (`c*_r`), here fused to a BSConv. What was
    distilled is merged, weighted by large kernel attention, and added to the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        distilled = channels // 2
        self.c1_d = nn.Conv2d(channels, distilled, 1)
        self.c1_r = BSConv(channels, channels)
        self.c2_d = nn.Conv2d(channels, distilled, 1)
        self.c2_r = BSConv(channels, channels)
        self.c3_d = nn.Conv2d(channels, distilled, 1)
        self.c3_r = BSConv(channels, channels)
        self.c4 = BSConv(channels, distilled)
        self.c5 = nn.Conv2d(4 * distilled, channels, 1)
        self.atten = LKA(channels)
        self.c6 = nn.Conv2d(channels, channels, 1)
        self.pixel_norm = PixelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Distil three times, fuse, attend, normalise, and add x."""
        distilled1, refined1 = self.c1_d(x), F.gelu(self.c1_r(x))
        distilled2, refined2 = self.c2_d(refined1), F.gelu(self.c2_r(refined1))
        distilled3, refined3 = self.c3_d(refined2), F.gelu(self.c3_r(refined2))
        distilled4 = self.c4(refined3)
        y = self.c5(F.gelu(torch.cat((distilled1, distilled2, distilled3, distilled4), dim=1)))
        return self.pixel_norm(self.c6(self.atten(y))) + x


class LKDN(nn.Module):
    """x4 super-resolution: x (B, 3, H, W) float, RGB in 0..1 -> (B, 3, scale*H, scale*W).

    Any height and width from 1 pixel up. The output is not clamped. The defaults are the
    challenge network (129,177 parameters); channels=56, blocks=8 is the paper's larger one.

    Args:
        channels: width C of the features, even.
        blocks: number of LKDB.
        scale: enlargement of height and width, an integer from 1 up.
        in_channels: channels of the image, the same in and out.
        copies: how often the input is repeated along its channels before the first BSConv.

    Raises:
        ValueError: channels is odd, or a number is below 1.
    """

    def __init__(
        self,
        channels: int = 42,
        blocks: int = 5,
        scale: int = 4,
        in_channels: int = 3,
        copies: int = 4,
    ) -> None:
        super().__init__()
        if min(channels, blocks, scale, in_channels, copies) < 1 or channels % 2:
            raise ValueError(
                "expected channels even and every number at least 1, got "
                f"{channels=}, {blocks=}, {scale=}, {in_channels=}, {copies=}"
            )
        self.copies = copies
        self.blocks = [f"B{i}" for i in range(1, blocks + 1)]
        self.fea_conv = BSConv(in_channels * copies, channels)  # shallow feature extraction
        for name in self.blocks:  # deep feature extraction
            self.add_module(name, LKDB(channels))
        self.c1 = nn.Conv2d(channels * blocks, channels, 1)  # multi-layer feature fusion
        self.c2 = BSConv(channels, channels)
        self.upsampler = nn.Sequential(  # reconstruction
            nn.Conv2d(channels, in_channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W), RGB in 0..1 -> (B, 3, 4H, 4W)."""
        # cat, for repeat would lose channels_last and slow every later layer down
        shallow = self.fea_conv(torch.cat([x] * self.copies, dim=1))  # (B, C, H, W)
        features = shallow
        outputs: list[Tensor] = []
        for name, block in self.named_children():  # get_submodule is unknown to jit.script
            if name in self.blocks:
                features = block(features)
                outputs.append(features)
        fused = self.c2(F.gelu(self.c1(torch.cat(outputs, dim=1))))  # (B, blocks*C, H, W) inside
        return self.upsampler(fused + shallow)  # (B, 3, scale*H, scale*W)
