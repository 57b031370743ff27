"""The README's numbers are those of the committed results, and its files are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def result(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


@pytest.mark.parametrize(("method", "values"), result("digits.json")["acc"].items())
def test_digits_table(method, values):
    each = ", ".join(f"{value:.3f}" for value in values)
    assert f"| {method} | {np.mean(values):.3f} ± {np.std(values):.3f} | {each} |" in README


def test_mnist_table():
    found = result("mnist-quick.json")
    for method, key in (("AE+GMM (NVISA's start)", "acc_of_start_ae_gmm"), ("NVISA", "acc")):
        values = [run[key] for run in found["runs"]]
        each = ", ".join(f"{value:.4f}" for value in values)
        assert f"| {method} | {np.mean(values):.4f} ± {np.std(values):.4f} | {each} |" in README
    assert set(found["rows_that_differ_from_evaluate"].values()) == {0}, "README says that they agree"


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
