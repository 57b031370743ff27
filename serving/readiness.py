"""Whether a server takes calls, and why not, shown wherever somebody looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.health import HealthService
from serving.metrics import Metrics
from serving.repository import Repository

if TYPE_CHECKING:
    from serving.worker import SupervisorLink


class Readiness:
    """Shows the part of its life that a server is in, and within that which takes calls, what fails.

    Parameters
    ----------
    repository
        Of which no model may fail.
    health, metrics
        Where it shows.
    link
        To the supervisor, who is told, too, if there is one.

    Attributes
    ----------
    why_not
        Why calls are not taken; empty if they are.
    """

    def __init__(
        self, repository: Repository, health: HealthService, metrics: Metrics, link: SupervisorLink | None
    ) -> None:
        self._repository = repository
        self._health = health
        self._metrics = metrics
        self._link = link
        self._phase = self.why_not = "starting"

    def enter(self, phase: str) -> None:
        """Go on to another part of the server's life; "" is that in which it takes requests."""
        self._phase = phase
        self.show()

    def show(self) -> None:
        """Show what has changed: models may fail, or work again."""
        why_not = self._phase or self._repository.why_failing()
        if why_not == self.why_not:
            return
        self.why_not = why_not
        self._health.set_ready(not why_not)
        self._metrics.ready.set(not why_not)
        if self._link is not None:
            self._link.tell(why_not)
