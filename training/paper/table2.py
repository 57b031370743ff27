"""Table II: variational inference methods on MNIST, each row a configuration of the same code."""

from __future__ import annotations

from typing import Any

from training.config import TrainingConfig, load_preset
from training.paper.datasets import DataSet
from training.paper.plan import Configure, Method, Table
from training.paper.table1 import QUICK_EPOCHS, QUICK_PRETRAIN_EPOCHS

SEEDS = tuple(range(5))

# The quick table: rows, seeds, and five stages of ε from 1 to 1/16 or as many epochs without annealing.
QUICK_ROWS = 10_000
QUICK_SEEDS = (0,)
QUICK = {"epsilon_every": 5, "epsilon_floor": 1 / 16}
# A step's time is in proportion to M, so that M = 1000 is out of reach of two cores: with a tenth of the
# samples, a quarter of the batch and fewer epochs a row takes more steps than others, in twice their time.
QUICK_MANY = {"n_importance_samples": 100, "batch_size": 32, "epsilon_every": 2, "epsilon_floor": 1 / 16}

# Without annealing the bounds of the stds are at their last value from the beginning (§III-D).
LAST_EPSILON = 1e-4

NOTE = (
    "ACC in per cent on the test rows. \\*: with std annealing. A run has diverged, and is N/A with the "
    "step, at the end of the first epoch whose loss is not finite or whose bound lies far below all before "
    "it (`training/divergence.py`): these rows may not go back an epoch and halve the learning rate, as "
    "NVISA's fits otherwise do. NVIL and Gumbel-Softmax (the paper's footnote 2) draw one sample a row, as "
    "their authors do. *Quoted* is the paper's Table II."
)

# key, group, title, hyper-parameters, annealed
ROWS: tuple[tuple[str, str, str, dict[str, Any], bool], ...] = (
    ("enum-bernoulli", "EnumY", "NVISA (Bernoulli)", {"objective": "elbo", "likelihood": "bernoulli"}, False),
    ("enum", "EnumY", "NVISA", {"objective": "elbo"}, False),
    ("enum-annealed", "EnumY", "NVISA\\*", {"objective": "elbo"}, True),
    ("nvil", "NVIL", "NVISA", {"objective": "nvil", "n_importance_samples": 1}, False),
    ("nvil-annealed", "NVIL", "NVISA\\*", {"objective": "nvil", "n_importance_samples": 1}, True),
    ("gumbel", "Gumbel-Softmax", "NVISA", {"objective": "gumbel"}, False),
    ("gumbel-annealed", "Gumbel-Softmax", "NVISA\\*", {"objective": "gumbel"}, True),
    ("vimco", "VIMCO", "NVISA", {}, False),
    ("vimco-bernoulli", "VIMCO", "NVISA (Bernoulli)", {"likelihood": "bernoulli"}, False),
    ("vimco-1000", "VIMCO", "NVISA (1000 samples)", {"n_importance_samples": 1000}, False),
    ("vimco-1000-annealed", "VIMCO", "NVISA\\* (1000 samples)", {"n_importance_samples": 1000}, True),
    ("vimco-mean-field-annealed", "VIMCO", "NVISA\\* (mean-field)", {"mean_field": True}, True),
    ("vimco-annealed", "VIMCO", "NVISA\\*", {}, True),
)


def _row(changes: dict[str, Any], annealed: bool, quick: bool) -> Configure:
    def configure(_: DataSet) -> dict[str, Any]:
        schedule = load_preset("paper")
        many = changes.get("n_importance_samples", 0) > 100
        if quick:
            schedule |= QUICK_MANY if many else QUICK
        own = schedule | {"max_rollbacks": 0} | changes
        if quick and many:
            own["n_importance_samples"] = QUICK_MANY["n_importance_samples"]
        if not annealed:
            epochs = total_epochs(own)
            own |= {"epsilon_x": LAST_EPSILON, "epsilon_z": LAST_EPSILON, "epsilon_factor": 1.0}
            own["epochs"] = epochs
        return own

    return configure


def total_epochs(values: dict[str, Any]) -> int:
    """Epochs of an annealed run of these hyper-parameters, which one without annealing runs too."""
    return TrainingConfig.model_validate(values).total_epochs


def table_2(quick: bool) -> Table:
    """Rows of the table, the paper's schedules or short ones."""
    most = QUICK_ROWS if quick else None
    short = {"pretrain_epochs": QUICK_PRETRAIN_EPOCHS, "epochs": QUICK_EPOCHS} if quick else {}
    previous = [
        Method(key, title, lambda _: dict(short), "Previous", baseline=key, max_rows=most)
        for key, title in (("gmvae", "GMVAE"), ("vade", "VaDE"))
    ]
    # A short run's title says how many samples it really takes.
    many = f"{QUICK_MANY['n_importance_samples']} samples, for 1000" if quick else "1000 samples"
    own = [
        Method(
            key,
            title.replace("1000 samples", many),
            _row(changes, annealed, quick),
            group,
            max_rows=most,
        )
        for key, group, title, changes, annealed in ROWS
    ]
    note = NOTE
    if quick:
        note = (
            f"**Quick**: {QUICK_ROWS:,} training rows, {len(QUICK_SEEDS)} seed, five stages of ε from 1 to "
            f"1/16 in place of the paper's fourteen, M = {QUICK_MANY['n_importance_samples']} in place of "
            f"1000 (`training/paper/table2.py`). {note}"
        )
    return Table(
        "table2-quick" if quick else "table2",
        "Table II: variational inference on MNIST",
        note,
        (*previous, *own),
        ("mnist",),
        QUICK_SEEDS if quick else SEEDS,
    )
