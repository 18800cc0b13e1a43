"""Reading an image file as it is meant: scaled by its own depth, or refused by name."""

from typing import Any

import torch


class DataError(ValueError):
    """The data is not where it should be, or not what it should be."""


class BadImageError(DataError):
    """An image cannot be read."""


def read_image(file: str, channels: int = 3) -> torch.Tensor:
    """The first image of a file that pillow reads, converted to 3 channels (colour) or 1 (grey).

    Returns:
        ``(channels, H, W)``: ``uint8``, or of 16-bit grey, which is deeper, float32 from 0 to 1.

    Raises:
        BadImageError: the file cannot be opened or decoded, or does not say which value is white.
    """
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            tags = getattr(image, "tag_v2", {})  # a TIFF's: 258 is the depth, 262 is 0 where zero is white
            white = _white(image, max(tags.get(258, (16,))))
            pixels = image.convert("I" if white > 255 else "RGB" if channels == 3 else "L")
    except Exception as error:  # pillow's decoders raise all kinds on damaged files
        raise BadImageError(f"The image {file!r} cannot be read: {error}") from error
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.int32 if white > 255 else torch.uint8)
    values = values.view(pixels.height, pixels.width, -1).permute(2, 0, 1).contiguous()
    if white == 255:  # where pillow has looked at tag 262
        return values
    return (1 - values / white if tags.get(262) == 0 else values / white).repeat(channels, 1, 1)


def _white(image: Any, depth: int) -> int:
    """The largest value, which pillow's conversion to 8 bits takes for 255 whatever the depth."""
    if image.mode.startswith("I;16"):  # TIFFs of 12 bits, too
        return 2**depth - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # as some versions of pillow read 16 bits
        return 2**16 - 1
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, whose white is not known; save it with 8 or 16 bits.")
    return 255
