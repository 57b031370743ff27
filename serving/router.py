"""The routes of all models: labels taken from their files, shadows, and which version is the default."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidInput, NotReady, ServingError, UnknownModel
from serving.labels import LABELS_FILE, Labels, LabelsError, check_versions, parse_labels
from serving.metrics import Metrics
from serving.models import Catalogue, Model, ModelState, ReadyModel
from serving.routing import Route
from serving.settings import ServerSettings
from serving.shadow import Shadow, Shadowed

log = logging.getLogger(__name__)

# Callers that come while a model loads are asked to come again after so long: our client's five attempts then
# last for some seconds.
LOADING_RETRY_SECONDS = 1.0


@dataclass
class _Labelling:
    """The labels of one model.

    ``content`` is what the file held when ``labels`` were taken, ``refused`` why it was last refused.
    ``blocked`` says why calls without a version are not answered: no labels were ever in force, and to guess
    could mean to send everybody to a candidate.
    """

    labels: Labels | None = None
    content: bytes | None = None
    refused: str = ""
    blocked: str = "its labels have not been read yet; try again soon"


class Router:
    """Finds what answers a call.

    Parameters
    ----------
    catalogue
        What there is; whoever changes it calls `refresh`.
    settings, metrics
        The server's.
    """

    def __init__(self, catalogue: Catalogue, settings: ServerSettings, metrics: Metrics) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._metrics = metrics
        self._routes: dict[str, Route] = {}
        self._labellings: dict[str, _Labelling] = {}
        self._shadows: dict[str, Shadow] = {}

    def get(self, name: str, version: int = 0, label: str = "", key: str = "") -> ReadyModel:
        """Return what answers a call for ``name``.

        Parameters
        ----------
        version, label
            What the caller asks for: one of them, or neither.
        key
            See `Route.choose`.

        Raises
        ------
        UnknownModel, InvalidInput
            As `find`.
        NotReady
            If it is still loading, or could not be loaded.
        """
        route = self._routes.get(name)
        if route is not None:
            ready = route.named(version, label) if version or label else route.choose(key)
            if ready is not None:
                return ready
        model = self.find(name, version, label)
        state, why = model.told()
        reason = f": {why}" if why else "; try again soon"
        raise NotReady(
            f"model {model.name} version {model.version} is {state}{reason}",
            LOADING_RETRY_SECONDS if state is ModelState.LOADING else None,
        )

    def find(self, name: str, version: int = 0, label: str = "", key: str = "") -> Model:
        """Return the version that a caller asks for, whatever its state.

        With neither number nor label the one that calls with ``key`` go to; without that the default one:
        that with the label ``stable``, else the largest that is READY.

        Raises
        ------
        UnknownModel
            If there is none; the message names those that there are.
        InvalidInput
            If version and label are both given.
        NotReady
            If labels say which is the default one, and cannot be used.
        """
        labelling = self._labellings.get(name)
        labels = labelling.labels if labelling is not None else None
        if version and label:
            raise InvalidInput(f"the call names version {version} and label {label[:64]!r}; set one of them")
        if key and not (version or label) and (route := self._routes.get(name)) is not None:
            chosen = route.choose(key)
            version = chosen.manifest.version if chosen is not None else 0
        if label:
            self._catalogue.able(name)
            versions = labels.versions() if labels is not None else {}
            if label not in versions:
                there = ", ".join(versions) or "none"
                raise UnknownModel(f"model {name!r} has no label {label[:64]!r}; it has {there}")
            version = versions[label]
        elif not version:
            if labels is None:
                model = self._catalogue.able(name)
                if labelling is not None and labelling.blocked and model.state is ModelState.READY:
                    raise NotReady(f"model {name}: {labelling.blocked}")
                return model
            version = labels.stable
        return self._catalogue.find(name, version)

    def labels_of(self, model: Model) -> list[str]:
        """Return the labels that point at ``model``."""
        labelling = self._labellings.get(model.name)
        if labelling is None or labelling.labels is None:
            return []
        return [label for label, version in labelling.labels.versions().items() if version == model.version]

    def check_labels(self, name: str, content: bytes | None) -> Labels | None:
        """Return the labels in ``content``, or ``None`` if there is no labels file.

        Raises
        ------
        LabelsError
            If it cannot be used with the versions that are loaded; the message names the file.
        """
        if content is None:
            return None
        try:
            labels = parse_labels(content)
            loaded = self._catalogue.versions(name)
            check_versions(labels, {m.version: m.manifest.input for m in loaded if m.manifest is not None})
        except LabelsError as error:
            raise LabelsError(f"{self._labels_file(name)}: {error}") from error
        return labels

    def take_labels(self, name: str, content: bytes | None) -> None:
        """Put the labels in ``content`` in force; if they cannot be used the old ones stay.

        To be called again whenever the file or the versions may have changed: what was refused may do now.
        """
        labelling = self._labellings.setdefault(name, _Labelling())
        if content == labelling.content and not labelling.blocked:
            labelling.refused = ""
            self._metrics.versions.labels_stale.labels(name).set(0)
            return
        try:
            labels = self.check_labels(name, content)
        except LabelsError as error:
            self._metrics.versions.labels_stale.labels(name).set(1)
            if labelling.refused != str(error):
                log.error("labels refused", extra={"model": name, "why": str(error)})
            labelling.refused = str(error)
            if labelling.blocked:
                labelling.blocked = str(error)
            return
        self._labellings[name] = _Labelling(labels, content, blocked="")
        self._metrics.versions.labels_stale.labels(name).set(0)
        self.refresh(name)
        if labels is not None or content != labelling.content:
            shown = labels.model_dump(exclude_none=True) if labels is not None else "none"
            log.info("labels in force", extra={"model": name, "labels": shown})

    def refresh(self, name: str) -> None:
        """Make the route of ``name`` anew: its versions or labels have changed."""
        versions = self._catalogue.versions(name)
        if not versions:
            self._forget(name)
            return
        labelling = self._labellings.setdefault(name, _Labelling())
        labels = labelling.labels
        ready = {
            model.version: ReadyModel(model.manifest, model.batcher)
            for model in versions
            if model.answers and model.manifest is not None and model.batcher is not None
        }
        self._shadow(name, labels, ready)
        if labels is None:
            # Not an older one in its place while the largest fails: nobody asked for that.
            default = None if labelling.blocked else ready.get(self._catalogue.able(name).version)
            self._warn_of_other_rows(name, default)
            self._routes[name] = Route(ready, {}, default)
            self._metrics.versions.label(name, {}, {})
            return
        canary = labels.canary
        self._routes[name] = Route(
            ready,
            labels.versions(),
            ready.get(labels.stable),
            ready.get(canary.version) if canary is not None else None,
            canary.share if canary is not None else 0.0,
        )
        self._metrics.versions.label(name, labels.versions(), labels.shares())

    def _warn_of_other_rows(self, name: str, default: ReadyModel | None) -> None:
        """Say that calls which name no version are answered by one that takes other rows than the last."""
        before = self._routes[name].default if name in self._routes else None
        if before is None or default is None:
            return
        if difference := before.manifest.input.difference(default.manifest.input):
            extra = {"model": name, "version": default.manifest.version, "difference": difference}
            log.warning("the new default version takes other rows", extra=extra)

    def why_failing(self, name: str) -> str:
        """Return which version that should answer calls for ``name`` fails, and why; empty if none does."""
        try:
            model = self.find(name)
        except ServingError:
            return ""
        return f"model {model} fails: {model.failing}" if model.failing else ""

    def close(self) -> None:
        """Stop all shadows."""
        for shadow in self._shadows.values():
            shadow.close()
        self._shadows.clear()

    def _shadow(self, name: str, labels: Labels | None, ready: dict[int, ReadyModel]) -> None:
        """Put a shadow behind the stable version in ``ready``, if there is to be one."""
        shadow = self._shadows.get(name)
        wanted = None
        if (
            labels is not None
            and labels.shadow is not None
            and {labels.stable, labels.shadow.version} <= set(ready)
        ):
            wanted = ready[labels.stable], ready[labels.shadow.version]
        if shadow is not None and (wanted is None or (shadow.stable, shadow.shadow) != wanted):
            self._shadows.pop(name).close()
            shadow = None
        if wanted is None:
            return
        if shadow is None:
            settings = self._settings
            shadow = self._shadows[name] = Shadow(
                *wanted,
                self._metrics.versions.of_shadow(name, wanted[1].manifest.version),
                settings.drift_window_rows,
                settings.max_batch_rows,
            )
        stable = wanted[0]
        ready[stable.manifest.version] = ReadyModel(stable.manifest, Shadowed(stable.batcher, shadow))

    def _forget(self, name: str) -> None:
        self._routes.pop(name, None)
        self._labellings.pop(name, None)
        self._metrics.versions.forget_labels(name)
        if name in self._shadows:
            self._shadows.pop(name).close()

    def _labels_file(self, name: str) -> Path:
        return self._settings.model_repository / name / LABELS_FILE
