"""One HTML page that shows the pictures of a run, its numbers, and its clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined

from training.report.style import cluster_style

TEMPLATE = "report.html.j2"


class Section(NamedTuple):
    """A picture with its heading and what it shows.

    Attributes
    ----------
    heading
        A few words.
    explanation
        What is to be seen, in a sentence or two.
    picture
        Name of a PNG file beside the page.
    alt
        What the picture shows, for those who cannot see it; by default the heading.
    """

    heading: str
    explanation: str
    picture: str
    alt: str = ""


class ClusterRow(NamedTuple):
    """One line of the table of clusters: share in [0, 1], confidence ``None`` where there are no rows."""

    id: int
    name: str
    rows: int
    share: float
    mean_confidence: float | None


def cluster_rows(
    clusters: np.ndarray, confidences: np.ndarray, n_clusters: int, names: Sequence[str] | None = None
) -> list[ClusterRow]:
    """Count rows and average confidences by cluster.

    Parameters
    ----------
    clusters, confidences
        Assigned cluster and its probability of each row ``(n,)``.
    n_clusters
        Number of clusters; those without rows are listed too.
    names
        A name per cluster; by default ``cluster 0`` and so on.
    """
    sizes = np.bincount(clusters, minlength=n_clusters)
    sums = np.bincount(clusters, weights=confidences, minlength=n_clusters)
    total = max(int(sizes.sum()), 1)
    return [
        ClusterRow(
            id=index,
            name=names[index] if names is not None else f"cluster {index}",
            rows=int(sizes[index]),
            share=float(sizes[index] / total),
            mean_confidence=float(sums[index] / sizes[index]) if sizes[index] else None,
        )
        for index in range(n_clusters)
    ]


def write_html(
    path: Path,
    title: str,
    summary: Mapping[str, object],
    sections: Sequence[Section | tuple[str, str, str]],
    clusters: Sequence[ClusterRow] = (),
) -> Path:
    """Write a page without scripts or outside resources; its pictures lie beside it.

    Parameters
    ----------
    path
        HTML file to write.
    title
        Title of the page.
    summary
        Names and values, in their order; ``None`` shows as a dash, a float with four digits.
    sections
        Heading, explanation and file name of each picture.
    clusters
        Lines of the table of clusters; no table if there are none.

    Raises
    ------
    FileNotFoundError
        If a picture is not beside the page, which would show a gap.
    """
    path = Path(path)
    shown = [Section(*section) for section in sections]
    missing = [section.picture for section in shown if not (path.parent / section.picture).is_file()]
    if missing:
        raise FileNotFoundError(f"{path.parent} has no {', '.join(missing)}; draw the pictures first")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files("training") / "templates" / TEMPLATE).read_text("utf-8"))
    largest = max((row.share for row in clusters), default=0.0) or 1.0
    html = template.render(
        title=title,
        summary={name: _text(value) for name, value in summary.items()},
        sections=[section._replace(alt=section.alt or section.heading) for section in shown],
        clusters=[
            {
                "row": row,
                "confidence": "–" if row.mean_confidence is None else f"{row.mean_confidence:.3f}",
                "bar": f"{100 * row.share / largest:.1f}",
                "colour": _hex(row.id, len(clusters)),
            }
            for row in clusters
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html + "\n", encoding="utf-8")
    return path


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return f"{number:.4g}" if abs(number) >= 1e4 or 0 < abs(number) < 1e-3 else f"{number:.4f}"
    return str(value)


def _hex(index: int, n_clusters: int) -> str:
    red, green, blue = cluster_style(index, n_clusters)[0]
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
