"""Tokenizers of four families, trained where they are asked for: BERT's, RoBERTa's, T5's, a decoder's without frame."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer, T5Tokenizer

SENTENCES = [
    "the lamp is broken and nobody answers the phone",
    "where is my order ? it left the store today .",
    "a soft prompt stands before the text ; it was great .",
    "EU rejects German call to boycott British lamb .",
    "it was terrible , terrible , and great again . great !",
    "it was terrible terrible terrible great great great news good bad",
    "Peter Blackburn wrote from Brussels on 22 August 1996 .",
]
SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "gpt2": ["<|endoftext|>"],
}


def make_bert() -> BertTokenizer:
    """WordPiece, `[CLS] text [SEP]`, in lower case."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL["bert"], show_progress=False)
    core.train_from_iterator(SENTENCES, trainer)
    return BertTokenizer(vocab=core.get_vocab())


def _byte_level(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE."""
    import json

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    merges = json.loads(core.to_str())["model"]["merges"]
    return core.get_vocab(), [tuple(pair) for pair in merges]


def make_roberta() -> RobertaTokenizer:
    """Byte-level BPE, `<s> text </s>`; a blank belongs to the word behind it, and to the mask token."""
    vocab, merges = _byte_level(SPECIAL["roberta"])
    return RobertaTokenizer(vocab=vocab, merges=merges)


def make_gpt2() -> GPT2Tokenizer:
    """Byte-level BPE without special tokens around a text, and without a mask token."""
    vocab, merges = _byte_level(SPECIAL["gpt2"])
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def make_t5() -> T5Tokenizer:
    """Unigram, `text </s>`."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    import json

    vocab = [(piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=0)
