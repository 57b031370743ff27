"""Pictures of a fitted model, and one HTML page that shows them. Plain arrays in, PNG files out; no torch."""

from training.report.cluster_count import plot_cluster_count
from training.report.history import plot_history
from training.report.latent import plot_latent
from training.report.page import ClusterRow, Section, cluster_rows, write_html
from training.report.tiles import plot_samples, plot_typical, typical_rows

__all__ = [
    "ClusterRow",
    "Section",
    "cluster_rows",
    "plot_cluster_count",
    "plot_history",
    "plot_latent",
    "plot_samples",
    "plot_typical",
    "typical_rows",
    "write_html",
]
