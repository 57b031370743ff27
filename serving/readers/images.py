"""Encoded images (PNG, JPEG, BMP, WebP) to uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from serving.manifest import InputSpec

_GREY = frozenset({"L", "1", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})
# Kinds that cameras write; of others EXIF may be read only with all of the image.
_WITH_EXIF = frozenset({"JPEG", "MPO", "WEBP"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes | None, shape: tuple[int, ...], *, resize: bool = False) -> np.ndarray:
    """Decode one image to uint8 of ``shape``: ``(H, W)`` grey or ``(H, W, 3)`` RGB.

    Palettes and other colour spaces become RGB, transparency is dropped, and a grey image becomes RGB
    where RGB is wanted; colour is never turned into grey. A photograph is turned upright as its EXIF
    orientation says. Only with ``resize`` is an image of another size brought to this one, bilinearly,
    whatever its proportions.

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
    size = image.size if _orientation(image) >= 5 else image.size[::-1]
    if image.mode in _GREY:
        return size
    if image.mode in _COLOUR:
        return (*size, 3)
    raise ValueError(f"the image has mode {image.mode} (not 8 bits per channel); convert it to 8 bits")


def _orientation(image: Image.Image) -> int:
    """EXIF's: 1 is upright, 5 to 8 lie on a side. What is missing or nonsense is upright."""
    if image.format in _WITH_EXIF:
        with suppress(Exception):  # of what is broken in an image's EXIF, its pixels know nothing
            said = image.getexif().get(ExifTags.Base.Orientation)
            return said if said in _TURNS else 1
    return 1


def _pixels(
    image: Image.Image, natural: tuple[int, ...], shape: tuple[int, ...], resize: bool = False
) -> np.ndarray:
    if not _becomes(natural, shape, resize):  # before decoding: a huge image costs nothing here
        raise ValueError(f"the image is {_named(natural)}, not {_named(shape)}")
    _load(image)
    if (orientation := _orientation(image)) != 1:
        image = image.transpose(_TURNS[orientation])
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
