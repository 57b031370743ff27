"""Tables and pictures of made-up runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.papers import tiny_table
from training.config import TrainingConfig
from training.paper.annealing_settings import figure_5
from training.paper.curves import plot_losses, plot_settings
from training.paper.datasets import DATASETS
from training.paper.plan import Job, Method
from training.paper.quoted import COLUMNS, TABLE_1, TABLE_2
from training.paper.render import body, duration, section
from training.paper.settings import spread
from training.paper.table2 import ROWS, table_2


def run(method, seed=0, acc=0.5, *, dataset="mnist", epoch=None, source="pixels", **config):
    known = {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "source": source,
        "fingerprint": "f",
        "rows": {"train": 1000, "test": 100},
        "config": TrainingConfig(**config).model_dump(mode="json"),
        "steps_per_epoch": 7,
        "seconds": 90.0,
        "threads": 1,
        "machine": "2 cores",
        "versions": {"torch": "2"},
        "history": {"bound": [-900.0, -700.0, -650.0][: 3 if epoch is None else epoch]},
    }
    if epoch is None:
        scores = {"acc": acc, "nmi": acc / 2, "ari": acc / 4}
        return known | {"scores": {"test": scores, "all": scores | {"acc": acc + 0.1}}}
    return known | {"diverged": {"epoch": epoch, "error": "the loss was not finite"}}


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_table_2_has_means_steps_and_reasons():
    runs = [
        run("vimco-annealed", 0, 0.9),
        run("vimco-annealed", 1, 0.8),
        run("vimco", 0, epoch=2),
        run("nvil", 0, epoch=0),
        run("nvil", 1, epoch=2),
        run("enum", 0, 0.7, objective="elbo"),
        run("enum", 1, epoch=1, objective="elbo"),
    ]
    text = body(table_2(False), runs)
    assert cells(text, "VIMCO | NVISA\\* |")[2:] == ["85.00 ± 5.00", "98.40", "15", "21", "2 × 1.5 min"]
    assert cells(text, "VIMCO | NVISA |")[2:4] == ["N/A (step 21)", "N/A"]
    assert cells(text, "NVIL | NVISA |")[2] == "N/A (step 7, step 21)"
    assert cells(text, "EnumY | NVISA |")[2:5] == ["70.00 (1 of 2 N/A)", "78.43", "1"]
    assert cells(text, "VIMCO | NVISA (1000 samples)")[2] == "–"


def table_1(*datasets):
    table = tiny_table("table1", Method("vade", "VaDE", lambda _: {}), datasets=datasets)
    return table


def test_table_1_has_both_protocols_and_the_papers_numbers():
    runs = [
        run("vade", 0, 0.6),
        run("vade", 0, 0.4, dataset="cifar10", source="some-net"),
    ]
    text = body(table_1("mnist", "cifar10"), runs)
    assert text.splitlines()[0] == (
        "|  | MNIST | all | quoted | runs | CIFAR-10 (some-net) | all | quoted | runs |"
    )
    assert cells(text, "VaDE") == [
        *("VaDE", "60.00", "70.00", "94.46", "1 × 1.5 min"),
        *("40.00", "50.00", "59.69", "1 × 1.5 min"),
    ]
    assert cells(text, "LTVAE-full (quoted)")[3] == "86.32"


def test_a_section_says_how_it_was_measured():
    text = section(table_1("mnist"), [run("vade")])
    assert "Machine: 2 cores, 1 of its threads a run. Versions: torch 2." in text


def test_quoted_numbers_have_a_place():
    assert all(len(values) == len(COLUMNS) for values in TABLE_1.values())
    assert set(TABLE_2) <= {row[0] for row in ROWS} | {"gmvae", "vade"}
    assert set(DATASETS) == set(COLUMNS)


@pytest.mark.parametrize("quick", [True, False])
def test_every_row_of_table_2_is_a_configuration(quick):
    table = table_2(quick)
    configs = {m.key: Job(DATASETS["mnist"], m, 3).config for m in table.methods if m.baseline is None}
    assert len({config.digest() for config in configs.values()}) == len(ROWS)
    many = {key: config.n_samples for key, config in configs.items() if "1000" in key}
    assert set(many.values()) == ({100} if quick else {1000})
    for key, config in configs.items():
        assert config.seed == 3
        assert config.max_rollbacks == 0
        assert (config.epsilon_factor < 1) == key.endswith("-annealed")
        assert (config.likelihood == "bernoulli") == ("bernoulli" in key)
        assert config.mean_field == ("mean-field" in key)
        if not key.endswith("-annealed"):
            assert config.epsilon_x == config.epsilon_z == 1e-4
    if not quick:
        assert {config.total_epochs for config in configs.values()} == {1500}
        assert configs["vimco-annealed"].n_samples == 15


@pytest.mark.parametrize("quick", [True, False])
def test_all_annealing_settings_end_at_the_same_epsilon(quick):
    ends = set()
    for method in figure_5(quick).methods:
        config = Job(DATASETS["mnist"], method, 0).config
        ends.add(round(config.epsilon_x * config.epsilon_floor, 9))
        assert config.epsilon_z == config.epsilon_x
    assert ends == {1 / 16 if quick else 1e-4}


def test_lists_may_be_given_as_words():
    given = ["table1", "--datasets", "mnist", "fashion-mnist", "--quick", "--seeds", "0", "1", "--jobs", "2"]
    assert spread(given) == [
        *("table1", "--datasets", "mnist", "--datasets", "fashion-mnist", "--quick"),
        *("--seeds", "0", "--seeds", "1", "--jobs", "2"),
    ]
    assert spread(["table2", "--seeds=3"]) == ["table2", "--seeds=3"]


def test_durations_are_for_people():
    assert [duration(s) for s in (4.2, 90, 7200)] == ["4 s", "1.5 min", "2.0 h"]


@pytest.mark.parametrize("lost", [False, True])
def test_losses_are_drawn_with_those_that_diverged_below(tmp_path, lost):
    runs = {"VIMCO": run("vimco"), "EnumY (Bernoulli)": run("enum-bernoulli", likelihood="bernoulli")}
    if lost:
        runs["NVIL"] = run("nvil", epoch=2)
    assert (size_of(plot_losses(tmp_path / "losses.png", runs))[1] > 1000) == lost


def test_settings_are_drawn_and_one_whose_runs_diverged(tmp_path):
    panels = {"first ε": {0.5: [], 1.0: [0.7, 0.9]}, "epochs": {10.0: [0.7, 0.9], 20.0: [0.8]}}
    path = plot_settings(tmp_path / "settings.png", panels, {"first ε": 1.0, "epochs": 10.0})
    assert size_of(path)[0] > 1000
