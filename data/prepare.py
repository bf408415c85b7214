"""Download DIV2K, and bring LSDIR and the benchmark sets that you have into data/."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

if __name__ == "__main__":
    # In place of data/.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from train.packing import pack
from utils import command
from utils.benchmarks import find_pairs, has_lr, set_of, with_hr
from utils.datasets import (
    BENCHMARKS,
    IMAGES,
    SCALE,
    DatasetError,
    Pair,
    held_out,
    names_of,
    pairs_among,
)
from utils.div2k import DIV2K, URL, Archive
from utils.download import ArchiveError, DataError, download, put, scratch_in, unpack
from utils.files import ROOT, sha256
from utils.imaging.images import ImageError, find_images
from utils.layouts import File, read
from utils.lock import locked

LSDIR_IMAGES = 2000  # as in the factsheet


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    args = parse(argv)
    command.show_log()
    interrupted = (
        "interrupted; what was downloaded stays in *.part, and the same command continues it"
    )
    failures = (DataError, DatasetError, ImageError)
    return command.run("data/prepare.py", lambda: prepare(args), (), failures, interrupted)


def prepare(args: argparse.Namespace) -> None:
    """Bring every set that was asked for into place, as the only process that works there."""
    command.make_folder(args.data_dir)
    archives = [archive for name in dict.fromkeys(args.sets) for archive in DIV2K[name]]
    with locked(args.data_dir / ".lock", f"{args.data_dir}"):
        prepare_div2k(archives, args.url, args.data_dir, args.keep)
        if args.lsdir:
            prepare_lsdir(list(dict.fromkeys(args.lsdir)), args.first, args.data_dir)
        if args.benchmarks:
            prepare_benchmarks(args.benchmarks, args.data_dir)
        if args.pack:
            packed = args.data_dir / "packed"
            count = len(pack([args.data_dir], packed).images)
            tqdm.write(
                f"{packed}: {count} training images, decoded; to train on them: python "
                f"train/train.py --data {args.data_dir} --packed {packed} .."
            )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """What to prepare; argparse ends the process with 2 and a message if that is wrong."""
    parser = command.parser(__doc__)
    add = parser.add_argument
    add(
        "sets",
        nargs="*",
        type=_set,
        metavar="SET",
        help=f"to download, HR and LR: {', '.join(DIV2K)}",
    )
    add(
        "--lsdir",
        nargs="+",
        type=_source,
        metavar="PATH",
        help="folders, tars or zips of LSDIR's training images, which go to LSDIR/",
    )
    add(
        "--first",
        type=int,
        metavar="N",
        help=f"take the first N images of LSDIR, by file name, instead of {LSDIR_IMAGES}",
    )
    add(
        "--benchmarks",
        nargs="+",
        type=_source,
        metavar="PATH",
        help=f"folders, tars or zips with {', '.join(BENCHMARKS)}, any of them",
    )
    add("--pack", action="store_true", help="then decode the training images to packed/")
    data = ROOT / "data"
    add("--data_dir", type=command.path, default=data, metavar="DIR", help="where all of it goes")
    add("--keep", action="store_true", help="keep the downloaded archives after unpacking")
    add("--url", help=f"where DIV2K's archives lie, if not at {URL}: a mirror")
    args = parser.parse_args(argv)
    args.data_dir = args.data_dir.resolve()
    if not (args.sets or args.lsdir or args.benchmarks or args.pack):
        parser.error(
            f"expected {', '.join(DIV2K)}, --lsdir, --benchmarks or --pack, got nothing to prepare"
        )
    if args.first is not None and not args.lsdir:
        parser.error("expected --lsdir PATH with --first, got none")
    if (args.keep or args.url) and not args.sets:
        parser.error(f"expected {' or '.join(DIV2K)} with --keep and --url, got none")
    args.first, args.url = args.first if args.first is not None else LSDIR_IMAGES, args.url or URL
    if args.first < 1:
        parser.error(f"expected --first of at least 1, got {args.first}")
    if not args.url.startswith(("http://", "https://")):
        parser.error(f"expected --url of http:// or https://, got {args.url}")
    return args


def _set(text: str) -> str:
    if text not in DIV2K:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(DIV2K)}, got {text}")
    return text


def _source(text: str) -> Path:
    if not os.path.exists(source := command.path(text)):
        raise argparse.ArgumentTypeError(f"expected a folder or an archive, found no {text}")
    return source.resolve()


def prepare_div2k(archives: Sequence[Archive], url: str, data_dir: Path, keep: bool) -> None:
    """Download and unpack what is not there yet."""
    missing = [
        archive
        for archive in archives
        if not is_there(
            archive.images,
            [
                data_dir / parent / folder
                for parent in ("", "DIV2K")
                for folder in (archive.folder, archive.folder.removesuffix("_bicubic/X4"))
            ],
        )
    ]
    if missing:
        total = sum(archive.size for archive in missing)
        with tqdm(total=total, desc="download", unit="B", unit_scale=True) as bar:
            for archive in missing:
                install(archive, f"{url.rstrip('/')}/{archive.name}", data_dir, keep, bar)


def is_there(images: int, folders: Sequence[Path]) -> bool:
    """Whether one of the folders has so many images; DataError if the first, where they would
    go, holds something else."""
    for folder in folders:
        if folder.is_dir() and len(find_images(folder, recursive=False)) == images:
            tqdm.write(f"{folder}: {images} images, complete already")
            return True
    require_empty(folders[0], f"{images} images")
    return False


def require_empty(target: Path, content: str) -> None:
    """Raise DataError if anything lies where `content` would go, be it a link to a folder, in whose
    place none can be moved."""
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise DataError(
            f"expected {content} or nothing in {target}, got something else: move "
            "it away and run this again"
        )


def install(archive: Archive, url: str, data_dir: Path, keep: bool, bar: tqdm) -> None:
    """Download an archive, unless it lies there already, verify and unpack it."""
    file, target = data_dir / archive.name, data_dir / archive.folder
    start = bar.n
    if not file.exists():
        download(url, file, archive.size, bar)
    bar.n = start + archive.size
    try:
        digest = sha256(file)
        if archive.sha256 not in (None, digest):
            raise ArchiveError(f"expected sha256 {archive.sha256}, got {digest}")
        with scratch_in(data_dir) as scratch:
            found = {path.name: path for path in find_images(unpack(file, scratch))}
            if len(found) != archive.images:
                raise ArchiveError(f"expected {archive.images} images, got {len(found)}")
            put(found, target, scratch)
    except (ArchiveError, ImageError) as error:
        file.unlink()
        raise DataError(
            f"{file}: {error}; the file is removed, run this again to download it "
            "anew, or give a mirror by --url"
        ) from error
    if not keep:
        file.unlink()
    checked = "sha256 as published" if archive.sha256 else "sha256 not verified, none is known"
    tqdm.write(f"{target}: {archive.images} images, {checked}")


def prepare_lsdir(sources: Sequence[Path], first: int, data_dir: Path) -> None:
    """Bring the first training images, by file name, to LSDIR/."""
    target = data_dir / "LSDIR"
    if is_there(first, [target]):
        return
    with scratch_in(data_dir) as scratch:
        found: dict[str, Path] = {}
        for source in sources:
            tree = source if source.is_dir() else unpack(source, scratch)
            for path in find_images(tree):
                # 0000001.png, but not 0000001x4.png, X4/0000001.png, nor what is for validation
                file, folders = read(path, tree), names_of(path.parent, tree)
                hr = file.role != "LR" and file.sure and not file.left
                if path.stem.isdecimal() and hr and not held_out(folders):
                    found.setdefault(path.name, path)
        if len(found) < first:
            raise DataError(
                f"expected {first} training images such as 0000001.png in "
                f"{', '.join(map(str, sources))}, got {len(found)}: give more "
                "parts of LSDIR, or a lower --first"
            )
        chosen = sorted(found)[:first]
        put({name: found[name] for name in chosen}, target, scratch)
    tqdm.write(f"{target}: {first} images, {chosen[0]} to {chosen[-1]}")


def prepare_benchmarks(sources: Sequence[Path], data_dir: Path) -> None:
    """Bring each set that is not there yet to NAME/HR/ and, if it has LR images, NAME/LR/. What
    several sources have of a set is taken together."""
    there = {name: find_pairs(data_dir / name) for name in BENCHMARKS}
    if all(has_lr(pairs) and len(pairs) >= IMAGES[name] for name, pairs in there.items()):
        tqdm.write(f"{data_dir}: {', '.join(BENCHMARKS)}, complete already")
        return
    with scratch_in(data_dir) as scratch:
        files: dict[str, list[File]] = {}
        for source in sources:
            tree = source if source.is_dir() else unpack(source, scratch)
            found = [(name, path) for path in find_images(tree) if (name := set_of(path, tree))]
            if not found:
                raise DataError(
                    f"expected images of {', '.join(BENCHMARKS)} in {source}, in a layout that "
                    "data/README.md lists, got none"
                )
            for name, path in found:
                files.setdefault(name, []).append(read(path, tree))
        sets = {name: with_hr(pairs_among(own)) for name, own in files.items()}
        if missing := [name for name, pairs in sets.items() if not pairs]:
            raise DataError(
                f"expected HR images of {', '.join(missing)} in {', '.join(map(str, sources))}, in "
                "a layout that data/README.md lists, got none"
            )
        for name, pairs in sets.items():
            put_benchmark(pairs, data_dir / name, scratch)


def put_benchmark(pairs: Sequence[Pair], target: Path, scratch: Path) -> None:
    """Bring one set into place, unless it is there already. DataError if it is there without all
    images, or without the LR images, that `pairs` have."""
    if there := find_pairs(target):
        if len(there) < len(pairs):
            raise DataError(
                f"expected nothing or {len(pairs)} images in {target}, got {len(there)}: move it "
                "away and run this again to have all"
            )
        if has_lr(pairs) and not has_lr(there):
            raise DataError(
                f"expected nothing or a set with all LR images in {target}, got one without: move "
                "it away and run this again to have both"
            )
        total = IMAGES[target.name]
        state = "complete" if len(there) >= total else f"of {total}, there"
        tqdm.write(f"{target}: {len(there)} images, {state} already")
        return
    require_empty(target, f"{target.name} as HR/ and LR/")
    pictures = {f"HR/{pair.name}.png": pair.hr for pair in pairs if pair.hr}
    low = {f"LR/{pair.name}x{SCALE}.png": pair.lr for pair in pairs if pair.lr}
    put(pictures | low, target, scratch)
    tqdm.write(f"{target}: {len(pictures)} images, {len(low)} of them with LR")


if __name__ == "__main__":
    command.start(main)
