"""One chat template for many soft prompts, which leaves the model's own as it is where none is asked for.

A prompt is asked for by the variable `soft_prompt` (transformers: an argument of `apply_chat_template`; vLLM:
`chat_template_kwargs`), or by a first system message that says `ptune:NAME` and nothing else. Then its tokens are
written, and behind them the text as the template that the prompt was trained with writes it. Otherwise the model's own
chat template stands there, byte for byte, and is given the messages as they came.

What a prompt folder says reaches the template as escaped string literals alone, and names are checked: no text of a
folder is run. Whether the text that comes out has the token ids that ptune itself gives the model is tried at export;
where a tokenizer puts a blank before a text's first word, but not behind a special token, the blank is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from ptune.data.blocks import Block, tokens_in_text
from ptune.data.template import CustomTemplate, Template
from ptune.data.text_ids import ids_of, leading_special_ids
from ptune.data.tokenize import encode_prompt
from ptune.errors import ModelError, shown

SELECTOR = "ptune:"
"""What a system message begins with that asks for a prompt."""
TEXTS = (
    "Where is my order?",
    " a blank first, then\ttabs\n\nand lines ",
    "42 things: {braces}, 'quotes', \"more\" \\ and 软提示 🙂",
)
"""What a tokenizer is tried on."""
FAULTS = (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What a chat template may raise; it is a program of the model's."""


@dataclass(frozen=True)
class NamedPrompt:
    """A prompt among a vocabulary's special tokens."""

    name: str
    tokens: int
    template: Template


def token_text(name: str, number: int) -> str:
    """The special token of a prompt's virtual token, from 0."""
    return f"<|{SELECTOR}{name}:{number}|>"


def literal(text: str) -> str:
    """A text as a string literal of Jinja."""
    signs = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return (
        "'"
        + "".join(signs.get(one, one if ord(one) > 0x9F or one.isprintable() else _escaped(one)) for one in text)
        + "'"
    )


def _escaped(sign: str) -> str:
    return f"\\x{ord(sign):02x}"


_HEAD = """\
{#- Soft prompts as special tokens, by ptune. One is asked for by the variable soft_prompt, or by a first system message
    that says ptune:NAME; otherwise the model's own chat template follows, unchanged. -#}
{%- macro ptune_text(parts) -%}
  {%- if parts is string -%}{{- parts -}}
  {%- else -%}{%- for part in parts -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- macro ptune_tokens(name, first, count) -%}
  {%- for number in range(first, first + count) -%}{{- '<|ptune:' + name + ':' ~ number ~ '|>' -}}{%- endfor -%}
{%- endmacro -%}
{%- set ptune_prompts = @PROMPTS@ -%}
{%- set ptune = namespace(name='', turns=messages) -%}
{%- if messages and messages[0]['role'] == 'system' and messages[0]['content'] -%}
  {%- set ptune_line = ptune_text(messages[0]['content']) | trim -%}
  {%- set ptune_word = ' ' not in ptune_line and '\\n' not in ptune_line -%}
  {%- if ptune_word and ptune_line.startswith('ptune:') and ptune_line | length > 6 -%}
    {%- set ptune.name = ptune_line[6:] -%}
    {%- set ptune.turns = messages[1:] -%}
  {%- endif -%}
{%- endif -%}
{%- if soft_prompt is defined and soft_prompt -%}{%- set ptune.name = soft_prompt | string -%}{%- endif -%}
{%- if ptune.name and ptune.name not in ptune_prompts -%}
  {{- raise_exception('there is no soft prompt ' + ptune.name) -}}
{%- endif -%}
{%- set ptune_kind = ptune_prompts[ptune.name][1] if ptune.name else 0 -%}
{%- set ptune_count = ptune_prompts[ptune.name][0] if ptune.name else 0 -%}
"""
_TUTORIAL = """\
  {{- ptune_tokens(ptune.name, 0, ptune_count) + @START@ -}}
  {%- for turn in ptune.turns -%}
    {%- if turn['role'] == 'system' and loop.first -%}{{- ptune_text(turn['content']) + '\\n\\n' -}}
    {%- elif turn['role'] == 'user' -%}{{- ('Human: ' + ptune_text(turn['content'])) | trim + '\\n\\n' -}}
    {%- elif turn['role'] == 'assistant' -%}{{- 'Assistant: ' + ptune_text(turn['content']) + @EOS@ + '\\n\\n' -}}
    {%- else -%}{{- raise_exception('this soft prompt has no place for a message of ' + turn['role']) -}}{%- endif -%}
  {%- endfor -%}
  {{- 'Assistant: ' -}}
"""
_QUESTION = """\
  {%- set ptune_system = '' -%}
  {%- set ptune_asked = ptune.turns -%}
  {%- if ptune.turns and ptune.turns[0]['role'] == 'system' -%}
    {%- set ptune_system = ptune_text(ptune.turns[0]['content']) -%}
    {%- set ptune_asked = ptune.turns[1:] -%}
  {%- endif -%}
  {%- if ptune_asked | length != 1 or ptune_asked[0]['role'] != 'user' -%}
    {{- raise_exception('this soft prompt answers one message of the user, without earlier turns') -}}
  {%- endif -%}
  {%- set ptune_question = ptune_text(ptune_asked[0]['content']) -%}
  {%- set ptune_input = input if input is defined else '' -%}
"""
_NO_SYSTEM = """\
  {%- if ptune_system -%}{{- raise_exception('this soft prompt has no place for a system message') -}}{%- endif -%}
"""
_OWN = """\
  {%- if ptune.name -%}
    {{- ptune_tokens(ptune.name, 0, ptune_count) + @START@ -}}
    {%- set messages = ptune.turns -%}
  {%- endif %}
"""
_NO_OWN = """\
  {{- raise_exception('the model has no chat template of its own: name a soft prompt') -}}
"""


