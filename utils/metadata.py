"""What goes with a picture beside its pixels: EXIF and colour profile."""

from typing import Any

from PIL import Image

EXIF_ROOM = 65533  # bytes, all that JPEG has
# EXIF tags that tell of the picture and not of how the file holds it: description, make, model,
# software, date, artist, computer, copyright, and Windows' title, comment, author, keywords.
ABOUT = {
    0x010E,
    0x010F,
    0x0110,
    0x0131,
    0x0132,
    0x013B,
    0x013C,
    0x8298,
    0x9C9B,
    0x9C9C,
    0x9C9D,
    0x9C9E,
    0x9C9F,
}
EXIF_IFD, GPS_IFD, ORIENTATION = 0x8769, 0x8825, 0x0112
# Width and height, which will change; maker's notes and a table, full of offsets; padding.
OUTDATED = {0xA002, 0xA003, 0x927C, 0xA005, 0xEA1C}


def read_exif(im: Image.Image) -> tuple[bytes | None, int, str]:
    """EXIF without what will not be true any more, the orientation, and what to know about it."""
    orientation = 1
    try:
        source, kept = im.getexif(), Image.Exif()
        orientation = source.get(ORIENTATION, 1)
        for tag in ABOUT & set(source):
            kept[tag] = exif_text(source[tag])
        for tag in (EXIF_IFD, GPS_IFD):
            inner = source.get_ifd(tag).items()
            if part := {k: exif_text(v) for k, v in inner if k not in OUTDATED}:
                kept[tag] = part
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


def read_icc(im: Image.Image, grey: bool) -> bytes | None:
    """The embedded profile, if it is one for these pixels."""
    icc = im.info.get("icc_profile")
    if not isinstance(icc, bytes) or icc[36:40] != b"acsp" or im.mode in ("CMYK", "LAB"):
        return None
    return icc if icc[16:20] == (b"GRAY" if grey else b"RGB ") else None
