"""From measures of every K to a suggestion in plain words, or to several, or to none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from training.cluster_count import Measure

# How much better separated than a Gaussian cloud's pieces clusters must be to be called clusters.
SILHOUETTE_MARGIN = 0.1
# How much less stable than the best a K may be, at the least and the most; between them, the best one's std.
STABILITY_TOLERANCE = (0.02, 0.05)
UNSTABLE = 0.6
LIMITS = (
    "This looks at the start of a fit, Gaussian mixtures on one embedding of the rows, not at NVISA's own "
    "clusters, and chance in the embedding itself is not in the stability. Clusters may have parts, and "
    "which level is useful only you can say: fit the candidates, and look at their reports."
)


class Suggestion(BaseModel):
    """A suggested number of clusters.

    Attributes
    ----------
    structure
        Whether at any K the clusters are further apart than those of a Gaussian cloud.
    by_criterion
        The K that each criterion would choose: ``bic``, ``silhouette``, ``stability``.
    suggested
        The K's to try, the one most criteria are for first; none without structure.
    words
        What to make of it, a sentence or two each.
    """

    model_config = ConfigDict(frozen=True)

    structure: bool
    by_criterion: dict[str, int]
    suggested: tuple[int, ...]
    words: tuple[str, ...]


def suggest(measures: Sequence[Measure]) -> Suggestion:
    """Judge the measures of consecutive K's.

    BIC chooses its minimum, the silhouette its maximum, and the stability the largest K that is as stable as
    the best: few, coarse clusters are stable as well.
    """
    ks = [m.k for m in measures]
    silhouettes = np.nan_to_num([m.silhouette for m in measures], nan=-1.0)
    clouds = np.nan_to_num([m.cloud_silhouette for m in measures], nan=-1.0)
    stabilities = np.array([m.stability for m in measures])
    best = int(stabilities.argmax())
    tolerance = float(np.clip(measures[best].stability_std, *STABILITY_TOLERANCE))
    by_criterion = {
        "bic": ks[int(np.argmin([m.bic for m in measures]))],
        "silhouette": ks[int(silhouettes.argmax())],
        "stability": max(
            k for k, s in zip(ks, stabilities, strict=True) if s >= stabilities[best] - tolerance
        ),
    }
    structure = bool((silhouettes - clouds).max() > SILHOUETTE_MARGIN)
    votes = Counter(by_criterion.values())
    suggested = tuple(sorted(votes, key=lambda k: (-votes[k], k))) if structure else ()
    words = [_verdict(by_criterion, structure, float(silhouettes.max()), float(clouds.max()))]
    if structure:
        words += _cautions(by_criterion, ks, float(stabilities[best]))
    return Suggestion(
        structure=structure, by_criterion=by_criterion, suggested=suggested, words=(*words, LIMITS)
    )


def _verdict(by_criterion: dict[str, int], structure: bool, silhouette: float, cloud: float) -> str:
    if not structure:
        return (
            "No structure found: at no K are the clusters clearly further apart than pieces of a single "
            f"Gaussian cloud of the same spread (silhouette at most {silhouette:.2f}, there {cloud:.2f}). "
            "Any K will cut these rows into pieces, but nothing says that they are clusters, or how many."
        )
    counts = Counter(by_criterion.values())
    (first, votes), *_ = counts.most_common()
    if votes == 3:
        return f"All three criteria say {first} clusters."
    if votes == 2:
        name, other = next((name, k) for name, k in by_criterion.items() if k != first)
        return f"Two of three criteria say {first} clusters; {_NAMES[name]} says {other}."
    said = ", ".join(f"{_NAMES[name]} says {k}" for name, k in by_criterion.items())
    return f"The criteria disagree: {said}. None of them is to be trusted alone."


_NAMES = {"bic": "BIC", "silhouette": "the silhouette", "stability": "stability"}


def _cautions(by_criterion: dict[str, int], ks: list[int], stability: float) -> list[str]:
    said = []
    if by_criterion["bic"] == ks[-1] and len(ks) > 1:
        said.append(
            f"BIC is still falling at K = {ks[-1]}: clusters that are no Gaussians take several components "
            "each, so this may mean nothing; a larger --to tells whether it ends."
        )
    for name in ("silhouette", "stability"):
        if by_criterion[name] in (ks[0], ks[-1]) and len(ks) > 1:
            said.append(
                f"For {_NAMES[name].removeprefix('the ')} the best K, {by_criterion[name]}, is at the end of "
                "the range: a wider one may show a better."
            )
    if stability < UNSTABLE:
        said.append(
            f"No K is stable (ARI at most {stability:.2f}): halves of the rows give different clusters."
        )
    return said


def table(measures: Sequence[Measure], suggestion: Suggestion) -> str:
    """K, BIC, silhouette, stability as text; a star marks each criterion's choice, if there is structure."""
    header = ("K", "BIC", "silhouette", "stability", "a cloud's silhouette", "stability")
    lines = [header]
    for m in measures:
        star = {
            name: "*" if k == m.k and suggestion.structure else " "
            for name, k in suggestion.by_criterion.items()
        }
        lines.append(
            (
                str(m.k),
                f"{m.bic:,.0f}{star['bic']}",
                f"{m.silhouette:.3f}{star['silhouette']}",
                f"{m.stability:.3f} ± {m.stability_std:.3f}{star['stability']}",
                f"{m.cloud_silhouette:.3f}",
                f"{m.cloud_stability:.3f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