def add_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[NamedPrompt], first_ids: Mapping[str, int]
) -> None:
    """Give a tokenizer that has the prompts' tokens the chat template that writes them.

    Args:
        tokenizer: Changed in place.
        prompts: The prompts; their templates are made with this tokenizer or one that cuts texts as it does.
        first_ids: Name → id of the prompt's first token.

    Raises:
        ModelError: The token ids of the text are not those that ptune gives the model, or the model's own chat template
            does not come out as it was.
    """
    own = tokenizer.chat_template
    kinds = _kinds(prompts)
    glues = [""] * len(kinds)
    probe = next(iter(own.values()), None) if isinstance(own, dict) else own
    for kind, members in enumerate(kinds):
        for glue in ("", " "):
            glues[kind] = glue
            written = _whole(tokenizer, kinds, glues, _default(own))
            if _same_ids(tokenizer, members[0], first_ids[members[0].name], written):
                break
        else:
            raise ModelError(
                f"the tokenizer cuts the text behind a special token in another way than ptune does with the template "
                f"{shown(members[0].template.text, 60)} of the prompt {members[0].name!r}, so text cannot write it.",
                hint="Answer with ptune: ptune generate, ptune chat.",
            )
    if isinstance(own, dict):
        tokenizer.chat_template = {name: _whole(tokenizer, kinds, glues, one) for name, one in own.items()}
    else:
        tokenizer.chat_template = _whole(tokenizer, kinds, glues, own)
    if probe is not None:
        _check_unchanged(tokenizer, _default(own), _default(tokenizer.chat_template))


def _default(own: str | dict[str, str] | None) -> str | None:
    return own.get("default", next(iter(own.values()), None)) if isinstance(own, dict) else own


def _kinds(prompts: Sequence[NamedPrompt]) -> list[list[NamedPrompt]]:
    """The prompts, those with the same template together."""
    kinds: dict[tuple[str, str], list[NamedPrompt]] = {}
    for prompt in prompts:
        kinds.setdefault((prompt.template.name, prompt.template.text), []).append(prompt)
    return list(kinds.values())


def _whole(
    tokenizer: PreTrainedTokenizerBase, kinds: Sequence[Sequence[NamedPrompt]], glues: Sequence[str], own: str | None
) -> str:
    """The chat template for prompts by their kind."""
    numbered = {prompt.name: [prompt.tokens, kind] for kind, members in enumerate(kinds, 1) for prompt in members}
    listed = "{" + ", ".join(f"{literal(name)}: {value}" for name, value in numbered.items()) + "}"
    text, start = _HEAD.replace("@PROMPTS@", listed), str(tokenizer.decode(leading_special_ids(tokenizer)))
    branches, own_glue = [], ""
    for kind, (members, glue) in enumerate(zip(kinds, glues, strict=True), 1):
        template = members[0].template
        if template.name == "chat":
            own_glue = glue
            continue
        body = (
            _custom(template, start, glue)
            if isinstance(template, CustomTemplate)
            else _tutorial(tokenizer, start, glue)
        )
        branches.append((f"ptune_kind == {kind}", body))
    for number, (condition, body) in enumerate(branches):
        text += f"{{%- {'elif' if number else 'if'} {condition} -%}}\n{body}"
    if own is None:
        rest, end = _NO_OWN, "{%- endif -%}"
    else:
        # The model's template begins a line, as it did; nothing behind it takes blanks from its last one.
        rest, end = _OWN.replace("@START@", literal(own_glue)) + own.removesuffix("\n") + "{{ '' }}", "{% endif %}"
    return text + ("{%- else -%}\n" + rest + end if branches else rest)


