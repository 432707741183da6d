"""What the engines benchmark compares with: the answers of ptune and the untouched model, and logits where one differs.

Shapes: `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptune import Answerer
from ptune.loading.load import load_model, load_tokenizer
from ptune.saved.as_model.chat import render
from ptune.saved.opened_folder import open_folder


def reference(folders: Mapping[str, Path], asked: Sequence[tuple[str, str, int]], work: Path) -> dict[str, Any]:
    """Token ids of the answers, without the one that ends them.

    Args:
        folders: Name of each prompt → its folder.
        asked: A prompt's name or another word, a text, and how many tokens the answer may have. Where the word names no
            prompt the untouched model answers, in transformers.
        work: Gets the untouched model as a folder, `untouched`.
    """
    name = open_folder(next(iter(folders.values()))).base_name()
    base, tokenizer = load_model(name, dtype="float32", device="cpu"), load_tokenizer(name)
    base.save_pretrained(work / "untouched")
    tokenizer.save_pretrained(work / "untouched")
    answerers = {
        one: Answerer.open(folder, dtype="float32", device="cpu", self_check=False) for one, folder in folders.items()
    }
    ends = base.generation_config.eos_token_id
    end = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    answers = []
    for task, text, new_tokens in asked:
        if task in answerers:
            model: Any = answerers[task].model
            ids = answerers[task].encode(text)
        else:
            words = render(tokenizer, [{"role": "user", "content": text}])
            ids = tokenizer(words, add_special_tokens=False, return_tensors="pt")["input_ids"]
            model = base
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        found = out[0, ids.shape[1] :].tolist()
        answers.append(found[:-1] if found[-1] in end else found)
    prompts = {
        one: {"virtual_tokens": answerer.model.active_peft_config.num_virtual_tokens}
        for one, answerer in answerers.items()
    }
    return {"answers": answers, "end": sorted(end), "prompts": prompts}


class Nearness:
    """The logits of the exported model where an answer leaves ptune's, in float32 and in float64."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._models: dict[torch.dtype, Any] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def asked_ids(self, asked: Any) -> list[int]:
        """Token ids of a text behind its prompt, as the exported tokenizer has them."""
        named = {} if asked.task == "alone" else {"soft_prompt": asked.task}
        words = render(self.tokenizer, [{"role": "user", "content": asked.text}], **named)
        return list(self.tokenizer(words, add_special_tokens=False)["input_ids"])

    def at_first_difference(self, asked: Any, ids: Sequence[int]) -> dict[str, Any]:
        """Both tokens at the first place where they differ (None: the answer ends), and the gap between their logits.

        `gap` is ptune's token's logit less the other's; `top_two` the distance of the two largest logits.
        """
        ours, at = asked.ids, 0
        while at < min(len(ours), len(ids)) and ours[at] == ids[at]:
            at += 1
        end = self.tokenizer.eos_token_id
        mine, theirs = (one[at] if at < len(one) else None for one in (ours, ids))
        given = self.asked_ids(asked) + list(ours[:at])
        found: dict[str, Any] = {"at": at, "ptune": mine, "engine": theirs}
        for dtype in (torch.float32, torch.float64):
            logits = self._logits(given, dtype)
            first, second = logits.topk(2).values.tolist()
            gap = logits[end if mine is None else mine] - logits[end if theirs is None else theirs]
            name = str(dtype).removeprefix("torch.")
            found[name] = {"gap": float(gap), "top_two": first - second}
        return found

    @torch.inference_mode()
    def _logits(self, ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """`(V,)` behind the last of `(T,)` token ids."""
        if dtype not in self._models:
            self._models[dtype] = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).eval()
        logits: torch.Tensor = self._models[dtype](torch.tensor([list(ids)])).logits[0, -1]
        return logits
