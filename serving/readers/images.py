"""Encoded images (PNG, JPEG, BMP, WebP) to uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from serving.manifest import InputSpec

_GREY = frozenset({"L", "1", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})


def decode_image(data: bytes | None, shape: tuple[int, ...], *, resize: bool = False) -> np.ndarray:
    """Decode one image to uint8 of ``shape``: ``(H, W)`` grey or ``(H, W, 3)`` RGB.

    Palettes and other colour spaces become RGB, transparency is dropped, and a grey image becomes RGB
    where RGB is wanted; colour is never turned into grey. Only with ``resize`` is an image of another size
    brought to this one, bilinearly, whatever its proportions.

    Raises
    ------
    ValueError
        If it is missing, corrupt, of another size, or of a kind that cannot become ``shape`` unharmed.
    """
    image, natural = _opened(data)
    return _pixels(image, natural, shape, resize)


def rows_of_images(images: Sequence[Image.Image | bytes]) -> np.ndarray:
    """Stack images, PIL's or encoded, to uint8 ``(n_images, H, W)`` or ``(n_images, H, W, 3)``.

    The first one settles the shape; see `decode_image` for what becomes it.

    Raises
    ------
    ValueError
        If one cannot become it; the message says which.
    """
    shape: tuple[int, ...] | None = None
    rows = []
    for index, image in enumerate(images):
        try:
            opened, natural = _opened(image) if isinstance(image, bytes) else (image, _natural_shape(image))
            shape = natural if shape is None else shape
            rows.append(_pixels(opened, natural, shape))
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from error
    return np.stack(rows)


def promised_shape(
    images: Iterable[bytes | None], expected: InputSpec | None, resize: bool = False
) -> tuple[int, ...]:
    """Settle the shape of the rows of a data set from its first images.

    It is ``expected.shape`` if any of them can be read to that, or else the first readable one's own. With
    ``resize`` their size does not matter.

    Raises
    ------
    ValueError
        If none of them can be read.
    """
    first: tuple[int, ...] | None = None
    problem = "there are none"
    for data in images:
        try:
            image, natural = _opened(data)
            _load(image)
        except ValueError as error:
            problem = str(error)
            continue
        if expected is None:
            return natural
        if expected.dtype == "uint8" and _becomes(natural, expected.shape, resize):
            return expected.shape
        first = first or natural
    if first is None:
        raise ValueError(f"none of the first images can be read: {problem}")
    return first


def _opened(data: bytes | None) -> tuple[Image.Image, tuple[int, ...]]:
    """Read the header only: the image, and the shape it has by nature."""
    if data is None:
        raise ValueError("the image is missing")
    with _as_value_error():
        image = Image.open(io.BytesIO(data))
    return image, _natural_shape(image)


def _natural_shape(image: Image.Image) -> tuple[int, ...]:
    if image.mode in _GREY:
        return image.height, image.width
    if image.mode in _COLOUR:
        return image.height, image.width, 3
    raise ValueError(f"the image has mode {image.mode} (not 8 bits per channel); convert it to 8 bits")


def _pixels(
    image: Image.Image, natural: tuple[int, ...], shape: tuple[int, ...], resize: bool = False
) -> np.ndarray:
    if not _becomes(natural, shape, resize):  # before decoding: a huge image costs nothing here
        raise ValueError(f"the image is {_named(natural)}, not {_named(shape)}")
    _load(image)
    mode = "RGB" if len(shape) == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != shape[1::-1]:
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _load(image: Image.Image) -> None:
    with _as_value_error():
        image.load()


@contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise a dozen unrelated classes on corrupt data
        # This one's message names a buffer by its address, which would differ from run to run.
        detail = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"corrupt image: {detail}") from error


def _becomes(natural: tuple[int, ...], shape: tuple[int, ...], resize: bool = False) -> bool:
    if resize and len(shape) > 1:
        natural = shape[:2] + natural[2:]
    return natural == shape or (*natural, 3) == shape


def _named(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"{shape[0]} values"
    return f"{shape[1]}x{shape[0]} {'colour' if len(shape) == 3 else 'grey'}"
