"""Small random models of every family that tasks are tried on, and batches of rows of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VIRTUAL = 4
LENGTHS = (7, 5, 3, 9)
LABELS = 3
_WORDS: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER = {**_WORDS, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 1}
_DECODER = {**_WORDS, "intermediate_size": 64, "pad_token_id": 0}
_OWN_NAMES = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_DISTIL = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
_MODERN = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _ENCODER),
    "roberta": ("Roberta", _ENCODER),
    "albert": ("Albert", {**_ENCODER, "embedding_size": 16}),
    "electra": ("Electra", {**_ENCODER, "embedding_size": 16}),
    "distilbert": ("DistilBert", _DISTIL),
    "modernbert": ("ModernBert", {**_DECODER, "num_hidden_layers": 3, **_MODERN}),
    "deberta": ("DebertaV2", {**_ENCODER, "pad_token_id": 0, "relative_attention": True, "pos_att_type": ["c2p"]}),
    "mpnet": ("MPNet", _ENCODER),
    "llama": ("Llama", {**_DECODER, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {**_DECODER, "num_key_value_heads": 2}),
    "gpt2": ("GPT2", {**_OWN_NAMES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}),
    "bloom": ("Bloom", {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}),
}
DECODERS = ("llama", "qwen2", "gpt2", "bloom")
ENCODERS = tuple(name for name in CONFIGS if name not in DECODERS)
SEQUENCES, TOKENS, SPANS = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
WORDS, STATES = "ForMaskedLM", "Model"


def make(family: str, kind: str, **values: Any) -> PreTrainedModel:
    """A model in eval mode, the same for the same arguments."""
    name, sizes = CONFIGS[family]
    labels = 2 if kind == SPANS else LABELS
    config = getattr(transformers, f"{name}Config")(**{**sizes, "num_labels": labels, **values})
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, name + kind)(config)
    return model.eval()


def make_writer(family: str, layers: int = 2) -> PreTrainedModel:
    """An encoder-decoder."""
    torch.manual_seed(0)
    if family == "t5":
        config: Any = transformers.T5Config(
            vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config).eval()
    config = transformers.BartConfig(
        vocab_size=100, d_model=32, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


def texts(seed: int = 1) -> list[torch.Tensor]:
    """Token ids of rows of `LENGTHS`."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 99, (length,), generator=draw) for length in LENGTHS]


def eight() -> list[torch.Tensor]:
    """Twice as many, of one token too."""
    return [*texts(), *(row[: len(row) - 2] for row in texts(2))]


def padded(rows: list[torch.Tensor], side: str, fill: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Ids and mask `(B, T)` of rows, and the column in which each begins."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), fill), torch.zeros(len(rows), longest, dtype=torch.long)
    starts = [0 if side == "right" else longest - len(row) for row in rows]
    for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[at, start : start + len(row)], mask[at, start : start + len(row)] = row, 1
    return ids, mask, starts


def hard_prompt(model: Any, base: PreTrainedModel) -> torch.Tensor:
    """Set the active prompt to the embeddings of real tokens, which are given back."""
    tokens = torch.arange(20, 20 + VIRTUAL)
    with torch.no_grad():
        model.prompts[model.active_prompt].embedding.weight.copy_(base.get_input_embeddings()(tokens))
    return tokens


def reader(base: PreTrainedModel) -> Any:
    """The part that reads text."""
    return getattr(base, base.base_model_prefix, base)


Head = Callable[[Any, torch.Tensor], torch.Tensor]


def sequence_logits(base: Any, states: torch.Tensor) -> torch.Tensor:
    """A classifier's logits from the hidden states of one text, by what its class does, written out."""
    kind = base.config.model_type
    if kind in ("llama", "qwen2", "gpt2", "bloom"):
        return base.score(states[:, -1])
    if kind == "bert":
        return base.classifier(reader(base).pooler(states))
    if kind == "albert":
        inner = reader(base)
        return base.classifier(inner.pooler_activation(inner.pooler(states[:, 0])))
    if kind == "distilbert":
        return base.classifier(torch.relu(base.pre_classifier(states[:, 0])))
    if kind == "modernbert":
        return base.classifier(base.head(states[:, 0] if base.config.classifier_pooling == "cls" else states.mean(1)))
    return base.classifier(base.pooler(states) if kind == "deberta-v2" else states)


def token_logits(base: Any, states: torch.Tensor) -> torch.Tensor:
    """Logits of every token."""
    children = dict(base.named_children())
    last: nn.Module = next(children[name] for name in ("classifier", "score", "qa_outputs") if name in children)
    return last(children["head"](states) if "head" in children else states)


TEXT = "a film to see twice it was great bad not good the end of play said Ada Bern who lives in where does live"


def _tokenizer(folder: Path, single: str, special: dict[str, str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = list(dict.fromkeys(special.values()))
    core.train_from_iterator([TEXT, ". ?"], trainers.WordLevelTrainer(special_tokens=names))
    core.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single.replace("$A", f"$A {special['eos_token']} $B") if "$A" in single else single,
        special_tokens=[(name, core.token_to_id(name)) for name in names],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_encoder(folder: Path) -> Path:
    """An encoder with its tokenizer, as BERT was published: LM head and pooler."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = _tokenizer(folder, "[CLS] $A [SEP]", {**special, "mask_token": "[MASK]", "eos_token": "[SEP]"})
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{**_ENCODER, "vocab_size": len(tokenizer), "max_position_embeddings": 512, "pad_token_id": 0}
    )
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder


def save_writer(folder: Path) -> Path:
    """An encoder-decoder with its tokenizer."""
    tokenizer = _tokenizer(folder, "$A </s>", {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})
    model = make_writer("t5")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


def save_decoder(folder: Path) -> Path:
    """A causal language model with its tokenizer; its LM head is its token embeddings."""
    tokenizer = _tokenizer(folder, "$A", {"pad_token": "<end>", "eos_token": "<end>", "unk_token": "<unk>"})
    torch.manual_seed(0)
    sizes = {**_DECODER, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder)
    return folder
