"""The work itself: a caption computed from what is in the image. Same image, same caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 20, 20),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 20),
    "green": (20, 160, 40),
    "cyan": (20, 200, 210),
    "blue": (20, 40, 220),
    "purple": (130, 30, 160),
    "pink": (255, 120, 180),
    "brown": (120, 70, 20),
}
_SAMPLE = 32


class UnreadableImage(Exception):
    """The image is missing or is not an image; the message says which file and why."""


def colour_name(red: int, green: int, blue: int) -> str:
    """The named colour nearest to an RGB value (0 to 255 each)."""
    return min(
        _COLOURS,
        key=lambda name: sum((a - b) ** 2 for a, b in zip(_COLOURS[name], (red, green, blue), strict=True)),
    )


def describe_image(path: Path) -> str:
    """Size in pixels, the colour that covers most of it, and its mean brightness (0 to 255)."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            sample = image.convert("RGB").resize((min(width, _SAMPLE), min(height, _SAMPLE)), Image.Resampling.NEAREST)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path.name} cannot be read as an image: {type(error).__name__}") from error
    data = sample.tobytes()
    pixels = Counter(zip(data[0::3], data[1::3], data[2::3], strict=True))
    covered: Counter[str] = Counter()
    light = 0
    for (red, green, blue), count in pixels.items():
        covered[colour_name(red, green, blue)] += count
        light += count * (299 * red + 587 * green + 114 * blue)
    brightness = light // (1000 * pixels.total())
    dominant = min(covered, key=lambda name: (-covered[name], name))
    tone = "dark" if brightness < 85 else "bright" if brightness > 170 else "mid-toned"
    return f"A {tone} image of {width} by {height} pixels, mostly {dominant} (brightness {brightness})."
