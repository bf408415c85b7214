"""What goes with a picture beside its pixels: EXIF, resolution and colour profile."""

from typing import Any

from PIL import Image

from utils.imaging.colour import ADOBE_RGB, find_grey, make_profile

EXIF_ROOM = 65533  # bytes, all that JPEG has
# EXIF tags that tell of the picture and not of how the file holds it: description, make, model,
# software, date, artist, computer, two ratings, copyright, and Windows' title, comment, author,
# keywords and subject.
ABOUT = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298}
ABOUT |= {*range(0x9C9B, 0x9CA0)}
EXIF_IFD, GPS_IFD, INTEROP_IFD, ORIENTATION = 0x8769, 0x8825, 0xA005, 0x0112
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
COLOUR_SPACE = 0xA001
# Width and height, which will change; maker's notes and a table, full of offsets; padding.
OUTDATED = {0xA002, 0xA003, 0x927C, 0xA005, 0xEA1C}


def read_exif(im: Image.Image, turned: int | None = None) -> tuple[bytes | None, int, str]:
    """EXIF without what will not be true any more, the orientation, and what to know about it.

    turned: the orientation, where it is known from elsewhere.
    """
    orientation = turned or 1
    try:
        source, kept = im.getexif(), Image.Exif()
        orientation = turned or source.get(ORIENTATION, 1)
        for tag in ABOUT & set(source):
            kept[tag] = exif_text(source[tag])
        for tag in (EXIF_IFD, GPS_IFD):
            inner = source.get_ifd(tag).items()
            if part := {k: exif_text(v) for k, v in inner if k not in OUTDATED}:
                kept[tag] = part
        if len(kept):
            kept.update(dpi_tags(read_dpi(im, orientation)))
        exif = kept.tobytes() if len(kept) else None
    except Exception:  # as in read; a picture is worth having without its notes
        exif, note = None, "its EXIF data are damaged and left out"
    else:
        note = "its EXIF data are too long and left out" if exif and len(exif) > EXIF_ROOM else ""
    valid = orientation if orientation in range(1, 9) else 1
    return None if note else exif, valid, note


def exif_text(value: Any) -> Any:
    """Text as the bytes that it was, if it is not ASCII: Pillow reads Latin-1 but writes ASCII."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def read_dpi(im: Image.Image, orientation: int = 1) -> tuple[float, float] | None:
    """Dots an inch across and down the upright picture, where the file tells them."""
    told = im.info.get("dpi")
    jpeg = im.format in ("JPEG", "MPO")
    if im.format == "TIFF" or jpeg and im.info.get("jfif_unit") not in (1, 2):
        told = None  # Pillow says 1 or 72 where there is none
    try:
        if told is None:
            exif = im.getexif()
            scale = {2: 1, 3: 2.54}[exif.get(RESOLUTION_UNIT, 2)]
            told = [scale * float(exif[tag]) for tag in (X_RESOLUTION, Y_RESOLUTION)]
        across, down = (round(float(value), 2) for value in told)
    except Exception:  # as in read_exif
        return None
    if not (1 <= across <= 65535 and 1 <= down <= 65535):  # what JPEG holds
        return None
    return (down, across) if orientation in range(5, 9) else (across, down)


def dpi_tags(dpi: tuple[float, float] | None) -> dict[int, Any]:
    """The tags of EXIF and TIFF that tell it."""
    if dpi is None:
        return {}
    return {X_RESOLUTION: dpi[0], Y_RESOLUTION: dpi[1], RESOLUTION_UNIT: 2}


def read_icc(im: Image.Image, grey: bool) -> tuple[bytes | None, str]:
    """The embedded profile, if it is one for these pixels, or that of grey in one of RGB; one of
    Adobe RGB, if EXIF tells it. And what to know about it."""
    if im.mode in ("CMYK", "LAB"):
        return None, ""
    icc = im.info.get("icc_profile")
    if not icc and _is_adobe_rgb(im):
        return make_profile(ADOBE_RGB, grey), ""
    if not isinstance(icc, bytes) or icc[36:40] != b"acsp":
        return None, ""
    kind = icc[16:20]
    if kind == (b"GRAY" if grey else b"RGB "):
        return icc, ""
    if grey and kind == b"RGB " and (own := find_grey(icc)):
        return own, ""
    return None, f"its colour profile is not one of {'grey' if grey else 'RGB'} and is left out"


def _is_adobe_rgb(im: Image.Image) -> bool:
    """As cameras write it: no profile, but "R03" (DCF 2.0) or, some, a colour space of 2."""
    try:
        exif = im.getexif()
        inner = exif.get_ifd(EXIF_IFD)
        if INTEROP_IFD not in inner:
            return inner.get(COLOUR_SPACE) == 2
        return str(exif.get_ifd(INTEROP_IFD).get(1)).rstrip("\0 ") == "R03"
    except Exception:  # as in read_exif
        return False
