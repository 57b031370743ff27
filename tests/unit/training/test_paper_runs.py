"""A table from its runs to Markdown: kept, skipped, refused, N/A, gone on with."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from tests.papers import TINY, tiny_table, write_mnist
from training.checkpoint import read_json
from training.divergence import DivergedError
from training.fitted import Fitted
from training.inference import probabilities
from training.paper import crew, order, runs
from training.paper.command import UnfinishedTable, make_table
from training.paper.datasets import DATASETS, read
from training.paper.plan import Method
from training.paper.settings import PaperSettings


@pytest.fixture
def data(tmp_path) -> Path:
    write_mnist(tmp_path / "data" / "mnist")
    return tmp_path / "data"


@pytest.fixture
def choice(data, tmp_path, monkeypatch) -> PaperSettings:
    monkeypatch.setitem(order.TABLES, "table2", lambda quick: tiny_table())
    runs._rows.cache_clear()
    return PaperSettings(what="table2", data=data, output=tmp_path / "out", device="cpu")


def results(choice: PaperSettings) -> dict[str, dict]:
    return {path.stem: read_json(path) for path in (choice.output / "table2" / "mnist").glob("*.json")}


def use(monkeypatch, *methods: Method) -> None:
    monkeypatch.setitem(order.TABLES, "table2", lambda quick: tiny_table("table2", *methods))


def test_two_methods_and_two_seeds_end_to_end(choice, data):
    said: list[str] = []
    path = make_table(choice, said.append)
    found = results(choice)
    assert set(found) == {"enum-0", "enum-1", "vimco-annealed-0", "vimco-annealed-1"}
    for run in found.values():
        assert run["rows"] == {"train": 300, "test": 60}
        assert run["versions"]["torch"] == torch.__version__
        assert run["machine"]
        assert run["seconds"] > 0
        assert run["config"]["seed"] == run["seed"]
        assert len(run["history"]["bound"]) == 3
    lines = path.read_text().splitlines()
    row = next(line for line in lines if line.startswith("| EnumY | NVISA |"))
    accs = [100 * found[f"enum-{seed}"]["scores"]["test"]["acc"] for seed in (0, 1)]
    assert f"| {np.mean(accs):.2f} ± {np.std(accs):.2f} | 78.43 | 1 | 30 | 2 × " in row
    assert "4 runs, 0 of them there already" in said


def test_scores_are_those_of_the_kept_model_on_the_test_rows_and_on_all(choice, data):
    make_table(choice, lambda _: None)
    run = results(choice)["vimco-annealed-1"]
    rows = read(DATASETS["mnist"], data)
    model = Fitted.load(choice.output / "table2" / "models" / "mnist" / "vimco-annealed-1").model
    for name, x, labels in (
        ("test", rows.test, rows.test_labels),
        (
            "all",
            np.concatenate([rows.train, rows.test]),
            np.concatenate([rows.train_labels, rows.test_labels]),
        ),
    ):
        clusters = probabilities(model, x).argmax(1)
        counts = np.zeros((3, 3))
        np.add.at(counts, (labels, clusters), 1)
        best = counts[linear_sum_assignment(-counts)].sum() / len(labels)
        assert run["scores"][name]["acc"] == pytest.approx(best)
        assert run["scores"][name]["n_rows"] == len(labels)


def test_what_is_there_is_not_run_again_and_what_lacks_is(choice, monkeypatch):
    make_table(choice, lambda _: None)
    folder = choice.output / "table2" / "mnist"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    (folder / "enum-1.json").unlink()
    said: list[str] = []
    make_table(choice, said.append)
    assert "4 runs, 3 of them there already" in said
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert {name for name in after if after[name] != before.get(name)} == {"enum-1.json"}


def test_a_result_of_other_hyper_parameters_is_refused_before_anything_runs(choice, monkeypatch):
    make_table(choice, lambda _: None)
    use(monkeypatch, Method("enum", "NVISA", lambda _: TINY | {"objective": "elbo", "epochs": 4}, "EnumY"))
    with pytest.raises(runs.StaleRun, match=r"enum-0.json was made with other .*epochs 3, now 4"):
        make_table(choice, lambda _: None)


def test_a_run_that_diverges_is_not_available_with_its_step(choice, monkeypatch):
    # A learning rate at which the weights overflow in the second epoch at the latest.
    wild = TINY | {"learning_rate": 1e30, "max_rollbacks": 0, "n_importance_samples": 3}
    use(monkeypatch, Method("vimco", "NVISA", lambda _: wild, "VIMCO"))
    text = make_table(choice, lambda _: None).read_text()
    run = results(choice)["vimco-0"]
    assert "scores" not in run
    assert run["diverged"]["epoch"] == len(run["history"]["bound"]) <= 1
    assert "not finite" in run["diverged"]["error"]
    step = (run["diverged"]["epoch"] + 1) * 10
    assert f"| VIMCO | NVISA | N/A (step {step}) | N/A |" in text
    assert not (choice.output / "table2" / "models" / "mnist" / "vimco-0").exists()


def test_a_run_that_fails_is_told_of_and_tried_again(choice, monkeypatch):

    monkeypatch.setattr(crew, "carry_out", _failing(crew.carry_out, "enum"))
    with pytest.raises(UnfinishedTable, match=r"2 runs failed.*mnist/enum-0: MemoryError: no room"):
        make_table(choice, lambda _: None)
    assert set(results(choice)) == {"vimco-annealed-0", "vimco-annealed-1"}
    monkeypatch.undo()
    monkeypatch.setitem(order.TABLES, "table2", lambda quick: tiny_table())
    make_table(choice, lambda _: None)
    assert len(results(choice)) == 4


def _failing(carry_out, method):
    def failing(asked, say):
        if asked.method == method:
            raise MemoryError("no room")
        return carry_out(asked, say)

    return failing


def test_a_stopped_fit_is_gone_on_with_to_the_same_result(choice, monkeypatch):
    make_table(choice, lambda _: None)
    whole = results(choice)["vimco-annealed-0"]
    folder = choice.output / "table2"
    (folder / "mnist" / "vimco-annealed-0.json").unlink()
    shutil_free_model(folder / "models" / "mnist" / "vimco-annealed-0")

    class Stop(BaseException):
        pass

    def stop(self, record):
        self.records[record["epoch"]] = record
        if record["epoch"] == 1:
            raise Stop

    config = TINY | {"n_importance_samples": 3, "checkpoint_seconds": 0}
    use(monkeypatch, Method("vimco-annealed", "NVISA\\*", lambda _: config, "VIMCO"))
    with monkeypatch.context() as patch:
        patch.setattr(runs.Recorder, "epoch", stop)
        with pytest.raises(Stop):
            make_table(choice, lambda _: None)
    said: list[str] = []
    make_table(choice, said.append)
    assert "mnist/vimco-annealed-0: resumed at epoch 1" in said
    again = results(choice)["vimco-annealed-0"]
    assert again["scores"] == whole["scores"]
    assert again["history"] == whole["history"]


def shutil_free_model(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


class Constant:
    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x), np.int64)


@pytest.fixture
def baselines(monkeypatch):
    """Two baselines in place of the real ones: one that finds one cluster, one that diverges."""
    seen = []

    def constant(x, config, say):
        seen.append((x.shape, config.seed, config.n_clusters))
        return Constant()

    def diverging(x, config, say):
        raise DivergedError("the loss was not finite at epoch 4")

    module = types.ModuleType("training.baselines")
    module.BASELINES = {
        "constant": types.SimpleNamespace(title="Constant", fit=constant),
        "diverging": types.SimpleNamespace(title="Diverging", fit=diverging),
    }
    monkeypatch.setitem(sys.modules, "training.baselines", module)
    return seen


def test_baselines_get_rows_and_configuration_but_no_labels(choice, data, monkeypatch, baselines):
    use(
        monkeypatch,
        Method("constant", "Constant", lambda _: TINY, baseline="constant", max_rows=100),
        Method("diverging", "Diverging", lambda _: TINY, baseline="diverging", max_rows=100),
    )
    make_table(choice, lambda _: None)
    assert baselines == [((100, 6, 6), 0, 3), ((100, 6, 6), 1, 3)]
    found = results(choice)
    rows = read(DATASETS["mnist"], data, 100)
    most = np.bincount(rows.test_labels).max() / len(rows.test_labels)
    assert found["constant-0"]["scores"]["test"]["acc"] == pytest.approx(most)
    assert found["constant-0"]["scores"]["test"]["empty_clusters"] == 2
    assert found["diverging-1"]["diverged"]["error"] == "the loss was not finite at epoch 4"


def test_names_that_are_not_there_are_refused(choice):

    with pytest.raises(ValueError, match=r"--methods: there is no 'kmean'; there are enum, vimco-annealed"):
        make_table(choice.model_copy(update={"methods": ["kmean"]}), lambda _: None)
    with pytest.raises(ValueError, match=r"--datasets: there is no 'stl10'; there are mnist"):
        make_table(choice.model_copy(update={"datasets": ["stl10"]}), lambda _: None)


def test_runs_of_different_data_do_not_share_a_table(choice, data):
    make_table(choice, lambda _: None)
    path = choice.output / "table2" / "mnist" / "enum-0.json"
    path.write_text(json.dumps(read_json(path) | {"fingerprint": "other"}))
    with pytest.raises(ValueError, match="its runs are of different data"):
        make_table(choice, lambda _: None)


def test_only_one_command_works_on_a_table(tmp_path):
    with (
        crew.only_one(tmp_path),
        pytest.raises(crew.BusyError, match="another nvisa-train paper works on"),
        crew.only_one(tmp_path),
    ):
        pass
    with crew.only_one(tmp_path):
        pass


def test_time_left_is_that_of_the_same_method_or_else_of_all():
    def asked(dataset, method, seed=0):
        return order.Order("table2", True, dataset, method, seed, Path(), Path())

    outlook = crew.Outlook(1)
    assert outlook.seconds([asked("mnist", "a")]) is None
    outlook.learn(asked("mnist", "a"), 10)
    outlook.learn(asked("mnist", "a", 1), 20)
    outlook.learn(asked("mnist", "b"), 45)
    assert outlook.seconds([asked("mnist", "a", 2)]) == 15
    assert outlook.seconds([asked("fashion-mnist", "b")]) == 45
    assert outlook.seconds([asked("fashion-mnist", "c")]) == 30
    two = crew.Outlook(2)
    two.learn(asked("mnist", "a"), 10)
    assert two.seconds([asked("mnist", "a", seed) for seed in range(4)]) == 20
    assert two.seconds([asked("mnist", "a")]) == 10
