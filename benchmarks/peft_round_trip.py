"""Does PEFT say the same with a prompt that ptune saved, and does the prompt come back unchanged?

    python benchmarks/peft_round_trip.py [--rounds 1]

Each prompt encoder, behind a small random model of each architecture and behind SmolLM2-135M: the prompt is saved,
`PeftModel.from_pretrained` loads the folder in front of the same model, and both are given the same rows, one at a time
(with left padding PEFT's text is wrong). Reported: the largest difference of a logit, the norm of all differences over
that of the logits (both for the worst row), and the largest logit; the share of new tokens, greedily chosen, that are
the same; the same share for ptune's own rows in one padded batch; and how many numbers of the prompt differ after
`ptune export --to peft` and `ptune import`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness import Answer, Benchmark, Case, Settings, command_line, main
from ptune import PromptEncoderConfig, PTunedModel
from ptune.cli.main import main as ptune
from ptune.loading.load import load_model

ENCODERS = ("mlp", "lstm", "residual", "embedding")
SMOLLM2 = "builtin:smollm2-135m"
VIRTUAL_TOKENS, NEW_TOKENS = 20, 48
ROW_LENGTHS = (3, 17, 40)
SMALL: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 128, "n_layer": 4, "n_head": 8, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 8, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2},
    "qwen2": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2},
}
"""Weights are drawn wider than is usual: logits differ clearly, and a wrong position shows."""


def load(model: str) -> PreTrainedModel:
    """The model in float32; the same weights at every call."""
    if model == SMOLLM2:
        return load_model(model, device="cpu", dtype="float32")
    config = AutoConfig.for_model(model, vocab_size=512, initializer_range=0.2, **SMALL[model])
    config.update({"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None})
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return made


def work(contender: str, settings: Settings) -> Answer:
    """Save a prompt of one encoder, load it with PEFT, compare; send it through PEFT's format and back."""
    import peft

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    base = load(settings["model"])
    torch.manual_seed(1)
    config = PromptEncoderConfig(num_virtual_tokens=VIRTUAL_TOKENS, encoder_reparameterization_type=contender)
    mine = PTunedModel(base, config).eval()
    vocabulary = base.config.vocab_size
    rows = [torch.randint(3, vocabulary, (1, length)) for length in ROW_LENGTHS]
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        prompt = mine.save_pretrained(Path(place) / "prompt")
        theirs = peft.PeftModel.from_pretrained(load(settings["model"]), str(prompt)).eval()
        found = [mine(row).logits for row in rows]
        wanted = [theirs(input_ids=row).logits[:, VIRTUAL_TOKENS:] for row in rows]
        alone = torch.cat([greedy(mine, row) for row in rows])
        same = torch.cat([greedy(theirs, row) for row in rows]) == alone
        ids, mask = left_padded(rows)
        in_batch = greedy(mine, ids, mask) == alone
        changed = int((through_peft(prompt, Path(place)) != stored(prompt)).sum())
    return {
        "largest_logit_difference": max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)),
        "relative_difference": max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)),
        "largest_logit": max(float(one.abs().max()) for one in wanted),
        "greedy_agreement": float(same.float().mean()),
        "padded_agreement": float(in_batch.float().mean()),
        "changed_numbers": changed,
    }


def greedy(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`NEW_TOKENS` tokens for every row, whatever they are."""
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    new: torch.Tensor = output[:, ids.shape[1] :]
    return new


def left_padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows in one batch, and its mask."""
    width = max(row.shape[1] for row in rows)
    gaps = [width - row.shape[1] for row in rows]
    ids = torch.cat([torch.nn.functional.pad(row, (gap, 0)) for row, gap in zip(rows, gaps, strict=True)])
    return ids, (torch.arange(width) >= torch.tensor(gaps)[:, None]).long()


def through_peft(prompt: Path, place: Path) -> torch.Tensor:
    """The prompt's vectors after an export to PEFT and an import."""
    with contextlib.redirect_stdout(io.StringIO()):
        ptune(["export", str(prompt), "--to", "peft", "--output", str(place / "adapter")])
        ptune(["import", str(place / "adapter"), "--output", str(place / "back")])
    return stored(place / "back")


def stored(folder: Path) -> torch.Tensor:
    """The vectors that a folder holds."""
    return load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


BENCHMARK = Benchmark(
    name="peft_round_trip",
    what="Prompts that ptune saved, loaded by PEFT: the largest difference of a logit, the share of greedy tokens that "
    "are the same, and the numbers of a prompt that differ after export to PEFT and import.",
    script=Path(__file__),
    work=work,
    metrics=(
        "largest_logit_difference",
        "relative_difference",
        "largest_logit",
        "greedy_agreement",
        "padded_agreement",
        "changed_numbers",
    ),
    references=(),
)


def round_trip_cases(options: argparse.Namespace) -> list[Case]:
    """A case for each model."""
    del options
    return [Case(label=name, settings={"model": name, "threads": 1}, contenders=ENCODERS) for name in (*SMALL, SMOLLM2)]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    main(BENCHMARK, command_line(BENCHMARK, rounds=1), round_trip_cases, argv)


if __name__ == "__main__":
    run()
