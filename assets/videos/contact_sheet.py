"""A clip at a glance: a few of its frames with their times, as one small JPEG."""

import io

import numpy as np

_COLUMNS = 4
_TILE = 220  # widest a frame is shown, pixels
_GAP, _BAND = 4, 14
_PAPER, _INK = (24, 26, 30), (225, 228, 232)


def contact_sheet(frames: np.ndarray, timestamps: np.ndarray, count: int, largest: int) -> bytes:
    """JPEG of at most `count` frames in rows of four, each with its time below.

    Args:
        frames: (T, h, w, 3) u8 RGB.
        timestamps: (T,) s.
        count: frames shown, uniform over T, first and last included.
        largest: bytes the JPEG must not exceed; its quality, then its size gives way.

    Returns:
        The JPEG; the same input gives the same bytes.
    """
    from PIL import Image, ImageDraw

    chosen = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    height, width = frames.shape[1:3]
    scale = min(1.0, _TILE / max(width, height))
    tile = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    step = tile[0] + _GAP, tile[1] + _GAP + _BAND
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        left, top = _GAP + place % columns * step[0], _GAP + place // columns * step[1]
        sheet.paste(Image.fromarray(frames[index]).resize(tile, Image.Resampling.BICUBIC), (left, top))
        pen.text((left + 2, top + tile[1] + 1), f"{timestamps[index]:.2f} s", fill=_INK)
    return _small_jpeg(sheet, largest)


def _small_jpeg(picture, largest: int) -> bytes:
    """JPEG of a picture in at most `largest` bytes."""
    from PIL import Image

    while True:
        for quality in (88, 80, 70, 55, 40):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            if file.tell() <= largest:
                return file.getvalue()
        picture = picture.resize(
            (max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)), Image.Resampling.BICUBIC
        )
