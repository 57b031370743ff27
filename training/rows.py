"""The rows of a fit: a tensor on the training device, or an array of any size that is read batch by batch.

Both are used in the same way: ``len``, ``device``, a slice (a view), ``split`` (parts in order, on the
device) and, for batches in random order, `fetch`. An epoch's order is the same for both, so they train to
the same bits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from serving.manifest import InputSpec
from training.memory import free_bytes

Memory = Literal["auto", "resident", "mapped"]
# Of what is free; the rest is for the model, a step's intermediates, and everybody else.
SHARE = 0.5
READERS = 4
AHEAD = 8
AHEAD_BYTES = 2**24
PART_ROWS = 8192
PART_VALUES = 2**23


class MappedRows:
    """Rows that stay where they are, on disk or in RAM, and come to the device as they are needed.

    Threads read a few batches ahead: a batch of random rows of a file is as many waits for the disk, which
    are best had at the same time. For a GPU they read into pinned memory, from where it is copied beside
    the computation, and the host waits for no copy.

    Parameters
    ----------
    array
        ``(n, *shape)``, of ``dtype`` or a real type that is cast to it.
    dtype
        Of the tensors that are given.
    device
        Where they are given.
    """

    def __init__(self, array: np.ndarray, dtype: str, device: torch.device) -> None:
        self._array = np.asarray(array)
        self._dtype = dtype
        self.device = device
        self.shape = self._array.shape
        # One for all epochs: torch keeps memory apart for each stream.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._array)

    def __getitem__(self, rows: slice) -> MappedRows:
        """Some of the rows; nothing is read."""
        return MappedRows(self._array[rows], self._dtype, self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, in parts of ``size``; the last may be shorter."""
        return self._read(slice(start, start + size) for start in range(0, len(self), size))

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `fetch`."""
        indices = list(batches)
        if not indices:
            return
        if self.device.type == "cpu":
            wanted = [index.numpy() for index in indices]
        else:
            # One wait for the device, before there is anything for it to do.
            flat = torch.cat([index.flatten() for index in indices]).cpu()
            sizes = [index.numel() for index in indices]
            parts = flat.split(sizes)
            wanted = [part.view(index.shape).numpy() for part, index in zip(parts, indices, strict=True)]
        yield from zip(indices, self._read(wanted), strict=True)

    def _read(self, parts: Iterable[slice | np.ndarray]) -> Iterator[Tensor]:
        """The rows of each part, ``AHEAD`` parts being read at a time, or fewer large ones."""
        todo = iter(parts)
        reading: deque[tuple[Tensor, Future[None]]] = deque()
        ahead = AHEAD
        with ThreadPoolExecutor(READERS, "rows") as pool:
            while True:
                while len(reading) < ahead and (part := next(todo, None)) is not None:
                    staged = self._staging(part)
                    reading.append((staged, pool.submit(self._fill, staged, part)))
                    ahead = min(AHEAD, 2 + AHEAD_BYTES // max(1, staged.nbytes))
                if not reading:
                    return
                staged, filled = reading.popleft()
                filled.result()
                yield staged if self._copies is None else _copied(staged, self.device, self._copies)

    def _staging(self, part: slice | np.ndarray) -> Tensor:
        # Pinned blocks come from torch's cache, which gives none out again before its copy is done.
        count = (len(range(*part.indices(len(self)))),) if isinstance(part, slice) else part.shape
        dtype = getattr(torch, self._dtype)
        return torch.empty((*count, *self.shape[1:]), dtype=dtype, pin_memory=self.device.type == "cuda")

    def _fill(self, staged: Tensor, part: slice | np.ndarray) -> None:
        staged.numpy()[...] = self._array[part]


Rows = Tensor | MappedRows


def _copied(staged: Tensor, device: torch.device, copies: torch.cuda.Stream) -> Tensor:
    """Copy pinned rows to the device beside what it is doing; the present stream waits, the host does not."""
    with torch.cuda.stream(copies):
        rows = staged.to(device, non_blocking=True)
    present = torch.cuda.current_stream(device)
    present.wait_stream(copies)
    rows.record_stream(present)
    return rows


def fetch(rows: Rows, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches with their rows: of each index ``(B,)``, on the device of ``rows``, itself and ``rows[index]``.

    The order must not depend on what is done with the batches: those of `MappedRows` are read ahead.
    """
    if isinstance(rows, MappedRows):
        return rows.fetch(batches)
    return ((index, rows[index]) for index in batches)


def part_rows(shape: Sequence[int], most: int = PART_ROWS, values: int = PART_VALUES) -> int:
    """How many of the rows of an array of ``shape`` to take at once where all are gone through in order."""
    return max(1, min(most, values // math.prod(shape[1:])))


def moments(rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and std (divisor n) of each value of a row, two of ``(D,)`` in float64.

    Parts are merged by Chan, Golub & LeVeque's update, so that neither a copy of the rows in float64 is
    made nor large means swamp small variances.
    """
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64, device=rows.device)
    for part in rows.split(part_rows(rows.shape, values=PART_VALUES // 4)):
        x = part.flatten(1).to(torch.float64, copy=True)
        own_mean = x.mean(0)
        delta = own_mean - mean
        total = count + len(x)
        own_squares = x.sub_(own_mean).square_().sum(0)
        squares = squares + own_squares + delta.square() * (count * len(x) / total)
        mean = mean + delta * (len(x) / total)
        count = total
    return mean, (squares / count).sqrt()


def place(
    x: np.ndarray, spec: InputSpec, device: torch.device, memory: Memory, say: Callable[[str], None]
) -> Rows:
    """Put rows on ``device``, or leave them where they are: ``auto`` leaves what would fill half of it.

    Parameters
    ----------
    x
        ``(n, *spec.shape)``, possibly memory-mapped.
    say
        Hears of rows that ``auto`` leaves where they are.
    """
    ready = device.type == "cpu" and x.dtype == spec.dtype and not is_mapped(x)
    size = n_bytes(len(x), spec)
    if memory == "auto" and not ready and size > SHARE * (free := free_bytes(device)):
        say(
            f"{sized(size)} of rows are more than half of the {sized(free)} that are free on the {device}: "
            f"read batch by batch from {'disk' if is_mapped(x) else 'RAM'}"
        )
        memory = "mapped"
    if memory == "mapped":
        return MappedRows(x, spec.dtype, device)
    if not is_mapped(x):
        return torch.from_numpy(np.require(x, spec.dtype, ["C", "W"])).to(device)
    rows = torch.empty(x.shape, dtype=getattr(torch, spec.dtype), device=device)
    size = part_rows(x.shape)
    for index, part in enumerate(MappedRows(x, spec.dtype, device).split(size)):
        rows[index * size : (index + 1) * size] = part
    return rows


def is_mapped(x: np.ndarray) -> bool:
    """Whether an array, or what it is a view of, is a memory-mapped file."""
    owner: object = x
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    return False


def n_bytes(n_rows: int, spec: InputSpec) -> int:
    """Size of rows as a model takes them."""
    return n_rows * spec.row_size * np.dtype(spec.dtype).itemsize


def sized(size: int) -> str:
    """A number of bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
