"""What is refused: the message has what was found, and the hint the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5EncoderModel,
)

from ptune import PrefixTuningConfig, PromptTuningConfig, PTunedModel, get_peft_model
from ptune.config import TaskType
from ptune.errors import ConfigError, ModelError, PromptError, PTuneError
from ptune.loading.for_task import label_options
from ptune.loading.load import load_config, load_model
from ptune.model.task_model import PTunedTaskModel
from tasks.wide_models import CONTEXT, build, texts

VECTORS = PromptTuningConfig(num_virtual_tokens=4)
KEYS = PrefixTuningConfig(num_virtual_tokens=4)


def model_of(name: str, task: TaskType, config: Any = VECTORS) -> PTunedTaskModel:
    return PTunedTaskModel(build(name, task), config)


def run(name: str, task: TaskType, **given: Any) -> Any:
    """A batch of one row of seven tokens."""
    return model_of(name, task)(**{"input_ids": texts()[0][None], **given})


def with_labels(count: int) -> Any:
    return build("bert", TaskType.SEQ_CLS, num_labels=count)


CASES: dict[str, tuple[Callable[[], Any], type[PTuneError], str, str]] = {
    # What a model is for.
    "another task": (
        lambda: model_of("bert", TaskType.SEQ_CLS, PromptTuningConfig(task_type="TOKEN_CLS")),
        ConfigError,
        "task_type=TOKEN_CLS, but a BertForSequenceClassification is for SEQ_CLS",
        "AutoModelForTokenClassification, or leave task_type out",
    ),
    "another task than that of hidden states": (
        lambda: get_peft_model(
            build("bert", TaskType.FEATURE_EXTRACTION), PromptTuningConfig(task_type="SEQ_2_SEQ_LM")
        ),
        ConfigError,
        "task_type=SEQ_2_SEQ_LM, but a BertModel is for FEATURE_EXTRACTION",
        "AutoModelForSeq2SeqLM, or leave task_type out",
    ),
    "a causal model": (
        lambda: PTunedTaskModel(GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9)), VECTORS),
        ModelError,
        "GPT2LMHeadModel is a causal language model",
        "PTunedModel",
    ),
    "a classifier for PTunedModel": (
        lambda: PTunedModel(build("llama", TaskType.SEQ_CLS), VECTORS),
        ModelError,
        "LlamaForSequenceClassification",
        "PTunedTaskModel",
    ),
    "an encoder-decoder that classifies": (
        lambda: PTunedTaskModel(
            BartForSequenceClassification(
                BartConfig(
                    d_model=8,
                    encoder_layers=1,
                    decoder_layers=1,
                    vocab_size=9,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    encoder_ffn_dim=8,
                    decoder_ffn_dim=8,
                )
            ),
            VECTORS,
        ),
        ModelError,
        "BartForSequenceClassification reads a text with its decoder too",
        "task_type=SEQ_2_SEQ_LM",
    ),
    "no encoder-decoder": (
        lambda: PTunedTaskModel(_Unnamed.of_bert(), VECTORS, task=TaskType.SEQ_2_SEQ_LM),
        ModelError,
        "_Unnamed is no encoder-decoder",
        "T5 or BART",
    ),
    "no head": (
        lambda: PTunedTaskModel(_Unnamed.of_bert(), VECTORS, task=TaskType.SEQ_CLS),
        ModelError,
        "_Unnamed has no head for SEQ_CLS",
        "AutoModelForSequenceClassification",
    ),
    # What trains beside the prompt.
    "a module that is not there": (
        lambda: model_of("bert", TaskType.SEQ_CLS, PromptTuningConfig(modules_to_save=["pre_classifier"])),
        ConfigError,
        "modules_to_save names 'pre_classifier', which BertForSequenceClassification does not have",
        "It has classifier.",
    ),
    "the part that reads text": (
        lambda: model_of("bert", TaskType.TOKEN_CLS, PromptTuningConfig(modules_to_save=["bert"])),
        ConfigError,
        "modules_to_save names 'bert'",
        "It has classifier.",
    ),
    "a module of hidden states": (
        lambda: model_of("bert", TaskType.FEATURE_EXTRACTION, PromptTuningConfig(modules_to_save=["pooler"])),
        ConfigError,
        "modules_to_save=['pooler'] is not supported for FEATURE_EXTRACTION",
        "Leave modules_to_save out",
    ),
    "a module of an encoder-decoder": (
        lambda: model_of("t5", TaskType.SEQ_2_SEQ_LM, PromptTuningConfig(modules_to_save=["lm_head"])),
        ConfigError,
        "modules_to_save=['lm_head'] is not supported for SEQ_2_SEQ_LM",
        "Leave modules_to_save out",
    ),
    # The prompt.
    **{
        f"keys and values for {name}": (
            lambda name=name: model_of(name, TaskType.SEQ_CLS, KEYS),  # type: ignore[misc]  # a name is bound
            ModelError,
            "a prompt of keys and values needs a model that goes on from them",
            "such as embedding",
        )
        for name in ("albert", "distilbert", "modernbert", "deberta", "mpnet")
    },
    "too many virtual tokens": (
        lambda: model_of("bert", TaskType.SEQ_CLS, PromptTuningConfig(num_virtual_tokens=CONTEXT)),
        ConfigError,
        f"num_virtual_tokens={CONTEXT} leaves no room in the model's context of {CONTEXT} tokens",
        "fewer virtual tokens",
    ),
    "a task of another prompt": (
        lambda: model_of("bert", TaskType.SEQ_CLS).add_prompt("b", PromptTuningConfig(task_type="QUESTION_ANS")),
        ConfigError,
        "task_type=QUESTION_ANS, but the model is wrapped for SEQ_CLS",
        "Leave task_type out",
    ),
    # A batch.
    "position ids": (
        lambda: run("bert", TaskType.SEQ_CLS, position_ids=torch.arange(7)[None]),
        ModelError,
        "forward takes no position_ids",
        "Leave them out",
    ),
    "a cache": (
        lambda: run("llama", TaskType.SEQ_CLS, past_key_values=object()),
        ModelError,
        "forward does not take past_key_values",
        "",
    ),
    "an empty row": (
        lambda: run("bert", TaskType.SEQ_CLS, attention_mask=torch.zeros(1, 7, dtype=torch.long)),
        ConfigError,
        "row 0 of the batch has no tokens",
        "Leave such rows out",
    ),
    "a text that is too long": (
        lambda: run("roberta", TaskType.TOKEN_CLS, input_ids=texts()[0].repeat(9)[None]),
        ModelError,
        "exceed the model's context",
        "",
    ),
    "labels of another shape": (
        lambda: run("bert", TaskType.TOKEN_CLS, labels=torch.zeros(1, 6, dtype=torch.long)),
        ConfigError,
        "labels has shape (1, 6), the text (1, 7)",
        "",
    ),
    "types of another shape": (
        lambda: run("bert", TaskType.TOKEN_CLS, token_type_ids=torch.zeros(1, 8, dtype=torch.long)),
        ConfigError,
        "token_type_ids has shape (1, 8), the text (1, 7)",
        "",
    ),
    "ids and embeddings": (
        lambda: run("bert", TaskType.SEQ_CLS, inputs_embeds=torch.zeros(1, 7, 32)),
        ConfigError,
        "exactly one of input_ids and inputs_embeds",
        "",
    ),
    "a token outside the vocabulary": (
        lambda: run("bert", TaskType.SEQ_CLS, input_ids=torch.tensor([[5, 4000]])),
        ModelError,
        "4000",
        "tokenizer",
    ),
    "an unknown prompt": (
        lambda: run("bert", TaskType.SEQ_CLS, prompt_names="defualt"),
        PromptError,
        "defualt",
        "default",
    ),
    "a prompt's name too few": (
        lambda: run("bert", TaskType.SEQ_CLS, prompt_names=["default", "default"]),
        ConfigError,
        "2",
        "",
    ),
    "answers of a classifier": (
        lambda: model_of("bert", TaskType.SEQ_CLS).generate(texts()[0][None]),
        ModelError,
        "a model for SEQ_CLS writes no answers",
        "ptune generate",
    ),
    "no answers": (
        lambda: run("t5", TaskType.SEQ_2_SEQ_LM),
        ConfigError,
        "neither labels nor decoder_input_ids",
        "call generate",
    ),
    # Labels of a model to load.
    "labels that come twice": (lambda: label_options(["a", "b", "a"]), ConfigError, "['a', 'b', 'a']", ""),
    "no labels": (lambda: label_options([]), ConfigError, "there are []", ""),
    "less than one label": (lambda: label_options(0), ConfigError, "labels must be at least 1, not 0", ""),
}


class _Unnamed(torch.nn.Module):
    """In place of a class whose name says nothing; `of_bert` makes one."""

    @staticmethod
    def of_bert() -> Any:
        base = build("bert", TaskType.SEQ_CLS)
        kind = type("_Unnamed", (type(base),), {})
        base.__class__ = kind
        del base.classifier
        return base


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case: str) -> None:
    make, kind, message, hint = CASES[case]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        make()
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [VECTORS, KEYS], ids=["vectors", "keys"])
@pytest.mark.parametrize(("name", "positions"), [("bert", 16), ("roberta", 18), ("llama", 16)])
@torch.no_grad()
def test_the_longest_text_that_fits(name: str, positions: int, config: Any) -> None:
    """Two of RoBERTa's positions stand for padding; one token more is refused before anything is computed."""
    model = PTunedTaskModel(build(name, TaskType.SEQ_CLS, max_position_embeddings=positions), config).eval()
    assert model.context_length == 16
    assert model(input_ids=torch.full((1, 12), 7)).logits.shape == (1, 3)
    with pytest.raises(ModelError, match="context of 16"):
        model(input_ids=torch.full((1, 13), 7))


