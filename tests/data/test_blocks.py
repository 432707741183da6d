"""Virtual tokens in templates: where the blocks stand, which ids they have, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ptune.config import PromptTuningConfig
from ptune.data.blocks import Block, check_template, tokens_in_text, tokens_of, with_virtual_tokens
from ptune.data.example import Example
from ptune.data.segments import Insertion
from ptune.data.template import get_template, template_blocks
from ptune.data.text_ids import ids_of
from ptune.data.tokenize import encode, encode_prompt, encode_rows, fingerprint, tokenize_examples
from ptune.errors import ConfigError, DataError
from ptune.recipe import TrainRecipe

PAPER = "{prompt:3}{input}{prompt:2} It was {output}."
FILM = Example(instruction="", input="A dull film", output="bad", source="f:1")


def test_a_leading_block_and_one_inside(tokenizer):
    template = get_template(PAPER, tokenizer)
    assert template.blocks == (Block(0, 3, leads=True), Block(3, 2, leads=False))
    assert (tokens_of(template.blocks), tokens_in_text(template.blocks)) == (5, 2)
    made = template.segments(FILM)
    assert (made.prompt, made.answer) == ("A dull film It was ", "bad.</s>")
    assert made.inside == (Insertion(len("A dull film"), range(-4, -6, -1)),)
    text, words, answer = ids_of(["A dull film", " It was ", "bad.</s>"], tokenizer)
    assert encode_prompt(template.prompt("", "A dull film"), tokenizer) == [*text, -4, -5, *words]
    row = encode(made, tokenizer, 100)
    assert row.input_ids == [*text, -4, -5, *words, *answer]
    assert row.labels == [-100] * (len(text) + 2 + len(words)) + answer


def test_the_tokenizers_own_first_token_stands_behind_what_leads(bos_eos_tokenizer):
    ids = encode_prompt(get_template(PAPER, bos_eos_tokenizer).prompt("", "x"), bos_eos_tokenizer)
    assert ids[0] == bos_eos_tokenizer.bos_token_id
    assert ids.index(-4) == 2


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("{prompt:2}{prompt:3:task}{input}{output}", [(0, 2, True, ""), (2, 3, True, "task")]),
        ("{input}{prompt:1}{prompt:2}{output}", [(0, 1, False, ""), (1, 2, False, "")]),
        (" {prompt:2}{input}{output}", [(0, 2, False, "")]),
        ("{system}{prompt:2}{input}{output}", [(0, 2, False, "")]),
        ("{prompt:2:a}{input}{prompt:3:b}{output}", [(0, 2, True, "a"), (2, 3, False, "b")]),
        ("{{prompt:2}}{{prompt}}{input}{output}", []),
    ],
)
def test_places(tokenizer, text, blocks):
    template = get_template(text, tokenizer)
    assert [(one.start, one.count, one.leads, one.name) for one in template.blocks] == blocks
    assert get_template(template.text, tokenizer).blocks == template.blocks


def test_the_texts_of_the_data_have_no_placeholders(tokenizer):
    made = get_template(PAPER, tokenizer).segments(replace(FILM, input="{prompt:3} {output}"))
    assert made.prompt == "{prompt:3} {output} It was "
    assert [one.at for one in made.inside] == [len("{prompt:3} {output}")]
    assert get_template("{{prompt:3}}{input}{output}", tokenizer).prompt("", "x").prompt == "{prompt:3}x"


def test_a_block_without_a_number_is_the_runs(tokenizer):
    template = get_template("{prompt}{input}{output}", tokenizer, virtual_tokens=7)
    assert template.text == "{prompt:7}{input}{output}", "what is stored says the number"
    assert template.blocks == (Block(0, 7, leads=True),)
    recipe = TrainRecipe(model="m", data="d", output="o", num_virtual_tokens=7)
    assert with_virtual_tokens(recipe, template.blocks).num_virtual_tokens == 7


def test_the_number_of_virtual_tokens(tokenizer):
    recipe = TrainRecipe(model="m", data="d", output="o")
    template = get_template(PAPER, tokenizer)
    assert with_virtual_tokens(recipe, template.blocks).num_virtual_tokens == 5
    assert with_virtual_tokens(replace(recipe, num_virtual_tokens=5), template.blocks).num_virtual_tokens == 5
    assert with_virtual_tokens(recipe, get_template("tutorial", tokenizer).blocks).num_virtual_tokens == 10
    with pytest.raises(ConfigError, match=r"num_virtual_tokens=4, but the template has 5: \{prompt:3\}, \{prompt:2\}"):
        with_virtual_tokens(replace(recipe, num_virtual_tokens=4), template.blocks)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{prompt:0}{input}{output}", "'{prompt:0}', which is no place"),
        ("{prompt:x}{input}{output}", "'{prompt:x}', which is no place"),
        ("{prompt:-1}{input}{output}", "'{prompt:-1}', which is no place"),
        ("{prompt:}{input}{output}", "'{prompt:}', which is no place"),
        ("{prompt:3:}{input}{output}", "'{prompt:3:}', which is no place"),
        ("{prompt:3:a b}{input}{output}", "'{prompt:3:a b}', which is no place"),
        ("{prompt:10000000}{input}{output}", "which is no place"),
        ("{prompt:３}{input}{output}", "which is no place"),
        ("{prompt}{input}{output}", "does not say how many virtual tokens {prompt} is"),
        ("{prompt}{input}{prompt:2}{output}", "does not say how many virtual tokens {prompt} is"),
        ("{prompt:2:a}{input}{prompt:3:a}{output}", "twice under the name 'a'"),
        ("{prompt:2}{input}", "0 times {output}"),
        ("{prompt:2}{output}", "asks nothing"),
        ("{input}{output}{prompt:2}", "{prompt:2} after {output}, where no part of the answer sees it"),
        ("{prmpt}{input}{output}", "Did you mean '{prompt:N}'"),
    ],
)
def test_what_cannot_be_used(tokenizer, text, complaint):
    with pytest.raises(ConfigError) as caught:
        get_template(text, tokenizer)
    assert complaint in str(caught.value)


def test_fingerprints_differ_by_the_blocks(tokenizer):
    texts = (PAPER, "{prompt:2}{input}{prompt:3} It was {output}.", "{{prompt:3}}{input}{prompt:2} It was {output}.")
    templates = [get_template(text, tokenizer) for text in texts]
    assert len({one.fingerprint for one in templates}) == 3
    assert len({fingerprint([FILM], one, tokenizer, 64) for one in templates}) == 3


def test_max_length_counts_the_text_and_never_cuts_a_virtual_token(tokenizer):
    template = get_template(PAPER, tokenizer)
    plain = get_template("{input} It was {output}.", tokenizer)
    whole = len(encode_rows(FILM, template, tokenizer, 100)[0].input_ids)
    for length in range(2, whole + 2):
        mine, text = (encode_rows(FILM, one, tokenizer, length) for one in (template, plain))
        assert [[token for token in row.input_ids if token >= 0] for row in mine] == [row.input_ids for row in text]
        assert all(sum(token < 0 for token in row.input_ids) == 2 for row in mine)
        made = encode(template.segments(FILM), tokenizer, length)
        assert (made is None) == (not mine)
        assert made is None or made == mine[0]
    given = len(encode_prompt(plain.prompt("", FILM.input), tokenizer))
    with pytest.raises(DataError, match=f"at max_length {given}: the shortest prompt alone has {given} tokens"):
        tokenize_examples([FILM], template, tokenizer, max_length=given)
    found = tokenize_examples([FILM], template, tokenizer, max_length=given + 1)
    assert found.dataset["input_ids"][0] == encode_rows(FILM, template, tokenizer, given + 1)[0].input_ids


def test_tokens_are_kept_on_disk_and_made_by_workers_as_here(tokenizer, tmp_path):
    template = get_template(PAPER, tokenizer)
    examples = [replace(FILM, input=f"film {number}") for number in range(5)]
    here = tokenize_examples(examples, template, tokenizer, max_length=64)
    kept = tokenize_examples(examples, template, tokenizer, max_length=64, cache_dir=tmp_path, num_proc=2)
    again = tokenize_examples(examples, template, tokenizer, max_length=64, cache_dir=tmp_path)
    assert again.report.from_cache
    for one in (kept, again):
        assert one.dataset["input_ids"][:] == here.dataset["input_ids"][:]
        assert one.dataset["labels"][:] == here.dataset["labels"][:]


def test_a_text_without_a_question_has_no_inside(tokenizer):
    text = Example(instruction="", output="a whole text", document=True, source="f:9")
    with pytest.raises(ConfigError, match=r"f:9: a text without a question has no place for \{prompt:3\}"):
        tokenize_examples([FILM, text], get_template(PAPER, tokenizer), tokenizer, max_length=64)
    leading = get_template("{prompt:3}{input} It was {output}.", tokenizer)
    assert len(tokenize_examples([FILM, text], leading, tokenizer, max_length=64).dataset) == 2


def test_a_template_goes_with_a_prompt_of_the_same_places(tokenizer):
    config = PromptTuningConfig(num_virtual_tokens=5, tokens_in_text=2)
    check_template(get_template(PAPER, tokenizer), config, "p")
    for text in ("{input}{output}", "{prompt:5}{input}{output}", "{prompt:2}{input}{prompt:3}{output}"):
        with pytest.raises(ConfigError, match="and p 5 virtual tokens, 2 of them inside the text"):
            check_template(get_template(text, tokenizer), config, "p")
    before = PromptTuningConfig(num_virtual_tokens=5)
    check_template(get_template("{input}{output}", tokenizer), before, "p")
    check_template(get_template("{prompt:5}{input}{output}", tokenizer), before, "p")
    with pytest.raises(ConfigError, match=r"has \{prompt:3\}, \{prompt:2\}, and p 5 virtual tokens, 0 of them"):
        check_template(get_template(PAPER, tokenizer), before, "p")


def test_configurations():
    assert PromptTuningConfig(num_virtual_tokens=5, tokens_in_text=5).leading_tokens == 0
    for wrong in (6, -1, 1.0, True, "2"):
        with pytest.raises(ConfigError, match="tokens_in_text must be from 0 to num_virtual_tokens=5"):
            PromptTuningConfig(num_virtual_tokens=5, tokens_in_text=wrong)
    assert template_blocks("tutorial") == ()