def _tutorial(tokenizer: PreTrainedTokenizerBase, start: str, glue: str) -> str:
    values = {"START": literal(start + glue), "EOS": literal(str(tokenizer.eos_token))}
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], _TUTORIAL)


def _custom(template: CustomTemplate, start: str, glue: str) -> str:
    """The branch of a template of the user's."""
    parts = template.parts()
    inside = tokens_in_text(template.blocks)
    variables = {
        "system": "ptune_system",
        "instruction": "ptune_question",
        "input": "ptune_input" if "instruction" in template.fields else "ptune_question",
    }
    pieces: list[list[str]] = [[]]
    blocks: list[Block] = []
    for part in parts:
        if isinstance(part, Block):
            if not part.leads:
                blocks.append(part)
                pieces.append([])
        elif part != "":
            pieces[-1].append(literal(part) if isinstance(part, str) else variables[part.name])
    written = f"  {{{{- ptune_tokens(ptune.name, 0, ptune_count - {inside}) + {literal(start)} -}}}}\n"
    written += _piece(pieces[0], glue)
    for block, piece in zip(blocks, pieces[1:], strict=True):
        written += f"  {{{{- ptune_tokens(ptune.name, {block.start}, {block.count}) -}}}}\n" + _piece(piece, glue)
    return _QUESTION + ("" if "system" in template.fields else _NO_SYSTEM) + written


def _piece(words: Sequence[str], glue: str) -> str:
    """What writes a part of the text that is tokenized by itself; an empty one has no glue."""
    if not words:
        return ""
    together = " + ".join(words)
    if not glue:
        return f"  {{{{- {together} -}}}}\n"
    # Where the text begins with a blank of its own, the tokenizer puts none before it.
    blank = f"{{{{- {literal(glue)} if ptune_piece and not ptune_piece.startswith({literal(glue)}) else '' -}}}}"
    return f"  {{%- set ptune_piece = {together} -%}}\n  {blank}\n  {{{{- ptune_piece -}}}}\n"


def _same_ids(tokenizer: PreTrainedTokenizerBase, prompt: NamedPrompt, first_id: int, written: str) -> bool:
    """Whether the text has the token ids that ptune gives the model."""
    for text in TEXTS:
        rendered = render(
            tokenizer, [{"role": "user", "content": text}], soft_prompt=prompt.name, chat_template=written
        )
        if ids_of([rendered], tokenizer)[0] != expected_ids(tokenizer, prompt, first_id, text):
            return False
    return True


def expected_ids(tokenizer: PreTrainedTokenizerBase, prompt: NamedPrompt, first_id: int, text: str) -> list[int]:
    """Token ids of a text behind a prompt, as ptune has them, with the prompt's own tokens in the vocabulary."""
    template = prompt.template
    asks_input = isinstance(template, CustomTemplate) and "instruction" not in template.fields
    segments = template.prompt("", text) if asks_input else template.prompt(text)
    return with_prompt(encode_prompt(segments, tokenizer), first_id, prompt.tokens - tokens_in_text(template.blocks))


def with_prompt(ids: Sequence[int], first_id: int, leading: int) -> list[int]:
    """Token ids of a text behind a prompt of the vocabulary.

    Args:
        ids: The text; virtual tokens inside it below 0 (`ptune.data.blocks`).
        first_id: Of the prompt's tokens.
        leading: How many of them stand before the text.
    """
    return [*range(first_id, first_id + leading), *(first_id - 1 - one if one < 0 else one for one in ids)]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, generation: bool = True, **more: Any
) -> str:
    """The messages as a chat template writes them."""
    return str(
        tokenizer.apply_chat_template(
            [dict(one) for one in messages], tokenize=False, add_generation_prompt=generation, **more
        )
    )


def _check_unchanged(tokenizer: PreTrainedTokenizerBase, own: str | None, new: str | None) -> None:
    """Raise `ModelError` unless conversations without a prompt come out as before."""
    user, system = {"role": "user", "content": TEXTS[1]}, {"role": "system", "content": "Be brief."}
    answered = {"role": "assistant", "content": "It is on its way."}
    for messages in ([user], [system, user], [user, answered], [system, user, answered, user]):
        for generation in (True, False):
            before, after = (_outcome(tokenizer, messages, generation, text) for text in (own, new))
            if before != after:
                raise ModelError(
                    f"the model's chat template writes {shown(after)} in place of {shown(before)} when it stands "
                    "inside another one.",
                    hint="Report it to ptune with the model's name.",
                )


def _outcome(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    generation: bool,
    chat_template: str | None,
) -> str:
    """What a chat template writes, or how it refuses."""
    try:
        return render(tokenizer, messages, generation=generation, chat_template=chat_template)
    except FAULTS as fault:
        return f"{type(fault).__name__}: {fault}"
