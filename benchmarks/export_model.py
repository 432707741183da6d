"""Does a model with soft prompts in its vocabulary answer as ptune does, and are its virtual tokens ever answers?

    python benchmarks/export_model.py PROMPT [--answers 50] [--texts 120] [--output FILE]

PROMPT is a prompt folder for SmolLM2-135M, as `ptune demo` trains one. It is exported by itself and among 100 (the
others have its vectors with noise). Asked: held-out messages of the demo, greedy, by ptune and by transformers alone on
the exported folder, with the prompt and without. The share of the virtual tokens among the outputs is taken at every
position of real text (../shared/data: Alpaca, SST-2), bare and behind the prompt, without transformers' list of
suppressed tokens; for comparison with the output rows that were not taken. Tokens are drawn at temperature 1 from the
distributions at these positions, so many at each that there are 100,000 at least: not along texts that the model
writes itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import RESULTS, ROOT, heading, write
from ptune import Answerer
from ptune.cli.demo import HELD_OUT
from ptune.frozen.parts import output_head
from ptune.saved.as_model.export_model import export_model
from ptune.saved.as_model.silent_rows import unmeasured_row
from ptune.saved.format import read_prompt, write_prompt
from ptune.saved.opened_folder import open_folder

DATA = ROOT.parent / "shared" / "data"
NAME, MANY, DRAWS, NOISE = "tickets", 100, 100_000, 0.02
NEW_TOKENS, NEW_TOKENS_ALONE = 40, 16


class Plain:
    """The folder as transformers opens it."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str, **more: Any) -> torch.Tensor:
        """Token ids of the chat template's text."""
        written = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, **more
        )
        return self.plain_ids(written)

    def plain_ids(self, text: str) -> torch.Tensor:
        """Token ids of a text."""
        found: torch.Tensor = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return found

    def greedy(self, ids: torch.Tensor, new_tokens: int) -> list[int]:
        """The new tokens."""
        mask = torch.ones_like(ids)
        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        found: list[int] = out[0, ids.shape[1] :].tolist()
        return found


def ptunes(answerer: Answerer, ids: torch.Tensor, new_tokens: int, *, with_prompt: bool = True) -> list[int]:
    """The new tokens of ptune's answer."""
    out = answerer.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        prompt_names=None if with_prompt else [None],
        pad_token_id=answerer.tokenizer.pad_token_id,
    )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


