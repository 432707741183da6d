"""A real tokenizer, trained in the test itself on a few sentences, in three variants."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCES = [
    "Human: name three colours\n\nAssistant: red, green and blue",
    "给出三个保持健康的秘诀。",
    "the quick brown fox",
]


def make_tokenizer(frame: str = "$A") -> PreTrainedTokenizerFast:
    """A byte-level BPE; `frame` says which special tokens stand around a text, e.g. `<s> $A`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    core.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="session")
def tokenizer():
    """Adds no special tokens of its own, like BLOOM's; its pad token is its end token."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def bos_eos_tokenizer():
    """Puts BOS before every text and EOS behind it."""
    return make_tokenizer("<s> $A </s>")
