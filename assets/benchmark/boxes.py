"""Boxes in a question's text, moved from the frame that a publisher gave them in to the clip's."""

import re

# A publisher's rounding may put a side so far over the edge, as a share of the frame.
OVER_THE_EDGE = 0.02
_NUMBER = r"(-?[0-9]{1,5}(?:\.[0-9]{1,4})?)"
_BOX = re.compile(rf"\[ ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?\]")


class BoxError(ValueError):
    """A box does not lie in the frame that it is said to be given in."""


def rescale_text(text: str, limit: tuple[int, int], clip: tuple[int, int]) -> str:
    """Rewrite every box "[x1,y1,x2,y2]" of a text for a clip, rounded to whole pixels and clipped to its frame.

    Args:
        text: a question or an option.
        limit: width and height in pixels that the publisher's frames were scaled to fit inside, keeping their shape
            (as video sites offer them: 16:9 at 640x360 is 640x360, 4:3 is 480x360).
        clip: width and height of the clip's frames.

    Raises:
        BoxError: a box lies outside the publisher's frame, or a frame has no size.
    """
    if min(*limit, *clip) <= 0:
        raise BoxError(f"frame sizes {limit} and {clip} must be positive; give width and height in pixels")
    scale = max(clip[0] / limit[0], clip[1] / limit[1])

    def moved(found: re.Match) -> str:
        sides = []
        for index, side in enumerate(float(number) for number in found.groups()):
            size, place = clip[index % 2], side * scale
            if not -OVER_THE_EDGE * size <= place <= (1 + OVER_THE_EDGE) * size:
                given = f"{round(clip[0] / scale)}x{round(clip[1] / scale)}"
                raise BoxError(f"box {found[0]} lies outside a {given} frame; give the clip in its published shape")
            sides.append(round(min(max(place, 0), size)))
        return f"[{','.join(map(str, sides))}]"

    return _BOX.sub(moved, text)
