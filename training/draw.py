"""The report of a fit: from the fitted model to the pictures of `training.report`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training import inference
from training.fitted import Fitted
from training.report import (
    ClusterRow,
    Section,
    plot_history,
    plot_latent,
    plot_samples,
    plot_typical,
    write_html,
)

SAMPLES_PER_CLUSTER = 10
PRIOR_SAMPLES = 1_000


def draw(fitted: Fitted, output: Path) -> Path:
    """Draw ``fitted`` into directory ``output`` and return the path of the HTML page.

    Colours are those of the assigned clusters; no labels are used.
    """
    model, seed = fitted.model, fitted.config.seed
    n_clusters, shape = fitted.config.n_clusters, fitted.spec.shape
    # Bytes of another layout, a vector or channels first, are shown as profiles.
    picture = fitted.spec.meaning == "image" and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))
    output.mkdir(parents=True, exist_ok=True)

    y = np.repeat(np.arange(n_clusters), SAMPLES_PER_CLUSTER)
    generated = inference.decode(model, inference.sample_prior(model, y, seed))
    plot_samples(
        output / "samples.png",
        generated.reshape(n_clusters, SAMPLES_PER_CLUSTER, *shape),
        picture,
        fitted.spec.columns,
    )
    rows = fitted.rows
    shares = np.array(rows.reference.cluster_shares)
    sizes = np.rint(shares * rows.reference.rows).astype(int)
    plot_typical(output / "typical.png", rows.typical, picture, sizes, fitted.spec.columns)

    clusters = inference.probabilities(model, rows.sample).argmax(1)
    latent = inference.sample_posterior(model, rows.sample, seed)
    prior_y = np.random.default_rng(seed).integers(n_clusters, size=PRIOR_SAMPLES)
    plot_latent(
        output / "latent.png",
        latent,
        clusters,
        inference.sample_prior(model, prior_y, seed),
        prior_y,
        seed=seed,
        n_clusters=n_clusters,
    )
    plot_history(output / "history.png", fitted.histories, fitted.chosen)

    restart = fitted.restarts[fitted.chosen]
    summary = {
        "data": fitted.data["name"],
        "training rows": f"{fitted.data['rows']:,}",
        "clusters": n_clusters,
        "empty clusters": int((sizes == 0).sum()),
        "objective": fitted.config.objective,
        "start": fitted.start_name,
        "epochs": restart.epochs,
        "seed": restart.seed,
        "runs": len(fitted.restarts),
        "warm bound of the chosen run, nats": restart.score,
    }
    sections = [
        Section(
            "Typical rows",
            "Training rows nearest to the centre of their cluster in latent space. A row of mixed things is "
            "a cluster that mixes them.",
            "typical.png",
        ),
        Section(
            "Generated samples",
            "What the model draws for each cluster: z from p(z|y), then the mean of p(x|z) "
            "(the paper's Fig. 3).",
            "samples.png",
        ),
        Section(
            "Latent space",
            "Rows as encoded, beside draws from the prior, in one t-SNE (the paper's Fig. 4). Separate "
            "islands are well-separated clusters; distances between islands mean little.",
            "latent.png",
        ),
        Section(
            "Training curves",
            "Bound of log p(x), the annealed lower bounds of the standard deviations, and the learning rate "
            "(the paper's Fig. 2). A smaller ε allows a higher bound; a dip "
            "right after a halving should heal within the stage.",
            "history.png",
        ),
    ]
    table = [
        ClusterRow(index, name, int(size), float(share), None if np.isnan(sure) else float(sure))
        for index, (name, size, share, sure) in enumerate(
            zip(fitted.cluster_names, sizes, shares, rows.mean_confidence, strict=True)
        )
    ]
    return write_html(
        output / "index.html", f"NVISA: {Path(fitted.data['name']).name}", summary, sections, table
    )
