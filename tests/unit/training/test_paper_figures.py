"""The figures from runs to pictures, with tables of tiny runs in place of the paper's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.papers import TINY, tiny_table, write_mnist
from training.checkpoint import read_json
from training.paper import annealing_settings, figures, order, runs
from training.paper.plan import Method
from training.paper.settings import PaperSettings

SETTINGS = ([annealing_settings.Setting(first, 1) for first in (0.5, 1.0)],) * 2


@pytest.fixture
def choice(tmp_path, monkeypatch) -> PaperSettings:
    write_mnist(tmp_path / "data" / "mnist", side=8)
    runs._rows.cache_clear()

    def method(key, **changes):
        return Method(key, key, lambda _: TINY | {"n_importance_samples": 2} | changes, "VIMCO")

    wild = {"learning_rate": 1e30, "max_rollbacks": 0}
    second = [method(key) for key in dict.fromkeys([*figures.SAMPLED, *figures.EMBEDDED]) if key != "enum"]
    fifth = [method(setting.key, epsilon_x=setting.first) for setting in SETTINGS[0]]
    monkeypatch.setitem(
        order.TABLES, "table2", lambda quick: tiny_table("table2", *second, method("enum", **wild))
    )
    monkeypatch.setitem(order.TABLES, "figure5", lambda quick: tiny_table("figure5", *fifth))
    monkeypatch.setattr(figures, "all_settings", lambda quick: SETTINGS)
    return PaperSettings(
        what="figures", data=tmp_path / "data", output=tmp_path / "out", seeds=[4, 5], device="cpu"
    )


def test_all_figures_are_drawn_and_a_diverged_run_is_left_out(choice):
    said: list[str] = []
    pictures = figures.draw_figures(choice, said.append)
    assert [path.name for path in pictures] == [
        "figure-2-loss.png",
        "figure-3-samples.png",
        "figure-4a-vimco-annealed.png",
        "figure-4b-vimco-mean-field-annealed.png",
        "figure-4d-enum-annealed.png",
        "figure-5b-annealing.png",
    ]
    for path in pictures:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, path
    assert any("figure 4 (c), VIMCO, enum: left out, N/A: diverged" in line for line in said)
    # Of Table II the first seed, of the settings all seeds.
    second = list((choice.output / "table2" / "mnist").glob("*.json"))
    assert {read_json(path)["seed"] for path in second} == {4}
    fifth = list((choice.output / "figure5" / "mnist").glob("*.json"))
    assert sorted(read_json(path)["seed"] for path in fifth) == [4, 4, 5, 5]
    assert "| epsilon-0.5-every-1 |" in (choice.output / "figure5.md").read_text()

    said.clear()
    figures.draw_figures(choice, said.append)
    assert "4 runs, 4 of them there already" in said


def test_figures_have_methods_and_data_of_their_own(choice):
    with pytest.raises(ValueError, match="leave --methods and --datasets away"):
        figures.draw_figures(choice.model_copy(update={"methods": ["enum"]}), lambda _: None)
    with pytest.raises(ValueError, match="leave --methods and --datasets away"):
        figures.draw_figures(choice.model_copy(update={"datasets": ["fashion-mnist"]}), lambda _: None)
