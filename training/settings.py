"""Settings of ``nvisa-train``'s commands: command line, environment, YAML file, and for a fit its preset.

The environment's names are the flags' with the command before them: ``NVISA_FIT_CLUSTERS``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, create_model, field_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from serving.configuration import InvalidSettings, LayeredSettings, Names
from training.config import EmbeddingMetric, TrainingConfig, explain, load_preset, preset_names

# As in training.cluster_count, which takes a second to import.
MOST_ROWS = 20_000
DEFAULT_PRESET = "default"
_DATA = (
    "IDX folder, .npy, .npz, .parquet, .csv, folder of images, binary files of CIFAR or STL-10, or the word "
    "digits"
)
_LABELS = (
    "column of labels in a Parquet or CSV file: no feature; for scoring only, never seen by a fit. Of a "
    "folder of images, the word folder: each lies in one of its class"
)
_RESIZE = "bring encoded images of other sizes to the model's, bilinearly"
_SIDE = "height and width to which encoded images of all sizes are brought, bilinearly, in colour"


class _TableSettings(LayeredSettings):
    """Which columns of a table are what."""

    label_column: str | None = Field(None, description=_LABELS)
    id_columns: Names = Field((), description="a,b: columns of a Parquet or CSV file that are no features")
    feature_columns: Names = Field(
        (), description="a,b: columns that make up a row; unset: the model's, or all of numbers"
    )

    def columns(self) -> dict[str, Any]:
        """As `training.data.open_data` takes them."""
        return {
            "label_column": self.label_column,
            "id_columns": self.id_columns,
            "feature_columns": self.feature_columns,
        }


with warnings.catch_warnings():
    # --json takes the name of a deprecated method of pydantic's, which nobody calls here.
    warnings.filterwarnings("ignore", 'Field name "json"', UserWarning)

    class EvaluateSettings(_TableSettings):
        """Score a run on labelled data: ACC (Hungarian, one-to-one), NMI, ARI, sizes, confidence."""

        model_config = SettingsConfigDict(env_prefix="NVISA_EVALUATE_", cli_prog_name="nvisa-train evaluate")

        run: CliPositionalArg[Path] = Field(description="directory of a fit")
        data: str = Field(description=_DATA)
        split: Literal["train", "test"] = Field("test", description="part of an IDX folder")
        resize: bool = Field(False, description=_RESIZE)
        json: bool = Field(False, description="print JSON")  # type: ignore[assignment]
        device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run the model")

    class AlignSettings(_TableSettings):
        """Number and name a run's clusters like those of an older bundle, and tell which rows move.

        Ids in a model are 0 to K - 1. Clusters that are new get ids after the old ones. With fewer clusters
        than before, old ids disappear or change, and nothing is written without --allow-fewer.
        """

        model_config = SettingsConfigDict(env_prefix="NVISA_ALIGN_", cli_prog_name="nvisa-train align")

        old_bundle: CliPositionalArg[Path] = Field(description="bundle in use, models/NAME/VERSION")
        new_run: CliPositionalArg[Path] = Field(description="directory of a fit; left as it is")
        data: str = Field(description="rows to compare the two on: " + _DATA)
        output: Path | None = Field(None, description="directory of the aligned run; none: only report")
        split: Literal["train", "test"] = Field("train", description="part of an IDX folder")
        resize: bool = Field(False, description=_RESIZE)
        allow_fewer: bool = Field(False, description="write a run of fewer clusters than the old model's")
        json: bool = Field(False, description="print JSON")  # type: ignore[assignment]
        device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run the new model")

    class _SuggestKCommand(_TableSettings):
        """Measure how many clusters there may be: BIC, silhouette and stability over K. A hint, no answer.

        Gaussian mixtures are fitted to the embedding that a fit with --initialisation umap would start from,
        and to that of a single Gaussian cloud, for comparison.
        """

        model_config = SettingsConfigDict(
            env_prefix="NVISA_SUGGEST_K_", cli_prog_name="nvisa-train suggest-k"
        )

        data: CliPositionalArg[str] = Field(description=_DATA)
        resize: int | None = Field(None, ge=1, description=_SIDE)
        to: int = Field(20, description="largest K")
        output: Path = Field(Path("suggest-k"), description="where suggest-k.png and suggest-k.json go")
        rows: int = Field(MOST_ROWS, ge=4, le=MOST_ROWS, description="most rows to use, drawn at random")
        repeats: int = Field(5, ge=2, description="fits to halves of the rows, for the stability")
        gmm_starts: int = Field(2, ge=1, description="starts of each Gaussian mixture")
        n_neighbors: int = Field(20, ge=2, description="neighbours of a row in UMAP's graph")
        embedding_metric: EmbeddingMetric = Field(
            "euclidean",
            description="by which rows are alike: euclidean, or cosine, as is usual for network features",
        )
        seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
        split: Literal["train", "test"] = Field("train", description="part of an IDX folder")
        json: bool = Field(False, description="print JSON")  # type: ignore[assignment]


class FeaturesSettings(LayeredSettings):
    """Compute features of images with a pretrained backbone: a file that fit takes for data.

    Images are resized bilinearly to the backbone's input, and its last feature map is averaged to one vector
    an image, as in the paper. The tensor that becomes features is the graph's output if it is a map; else the
    map that it averages last; else its output.
    """

    model_config = SettingsConfigDict(env_prefix="NVISA_FEATURES_", cli_prog_name="nvisa-train features")

    images: CliPositionalArg[str] = Field(description="images: " + _DATA)
    backbone: str = Field(
        description="ONNX file with one input (n, 3, height, width) of floats, or torchvision:NAME, such as "
        "torchvision:resnet50, or with other weights than IMAGENET1K_V1 torchvision:NAME@WEIGHTS"
    )
    output: Path = Field(
        description=".parquet (with labels and paths), .npz (with labels as y) or .npy; beside it "
        "FILE.origin.safetensors tells which backbone it is of"
    )
    split: Literal["train", "test"] = Field("train", description="part of a folder that has both")
    label_column: str | None = Field(None, description=_LABELS + "; carried over, as the column label")
    resize: int | None = Field(
        None,
        ge=1,
        description="side to which images of all sizes are brought first, bilinearly; without it they must "
        "be of one size, which the exported graph then takes",
    )
    size: int | None = Field(
        None, ge=1, description="side of the images the backbone gets, where its graph leaves it open"
    )
    mean: tuple[float, float, float] | None = Field(
        None,
        description="mean of red, green, blue in units of 255; unset: the file's metadata, else ImageNet's",
    )
    std: tuple[float, float, float] | None = Field(
        None,
        description="std of red, green, blue in units of 255; unset: the file's metadata, else ImageNet's",
    )
    tensor: str | None = Field(None, description="name of the tensor that becomes features")
    batch_size: int = Field(16, ge=1, description="images at once")
    resume: bool = Field(False, description="go on with what a stopped run left")
    drop_unreadable: bool = Field(
        False, description="leave out images that cannot be read; the column row says which there are"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run the backbone")
    threads: int = Field(0, ge=0, description="threads on the CPU; 0: all processors")

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and min(value) <= 0:
            raise ValueError("must be positive")
        return value


class ExportSettings(LayeredSettings):
    """Export a run's q(y|x) as a bundle, after checking that ONNX Runtime and torch agree."""

    model_config = SettingsConfigDict(env_prefix="NVISA_EXPORT_", cli_prog_name="nvisa-train export")

    run: CliPositionalArg[Path] = Field(description="directory of a fit")
    output: Path = Field(description="models/NAME/VERSION")
    with_novelty: bool = Field(
        False,
        description="add the output novelty, how unlike the training rows a row is, from 0 to 1; it runs the "
        "decoder, too, and the command says what that costs",
    )
    backbone: str | None = Field(
        None,
        description="the backbone that the run's features are of, an ONNX file or torchvision:NAME; the "
        "bundle then takes images",
    )
    half: bool = Field(
        False,
        description="matrix products in float16, for GPUs; the command says how many rows change cluster",
    )


