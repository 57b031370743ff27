"""The settings of the labelling job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from serving.configuration import LayeredSettings, Names
from serving.readers import Split
from serving.runtime import Device


def _checked_shard(text: str) -> str:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError("must be i/n with 0 <= i < n, such as 0/4")
    return text


class LabelSettings(LayeredSettings):
    """Label a data set with a bundle: one row of Parquet out per row in, same order.

    Every flag is also an environment variable, NVISA_LABEL_ and the name in capitals with underscores, and
    a key of the YAML file that --config names. Exit status: 0 done, 42 if no retry can help (bad input,
    model or flags), anything else: run again with --resume.
    """

    model_config = SettingsConfigDict(env_prefix="NVISA_LABEL_", cli_prog_name="nvisa-label")

    model: Path = Field(description="bundle, models/NAME/VERSION")
    input: Path = Field(
        description="IDX, NPY, NPZ, Parquet or CSV file, or a folder of IDX, Parquet or images"
    )
    output: Path = Field(description="folder to write to; new or empty, unless --resume")
    target: str | None = Field(
        None, description="let the server at HOST:PORT do the work; it must have the very same model"
    )
    tls: bool = Field(False, description="use TLS to --target, trusting the authorities that gRPC does")
    ca: Path | None = Field(None, description="use TLS, trusting the authorities in this PEM file instead")
    cert: Path | None = Field(None, description="PEM file: this job's certificate, for mutual TLS")
    key: Path | None = Field(None, description="PEM file: its private key")
    token_file: Path | None = Field(None, description="file with the token that the server asks for")
    allow_insecure_token: bool = Field(
        False, description="send the token in plaintext to another machine, too"
    )
    shard: Annotated[str, AfterValidator(_checked_shard)] = Field(
        "0/1", description="i/n: do every n-th shard from the i-th on; n processes share one output folder"
    )
    resume: bool = Field(False, description="go on with what is in the output folder")
    split: Split = Field("train", description="of a folder that has both")
    id_columns: Names = Field((), description="a,b: columns to hand through to the output")
    label_column: str | None = Field(None, description="column to keep out of the features")
    feature_columns: Names = Field((), description="a,b: columns that make up a row")
    resize: bool = Field(
        False, description="bring images of other sizes to the model's, bilinearly; else they are errors"
    )
    max_error_share: float = Field(
        0.0, ge=0, le=1, description="give up (42) if more than this share of all rows cannot be assigned"
    )
    rows_per_shard: int | None = Field(
        None, ge=1, description="rows per output file; 262144, or what the plan says when resuming"
    )
    chunk_rows: int = Field(8192, ge=1, description="rows read at once")
    batch_rows: int = Field(1024, ge=1, description="rows per run of the model, in this process")
    device: Device = Field("auto", description="where the model runs in this process")
    threads: int = Field(0, ge=0, description="threads of a run on the CPU; 0: one per processor")
    timeout: float = Field(120.0, gt=0, description="seconds a call to the server may take, retries included")
    fingerprint: Literal["auto", "content", "stat"] = Field(
        "auto",
        description="how a changed input is noticed: by content, or by names, sizes and times; "
        "auto: content up to 1 GiB",
    )

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        names = ("tls", "ca", "cert", "key", "token_file", "allow_insecure_token")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if given and self.target is None:
            raise ValueError(f"{', '.join(given)}: for a server only, and there is no --target")
        return self

    @property
    def shard_index(self) -> int:
        """``i`` of ``--shard i/n``."""
        return int(self.shard.split("/")[0])

    @property
    def shard_count(self) -> int:
        """``n`` of ``--shard i/n``."""
        return int(self.shard.split("/")[1])
