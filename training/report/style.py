"""The look all pictures share: colours, type, and how a figure becomes a file.

Figures are made without pyplot, so that drawing leaves no state behind and works in any thread.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#6b7785"
FAINT = "#d9dee4"
EMPTY = "#eef1f4"
ACCENT = "#1f5fa8"
SECOND = "#d1651b"
DPI = 150
MARKERS = "os^Dv"


def new_figure(width: float, height: float) -> Figure:
    """Make an empty white figure of ``width`` by ``height`` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path`` as PNG, making its directory if need be; returns ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path


def titles(figure: Figure, title: str, note: str = "") -> None:
    """Set ``title`` in bold above the figure, with ``note`` in a quieter line under it."""
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.02, ha="left")
    if note:
        # A line of its own: constrained layout keeps room for one suptitle only.
        figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold", color=INK, x=0.02, ha="left")
        height = figure.get_figheight()
        figure.text(0.02, 1 - 0.42 / height, note, fontsize=9, color=MUTED, ha="left", va="center")


def plain_axes(axes: Axes) -> None:
    """Take away the box around ``axes`` and quieten its ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def cluster_style(index: int, n_clusters: int) -> tuple[tuple[float, float, float], str]:
    """Colour and marker of a cluster.

    Up to ten clusters take a palette chosen for colour-blind readers and one marker; up to twenty the
    twenty colours of ``tab20``; beyond that colours repeat with another marker.
    """
    palette = color_sequences["petroff10" if n_clusters <= 10 else "tab20"]
    return to_rgb(palette[index % len(palette)]), MARKERS[index // len(palette) % len(MARKERS)]
