"""Plans for other tasks: counts of the model that would train, and steps that hold what real ones hold."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AlbertConfig,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from ptune.config import TaskType
from ptune.data.tasks import TaskCollator
from ptune.errors import ConfigError, ModelError
from ptune.loading.for_task import auto_class
from ptune.methods.apply import MethodSettings, apply_method
from ptune.methods.names import METHODS
from ptune.planning.batch_without_data import Shape, logits_width
from ptune.planning.forecast import Forecaster, plan
from ptune.planning.planned_config import planned_config
from ptune.planning.simulate import ROWS_SIMULATED, body_of, encoder_cost, simulate, step_cost
from ptune.planning.tracker import LiveBytes

SIZES = MethodSettings(num_virtual_tokens=4, lora_r=2, self_check=False)
ROWS, LENGTH, WRITTEN, LABELS = 3, 24, 7, 3
_SMALL: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
_SMALL |= {"max_position_embeddings": 64}
NAMES = {
    TaskType.SEQ_CLS: "classify",
    TaskType.TOKEN_CLS: "tag",
    TaskType.QUESTION_ANS: "qa",
    TaskType.SEQ_2_SEQ_LM: "seq2seq",
    TaskType.MASKED_LM: "fill",
}
PROMPTS = ("prompt-tuning", "mlp", "lstm", "residual", "prefix", "prefix-mlp")


def config_of(name: str, layers: int = 2) -> PretrainedConfig:
    if name == "bart" and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip("docs/versions.md: BART cannot be simulated before transformers 5.23")
    if name == "bert":
        return BertConfig(num_hidden_layers=layers, **_SMALL)
    if name == "roberta":
        return RobertaConfig(num_hidden_layers=layers, **_SMALL)
    if name == "albert":
        return AlbertConfig(num_hidden_layers=layers, embedding_size=16, **_SMALL)
    if name == "distilbert":
        return DistilBertConfig(vocab_size=90, dim=32, n_heads=4, hidden_dim=48, n_layers=layers)
    if name == "llama":
        return LlamaConfig(num_hidden_layers=layers, num_key_value_heads=2, **_SMALL)
    if name == "gpt2":
        return GPT2Config(vocab_size=90, n_embd=32, n_head=4, n_positions=64, n_layer=layers)
    if name == "t5":
        return T5Config(vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=layers)
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes = {"encoder_layers": layers, "decoder_layers": layers + 1, "max_position_embeddings": 64}
    return BartConfig(vocab_size=90, d_model=32, **heads, **sizes)


def planned(name: str, task: TaskType, layers: int = 2) -> PretrainedConfig:
    labels = LABELS if task in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS) else None
    return planned_config(config_of(name, layers), task, labels)


def forecaster(name: str, task: TaskType, layers: int = 2) -> Forecaster:
    labels = LABELS if task in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS) else None
    return Forecaster(config_of(name, layers), SIZES, task=task, num_labels=labels, target_length=WRITTEN)


def shape_for(task: TaskType, rows: int = ROWS) -> Shape:
    learned = {TaskType.MASKED_LM: 1, TaskType.SEQ_2_SEQ_LM: WRITTEN}.get(task)
    return Shape(rows, LENGTH, learned=learned)


def batch_of(task: TaskType, *, padding: bool) -> dict[str, Any]:
    """A batch with data, whose first row is a token shorter where there is to be padding."""
    rows: list[dict[str, Any]] = []
    for at in range(ROWS):
        length = LENGTH - (padding and at == 0)
        row: dict[str, Any] = {"input_ids": [5 + at] * length, "attention_mask": [1] * length}
        if task is TaskType.QUESTION_ANS:
            row |= {"start_positions": 2, "end_positions": 4}
        else:
            row["labels"] = {
                TaskType.SEQ_CLS: 1,
                TaskType.TOKEN_CLS: [1] * length,
                TaskType.MASKED_LM: [-100] * (length - 1) + [8],
                TaskType.SEQ_2_SEQ_LM: [8] * WRITTEN,
            }[task]
        rows.append(row)
    return dict(TaskCollator(pad_token_id=0, task=NAMES[task])(rows))


def step_of(config: PretrainedConfig, method: str, task: TaskType, *, padding: bool = True) -> Callable[[], None]:
    """The same step with data, to be run as training runs it.

    Without padding transformers makes no mask, and the plan is for padded rows.
    """
    torch.manual_seed(0)
    base = auto_class(task).from_config(config).requires_grad_(False).eval()
    model: Any = apply_method(method, base, SIZES, task=task)
    batch = batch_of(task, padding=padding)
    if METHODS[method].is_ptune:
        batch["return_logits"] = False

    def step() -> None:
        model(**batch).loss.backward()  # outputs are gone when the backward begins, as in Trainer

    return step


def real_step(config: PretrainedConfig, method: str, task: TaskType) -> LiveBytes:
    """It, watched by the tracker that watches the step without data."""
    step, tracker = step_of(config, method, task), LiveBytes(vocab_size=logits_width(config, task), supervised=0)
    with tracker:
        step()
    return tracker


def allocated(step: Callable[[], None], folder: Path) -> int:
    """The most bytes that PyTorch's allocator had given away at once during a step, by its own record.

    It knows nothing of the tracker: it tells what kernels allocate for themselves too, and steps run in it as they are.
    """
    gc.collect()
    gc.disable()  # what earlier tests held would count where it is freed meanwhile
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    finally:
        gc.enable()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    taken = sorted((one["ts"], one["args"]["Bytes"]) for one in events if one["name"] == "[memory]")
    return max(itertools.accumulate(size for _, size in taken))


def bytes_of_tensors(made: Forecaster, method: str) -> float:
    """What a forecast says of tensors, without weights and without what a process holds beside them."""
    memory = made.forecast(method, ROWS, LENGTH).memory
    return (memory.activations + memory.logits + memory.gradients) * 2**30


CASES = [
    ("bert", TaskType.SEQ_CLS),
    ("roberta", TaskType.SEQ_CLS),
    ("llama", TaskType.SEQ_CLS),
    ("gpt2", TaskType.SEQ_CLS),
    ("t5", TaskType.SEQ_2_SEQ_LM),
    ("bart", TaskType.SEQ_2_SEQ_LM),
    ("bert", TaskType.MASKED_LM),
]
OTHERS = [("bert", TaskType.TOKEN_CLS), ("llama", TaskType.TOKEN_CLS), ("roberta", TaskType.QUESTION_ANS)]


@pytest.mark.parametrize("method", ["full", "lora", *PROMPTS])
@pytest.mark.parametrize(("name", "task"), CASES)
def test_parameters_are_those_of_the_real_model(name: str, task: TaskType, method: str):
    base = auto_class(task).from_config(planned(name, task))
    before = sum(weight.numel() for weight in base.parameters())
    model: Any = apply_method(method, base, SIZES, task=task)
    real = (before, before) if method == "full" else model.get_nb_trainable_parameters()
    told = forecaster(name, task).forecast(method, 2, 16)
    assert (told.trainable_parameters, told.all_parameters) == real
    assert told.base_parameters == before
    assert told.packed == (name in ("llama", "gpt2") and METHODS[method].is_ptune)


# Not the LSTM: oneDNN's scratch space for it is known with data alone.
@pytest.mark.parametrize("method", ["full", "mlp", "prefix", "lora"])
@pytest.mark.parametrize(("name", "task"), [*CASES, *OTHERS])
def test_a_step_without_data_holds_what_a_real_one_holds(name: str, task: TaskType, method: str):
    config = planned(name, task)
    real = real_step(config, method, task)
    told = simulate(config, method, SIZES, shape_for(task), task=task)
    assert max(told.tracker.live) == pytest.approx(max(real.live), rel=0.02)
    assert sum(told.tracker.flops) == pytest.approx(sum(real.flops), rel=0.02)


@pytest.mark.parametrize("method", ["full", "prompt-tuning", "prefix", "lora"])
@pytest.mark.parametrize(("name", "task"), [("bert", TaskType.SEQ_CLS), ("llama", TaskType.TOKEN_CLS)])
def test_few_layers_tell_of_many(name: str, task: TaskType, method: str):
    config = planned(name, task, layers=8)
    whole = simulate(config, method, SIZES, shape_for(task), task=task)
    told = step_cost(config, method, SIZES, shape_for(task), task=task)
    assert max(told.early.total, told.late.total) == pytest.approx(max(whole.tracker.live), rel=0.03)
    assert told.flops == pytest.approx(sum(whole.tracker.flops), rel=1e-6)


@pytest.mark.parametrize(("name", "task"), [("bert", TaskType.SEQ_CLS), ("t5", TaskType.SEQ_2_SEQ_LM)])
def test_an_encoder_beside_the_body_is_the_method(name: str, task: TaskType):
    config, shape = planned(name, task), shape_for(task)
    whole = simulate(config, "mlp", SIZES, shape, task=task).tracker
    told = encoder_cost(config, "mlp", SIZES, task=task).added_to(
        step_cost(config, body_of("mlp"), SIZES, shape, task=task)
    )
    assert max(told.early.total, told.late.total) == pytest.approx(max(whole.live), rel=0.02)
    assert told.flops == pytest.approx(sum(whole.flops), rel=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_many_rows_are_told_from_fewer(name: str):
    config, shape = planned(name, TaskType.SEQ_CLS), shape_for(TaskType.SEQ_CLS, ROWS_SIMULATED + 7)
    whole = simulate(config, "mlp", SIZES, shape, task=TaskType.SEQ_CLS)
    told = step_cost(config, "mlp", SIZES, shape, task=TaskType.SEQ_CLS)
    assert max(told.early.total, told.late.total) == pytest.approx(max(whole.tracker.live), rel=0.02)


def test_logits_are_those_over_the_vocabulary():
    assert forecaster("bert", TaskType.SEQ_CLS).forecast("full", 4, 32).memory.logits == 0
    config = config_of("bert")
    config.vocab_size = 2000  # with a small vocabulary a step is fullest where logits are gone
    masked = Forecaster(config, SIZES, task=TaskType.MASKED_LM)
    assert masked.forecast("full", 4, 32).memory.logits >= 4 * 32 * 2000 * 4 / 2**30
    # Behind a prompt those at the gaps alone, with their gradient and what the loss makes of them.
    assert masked.forecast("mlp", 4, 32).memory.logits <= 4 * 4 * 2000 * 4 / 2**30


@pytest.mark.parametrize("method", ["full", "mlp", "prefix", "lora"])
@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_forecast_is_what_the_allocator_gives(name: str, task: TaskType, method: str, tmp_path: Path):
    told = bytes_of_tensors(forecaster(name, task, layers=6), method)
    real = allocated(step_of(planned(name, task, layers=6), method, task), tmp_path)
    assert told == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("method", ["mlp", "prefix"])
def test_training_makes_the_logits_of_gaps_once(method: str, padding: bool, tmp_path: Path):
    """With a vocabulary so large that they are half of what a step holds."""
    config = config_of("bert")
    config.vocab_size = 2000
    told = bytes_of_tensors(Forecaster(config, SIZES, task=TaskType.MASKED_LM), method)
    real = allocated(step_of(config, method, TaskType.MASKED_LM, padding=padding), tmp_path)
    assert told == pytest.approx(real, rel=0.03)


def test_what_is_written_counts():
    told = forecaster("t5", TaskType.SEQ_2_SEQ_LM)
    short, long = told.forecast("mlp", 4, 32), told.forecast("mlp", 4, 32, target_length=5 * WRITTEN)
    assert (short.target_length, long.target_length) == (WRITTEN, 5 * WRITTEN)
    assert long.memory.total > short.memory.total
    assert long.flops > short.flops
    assert long.tokens == 4 * (32 + 5 * WRITTEN)


@pytest.mark.parametrize("name", ["albert", "distilbert"])
@pytest.mark.parametrize("method", ["prefix", "prefix-mlp"])
def test_encoders_that_take_no_keys_and_values(name: str, method: str):
    told = forecaster(name, TaskType.SEQ_CLS)
    assert told.forecast("mlp", 2, 16).trainable_parameters > 0
    with pytest.raises(ModelError, match="a prompt of keys and values needs a model that goes on from them, and"):
        told.forecast(method, 2, 16)


def test_the_context_is_that_of_the_side_where_the_prompt_stands():
    told = forecaster("bart", TaskType.SEQ_2_SEQ_LM)
    with pytest.raises(ConfigError, match=r"4 virtual tokens and rows of 62 tokens .* max_length of at most 60"):
        told.forecast("mlp", 1, 62)
    assert told.forecast("prefix", 1, 62).rows == 1
    with pytest.raises(ConfigError, match=r"4 virtual tokens and texts to write of 62 tokens .* target_length of at"):
        told.forecast("prefix", 1, 62, target_length=62)
    assert told.forecast("mlp", 1, 60, target_length=62).rows == 1


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        (TaskType.TOKEN_CLS, None, "the number of tags is not known. Set num_labels, or give the data"),
        (TaskType.SEQ_CLS, 1, "num_labels must be at least 2, not 1"),
        (TaskType.QUESTION_ANS, 4, "num_labels=4, but QUESTION_ANS has no labels to count"),
        (TaskType.CAUSAL_LM, 2, "num_labels=2, but CAUSAL_LM has no labels to count"),
    ],
)
def test_labels_that_cannot_be(task: TaskType, labels: int | None, said: str):
    with pytest.raises(ConfigError, match=said):
        planned_config(config_of("bert"), task, labels)


def test_a_configuration_is_left_as_it_is(tmp_path: Any):
    config = config_of("gpt2")
    assert Forecaster(config, task=TaskType.SEQ_CLS).config.pad_token_id == 0
    assert config.pad_token_id is None
    assert planned_config(config, TaskType.SEQ_CLS).num_labels == 2


def test_models_for_another_task_are_refused(tmp_path: Any):
    config_of("t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="is not a masked language model"):
        plan(str(tmp_path / "t5"), task=TaskType.MASKED_LM)
    with pytest.raises(ModelError, match="reads a text with its decoder too, where a prompt has no place"):
        plan(str(tmp_path / "t5"), task=TaskType.SEQ_CLS, methods=("mlp",))
    (one,) = plan(str(tmp_path / "t5"), task=TaskType.SEQ_2_SEQ_LM, methods=("mlp",), target_length=9)
    assert (one.length, one.target_length) == (256, 9)
