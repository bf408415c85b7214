"""DIV2K's archives: where they lie, what they hold and how they are verified."""

from dataclasses import dataclass

URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"


@dataclass(frozen=True)
class Archive:
    """One of DIV2K's zip files. Its images go to `folder`; a `sha256` of None is not verified."""

    name: str
    folder: str
    images: int
    size: int
    sha256: str | None


# Sizes and checksums as published by tensorflow_datasets (datasets/div2k/checksums.tsv); the
# download itself was not run here.
DIV2K = {
    name: (
        Archive(f"{name}_HR.zip", f"{name}_HR", images, *hr),
        Archive(f"{name}_LR_bicubic_X4.zip", f"{name}_LR_bicubic/X4", images, *lr),
    )
    for name, images, hr, lr in (
        (
            "DIV2K_valid",
            100,
            (448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
            (31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
        ),
        (
            "DIV2K_train",
            800,
            (3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
            (246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"),
        ),
    )
}
