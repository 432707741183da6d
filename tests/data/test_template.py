"""Templates against the tutorial's own code and the tokenizer's own chat rendering."""

from __future__ import annotations

import pytest

from ptune.data.example import Example
from ptune.data.template import Segments, get_template
from ptune.errors import ConfigError, DataError, ModelError

PAST = (("user", "q1"), ("assistant", "a1"))
FULL = Example(instruction="q2", input="i", output="a2", system="s", history=PAST, source="f:9")


def test_tutorial_text(tokenizer):
    template = get_template("tutorial", tokenizer)
    made = template.segments(Example(instruction="Do it.", input="now", output=" done"))
    assert made == Segments("Human: Do it.\nnow\n\nAssistant: ", " done</s>", True)
    assert template.segments(Example(instruction="Do it. \n", output="x")).prompt == "Human: Do it.\n\nAssistant: "
    assert template.prompt("Do it.", "now") == Segments("Human: Do it.\nnow\n\nAssistant: ", "", True)
    with pytest.raises(ConfigError, match="unknown template 'alpaca'"):  # others mean the ### Instruction: form by it
        get_template("alpaca", tokenizer)


def test_tutorial_with_earlier_turns(tokenizer):
    made = get_template("tutorial", tokenizer).segments(FULL)
    assert made.prompt == "s\n\nHuman: q1\n\nAssistant: a1</s>\n\nHuman: q2\ni\n\nAssistant: "
    with pytest.raises(ConfigError, match="tool message"):
        get_template("tutorial", tokenizer).prompt("q", history=[("tool", "x")])


def test_chat_is_the_tokenizers_own_rendering(tokenizer):
    template = get_template("chat", tokenizer)
    made = template.segments(FULL)
    turns = [("system", "s"), *PAST, ("user", "q2\ni"), ("assistant", "a2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert made.prompt + made.answer == tokenizer.apply_chat_template(messages, tokenize=False)
    assert made.answer == "a2</s>\n"
    assert made.add_special_tokens is False
    assert template.prompt("q2", "i", PAST, "s") == Segments(made.prompt, "", False)


def with_chat_template(tokenizer, text):
    other = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    other.chat_template = text
    return other


def test_chat_templates_that_cannot_be_used(tokenizer):
    with pytest.raises(ConfigError, match="no chat template"):
        get_template("chat", with_chat_template(tokenizer, None))
    refusing = with_chat_template(tokenizer, "{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match=r"f:9: .*no system role"):
        get_template("chat", refusing).segments(FULL)
    rewriting = with_chat_template(tokenizer, "{% if add_generation_prompt %}think{% else %}said{% endif %}")
    with pytest.raises(ConfigError, match="does not begin with"):
        get_template("chat", rewriting).segments(FULL)


def test_own_template(tokenizer):
    template = get_template('Q: {instruction} [{input}] {"json": {{name}}}\nA:{output}\n', tokenizer)
    made = template.segments(Example(instruction="{input} \\1", input="i", output="{output}"))
    assert made == Segments('Q: {input} \\1 [i] {"json": {name}}\nA:', "{output}\n</s>", True)
    assert template.prompt("{input} \\1", "i").prompt == made.prompt
    explicit = get_template("{instruction}{eos_token}{output}{eos_token}", tokenizer)
    assert explicit.segments(Example(instruction="q", output="a")) == Segments("q</s>", "a</s>", True)
    assert get_template("{system}|{input}:{output}", tokenizer).segments(
        Example(instruction="", input="i", output="a", system="s")
    ) == Segments("s|i:", "a</s>", True)


def test_own_template_from_a_file(tokenizer, tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("问：{instruction}\n答：{output}\n", encoding="utf-8")
    template = get_template(f"@{path}", tokenizer)
    assert template.segments(Example(instruction="q", output="a")) == Segments("问：q\n答：", "a</s>", True)
    with pytest.raises(ConfigError, match=r"none\.txt"):
        get_template(f"@{tmp_path / 'none.txt'}", tokenizer)


@pytest.mark.parametrize("name", ["tutorial", "chat", "Q: {instruction}\nA: {output}"])
def test_a_template_can_be_rebuilt_from_its_text(tokenizer, name):
    example = Example(instruction="q", output="a")
    template = get_template(name, tokenizer)
    again = get_template(template.text, tokenizer)
    assert again.segments(example) == template.segments(example)
    assert again.fingerprint == template.fingerprint


def test_fingerprints_differ(tokenizer):
    texts = ["tutorial", "chat", "{instruction}{output}", "{instruction} {output}"]
    assert len({get_template(text, tokenizer).fingerprint for text in texts}) == 4
    other = with_chat_template(tokenizer, "another")
    assert get_template("chat", other).fingerprint != get_template("chat", tokenizer).fingerprint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tutoral", "Did you mean 'tutorial'"),
        ("{instruction}", "0 times {output}"),
        ("{instruction}{output}{output}", "2 times {output}"),
        ("{output}", "asks nothing"),
        ("{output}{instruction}", "asks nothing"),
        ("{input}{output}{instruction}", "{instruction} after {output}"),
        ("{instructon}{output}", "Did you mean '{instruction}'"),
    ],
)
def test_own_templates_that_cannot_be_used(tokenizer, text, complaint):
    with pytest.raises(ConfigError) as caught:
        get_template(text, tokenizer)
    assert complaint in str(caught.value)


def test_own_template_loses_nothing_in_silence(tokenizer):
    template = get_template("{instruction}{output}", tokenizer)
    for field, value in (("input", "i"), ("system", "s"), ("history", PAST)):
        with pytest.raises(ConfigError, match="f:3: "):
            template.segments(Example(instruction="q", output="a", source="f:3", **{field: value}))


def test_no_end_token(tokenizer):
    other = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ModelError, match="end-of-sequence"):
        get_template("tutorial", other)
