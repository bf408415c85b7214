"""Move a pack in parts: python -m utils.parts split PACK.json --mib 60 -o FOLDER, and join FOLDER

Where files travel one at a time and may not be large: the parts are numbered, each at most so many
MiB, and the joined pack is compared with the fingerprint of the original.
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils.images import ImageError, whole_file, write_bytes
from utils.packing import fingerprint_of, open_pack

MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m utils.parts", description=(__doc__ or "").splitlines()[0]
    )
    actions = parser.add_subparsers(dest="action", required=True)
    cut = actions.add_parser("split", help="cut a pack into parts")
    cut.add_argument("pack", type=Path, metavar="PACK.json", help="the index of a pack")
    cut.add_argument("--mib", type=int, default=60, metavar="N", help="size of a part (60)")
    cut.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    glue = actions.add_parser("join", help="make the pack of its parts, in the same folder")
    glue.add_argument("folder", type=Path, metavar="FOLDER", help="where all parts are")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.action == "split":
            if args.mib < 1:
                parser.error(f"expected --mib of at least 1, got {args.mib}")
            paths = split(args.pack, args.output, args.mib * MIB)
            logging.info("%d files in %s; join makes a pack of them", len(paths), args.output)
        else:
            logging.info("%s is whole: give it to train.py as --data", join(args.folder))
    except (FileNotFoundError, ImageError) as error:
        logging.error("%s", error)
        return 2
    except OSError as error:
        logging.error("%s", error)
        return 1
    return 0


def split(index_path: Path, folder: Path, size: int) -> list[Path]:
    """Cut a pack's pixels into files STEM.bin.0000, .. of `size` bytes and copy its index.

    Returns:
        The files written, the index last.

    Raises:
        FileNotFoundError, ImageError: there is no such pack, or it is not whole.
    """
    open_pack(index_path)
    pixels = index_path.with_suffix(".bin")
    folder.mkdir(parents=True, exist_ok=True)
    for old in _parts(folder, pixels.name):  # of another size
        old.unlink()
    paths: list[Path] = []
    with pixels.open("rb") as file:
        while content := file.read(size):
            paths.append(folder / f"{pixels.name}.{len(paths):04d}")
            write_bytes(paths[-1], content)
    write_bytes(folder / index_path.name, index_path.read_bytes())
    return [*paths, folder / index_path.name]


def join(folder: Path) -> Path:
    """Join the parts in a folder, and remove them once the whole has the pack's fingerprint.

    Returns:
        The index of the pack.

    Raises:
        FileNotFoundError: no index, or more than one, is there.
        ImageError: parts are missing or differ from what was cut.
    """
    indices = sorted(folder.glob("*.json"))
    if len(indices) != 1:
        raise FileNotFoundError(f"expected the .json of one pack in {folder}, got {len(indices)}")
    pixels = indices[0].with_suffix(".bin")
    parts = _parts(folder, pixels.name)
    if not pixels.exists():  # else joined before
        with whole_file(pixels) as file:
            for part in tqdm(parts, "join", unit="part"):
                file.write(part.read_bytes())
    try:
        if (got := fingerprint_of(pack := open_pack(indices[0]))) != pack.fingerprint:
            raise ImageError(
                f"expected parts with the fingerprint {pack.fingerprint[:12]}, got "
                f"{got[:12]} from {len(parts)} in {folder}: copy them again"
            )
    except ImageError:
        pixels.unlink()
        raise
    for part in parts:
        part.unlink()
    return indices[0]


def _parts(folder: Path, name: str) -> list[Path]:
    """The parts of a file, in order."""
    parts = [path for path in folder.glob(f"{name}.*") if path.suffix[1:].isdigit()]
    return sorted(parts, key=lambda path: int(path.suffix[1:]))


if __name__ == "__main__":
    sys.exit(main())
