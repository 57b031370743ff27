"""Whether a caller left because of its deadline, or for a reason of its own."""

from __future__ import annotations

# A caller ends its call at its own deadline, which is earlier than the server's by the call's way here; what
# comes then looks like any other cancellation.
SLACK_SECONDS = 0.02


def is_at_deadline(remaining: float | None) -> bool:
    """Whether a call that ends with ``remaining`` seconds to its deadline ends because of it.

    ``None``, no deadline, never is.
    """
    return remaining is not None and remaining <= SLACK_SECONDS