def real_texts(count: int) -> list[str]:
    """Instructions with their answers, and sentences of reviews."""
    rows = json.loads((DATA / "alpaca_en" / "alpaca_data.json").read_text(encoding="utf-8"))
    asked = ["\n".join([row["instruction"], row["input"], row["output"]])[:400] for row in rows[: count * 2 // 3]]
    lines = (DATA / "sst2" / "stsa.binary.test").read_text(encoding="utf-8").splitlines()
    return asked + [line[2:] for line in lines[: count - len(asked)]]


def answers(plain: Plain, answerer: Answerer, texts: Sequence[str]) -> dict[str, int]:
    """How many greedy answers are the same, token for token, with the prompt and without."""
    with_prompt = without = different = 0
    for text in texts:
        wanted = ptunes(answerer, answerer.encode(text), NEW_TOKENS)
        with_prompt += plain.greedy(plain.ids(text, soft_prompt=NAME), NEW_TOKENS) == wanted
        ids = torch.tensor([answerer.tokenizer(text)["input_ids"]])
        alone = ptunes(answerer, ids, NEW_TOKENS_ALONE, with_prompt=False)
        without += plain.greedy(plain.plain_ids(text), NEW_TOKENS_ALONE) == alone
        different += alone[:NEW_TOKENS_ALONE] != wanted[:NEW_TOKENS_ALONE]
    return {"asked": len(texts), "same_with_prompt": with_prompt, "same_without": without, "prompt_matters": different}


@torch.inference_mode()
def shares(
    plain: Plain, first: int, tokens: int, rows: dict[str, torch.Tensor], texts: Sequence[str]
) -> dict[str, Any]:
    """The share of virtual tokens at every position, and tokens drawn there.

    Args:
        plain: The exported model.
        first: The id of the first virtual token.
        tokens: How many there are.
        rows: Output rows that were not taken, `(H,)` for all alike or `(tokens, H)`.
        texts: The texts, a third of them behind the prompt.
    """
    head: Any = output_head(plain.model)
    states: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: states.append(given[0][0]))
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("taken", *rows)}
    given = [plain.ids(one, soft_prompt=NAME) if at % 3 == 2 else plain.plain_ids(one) for at, one in enumerate(texts)]
    positions = sum(ids.shape[1] for ids in given)
    each = -(-DRAWS // positions)
    drawn = virtual = 0
    draw = torch.Generator().manual_seed(0)
    for ids in given:
        logits = plain.model(ids).logits[0].double()
        probabilities = logits.softmax(-1)
        found["taken"].append(probabilities[:, first : first + tokens].sum(-1))
        sampled = torch.multinomial(probabilities, each, replacement=True, generator=draw)
        drawn += sampled.numel()
        virtual += int(((sampled >= first) & (sampled < first + tokens)).sum())
        ordinary = logits[:, :first].logsumexp(-1, keepdim=True)
        for name, row in rows.items():
            own = states[-1].double() @ row.double().reshape(-1, row.shape[-1]).T
            own = own.expand(-1, tokens) if own.shape[1] == 1 else own
            odds = (own.logsumexp(-1, keepdim=True) - ordinary).squeeze(-1)
            found[name].append(odds.sigmoid())
        states.clear()
    hook.remove()
    joined = {name: torch.cat(values) for name, values in found.items()}
    return {
        "positions": positions,
        "virtual_tokens": tokens,
        "share": {name: {"largest": float(one.max()), "mean": float(one.mean())} for name, one in joined.items()},
        "drawn": drawn,
        "virtual_tokens_drawn": virtual,
    }


def not_taken(answerer: Answerer, vectors: torch.Tensor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Output rows that were not taken: the vectors themselves, zeros, the mean, against the mean hidden state."""
    base = answerer.model.base
    head: Any = output_head(base)
    states: list[torch.Tensor] = []
    top: list[float] = []
    hook = head.register_forward_pre_hook(lambda _, given: states.append(given[0][0]))
    with torch.inference_mode():
        for text in texts:
            logits = base(torch.tensor([answerer.tokenizer(text)["input_ids"]])).logits[0]
            top.append(float(logits.amax(-1).mean()))
    hook.remove()
    mean = torch.cat(states).mean(0)
    opposite = -2 * sum(top) / len(top) * mean / mean.square().sum()
    return {
        "tied": vectors,
        "zeros": torch.zeros_like(mean),
        "opposite_to_mean_state": opposite,
        "mean_row": unmeasured_row(base).row,
    }


def many(folder: Path, at: Path) -> tuple[dict[str, Any], Plain, dict[str, Path]]:
    """The prompt among 100, in one folder."""
    saved = read_prompt(open_folder(folder))
    folders = {NAME: folder}
    for number in range(1, MANY):
        noise = torch.randn(saved.vectors.shape, generator=torch.Generator().manual_seed(number))
        vectors = saved.vectors + NOISE * saved.vectors.std() * noise
        folders[f"p{number}"] = write_prompt(at / f"p{number}", replace(saved, vectors=vectors))
    started = time.process_time()
    exported = export_model({name: open_folder(one) for name, one in folders.items()}, at / "many")
    seconds = time.process_time() - started
    size = sum(path.stat().st_size for path in (at / "many").iterdir())
    return {**exported.to_dict(), "bytes": size, "cpu_seconds": seconds}, Plain(at / "many"), folders


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", type=Path)
    parser.add_argument("--answers", type=int, default=50)
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--output", type=Path, default=RESULTS / "export_model.json")
    args = parser.parse_args(argv)
    asked = [json.loads(line)["instruction"] for line in Path(HELD_OUT).read_text(encoding="utf-8").splitlines()]
    texts = real_texts(args.texts)
    answerer = Answerer.open(args.prompt, dtype="float32", device="cpu")
    vectors = read_prompt(open_folder(args.prompt)).vectors
    result = heading(
        "A soft prompt as vocabulary of SmolLM2-135M, against ptune.", "python benchmarks/export_model.py PROMPT"
    )
    with tempfile.TemporaryDirectory() as place:
        at = Path(place)
        started = time.process_time()
        exported = export_model({NAME: open_folder(args.prompt)}, at / "one")
        seconds = time.process_time() - started
        size = sum(path.stat().st_size for path in (at / "one").iterdir())
        plain = Plain(at / "one")
        first, tokens = exported.first_ids[NAME], len(vectors)
        print("exported", file=sys.stderr)
        result["one"] = {
            "export": {key: value for key, value in exported.to_dict().items() if key not in ("prompts", "first_ids")}
            | {"bytes": size, "cpu_seconds": seconds},
            "outputs": shares(plain, first, tokens, not_taken(answerer, vectors, texts[::4]), texts),
        }
        print(json.dumps(result["one"]), file=sys.stderr)
        result["one"]["answers"] = answers(plain, answerer, asked[: args.answers])
        print(json.dumps(result["one"]["answers"]), file=sys.stderr)
        del plain
        facts, plain, folders = many(args.prompt, at)
        outputs = shares(plain, facts["first_ids"][NAME], facts["virtual_tokens"], {}, texts)
        same = 0
        checked = [f"p{number}" for number in range(9, MANY, 10)]
        for name, text in zip(checked, asked[-len(checked) :], strict=True):
            one = Answerer.open(folders[name], dtype="float32", device="cpu", self_check=False)
            wanted = ptunes(one, one.encode(text), NEW_TOKENS)
            same += plain.greedy(plain.ids(text, soft_prompt=name), NEW_TOKENS) == wanted
        kept = {key: value for key, value in facts.items() if key not in ("prompts", "first_ids")}
        result["hundred"] = {"export": kept, "outputs": outputs, "answers": {"asked": len(checked), "same": same}}
    write(result, args.output)
    print(json.dumps(result["hundred"]), file=sys.stderr)


if __name__ == "__main__":
    run()