class ReportSettings(LayeredSettings):
    """Draw a run: samples, typical rows, latent space, curves, and one HTML page that shows them."""

    model_config = SettingsConfigDict(env_prefix="NVISA_REPORT_", cli_prog_name="nvisa-train report")

    run: CliPositionalArg[Path] = Field(description="directory of a fit")
    output: Path | None = Field(None, description="where the pictures go; default: RUN/report")


class _FitCommand(_TableSettings):
    """Fit NVISA to unlabelled data."""

    model_config = SettingsConfigDict(env_prefix="NVISA_FIT_", cli_prog_name="nvisa-train fit")

    data: CliPositionalArg[str] = Field(description=_DATA)
    resize: int | None = Field(None, ge=1, description=_SIDE)
    output: Path = Field(description="directory of the run, made by this command")
    preset: str = Field(
        DEFAULT_PRESET, description=f"hyper-parameters to start from: {', '.join(preset_names())}"
    )
    resume: bool = Field(False, description="go on from the run's last checkpoint")
    scratch: Path | None = Field(
        None,
        description="folder for a temporary file of rows that are too many for memory, from any format but "
        ".npy and plain IDX, which are read in place; default: the one --output is in",
    )
    warm_start: Path | None = Field(
        None,
        description="directory of an older fit, to begin with its weights and standardisation in place of an "
        "initialisation; ε and the learning rate begin anew",
    )

    def training_config(self) -> TrainingConfig:
        """Hyper-parameters: the preset's, overridden by what was given.

        Raises
        ------
        InvalidSettings
            If there is no such preset or the values do not fit each other.
        """
        given = {
            name: value
            for name in TrainingConfig.model_fields
            if (value := getattr(self, _flag(name))) is not None
        }
        try:
            return TrainingConfig.model_validate(load_preset(self.preset) | given)
        except ValidationError as error:
            raise InvalidSettings(explain(error)) from error
        except ValueError as error:
            raise InvalidSettings(str(error)) from error


def _flag(name: str) -> str:
    return "clusters" if name == "n_clusters" else name


def _optional_fields() -> dict[str, Any]:
    """Every hyper-parameter as a flag that is unset unless given; the number of clusters is required."""
    fields: dict[str, Any] = {}
    for name, field in TrainingConfig.model_fields.items():
        required = name == "n_clusters"
        kind: Any = field.annotation if required else field.annotation | None  # type: ignore[operator]
        said = field.description
        if not required and field.default is not None:
            said = f"{said}; unset: the preset's, else {field.default}"
        fields[_flag(name)] = (kind, Field(... if required else None, description=said))
    return fields


# `from` is a word of Python's own, and can only be named by a string.
_FROM: dict[str, Any] = {"from": (int, Field(2, description="smallest K"))}
SuggestKSettings = create_model(
    "SuggestKSettings", __base__=_SuggestKCommand, __doc__=_SuggestKCommand.__doc__, **_FROM
)

FitSettings = create_model(
    "FitSettings", __base__=_FitCommand, __doc__=_FitCommand.__doc__, **_optional_fields()
)
