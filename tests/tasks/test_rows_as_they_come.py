"""What must not matter of a batch for a task, and what asking for more must not leave behind.

Padding is whatever a tokenizer puts there; hooks of transformers on a frozen model's layers are put there once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prompting import relative_error
from ptune import PrefixTuningConfig, PromptTuningConfig, PTunedModel, get_peft_model
from ptune.errors import ModelError
from ptune.internals import forward_hooks
from ptune.model.task_model import PTunedTaskModel
from task_models import SEQUENCES, SPANS, STATES, TOKENS, VIRTUAL, WORDS, make, make_writer, padded, texts

CLOSE = 1e-5
VECTORS, DEEP = PromptTuningConfig(num_virtual_tokens=VIRTUAL), PrefixTuningConfig(num_virtual_tokens=VIRTUAL)


def wrapped(base: Any, config: Any = VECTORS) -> Any:
    torch.manual_seed(0)
    return PTunedTaskModel(base, config).eval()


@pytest.mark.parametrize("config", [VECTORS, DEEP], ids=["vectors", "deep"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2"])
@torch.no_grad()
def test_what_stands_under_a_mask_of_zero_does_not_matter(family: str, config: Any) -> None:
    """Any token, on either side: RoBERTa counts positions by the padding token's id, GPT-2 has one that ends texts."""
    model, found = wrapped(make(family, SEQUENCES), config), []
    for side, fill in (("right", 0), ("right", 57), ("left", 1), ("left", 88)):
        ids, mask, _ = padded(texts(), side, fill)
        found.append(model(input_ids=ids, attention_mask=mask).logits)
    for one in found[1:]:
        assert relative_error(one, found[0]) < CLOSE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_what_comes_out_at_padding(family: str, side: str) -> None:
    """Zeros for hidden states and for classes of tokens; an answer cannot be chosen there."""
    ids, mask, _ = padded(texts(), side, 0)
    padding, given = mask == 0, {"input_ids": ids, "attention_mask": mask}
    states = wrapped(make(family, STATES))(**given).last_hidden_state
    classes = wrapped(make(family, TOKENS))(**given).logits
    for values in (states, classes):
        assert values.shape[:2] == ids.shape
        assert not bool(values[padding].any())
        assert bool(values[~padding].any(dim=-1).all())
    spans = wrapped(make(family, SPANS))(**given)
    for logits in (spans.start_logits, spans.end_logits):
        assert float(logits.softmax(dim=1)[padding].sum()) == 0


@pytest.mark.parametrize("asked", ["configuration", "call"])
@pytest.mark.parametrize("kind", [SEQUENCES, STATES])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "electra"])
@torch.no_grad()
def test_layers_are_hooked_once(family: str, kind: str, asked: str) -> None:
    """However often hidden states are asked for; the bare model then gives each of them once."""
    base: Any = make(family, kind)
    call = {"output_hidden_states": True} if asked == "call" else {}
    base.config.output_hidden_states = asked == "configuration"
    model, ids, counts = wrapped(base), texts()[0][None], []
    inner = base if kind == STATES else getattr(base, base.base_model_prefix)
    for _ in range(3):
        model(input_ids=ids, **call)
        counts.append(sum(len(list(forward_hooks(module))) for module in inner.modules()))
    assert counts[0] == counts[1] == counts[2]
    assert len(base(ids, output_hidden_states=True).hidden_states) == base.config.num_hidden_layers + 1


@torch.no_grad()
def test_a_decoders_configuration_that_asks_for_hidden_states() -> None:
    base: Any = make("llama", SEQUENCES)
    model, ids = wrapped(base), texts()[0][None]
    wanted = model(input_ids=ids).logits
    base.config.output_hidden_states = True
    for _ in range(3):
        assert torch.equal(model(input_ids=ids).logits, wanted)
    assert len(base(ids).hidden_states) == base.config.num_hidden_layers + 1


@pytest.mark.parametrize("config", [VECTORS, DEEP], ids=["vectors", "deep"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_micro_batches_share_what_is_computed_of_the_prompt(family: str, config: Any) -> None:
    """A step's gradients inside `prefix_scope` are those outside it."""
    model, rows = wrapped(make(family, SEQUENCES), config), texts()
    halves = [padded(rows[at : at + 2], "right", 0) for at in (0, 2)]
    labels, found = torch.tensor([0, 2]), []
    for shared in (True, False):
        model.zero_grad()
        for at, (ids, mask, _) in enumerate(halves):
            given = {"input_ids": ids, "attention_mask": mask, "labels": labels, "num_items_in_batch": 4}
            if shared:
                with model.prefix_scope(last=at == 1):
                    model(**given).loss.backward()
            else:
                model(**given).loss.backward()
        found.append([one.grad.clone() for one in model.prompts.parameters()])
    for one, other in zip(*found, strict=True):
        assert bool(other.any())
        assert relative_error(one, other) < CLOSE


@pytest.mark.parametrize("config", [VECTORS, DEEP], ids=["vectors", "deep"])
@pytest.mark.parametrize(("family", "positions"), [("bert", 16), ("roberta", 18), ("llama", 16)])
@torch.no_grad()
def test_the_longest_text_that_fits(family: str, positions: int, config: Any) -> None:
    """Two of RoBERTa's positions stand for padding; one token more is refused before anything is computed."""
    model = wrapped(make(family, SEQUENCES, max_position_embeddings=positions), config)
    assert model.context_length == 16
    assert model(input_ids=torch.full((1, 16 - VIRTUAL), 7)).logits.shape == (1, 3)
    with pytest.raises(ModelError, match="16"):
        model(input_ids=torch.full((1, 17 - VIRTUAL), 7))


@pytest.mark.parametrize(
    ("make_base", "kind"),
    [
        (lambda: make("bert", SEQUENCES), "PeftModelForSequenceClassification"),
        (lambda: make("llama", TOKENS), "PeftModelForTokenClassification"),
        (lambda: make("roberta", SPANS), "PeftModelForQuestionAnswering"),
        (lambda: make_writer("t5"), "PeftModelForSeq2SeqLM"),
        (lambda: make("bert", STATES), "PeftModelForFeatureExtraction"),
        (lambda: make("bert", WORDS), "PeftModelForTask"),
    ],
    ids=["classes", "tags", "answers", "texts", "states", "words"],
)
def test_pefts_class_is_told_by_the_models(make_base: Any, kind: str) -> None:
    model = get_peft_model(make_base(), VECTORS)
    assert type(model).__name__ == kind
    assert model.active_peft_config.task_type is model.task
    assert not isinstance(model, PTunedModel)
