"""BentoML: ``python bentoml_start.py GRAPH PORT`` runs ``bentoml serve`` on ``bentoml_service.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(path: str, port: str) -> None:
    here = Path(__file__).resolve().parent
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "bentoml_service:Assigner"]
    command += ["--host", "127.0.0.1", "--port", port, "--working-dir", str(here)]
    more = {"GRAPH": path, "BENTOML_HOME": str(Path.cwd()), "BENTOML_DO_NOT_TRACK": "True"}
    os.execve(command[0], command, os.environ | more)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
