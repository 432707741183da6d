"""How near does training come to the time of the matrix products that it cannot avoid?

    python benchmarks/floor.py [--rounds 5] [--threads 1] [--row-lengths 100:256]

The floor of an epoch: for every batch and every linear layer of the frozen model, the product of its real tokens with
the weight, and the product of the gradient with the weight on the way back; and the LM head's two on the supervised
tokens alone. The first layer's way back into the text's embeddings is left out, for nothing needs it. No padding, no
virtual tokens, no attention, no norms, no optimizer: a step contains all of these products and more. They are timed
with PyTorch's own products (`floor-torch`) and with oneDNN's kernel (`floor-onednn`), in turn with training on the same
rows. The ratio `floor / contender` is the share of a contender's time that those products alone would take. Where the
machine multiplies bfloat16 itself, floors and contenders take part in both precisions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import contenders
import workload
from harness import Answer, Benchmark, Case, Settings, command_line, held_gib, main, measuring
from ptune.loading.place import cpu_multiplies_bfloat16

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(N, I) and a weight (O, I) → (N, O)."""


def onednn_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The kernel of oneDNN, which PyTorch brings along and its compiler calls."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001
    return result


PRODUCTS: dict[str, Product] = {"floor-torch": F.linear, "floor-onednn": onednn_product}
PRECISIONS = ("float32", "bfloat16")
READS_EMBEDDINGS = ("q_proj", "k_proj", "v_proj", "query_key_value", "c_attn")
"""Layers that, in the first block, read the embeddings alone."""


def work(contender: str, settings: Settings) -> Answer:
    """The floor's products, or a contender's training."""
    name, dtype = contender.split(" ")
    settings = {**settings, "dtype": dtype}
    if name not in PRODUCTS:
        return contenders.train(name, settings)
    with torch.no_grad():
        return _floor(PRODUCTS[name], settings)


def _floor(product: Product, settings: Settings) -> Answer:
    loaded = workload.load(settings)
    layers = linear_layers(loaded.base)
    head = loaded.base.get_output_embeddings().weight
    warm_up, batches = (batch_sizes(rows, settings["batch"]) for rows in (loaded.warm_up, loaded.rows))
    loaded_gib = held_gib(settings["device"])
    inputs = make_inputs(max(tokens for tokens, _ in warm_up + batches), [*(weight for weight, _ in layers), head])
    run_products(warm_up, layers, head, product, inputs)
    with measuring(settings["device"], loaded_gib=loaded_gib) as measured:
        flops = run_products(batches, layers, head, product, inputs)
    return contenders.answer(measured, loaded, settings, gflop=flops / 1e9, batches=len(batches))


def linear_layers(model: PreTrainedModel) -> list[tuple[torch.Tensor, bool]]:
    """Each linear layer's weight as (O, I), the LM head's apart, and whether a gradient must go back through it."""
    found, seen = [], set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is model.get_output_embeddings():
            continue
        kind = name.rsplit(".", 1)[-1]
        first = kind in READS_EMBEDDINGS and kind not in seen
        seen.add(kind)
        found.append((module.weight.t() if isinstance(module, Conv1D) else module.weight, not first))
    return found


def batch_sizes(rows: Sequence[dict[str, list[int]]], batch: int) -> list[tuple[int, int]]:
    """(tokens, supervised tokens) of each batch of rows."""
    counts = [(len(row["labels"]), sum(one >= 0 for one in row["labels"])) for row in rows]
    parts = [counts[start : start + batch] for start in range(0, len(counts), batch)]
    return [(sum(tokens for tokens, _ in part), sum(learned for _, learned in part)) for part in parts]


def make_inputs(rows: int, weights: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    """A tensor (rows, width) for each width of a weight, either way round."""
    like = weights[0]
    widths = {width for weight in weights for width in weight.shape}
    return {width: torch.ones(rows, width, dtype=like.dtype, device=like.device) for width in widths}


def run_products(
    batches: Sequence[tuple[int, int]],
    layers: Sequence[tuple[torch.Tensor, bool]],
    head: torch.Tensor,
    product: Product,
    inputs: Mapping[int, torch.Tensor],
) -> int:
    """Run every product of every batch, forward and then back.

    Returns:
        Floating-point operations, counting a multiplication and an addition as two.
    """
    flops = 0

    def multiply(rows: int, weight: torch.Tensor) -> int:
        product(inputs[weight.shape[1]][:rows], weight)
        return 2 * rows * weight.numel()

    for tokens, learned in batches:
        for weight, _ in layers:
            flops += multiply(tokens, weight)
        flops += multiply(learned, head) + multiply(learned, head.t())
        for weight, back in reversed(layers):
            flops += multiply(tokens, weight.t()) if back else 0
    return flops


BENCHMARK = Benchmark(
    name="floor",
    what="The matrix products that an epoch cannot avoid, with PyTorch's own kernel and with oneDNN's, in turn with "
    "training on the same rows; the ratio floor / contender is the share of the contender's time they would take.",
    script=Path(__file__),
    work=work,
    metrics=("cpu_seconds", "wall_seconds", "peak_gib"),
    references=tuple(f"{name} {dtype}" for name in (*PRODUCTS, "peft", "peft-grouped") for dtype in PRECISIONS),
)


def floor_cases(options: argparse.Namespace) -> list[Case]:
    """The tutorial's prompt, in each precision that the machine multiplies itself. oneDNN's kernel is the CPU's."""
    cuda = options.device == "cuda"
    precisions = PRECISIONS if cuda or cpu_multiplies_bfloat16() else PRECISIONS[:1]
    names = ("floor-torch", *(() if cuda else ("floor-onednn",)), "ptune-packed", "peft", "peft-grouped")
    return [
        Case(
            label="mlp n=10",
            settings={**workload.common_settings(options), "encoder": "mlp", "n": 10},
            contenders=tuple(f"{name} {dtype}" for name in names for dtype in precisions),
        )
    ]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=5)
    workload.add_flags(parser)
    main(BENCHMARK, parser, floor_cases, argv)


if __name__ == "__main__":
    run()
