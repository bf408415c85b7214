"""RFDN: Residual Feature Distillation Network for x4 super-resolution, the challenge's baseline.

Liu, Tang and Wu, "Residual Feature Distillation Network for Lightweight Image Super-Resolution",
ECCV 2020 workshops; the organisers' baseline in 2023, written here from its description. Attribute
names are those of the checkpoint that circulates with the challenge.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.05  # of every LeakyReLU


class ESA(nn.Module):
    """Enhanced spatial attention: the input times a mask seen through a coarse, wide view.

    (B, C, H, W) -> (B, C, H, W), H and W at least 15.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.conv1 = nn.Conv2d(channels, narrow, 1)
        self.conv_f = nn.Conv2d(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=2)
        self.conv_max = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv3 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv3_ = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv4 = nn.Conv2d(narrow, channels, 1)
        self.relu = nn.ReLU()  # a module, which the challenge's counter sees

    def forward(self, x: Tensor) -> Tensor:
        """Weigh x by the attention to it."""
        narrow = self.conv1(x)
        wide = F.max_pool2d(self.conv2(narrow), kernel_size=7, stride=3)
        wide = self.relu(self.conv3(self.relu(self.conv_max(wide))))
        wide = F.interpolate(self.conv3_(wide), x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(wide + self.conv_f(narrow)))


class RFDB(nn.Module):
    """Residual feature distillation block. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        distilled = channels // 2
        self.c1_d = nn.Conv2d(channels, distilled, 1)
        self.c1_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2_d = nn.Conv2d(channels, distilled, 1)
        self.c2_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c3_d = nn.Conv2d(channels, distilled, 1)
        self.c3_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c4 = nn.Conv2d(channels, distilled, 3, padding=1)
        self.act = nn.LeakyReLU(SLOPE)
        self.c5 = nn.Conv2d(4 * distilled, channels, 1)
        self.esa = ESA(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Distil three times and fuse."""
        distilled1, refined = self.act(self.c1_d(x)), self.act(self.c1_r(x) + x)
        distilled2, refined = self.act(self.c2_d(refined)), self.act(self.c2_r(refined) + refined)
        distilled3, refined = self.act(self.c3_d(refined)), self.act(self.c3_r(refined) + refined)
        distilled4 = self.act(self.c4(refined))
        merged = self.c5(torch.cat((distilled1, distilled2, distilled3, distilled4), dim=1))
        return self.esa(merged)


class RFDN(nn.Module):
    """x4 super-resolution: x (B, 3, H, W) float, RGB in 0..255 -> (B, 3, 4H, 4W), 0..255.

    433,448 parameters. Height and width from 15 pixels up; the output is not clamped.
    """

    def __init__(self, channels: int = 50) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, channels, 3, padding=1)
        self.B1 = RFDB(channels)
        self.B2 = RFDB(channels)
        self.B3 = RFDB(channels)
        self.B4 = RFDB(channels)
        self.c = nn.Sequential(nn.Conv2d(4 * channels, channels, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, 3 * 4**2, 3, padding=1), nn.PixelShuffle(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W), RGB in 0..255 -> (B, 3, 4H, 4W)."""
        shallow = self.fea_conv(x)
        first = self.B1(shallow)
        second = self.B2(first)
        third = self.B3(second)
        fused = self.c(torch.cat((first, second, third, self.B4(third)), dim=1))
        return self.upsampler(self.LR_conv(fused) + shallow)
