"""A stand-in for CUDA graphs on a CPU: operations are recorded, undone, and replayed on the same memory.

As in a real capture nothing has happened when it ends, and as in a real replay everything is read from and
written to the tensors that were there when it was recorded, whatever the code refers to by then.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class CUDAGraph(TorchDispatchMode):
    """Records between ``__enter__`` and ``__exit__``."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[Any, Any, Any, Any]] = []
        self.generators: list[torch.Generator] = []
        self.replays = 0

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        schema = function._schema
        for argument, value in [*zip(schema.arguments, args, strict=False)] + [
            (a, kwargs[a.name]) for a in schema.arguments if a.name in kwargs
        ]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    place = tensor.data_ptr(), tensor.shape
                    self._before.setdefault(place, (tensor, tensor.clone()))
        generator = kwargs.get("generator")
        # Each call gets a new Python object of a generator.
        known = generator is None or any(
            torch.equal(generator.get_state(), own.get_state()) for own in self.generators
        )
        assert known, "a generator that the graph does not know"
        found = function(*args, **kwargs)
        self.recorded.append((function, args, kwargs, found))
        return found

    def __enter__(self):
        self._before: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._states = [generator.get_state() for generator in self.generators]
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, before in self.recorded:
                for old, new in zip(tensors(before), tensors(function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def stand_in() -> SimpleNamespace:
    """``torch`` with ``torch.cuda`` as far as a capture needs it."""
    stream = SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def graph(of: CUDAGraph):
        with of:
            yield

    cuda = SimpleNamespace(
        CUDAGraph=CUDAGraph,
        Stream=lambda device: stream,
        current_stream=lambda device: stream,
        stream=lambda given: nullcontext(),
        graph=graph,
    )
    return SimpleNamespace(**vars(torch) | {"cuda": cuda})
