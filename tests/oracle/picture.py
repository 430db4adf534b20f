"""Images to submit: those the application has, or small ones made without libraries."""

from __future__ import annotations

import argparse
import os
import struct
import zlib
from pathlib import Path

COLOURS = ((220, 40, 40), (40, 160, 60), (40, 80, 200))


def image_names(directory: Path) -> tuple[str, ...]:
    """The names of the images in the application's image directory; three small ones are put there when it has none."""
    found = sorted(path.name for path in directory.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        directory.mkdir(parents=True, exist_ok=True)
        found = [write_png(directory / f"square-{n}.png", *colour).name for n, colour in enumerate(COLOURS)]
    return tuple(found)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """--image and --images-dir, as `chosen_images` reads them."""
    parser.add_argument("--image", action="append", default=[], help="image to submit, as the application names it")
    parser.add_argument(
        "--images-dir",
        type=Path,
        default=os.environ.get("SLUICE_LAB_IMAGES"),
        help="the application's image directory, when --image is not given; default: SLUICE_LAB_IMAGES",
    )


def chosen_images(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, ...]:
    """The images that the arguments name; ends the program with a message when they name none."""
    if options.image:
        return tuple(options.image)
    if options.images_dir is None:
        parser.error("no image: give --image NAME or --images-dir, or set SLUICE_LAB_IMAGES")
    return image_names(Path(options.images_dir))


def write_png(path: Path, red: int, green: int, blue: int, side: int = 32) -> Path:
    """Write a square of one colour (0..255 each) with `side` pixels, in one step for readers, and return its path."""
    row = b"\0" + bytes((red, green, blue)) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * side)), (b"IEND", b""))
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))
    return draft.replace(path)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