# ---- models that are loaded ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints as they are published: an encoder for masks, a decoder, a part of a model."""
    sizes = {
        "vocab_size": 32,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    made: dict[str, Any] = {
        "bert": BertForPreTraining(BertConfig(**sizes)),
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=32)),
        "bare bert": build("bert", TaskType.FEATURE_EXTRACTION),
        "t5": build("t5", TaskType.SEQ_2_SEQ_LM),
        "classifier": with_labels(3),
    }
    places = {}
    for name, model in made.items():
        place = tmp_path_factory.mktemp(name.replace(" ", "-"))
        model.save_pretrained(place)
        places[name] = str(place)
    return places


@pytest.mark.parametrize(
    ("name", "task", "message", "hint"),
    [
        ("bert", TaskType.SEQ_2_SEQ_LM, "is not a model from sequence to sequence: its type is 'bert'", "T5 or BART"),
        ("gpt2", TaskType.MASKED_LM, "is not a masked language model: its type is 'gpt2'", "BERT or RoBERTa"),
        ("t5", TaskType.MASKED_LM, "is not a masked language model: its type is 't5'", "an encoder"),
        ("t5", TaskType.CAUSAL_LM, "t5", "ptune train --task seq2seq"),
        ("bare bert", TaskType.MASKED_LM, "lacks", "language-model head"),
    ],
)
def test_a_model_that_is_for_something_else(
    name: str, task: TaskType, message: str, hint: str, folders: dict[str, str]
) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        load_model(folders[name], task=task)
    text = str(caught.value)
    assert folders[name] in text
    assert hint.removeprefix("ptune train ") in text


