"""Numbers the paper gives, in per cent: Li et al. (2020), Tables I and II.

In Table I the authors took some of them from the methods' own papers. They are shown beside what was
measured, marked as quoted, and nothing else uses them.
"""

from __future__ import annotations

COLUMNS = ("mnist", "fashion-mnist", "stl10", "cifar10", "cifar100")

# By the key of the method in `training.paper.table1`, else by its name in the paper.
TABLE_1: dict[str, tuple[str, ...]] = {
    "ae-gmm": ("84.27", "53.83", "76.18", "43.66", "29.41"),
    "vae-gmm": ("76.87", "53.43", "82.42", "59.4", "30.81"),
    "dec": ("84.30", "57.58", "84.08", "70.31", "31.22"),
    "GM-GAN": ("99.24", "58.16", "–", "–", "–"),
    "gmvae": ("88.54", "50.15", "65.72", "49.79", "14.46"),
    "vade": ("94.46", "56.12", "84.45", "59.69", "23.58"),
    "LTVAE-GMM": ("86.31", "55.69", "81.66", "63.51", "16.98"),
    "LTVAE-full": ("86.32", "61.32", "90.00", "69.16", "38.52"),
    "nvisa-random": ("96.55 ± 2.64", "62.63 ± 2.92", "89.15 ± 2.36", "71.37 ± 2.79", "37.32 ± 0.70"),
    # §III-B; on MNIST only.
    "nvisa-gmm": ("98.04 ± 0.17", "–", "–", "–", "–"),
}

# By the key of the row in `training.paper.table2`.
TABLE_2: dict[str, str] = {
    "gmvae": "88.54",
    "vade": "94.46",
    "enum-bernoulli": "95.12",
    "enum": "78.43",
    "enum-annealed": "93.81",
    "nvil": "N/A",
    "nvil-annealed": "N/A",
    "vimco": "N/A",
    "vimco-bernoulli": "95.74",
    "vimco-1000": "71.42",
    "vimco-1000-annealed": "91.3",
    "vimco-mean-field-annealed": "95.25",
    "vimco-annealed": "98.40",
    # Footnote 2.
    "gumbel-annealed": "around 80",
}
