"""The ONNX graph of q(y|x), with all preprocessing inside."""

from __future__ import annotations

import copy
import logging
import warnings

import onnx
import torch
from torch import Tensor, nn

from serving.manifest import CLUSTER, INPUT_NAME, NOVELTY, PROBABILITIES
from training.fitted import Fitted
from training.model import NVISAModel
from training.novelty import NoveltyHead, Ranks, terms

OPSET = 18


class _Assigner(nn.Module):
    def __init__(self, model: NVISAModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows -> probabilities and cluster."""
        q = self.model(x)
        return q, q.argmax(-1)


class _AssignerWithNovelty(nn.Module):
    def __init__(self, model: NVISAModel, ranks: Ranks) -> None:
        super().__init__()
        self.model = model
        self.head = NoveltyHead(ranks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw rows -> probabilities, cluster and novelty."""
        of_rows = terms(self.model, self.model.preprocess(x))
        return of_rows.log_q_y.exp(), of_rows.cluster, self.head(of_rows)


def to_onnx(fitted: Fitted, ranks: Ranks | None = None) -> bytes:
    """The graph of q(y|x) with preprocessing inside: ``x (N, *shape)`` -> probabilities, cluster.

    With ``ranks`` it has a third output, novelty.
    """
    # A copy: moving the model itself would leave its owner, on a GPU until now, on the CPU.
    copied = copy.deepcopy(fitted.model).cpu()
    model = (_Assigner(copied) if ranks is None else _AssignerWithNovelty(copied, ranks)).eval()
    dtype = getattr(torch, fitted.spec.dtype)
    example = torch.zeros((2, *fitted.spec.shape), dtype=dtype)
    # The exporter warns of its own internals; what matters is checked on the graph below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(output_names(ranks)),
            dynamic_shapes={"x": {0: torch.export.Dim("n", min=1)}},
        )
    assert program is not None
    proto = program.model_proto
    # Where each node came from in the source: paths of this machine have no place in a bundle.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def output_names(ranks: Ranks | None) -> tuple[str, ...]:
    """Names of the graph's outputs, in order; with ``ranks`` novelty is one of them."""
    return (PROBABILITIES, CLUSTER) if ranks is None else (PROBABILITIES, CLUSTER, NOVELTY)
