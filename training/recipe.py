"""What features depend on beside the images; apart from `training.backbone`, to be read without ONNX."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Channels = tuple[float, float, float]
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class Asked(BaseModel):
    """What the user says of a backbone; ``None`` leaves it to its metadata, its graph, or the default."""

    model_config = ConfigDict(frozen=True)

    size: Size | None = None
    mean: Channels | None = None
    std: Channels | None = None
    tensor: str | None = None


class Recipe(BaseModel):
    """Everything on which features depend beside the images: two equal recipes give equal features.

    Attributes
    ----------
    sha256
        Of the backbone's file; of weights in files beside it as well.
    size
        Height and width that images are resized to.
    mean, std
        Of each channel, red first, in units of 255.
    tensor
        Name of the tensor that becomes features: a map ``(N, C, h, w)``, averaged, or vectors ``(N, C)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: Size
    mean: Channels
    std: Channels
    tensor: str
