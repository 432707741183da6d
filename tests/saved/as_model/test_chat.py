"""The chat template around the model's own, and the token ids of what it writes."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ptune.data.template import get_template
from ptune.data.text_ids import ids_of
from ptune.errors import ModelError
from ptune.saved.as_model.chat import NamedPrompt, add_prompts, expected_ids, literal, render, token_text

TEXT = "Where is it? 42"


def metaspace(scheme: str, **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of letters that marks blanks as SentencePiece does, with `<s>` before every text."""
    signs = ["<unk>", "<s>", "</s>", "▁", *map(chr, range(33, 127)), "\n", "\t"]
    core = Tokenizer(models.BPE(vocab={sign: at for at, sign in enumerate(signs)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **more)


def with_prompt(
    tokenizer: PreTrainedTokenizerFast, template: str, tokens: int = 3, **more: Any
) -> tuple[PreTrainedTokenizerFast, NamedPrompt, int]:
    prompt = NamedPrompt("p", tokens, get_template(template, tokenizer, virtual_tokens=tokens))
    words = [token_text("p", at) for at in range(tokens)]
    other = metaspace(**more) if more else tokenizer
    other.chat_template = tokenizer.chat_template
    other.add_tokens([AddedToken(word, special=True, normalized=False) for word in words], special_tokens=True)
    return other, prompt, other.get_vocab()[words[0]]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize(
    "template", ["tutorial", "{instruction}\n{output}", "{prompt:2} a {instruction}{prompt:1} b{output}"]
)
def test_the_text_has_ptunes_token_ids(scheme: str, template: str):
    """`first` puts a blank before a text's first word, but not behind a special token."""
    tokenizer, prompt, first = with_prompt(metaspace(scheme), template)
    add_prompts(tokenizer, [prompt], {"p": first})
    for text in (TEXT, " x", "x\n", "{}"):
        written = render(tokenizer, [{"role": "user", "content": text}], soft_prompt="p")
        wanted = expected_ids(tokenizer, prompt, first, text)
        assert ids_of([written], tokenizer)[0] == wanted
    # Spelled out: the leading tokens, then the tokenizer's own first one.
    leading = 2 if "prompt:2" in template else 3
    assert wanted[: leading + 1] == [*range(first, first + leading), 1]


def test_where_no_text_has_them_it_is_said():
    tokenizer, prompt, first = with_prompt(metaspace("never"), "tutorial")
    with pytest.raises(ModelError, match=r"cuts the text behind a special token in another way.*'tutorial'.*'p'"):
        add_prompts(tokenizer, [prompt], {"p": first + 1})


@pytest.mark.parametrize(
    "own",
    [
        "\n\n{{ messages[0]['content'] }}",
        "  {% if true %}\n  a {{ messages | length }}\n  {% endif %}   \n   ",
        "{{ messages[0]['content'] }}  \n\n",
        "{%- set messages = messages[1:] -%}{% for message in messages %}{{ message['role'] }}{% endfor %}",
        "{% macro ask(x) %}<{{ x }}>{% endmacro %}{{- ask(messages[-1]['content']) -}}\n",
        "{{ raise_exception('never') }}",
        "a{# a comment #}\n{% raw %}{{ x }}{% endraw %}\n",
    ],
)
def test_the_models_own_template_is_unchanged(own: str):
    tokenizer = metaspace("never", chat_template=own)
    tokenizer, prompt, first = with_prompt(tokenizer, "tutorial")
    add_prompts(tokenizer, [prompt], {"p": first})  # it compares, and raises where they differ
    assert tokenizer.chat_template != own
    turns = [{"role": "system", "content": "ptune: not a name"}, {"role": "user", "content": " x "}]
    before, after = ([], [])
    for template, seen in ((own, before), (tokenizer.chat_template, after)):
        try:
            seen.append(render(tokenizer, turns, chat_template=template))
        except jinja2.TemplateError as error:
            seen.append(str(error))
    assert before == after


def test_each_of_several_templates_is_kept():
    tokenizer = metaspace("never")
    tokenizer.chat_template = {"default": "D{{ messages | length }}", "tool_use": "T{{ messages | length }}"}
    tokenizer, prompt, first = with_prompt(tokenizer, "chat")
    add_prompts(tokenizer, [prompt], {"p": first})
    turns = [{"role": "user", "content": "x"}]
    assert render(tokenizer, turns) == "D1"
    assert render(tokenizer, turns, chat_template="tool_use") == "T1"
    assert render(tokenizer, turns, soft_prompt="p") == "".join(token_text("p", at) for at in range(3)) + "D1"


@pytest.mark.parametrize(
    "text",
    ["", "'", '"', "\\", "\\n", "a\nb\r\n\t", "{{ x }}{% y %}{# z #}", "软🙂ß", "\x00\x1b\x85\u2028\xa0", "'}}", "\\'"],
)
def test_a_literal_is_the_text(text: str):
    assert (
        jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string("{{ " + literal(text) + " }}").render()
        == text
    )
