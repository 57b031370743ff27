"""Settings of ``nvisa-train paper``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from serving.configuration import LayeredSettings

_LISTS = ("--datasets", "--methods", "--seeds")


class PaperSettings(LayeredSettings):
    """Make the paper's tables and figures: one JSON file a run, Markdown and PNG of all that are there.

    Runs that are there are not run again; those of a command that was killed are gone on with.
    """

    model_config = SettingsConfigDict(env_prefix="NVISA_PAPER_", cli_prog_name="nvisa-train paper")

    what: CliPositionalArg[Literal["table1", "table2", "figures"]] = Field(
        description="table1: NVISA beside its peers; table2: inference methods on MNIST; figures: 2 to 5"
    )
    data: Path = Field(
        Path("data"),
        description="folder with mnist/ and fashion-mnist/ (IDX), and for cifar10, cifar100 and stl10 files "
        "NAME-features-BACKBONE-train.parquet and -test.parquet",
    )
    output: Path = Field(Path("results/paper"), description="where runs, tables and pictures go")
    quick: bool = Field(False, description="fewer rows, short schedules: half an hour on two cores")
    datasets: list[str] | None = Field(None, description="names of data sets; default: all that are there")
    methods: list[str] | None = Field(
        None, description="keys of methods; default: all; a wrong one lists them"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(
        None, description="seeds; default: 0 to 9 for table1, 0 to 4 for table2, 0 with --quick"
    )
    jobs: int = Field(1, ge=1, description="runs at a time, each with its share of the cores")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")


def spread(arguments: Sequence[str]) -> list[str]:
    """Take ``--seeds 0 1 2`` for ``--seeds 0 --seeds 1 --seeds 2``."""
    found: list[str] = []
    flag = ""
    for argument in arguments:
        if argument.startswith("-"):
            flag = argument if argument in _LISTS else ""
            if not flag:
                found.append(argument)
        elif flag:
            found += [flag, argument]
        else:
            found.append(argument)
    return found
