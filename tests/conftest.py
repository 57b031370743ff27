"""What holds for all tests."""

from __future__ import annotations

import os

# Before numpy and torch are imported, here and in the processes tests start: these tests multiply small
# matrices, where a second thread only waits for the first, and for long if the machine has other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