@pytest.mark.parametrize("task", [TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_head_is_drawn_alike_everywhere(name: str, task: TaskType, folders: dict[str, str]) -> None:
    """Where the checkpoint has none; the state of torch's generator is not touched."""
    labels = None if task is TaskType.QUESTION_ANS else ["no", "yes", "perhaps"]
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    one = load_model(folders[name], task=task, labels=labels)
    assert torch.equal(torch.rand(1), wanted)
    torch.manual_seed(2)
    other = load_model(folders[name], task=task, labels=labels)
    for (key, value), (_, again) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, again), key
    assert not one.training
    assert not any(value.requires_grad for value in one.parameters())
    if labels is not None:
        assert one.config.id2label == dict(enumerate(labels))
        assert one.config.label2id == {label: at for at, label in enumerate(labels)}


def test_other_labels_than_the_checkpoints(folders: dict[str, str]) -> None:
    """Its own head is kept where it has as many; and a number of labels is enough."""
    assert load_model(folders["bert"], task=TaskType.SEQ_CLS, labels=5).config.num_labels == 5
    named = load_model(folders["classifier"], task=TaskType.SEQ_CLS, labels=["a", "b", "c"])
    own = with_labels(3)
    assert torch.equal(named.classifier.weight, own.classifier.weight)
    assert named.config.id2label == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(ModelError) as caught:
        load_model(folders["classifier"], task=TaskType.SEQ_CLS, labels=["a", "b"])
    assert folders["classifier"] in str(caught.value)


def test_a_configuration_is_checked_before_any_weights(folders: dict[str, str], tmp_path: Path) -> None:
    assert load_config(folders["bert"], task=TaskType.MASKED_LM).model_type == "bert"
    with pytest.raises(ModelError, match="is not a model from sequence to sequence"):
        load_config(folders["bert"], task=TaskType.SEQ_2_SEQ_LM)
    states: Any = load_model(folders["bare bert"], task=TaskType.FEATURE_EXTRACTION)
    assert type(get_peft_model(states, VECTORS)).__name__ == "PeftModelForFeatureExtraction"
    encoder = T5EncoderModel(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=32))
    assert PTunedTaskModel(encoder, VECTORS).task is TaskType.FEATURE_EXTRACTION


def test_a_head_that_trains_in_part_on_a_model_in_bfloat16() -> None:
    """The frozen part would be given float32, which it does not compute in."""
    config = PromptTuningConfig(num_virtual_tokens=4, modules_to_save=["vocab_transform"])
    model = model_of("distilbert", TaskType.MASKED_LM, config)
    ids = torch.arange(5, 12)[None]
    assert bool(model(ids, labels=ids).loss.isfinite())
    model.base.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"vocab_transform of DistilBertForMaskedLM train in float32, and") as caught:
        model(ids, labels=ids)
    assert "Name vocab_layer_norm, vocab_projector in modules_to_save too" in str(caught.value.hint)
