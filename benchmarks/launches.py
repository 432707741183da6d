"""How many kernels does a training step launch on a GPU, and how often does the host wait for it?

    python benchmarks/launches.py                 # as the code is now
    python benchmarks/launches.py --before COMMIT # and as ptune was at a commit, kept in the result from then on

Counted on the simulated accelerator of the tests (`tests/devices`): a step of P-tuning (forward and backward, bfloat16,
8 rows, 10 virtual tokens, MLP) on models with few numbers but the depth of Llama-3.2-3B and BLOOM-1b4, where the
number of launches depends on the depth alone. An operation counts as the kernels that CUDA has for it, about. What a
launch costs differs from card to card; what a wait costs is the whole queue. No time is measured here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import peft
import torch
import transformers

from architectures import build
from devices.gpu_tensor import GpuTensor
from devices.ledger import LEDGER
from devices.simulated_accelerator import FakeGpu, to_gpu
from ptune import PromptEncoderConfig, PTunedModel
from ptune.data.collate import PackingCollator, PaddingCollator

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "launches.json"
MODELS = {
    "Llama, 28 layers": ("llama", {"num_hidden_layers": 28, "max_position_embeddings": 512}),
    "BLOOM, 24 layers": ("bloom", {"n_layer": 24}),
}
OWN = "ptune"
CONTENDERS = (OWN, "ptune, padded attention", "ptune, padded rows", "PEFT")
ROWS, LENGTH, VIRTUAL = 8, 64, 10


def rows() -> list[dict[str, list[int]]]:
    """Rows of nearly one length, the second half of each supervised."""
    source = torch.Generator().manual_seed(0)
    made = []
    for length in range(LENGTH - ROWS + 1, LENGTH + 1):
        ids = torch.randint(3, 128, (length,), generator=source).tolist()
        half = length // 2
        made.append({"input_ids": ids, "labels": [-100] * half + ids[half:], "attention_mask": [1] * length})
    return made


def count(model: str, contender: str) -> dict[str, int]:
    """Kernels and waits of the second step."""
    kind, sizes = MODELS[model]
    os.environ["PTUNE_PACKED_ATTENTION"] = "padded" if contender.endswith("padded attention") else ""
    torch.manual_seed(0)
    with FakeGpu():
        base = to_gpu(build(kind, **sizes).to(torch.bfloat16))
        if contender == "PEFT":
            config = {"task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL, "encoder_hidden_size": 16}
            prompted: Any = to_gpu(peft.get_peft_model(base, peft.PromptEncoderConfig(**config)))
        else:
            own = PromptEncoderConfig(num_virtual_tokens=VIRTUAL, encoder_hidden_size=16)
            prompted = PTunedModel(base, own, self_check=False)
            prompted.pack_batches = not contender.endswith("padded rows")
        collate = PackingCollator() if getattr(prompted, "pack_batches", False) else PaddingCollator(0)
        batch = {
            name: GpuTensor(value, torch.device("gpux:0")) if isinstance(value, torch.Tensor) else value
            for name, value in collate(rows()).items()
        }
        prompted.train()
        for _ in range(2):
            LEDGER.reset()
            prompted(**batch).loss.backward()
    return {"kernels": LEDGER.kernels, "waits": sum(LEDGER.waits.values())}


def at_commit(commit: str) -> dict[str, Any]:
    """What ptune's own step launched with the code of a commit, counted on the device of today's tests."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", commit], capture_output=True, text=True, check=True).stdout.strip()
    archive = subprocess.run([*git, "archive", found, "src"], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as sources:
        sources.extractall(folder, filter="data")
        counted = subprocess.run(
            [sys.executable, __file__, "--own"],
            env={**os.environ, "PYTHONPATH": f"{folder}/src"},
            capture_output=True,
            text=True,
            check=True,
        )
    return {"commit": found, "models": json.loads(counted.stdout)}


def run(before: str | None) -> None:
    """Count, print a table, write the result."""
    from ptune.packed import varlen_attention  # which earlier commits have not

    varlen_attention.has_kernel = lambda device: device.type == "gpux"  # type: ignore[assignment]  # as CUDA has
    found = {model: {who: count(model, who) for who in CONTENDERS} for model in MODELS}
    versions = {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    earlier = json.loads(RESULT.read_text(encoding="utf-8"))["before"] if before is None else at_commit(before)
    whole = {"what": __doc__, "versions": {**versions, "peft": peft.__version__}, "models": found, "before": earlier}
    RESULT.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    for model, contenders in found.items():
        for who, counted in {**contenders, f"ptune at {earlier['commit'][:7]}": earlier["models"][model]}.items():
            print(f"{model:18} {who:26} {counted['kernels']:6,} kernels {counted['waits']:4} waits")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", metavar="COMMIT", help="count ptune's code of this commit too")
    parser.add_argument("--own", action="store_true", help="print ptune's own counts alone, as JSON")
    options = parser.parse_args()
    if options.own:
        print(json.dumps({model: count(model, OWN) for model in MODELS}))
    else:
        run(options.before)
