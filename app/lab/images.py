"""The lab's images: small, different, the same in every lab, and one file that is no image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

IMAGES = 12
BROKEN = "broken.png"

_COLOURS = [
    (220, 30, 30), (30, 150, 40), (30, 50, 220), (250, 220, 30), (10, 10, 10), (240, 240, 240),
]  # fmt: skip


def make_images(directory: Path) -> list[str]:
    """Write the images that are missing; the names of all that can be read."""
    directory.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(IMAGES):
        name = f"image-{number:02d}.png"
        names.append(name)
        if (directory / name).exists():
            continue
        width, height = 16 + 4 * number, 12 + 3 * number
        image = Image.new("RGB", (width, height), _COLOURS[number % len(_COLOURS)])
        patch = Image.new("RGB", (width // 3, height // 3), _COLOURS[(number + 1) % len(_COLOURS)])
        image.paste(patch, (number % 4, number % 3))
        image.save(directory / name)
    broken = directory / BROKEN
    if not broken.exists():
        broken.write_bytes(b"\x89PNG\r\n\x1a\nthis is where the image ends\n")
    return names
