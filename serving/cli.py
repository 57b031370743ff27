"""``nvisa-serve``: the command line of the server."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.configuration import InvalidSettings, load_settings
from serving.logs import set_up_logs
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from serving.worker import SupervisorLink

log = logging.getLogger("serving.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; the exit status.

    Returns
    -------
    int
        0 after an orderly stop, 1 if the server could not start or a part of it died, 2 if the settings
        are wrong.
    """
    try:
        settings = load_settings(ServerSettings, arguments)
    except InvalidSettings as error:
        print(f"nvisa-serve: {error}", file=sys.stderr)
        return 2
    set_up_logs(settings.log_format, settings.log_level)
    log.info("settings", extra=settings.model_dump(mode="json"))
    return asyncio.run(serve(settings) if settings.workers == 1 else _supervise(settings))


async def serve(settings: ServerSettings, link: SupervisorLink | None = None) -> int:
    """Serve until a signal; the exit status. As a worker if there is a ``link`` to a supervisor."""
    # gRPC's core writes a line of its own to standard error for every TLS handshake that fails, which is
    # neither JSON nor bounded: any port scanner could fill the log. Who looks for the cause of one sets the
    # variable to ERROR.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported here: --help and a wrong flag should not wait for gRPC.
    from serving.memory import keep_large_blocks_apart
    from serving.server import Server
    from serving.start_error import StartError

    keep_large_blocks_apart()
    # What has been imported stays for good: the garbage collector need not look through it ever again.
    gc.freeze()
    try:
        server = Server(settings, link=link)
        server.handle_signals()
        return await server.run()
    except StartError as error:
        if link is None:
            log.error("cannot start: %s", error)
        else:
            link.tell_cannot_start(str(error))
        return 1


async def _supervise(settings: ServerSettings) -> int:
    from serving.start_error import StartError
    from serving.supervisor import Supervisor

    try:
        supervisor = Supervisor(settings)
        supervisor.handle_signals()
        return await supervisor.run()
    except StartError as error:
        log.error("cannot start: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
