"""A text cut for study: nothing of it is lost, nothing is too long, and windows hold the excerpts they are said to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ptune.compression.excerpts import StudiedText, cut_text
from ptune.errors import ConfigError, DataError
from text_of_things import CHINESE, things

TEXTS = {
    "paragraphs": things(12),
    "one paragraph": things(12).replace("\n\n", " "),
    "lines": things(12).replace("\n\n", "\n"),
    "no sentences": " ".join(f"word{at}" for at in range(200)),
    "no spaces": "".join(f"{at:03}x" for at in range(150)),
    "Chinese": CHINESE * 4,
    "Chinese without a sign": "".join(sign for sign in CHINESE * 4 if sign.isalpha()),
    "blank around it": "\n\n \n" + things(5) + "\n\n\n   \n\n" + things(4) + "\n\n",
    "quoted ends": 'He said "No." (So it was.) ' * 20,
    "other ends of lines": things(6).replace("\n", "\r\n"),
    "one letter": "a",
}


@pytest.fixture(params=["byte_tokenizer", "word_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = request.getfixturevalue(request.param)
    return found


def size(text: str, tokenizer: PreTrainedTokenizerFast) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def bare(text: str) -> str:
    """Without anything blank."""
    return "".join(text.split())


def spaced(text: str) -> str:
    """With one space for whatever blank is between words."""
    return " ".join(text.split())


def cut(text: str, tokenizer: PreTrainedTokenizerFast, **values: Any) -> StudiedText:
    return cut_text(text, tokenizer, **{"excerpt_tokens": 40, "window_tokens": None, **values})


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_lost(name: str, tokenizer: PreTrainedTokenizerFast):
    text = TEXTS[name]
    for window in (None, 10**6, 150, 40):
        studied = cut(text, tokenizer, window_tokens=window)
        assert bare("".join(one.text for one in studied.excerpts)) == bare(text)
        assert studied.tokens == size(text, tokenizer)
        # In their order, each stands in the text as it is.
        start = 0
        for one in studied.excerpts:
            start = spaced(text).index(spaced(one.text), start) + len(spaced(one.text))


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_too_long(name: str, tokenizer: PreTrainedTokenizerFast):
    for most in (16, 40, 100):
        studied = cut(TEXTS[name], tokenizer, excerpt_tokens=most, window_tokens=150)
        assert all(0 < one.tokens <= most for one in studied.excerpts)
        # Their own count, up to the blanks around them and to tokens over the border of two parts.
        assert all(size(one.text, tokenizer) <= most + 2 for one in studied.excerpts)
        assert all(size(window, tokenizer) <= 150 + 8 for window in studied.windows)


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "one letter"])
def test_excerpts_are_no_crumbs(name: str, tokenizer: PreTrainedTokenizerFast):
    excerpts = cut(TEXTS[name], tokenizer).excerpts
    assert all(one.tokens + other.tokens > 40 for one, other in itertools.pairwise(excerpts))


@pytest.mark.parametrize("name", TEXTS)
def test_windows_hold_their_excerpts_and_overlap(name: str, tokenizer: PreTrainedTokenizerFast):
    text = TEXTS[name]
    studied = cut(text, tokenizer, window_tokens=100)
    if size(text, tokenizer) <= 100:
        assert studied.windows == (text.strip(),)
        return
    assert len(studied.windows) > 1
    by_window: list[list[str]] = [[] for _ in studied.windows]
    for one in studied.excerpts:
        assert one.text in studied.windows[one.window]
        by_window[one.window].append(one.text)
    assert [one.window for one in studied.excerpts] == sorted(one.window for one in studied.excerpts)
    assert all(by_window)
    for before, after, window in zip(by_window, by_window[1:], studied.windows[1:], strict=False):
        # The last excerpt of the window before stands first, in front of this one's own.
        assert bare(window) == bare(before[-1] + "".join(after))
    assert all(spaced(window) in spaced(text) for window in studied.windows)


def test_no_overlap_where_there_is_no_room(tokenizer: PreTrainedTokenizerFast):
    studied = cut(TEXTS["no spaces"], tokenizer, window_tokens=40)
    assert studied.windows == tuple(one.text for one in studied.excerpts)
    assert [one.window for one in studied.excerpts] == list(range(len(studied.excerpts)))


def test_paragraphs_and_sentences_stay_whole(byte_tokenizer: PreTrainedTokenizerFast):
    text = things(6)
    longest = max(size(one, byte_tokenizer) for one in text.split("\n\n"))
    whole = cut(text, byte_tokenizer, excerpt_tokens=longest + 2)
    assert [one.text for one in whole.excerpts] == text.split("\n\n")
    sentences = text.replace("\n\n", " ").replace("coins. ", "coins.|").replace("it! ", "it!|").split("|")
    parts = cut(
        text.replace("\n\n", " "),
        byte_tokenizer,
        excerpt_tokens=max(size(one + " ", byte_tokenizer) for one in sentences),
    )
    assert [one.text for one in parts.excerpts] == sentences
    chinese = [
        one
        for one in CHINESE.replace("。", "。|")
        .replace("！", "！|")
        .replace("？", "？|")
        .replace("|」", "」|")
        .split("|")
        if one
    ]
    most = max(size(one, byte_tokenizer) for one in chinese)
    assert {
        one
        for part in cut(CHINESE, byte_tokenizer, excerpt_tokens=most).excerpts
        for one in chinese
        if one in part.text
    } == set(chinese)


def test_words_stay_whole(byte_tokenizer: PreTrainedTokenizerFast):
    words = TEXTS["no sentences"].split()
    assert [word for one in cut(TEXTS["no sentences"], byte_tokenizer).excerpts for word in one.text.split()] == words


def test_a_text_that_fits_is_one_window(byte_tokenizer: PreTrainedTokenizerFast):
    text = "\n\n" + things(5) + "\n"
    tokens = size(text, byte_tokenizer)
    assert cut(text, byte_tokenizer, window_tokens=tokens).windows == (text.strip(),)
    assert len(cut(text, byte_tokenizer, window_tokens=tokens - 5).windows) > 1
    # Even where an excerpt might have more tokens than there is room for.
    assert cut("The lamp is broken.", byte_tokenizer, excerpt_tokens=256, window_tokens=100).windows == (
        "The lamp is broken.",
    )


def test_the_window_of_a_question(byte_tokenizer: PreTrainedTokenizerFast):
    text = things(12)
    studied = cut(text, byte_tokenizer, window_tokens=100)
    for at, excerpt in enumerate(studied.excerpts):
        number = text.count("number", 0, text.index(excerpt.text))
        found = studied.window_of(f"What does the thing that has number{number} {3 * number + 7} cost? {excerpt.text}")
        assert excerpt.text in studied.windows[found], at
    assert studied.window_of("Nothing of it?") == 0
    assert studied.window_of("") == 0
    assert cut(text, byte_tokenizer).window_of("the ladder") == 0


def test_rare_words_count_more(byte_tokenizer: PreTrainedTokenizerFast):
    studied = StudiedText(("common words stand here", "common words and a unicorn", "words"), (), 20)
    assert studied.window_of("common words unicorn") == 1
    assert studied.window_of("COMMON Words stand") == 0


def test_the_window_of_a_chinese_question():
    studied = StudiedText(("水壶今天离开了商店。", "台灯坏了，没有人接电话。", "地毯在阁楼上。"), (), 30)
    assert studied.window_of("台灯怎么样？") == 1
    assert studied.window_of("阁楼上有什么？") == 2
    assert studied.window_of("商店") == 0


def test_refused(byte_tokenizer: PreTrainedTokenizerFast):
    for text in ("", " \n\n\t"):
        with pytest.raises(DataError, match="the text is empty") as empty:
            cut(text, byte_tokenizer)
        assert "file" in (empty.value.hint or "")
    for window in (15, 0, -100):
        with pytest.raises(ConfigError) as caught:
            cut(things(12), byte_tokenizer, window_tokens=window)
        assert f"room for {max(window, 0)} tokens" in str(caught.value)
        assert "Lower answer_tokens" in (caught.value.hint or "")


def test_a_long_text_takes_no_time_that_grows_with_its_square(byte_tokenizer: PreTrainedTokenizerFast):
    """Counted in letters that the tokenizer is given."""
    given = {}
    for count in (200, 800):
        seen = 0

        class Counting:
            def __call__(self, texts: list[str], **options: Any) -> Any:
                nonlocal seen
                seen += sum(map(len, texts))
                return byte_tokenizer(texts, **options)

        cut("x" * 20 * count, Counting())  # type: ignore[arg-type]
        cut(things(count // 10).replace("\n\n", " "), Counting())  # type: ignore[arg-type]
        given[count] = seen
    assert given[800] < 6 * given[200]
