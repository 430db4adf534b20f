"""What a worker of either side does with an attempt, between its claim and its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from captions.caption import describe_image
from captions.settings import Settings


def caption_of(settings: Settings, image_path: str, keep_alive: Callable[[], None] | None = None) -> str:
    """Compute the caption; takes at least ``WORK_MS``. ``keep_alive`` is called three times per lease."""
    deadline = time.monotonic() + settings.work_ms / 1000
    caption = describe_image(settings.images_dir / Path(image_path).name)
    slice_seconds = settings.lease_seconds / 3
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, slice_seconds))
        if keep_alive is not None and left > slice_seconds:
            keep_alive()
    return caption
