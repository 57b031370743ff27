"""ClustPy's VaDE in a process (and a virtual environment) of its own, told over stdin what to time.

Each line of stdin is a number of epochs; the answer on stdout is the seconds they took in ClustPy's own
training loop, on its own DataLoader. Pretraining and the mixture before it, which NVISA has too, are left
out.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import torch

KEPT: list[torch.library.Library] = []  # a library's declarations go with it


def allow_torchvision() -> None:
    """Let `torchvision` be imported though its compiled operators do not fit this torch.

    ClustPy imports it. A CPU build of torch beside PyPI's torchvision lacks these operators, none of which
    VaDE uses; declaring those that are asked for at import is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


def main() -> None:
    allow_torchvision()
    from clustpy.deep._data_utils import get_dataloader
    from clustpy.deep.vade import _VaDE_Module, _VaDE_VAE

    path, batch_size = sys.argv[1], int(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = np.load(path)
    loader = get_dataloader(x, batch_size, shuffle=True, drop_last=True)
    network = _VaDE_VAE([x.shape[1], 500, 500, 10]).to(device)
    network.fitted = True
    module = _VaDE_Module(10, 10).to(device)
    optimiser = torch.optim.Adam([*network.parameters(), *module.parameters()], lr=1e-4)
    loss = torch.nn.BCELoss(reduction="sum")
    for line in sys.stdin:
        began = time.perf_counter()
        module.fit(network, loader, loader, int(line), device, optimiser, loss, 1.0, 1.0)
        print(time.perf_counter() - began, file=answers, flush=True)


if __name__ == "__main__":
    main()
