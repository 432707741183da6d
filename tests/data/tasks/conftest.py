"""Tokenizers of four families: BERT's, RoBERTa's, T5's, and a decoder's without frame."""

from __future__ import annotations

import pytest
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer, T5Tokenizer

from task_tokenizers import make_bert, make_gpt2, make_roberta, make_t5


@pytest.fixture(scope="session")
def bert() -> BertTokenizer:
    return make_bert()


@pytest.fixture(scope="session")
def roberta() -> RobertaTokenizer:
    return make_roberta()


@pytest.fixture(scope="session")
def gpt2() -> GPT2Tokenizer:
    return make_gpt2()


@pytest.fixture(scope="session")
def t5() -> T5Tokenizer:
    return make_t5()


@pytest.fixture(params=["bert", "roberta", "t5", "gpt2"])
def tokenizer(request: pytest.FixtureRequest):
    """Each of them."""
    return request.getfixturevalue(request.param)
