"""What an exported model says of its prompts: a list for programs, and a card for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune.errors import DataError, shown
from ptune.saved.as_model.chat import FAULTS, NamedPrompt, render, token_text
from ptune.saved.as_model.silent_rows import SilentRow

PROMPTS = "soft_prompts.json"
_MARK = "\x00"
_LISTED = 20
"""Prompts that the card lists."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written model."""

    output: Path
    model: str
    """The frozen model's name."""
    prompts: tuple[NamedPrompt, ...]
    first_ids: Mapping[str, int]
    """Name of each prompt → id of its first token."""
    silent: SilentRow
    vocabulary: int
    """Rows of the embeddings now."""
    was_tied: bool
    """Whether input and output embeddings were one table, and are two now."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "base_model": self.model,
            "prompts": {one.name: one.tokens for one in self.prompts},
            "virtual_tokens": sum(one.tokens for one in self.prompts),
            "first_ids": dict(self.first_ids),
            "vocab_size": self.vocabulary,
            "embeddings_were_tied": self.was_tied,
            "output_rows": self.silent.how,
            "largest_share": self.silent.largest_share,
            "positions_measured": self.silent.positions,
        }


def prompt_list(exported: Exported, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """For engines without chat templates: of each prompt its tokens, and what stands before and behind the text."""
    prompts = {}
    for one in exported.prompts:
        first = exported.first_ids[one.name]
        before, after = around(tokenizer, one) or (None, None)
        prompts[one.name] = {
            "virtual_tokens": one.tokens,
            "first_id": first,
            "first_token": token_text(one.name, 0),
            "last_token": token_text(one.name, one.tokens - 1),
            "template": one.template.text,
            "before": before,
            "after": after,
        }
    return {"base_model": exported.model, "prompts": prompts}


def around(tokenizer: PreTrainedTokenizerBase, prompt: NamedPrompt) -> tuple[str, str] | None:
    """What the chat template writes before and behind the user's text; None where that depends on the text."""
    try:
        found = render(tokenizer, [{"role": "user", "content": _MARK}], soft_prompt=prompt.name).split(_MARK)
    except (DataError, *FAULTS):
        return None
    return (found[0], found[1]) if len(found) == 2 else None


def card(exported: Exported, tokenizer: PreTrainedTokenizerBase) -> str:
    """The README. What a folder says stands in a code block, or is escaped."""
    first = exported.prompts[0]
    listed = [
        f"{one.name}: {one.tokens} virtual tokens, template {shown(one.template.text)}" for one in exported.prompts
    ]
    more = [f"… and {len(listed) - _LISTED} more, in {PROMPTS}"] if len(listed) > _LISTED else []
    parts = [
        _TOP.replace("@N@", _counted(len(exported.prompts))).replace("@NAME@", first.name),
        "\n".join(["```text", f"frozen model: {shown(exported.model)}", *listed[:_LISTED], *more, "```"]),
        _USE.replace("@NAME@", first.name),
        _ollama(around(tokenizer, first), str(tokenizer.eos_token)),
        _outputs(exported),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _counted(prompts: int) -> str:
    return "a soft prompt" if prompts == 1 else f"{prompts} soft prompts"


def _ollama(words: tuple[str, str] | None, eos: str) -> str:
    """A Modelfile, where the text around the question can stand in one."""
    text = (
        "## Ollama\n\nIts templates are not Jinja: a Modelfile for each prompt, from `before` and `after` of "
        f"`{PROMPTS}`."
    )
    if words is None or any(sign in word for word in words for sign in ('"""', "{{", "}}", "```")):
        return text
    lines = ["FROM ./model.gguf", f'TEMPLATE """{words[0]}{{{{ .Prompt }}}}{words[1]}"""', f'PARAMETER stop "{eos}"']
    return "\n".join([text, "", "```text", *lines, "```"])


def _outputs(exported: Exported) -> str:
    share, tokens = exported.silent.largest_share, sum(one.tokens for one in exported.prompts)
    measured = (
        f"At {exported.silent.positions:,} positions of short texts, bare and behind the prompts, all {tokens:,} "
        f"together had at most {share:.1e} of the probability."
        if share
        else ""
    )
    how = {
        "bias": "The LM head has a bias, and theirs is far below any logit.",
        "quietest": "Their output rows go beyond those of the tokens that the model hardly ever writes.",
        "mean": "Their output rows are the mean of all rows, so that each has at most one part in as many as there are "
        "tokens, whatever the text.",
    }[exported.silent.how]
    tied = (
        " The model's input and output embeddings were one table; they are two here (`tie_word_embeddings` is false), "
        "and the folder is larger by one of them."
        if exported.was_tied
        else ""
    )
    return (
        f"## Virtual tokens are no answers\n\n{how}{tied} {measured}\n\n`generation_config.json` lists them as "
        "`suppress_tokens` too, which transformers obeys; other engines rely on the rows."
    )


_TOP = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [p-tuning, soft-prompt]
---

# A model with @N@ in its vocabulary

An ordinary model folder. Each virtual token is a special token, `<|ptune:@NAME@:0|>` and on, with a row of its own in
the embeddings; everything else is the frozen model's, and so are the terms that it comes under. Without a prompt it
answers as that does."""
_USE = """\
A prompt is asked for by its name; the chat template writes its tokens, and the text as it was trained.

## transformers

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this-folder")
model = AutoModelForCausalLM.from_pretrained("this-folder")
asked = tokenizer.apply_chat_template(
    [{"role": "user", "content": "the text"}],
    soft_prompt="@NAME@",
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
answer = model.generate(**asked, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
```

## Any server with chat templates

A first system message that says `ptune:@NAME@` and nothing else asks for the prompt, wherever messages are all that a
client may send:

```json
[{"role": "system", "content": "ptune:@NAME@"}, {"role": "user", "content": "the text"}]
```

Without it the model's own chat template is used, unchanged.

## vLLM

`vllm serve this-folder`, then the system message, or `"chat_template_kwargs": {"soft_prompt": "@NAME@"}` in the
request. For `/v1/completions` write the tokens yourself (`before` and `after` in `soft_prompts.json`), with
`"add_special_tokens": false`. vLLM runs a folder in float32 in half precision unless it is told `--dtype float32`.

## llama.cpp

```console
python convert_hf_to_gguf.py this-folder --outfile model.gguf
llama-server -m model.gguf --jinja
```

`convert_hf_to_gguf.py` is llama.cpp's own, and needs what `requirements/requirements-convert_hf_to_gguf.txt` beside it
lists. A folder in float32 becomes float16; `--outtype f32` keeps it. To make it smaller and keep the prompts as they
are: `llama-quantize --token-embedding-type f16 model.gguf small.gguf Q8_0`. Ask with the system message. llama.cpp puts
a model's first token (BOS) before everything, where the prompt was trained to stand before it: for a model that has
one, start with `--override-kv tokenizer.ggml.add_bos_token=bool:false`; the chat template writes it in its place."""
