"""The README's numbers are those of the committed results, and its files are there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_committed_results():
    assert tables().with_tables(README) == README, "run python benchmarks/tables.py"


def test_every_result_has_its_table():
    shown = set(re.findall(r"<!-- table: (\S+) -->", README))
    files = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert shown == files | {"paper", "starts"}


def test_every_run_of_the_paper_is_of_a_table_that_is_shown():
    from training.paper.order import TABLES, folder_name

    known = {folder_name(kind, quick): kind for kind in TABLES for quick in (True, False)}
    for folder in (ROOT / "benchmarks" / "results" / "paper").glob("*/"):
        if folder.name.startswith("figures"):
            continue
        methods = {
            method.key for method in TABLES[known[folder.name]](folder.name.endswith("-quick")).methods
        }
        for path in folder.glob("*/*.json"):
            assert json.loads(path.read_text())["method"] in methods, path


def test_the_ways_of_assigning_agree():
    for path in (ROOT / "benchmarks" / "results").glob("*-quick-*.json"):
        assert set(result(path.name)["rows_that_differ_from_evaluate"].values()) == {0}


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_commands_exist():
    scripts = (ROOT / "pyproject.toml").read_text()
    for command in set(re.findall(r"nvisa-[a-z]+", README)):
        assert f"{command} =" in scripts, command


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_tests_that_are_named_are_there():
    named = re.findall(r"`(\w+/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "tests" / "README.md").read_text())
    assert len(named) > 30
    for path, name in named:
        assert (
            f"def {name}(" in (ROOT / "tests" / path).read_text()
            if name
            else (ROOT / "tests" / path).exists()
        )
