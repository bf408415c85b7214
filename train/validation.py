"""The images that a run is scored on while it trains."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from train.packs import Pack, digest_of
from utils import evaluate
from utils.command import UserError
from utils.datasets import find
from utils.files import ROOT

logger = logging.getLogger(__name__)


def validation_samples(folders: list[str]) -> dict[str, list[evaluate.Sample]]:
    """The images to score while training, by the name of their folder; UserError if one has no HR
    image, or two folders have one name."""
    samples: dict[str, list[evaluate.Sample]] = {}
    for folder in folders:
        found = find(folder, ROOT / "data")
        if found.name in samples:
            raise UserError(
                f"expected --val folders of different names, got {found.name} twice: rename one"
            )
        samples[found.name] = own = [evaluate.load(pair) for pair in found.pairs]
        if blind := [sample.name for sample in own if sample.hr is None]:
            raise UserError(
                f"expected HR images to validate on in {folder}, got none for "
                f"{', '.join(blind[:3])}"
            )
    return samples


def warn_of_other_val(scored: Sequence[Mapping[str, Any]], samples: Iterable[str]) -> None:
    """Say where a run goes on with another deciding set than its last scores are of."""
    before, now = next((x.get("val") for x in reversed(scored)), None), next(iter(samples), None)
    if before and now and before != now:
        logger.warning(
            "this run was scored on %s, from here on it is on %s: trial.py and export.py take the "
            "scores of one set, the last",
            before,
            now,
        )


def warn_of_seen(samples: Mapping[str, Sequence[evaluate.Sample]], data: Pack) -> None:
    """Say which images to score are trained on: what they score tells nothing of others."""
    trained = {image.sha256 for image in data.images}
    for name, own in samples.items():
        hrs = ((sample.name, sample.hr) for sample in own)
        if seen := [title for title, hr in hrs if hr is not None and digest_of(hr) in trained]:
            logger.warning(
                "%d of the %d images of --val %s are trained on, such as %s: their scores tell "
                "nothing of other images",
                len(seen),
                len(own),
                name,
                seen[0],
            )
