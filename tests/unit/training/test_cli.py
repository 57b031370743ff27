"""``nvisa-train`` as a user types it, in process: what works, and what each mistake says."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from training.cli import main

SMALL = [
    "--epochs",
    "1",
    "--pretrain-epochs",
    "1",
    "--hidden-sizes",
    "8",
    "--latent-dim",
    "2",
    "--gmm-starts",
    "1",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 90)
    x = np.eye(3)[truth] * 8 + random.standard_normal((90, 3))
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    lines = [f"{a},{b},{c},class {t}" for (a, b, c), t in zip(x, truth, strict=True)]
    path.write_text("\n".join(["a,b,c,kind", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["fit", str(table), "--clusters", "3", "--output", str(output), "--label-column", "kind"]
    assert main([*arguments, *SMALL, "--restarts", "2"]) == 0
    return output


def test_evaluate_prints_a_table_and_json(run, table, capsys):
    arguments = ["evaluate", str(run), "--data", str(table), "--label-column", "kind"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "ACC" in text
    assert "UMAP+GMM, the start of this run, as its nets had learned it: ACC" in text
    assert main([*arguments, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"acc", "nmi", "ari", "cluster_sizes", "empty_clusters", "mean_confidence", "start"} <= set(scores)
    assert sum(scores["cluster_sizes"]) == scores["n_rows"] == 90
    assert f"{scores['acc']:.4f}" in text


def test_evaluate_without_labels_gives_sizes_alone(run, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((5, 3), np.float32))
    assert main(["evaluate", str(run), "--data", str(tmp_path / "x.npy"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["acc"] is None
    assert scores["n_rows"] == 5


def test_columns_are_chosen_by_name_and_said(run, table, tmp_path, capsys):
    header, *lines = table.read_text().splitlines()
    numbered = tmp_path / "numbered.csv"
    rows = [f"{i},{line},some text" for i, line in enumerate(lines)]
    numbered.write_text("\n".join([f"id,{header},note", *rows]) + "\n")
    arguments = ["fit", str(numbered), "--clusters", "3", *SMALL, "--output"]
    assert main([*arguments, str(tmp_path / "run")]) == 2
    assert "column 'id' looks like an id and would become a feature; name it with --id-columns" in (
        capsys.readouterr().err
    )
    assert main([*arguments, str(tmp_path / "run"), "--id-columns", "id", "--label-column", "kind"]) == 0
    said = capsys.readouterr().err
    assert "a row is ['a', 'b', 'c']; left out: ['note']" in said
    assert "mixture 1/" in said, "of three columns there is no embedding"
    assert main([*arguments, str(tmp_path / "other"), "--feature-columns", "c,a"]) == 0
    assert "a row is ['c', 'a']" in capsys.readouterr().err
    evaluate = ["evaluate", str(run), "--data", str(numbered), "--id-columns", "id"]
    assert main(evaluate) == 0
    assert "no labels there" in capsys.readouterr().out
    assert main([*evaluate, "--label-column", "kind"]) == 0
    assert "ACC" in capsys.readouterr().out


def shuffled(table, path, header="c,kind,b,more,a"):
    """The rows of ``table`` with its columns in another order, and one more."""
    lines = [line.split(",") for line in table.read_text().splitlines()]
    order = [lines[0].index(name) if name in lines[0] else None for name in header.split(",")]
    cells = [["9" if i is None else line[i] for i in order] for line in lines[1:]]
    path.write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    return path


def test_a_model_finds_its_columns_by_name(run, table, tmp_path, capsys):
    def scores(path, *more):
        arguments = ["evaluate", str(run), "--data", str(path), "--label-column", "kind", "--json", *more]
        assert main(arguments) == 0
        return json.loads(capsys.readouterr().out)

    other, expected = shuffled(table, tmp_path / "other.csv"), scores(table)
    assert scores(other) == expected
    assert scores(other, "--feature-columns", "c,a,b") == expected, "the same columns: in the model's order"
    renamed = shuffled(table, tmp_path / "renamed.csv", "b,a,kind,c")
    renamed.write_text(renamed.read_text().replace("b,a,kind,c", "y,x,kind,z", 1))
    assert scores(renamed, "--feature-columns", "x,y,z") == expected, "others: in the order that is said"
    assert scores(renamed, "--feature-columns", "z,y,x") != expected
    assert main(["evaluate", str(run), "--data", str(renamed), "--label-column", "kind"]) == 2
    assert "has no column ['a', 'b', 'c'], which the model was fitted on; it has ['y', 'x', 'kind', 'z']" in (
        capsys.readouterr().err
    )

    fit = ["fit", str(other), "--clusters", "3", "--label-column", "kind", *SMALL]
    assert main([*fit, "--warm-start", str(run), "--output", str(tmp_path / "new")]) == 0
    assert "a row is ['a', 'b', 'c']; left out: ['more']" in capsys.readouterr().err
    assert json.loads((tmp_path / "new" / "fit.json").read_text())["input"]["columns"] == ["a", "b", "c"]
    named = ["--feature-columns", "x,y,z", "--output", str(tmp_path / "named")]
    assert main([fit[0], str(renamed), *fit[2:], "--warm-start", str(run), *named]) == 0
    kept = json.loads((tmp_path / "named" / "fit.json").read_text())["input"]["columns"]
    assert kept == ["a", "b", "c"], "the weights are of these, whatever they are called there"
    again = [*fit, "--output", str(tmp_path / "again"), "--feature-columns"]
    assert main([*again, "c,a,b"]) == 0
    assert main([*again, "c,b,a", "--resume"]) == 2
    assert "begun on other rows of the same data, which are now columns in another order: number 1" in (
        capsys.readouterr().err
    )
    assert main(["export", str(run), "--output", str(tmp_path / "toy" / "1")]) == 0
    align, of = ["align", str(tmp_path / "toy" / "1")], ["--data", str(other)]
    assert main([*align, str(tmp_path / "new"), *of]) == 0
    capsys.readouterr()
    assert main([*align, str(tmp_path / "again"), *of]) == 2
    says = f"{tmp_path / 'again'}: its rows are not the model's: columns in another order: number 0 is 'c'"
    assert says in capsys.readouterr().err


def test_photographs_of_many_sizes_in_a_folder_a_class(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(12):
            size = tuple(random.integers(5, 12, 2))
            image = Image.fromarray(random.integers(level, level + 40, (*size, 3), dtype=np.uint8))
            image.save(tmp_path / "photos" / name / f"{index}.png")
    fit = ["fit", str(tmp_path / "photos"), "--clusters", "2", *SMALL, "--initialisation", "gmm", "--output"]
    assert main([*fit, str(tmp_path / "run")]) == 2
    assert "or bring all images to one size with --resize" in capsys.readouterr().err
    assert main([*fit, str(tmp_path / "run"), "--resize", "8"]) == 0
    assert "24 rows of uint8 (8, 8, 3)" in capsys.readouterr().err
    evaluate = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "photos"), "--resize", "--json"]
    assert main(evaluate) == 0
    assert json.loads(capsys.readouterr().out)["acc"] is None
    assert main([*evaluate, "--label-column", "folder"]) == 0
    assert json.loads(capsys.readouterr().out)["acc"] is not None
    assert (
        main([*evaluate[:-1], "--label-column", "folder", "--data", str(tmp_path / "photos" / "dark")]) == 2
    )
    assert "lies in no folder of its own" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "toy" / "1")]) == 0
    align = ["align", str(tmp_path / "toy" / "1"), str(tmp_path / "run"), "--data", str(tmp_path / "photos")]
    assert main(align) == 2
    assert main([*align, "--resize"]) == 0


def test_all_scores_are_kept(run):
    restarts = json.loads((run / "fit.json").read_text())["restarts"]
    assert [restart["seed"] for restart in restarts] == [0, 1]
    assert all(float(restart["score"]) < 0 for restart in restarts)


def test_export_and_report(run, tmp_path, capsys):
    assert main(["export", str(run), "--output", str(tmp_path / "toy" / "1")]) == 0
    said = capsys.readouterr().out
    assert "equal argmax 100.00 %" in said
    assert "novelty" not in said
    assert main(["export", str(run), "--output", str(tmp_path / "toy" / "2"), "--with-novelty"]) == 0
    said = capsys.readouterr().out
    ratio = json.loads((tmp_path / "toy" / "2" / "manifest.json").read_text())["novelty"]["cost_ratio"]
    assert f"costs {ratio:.2f} times the multiply-accumulates" in said
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"samples.png", "typical.png", "latent.png", "history.png", "index.html"}


def test_fit_again_from_an_old_run(run, table, tmp_path, capsys):
    arguments = ["fit", str(table), "--clusters", "3", "--label-column", "kind", *SMALL]
    arguments += ["--output", str(tmp_path / "new"), "--warm-start"]
    assert main([*arguments, str(run)]) == 0
    assert "warm start: the old run's weights" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "new"), "--data", str(table), "--label-column", "kind"]) == 0
    assert "the old model, the start of this run, as its nets had learned it: ACC" in capsys.readouterr().out
    assert main([*arguments, str(run), "--resume", "--epochs", "2"]) == 0
    assert main([*arguments, str(tmp_path / "new"), "--resume"]) == 2
    assert "another run's weights" in capsys.readouterr().err


def test_layers_of_settings(table, tmp_path, monkeypatch, capsys):
    """Command line over environment over YAML over preset."""
    settings = {
        "clusters": 2,
        "epochs": 1,
        "pretrain_epochs": 1,
        "hidden_sizes": [8],
        "latent_dim": 4,
        "seed": 7,
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("NVISA_FIT_LATENT_DIM", "3")
    monkeypatch.setenv("NVISA_FIT_CLUSTERS", "4")
    arguments = ["fit", str(table), "--label-column", "kind", "--config", str(tmp_path / "fit.yaml")]
    assert main([*arguments, "--clusters", "3", "--gmm-starts", "1", "--output", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["n_clusters"], config["latent_dim"], config["seed"]) == (3, 3, 7)
    assert config["epsilon_every"] == 10, "from the preset"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{table}", "--output", "{tmp}/r"], "--clusters is missing"),
        (["fit", "{tmp}/nothing.npy", "--clusters", "3", "--output", "{tmp}/r"], "no such file"),
        (
            ["fit", "digits", "--clusters", "2000", "--output", "{tmp}/r"],
            "n_samples=1797 should be >= n_clusters",
        ),
        (
            ["fit", "digits", "--clusters", "10", "--output", "{tmp}/r", "--preset", "x"],
            "unknown preset 'x'; there are",
        ),
        (["fit", "digits", "--clusters", "10", "--output", "{tmp}/r", "--wrong", "1"], "--wrong"),
        (
            ["fit", "digits", "--clusters", "10", "--output", "{tmp}/r", "--id-columns", "id"],
            r"digits have no columns, but \['id'\] were named",
        ),
        (
            ["fit", "digits", "--clusters", "10", "--output", "{tmp}/r", "--learning-rate", "0"],
            "learning-rate|learning_rate",
        ),
        (["fit", "digits", "--clusters", "10", "--output", "{table}/r"], "Not a directory|File exists"),
        (["suggest-k", "digits", "--output", "{table}/r"], "Not a directory: .*rows.csv"),
        (["fit", "digits", "--clusters", "10", "--output", "{run}"], "exists already: pass --resume"),
        (["fit", "digits", "--clusters", "10", "--output", "{run}", "--resume"], "run on other data"),
        (
            ["evaluate", "{run}", "--data", "digits"],
            r"its rows are not the model's: uint8 \[8, 8\] \(image\), not float32 \[3\]",
        ),
        (["evaluate", "{tmp}", "--data", "digits"], "it has no fit.json, so it is no run"),
        (
            ["fit", "{table}", "--clusters", "3", "--output", "{tmp}/r", "--warm-start", "{tmp}/none"],
            "none: it has no fit.json",
        ),
        (
            ["fit", "digits", "--clusters", "4", "--output", "{tmp}/r", "--warm-start", "{run}"],
            r"n_clusters is 3 there and 4 here; .*the rows differ, here uint8 \[8, 8\] \(image\), not float32 \[3\]",
        ),
        (["export", "{run}", "--output", "{tmp}/toy"], "NAME/VERSION"),
        (["bake"], "no command 'bake'; there are fit, evaluate, export, report, align, suggest-k"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message, table, run, tmp_path, capsys):
    filled = [part.format(table=table, run=run, tmp=tmp_path) for part in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nvisa-train")
    assert re.search(message, error), error
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "toy").exists()


def test_usage(capsys):
    assert main(["--help"]) == 0
    assert "commands:" in capsys.readouterr().out
    assert main([]) == 2
