"""A comparison against what it is made of: `ptune train`, the libraries' own counts, the files on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from commands import Ran, run
from ptune.choices import CHECKPOINTING, LEARNING_RATES
from ptune.comparison.compare import _carry_out, _kept
from ptune.comparison.job import BASE, OUT_OF_MEMORY, Job, JobResult
from ptune.comparison.plots import smoothed
from ptune.comparison.report import html_report, markdown_report
from ptune.comparison.result_tables import memory_ratio, spread, tables
from ptune.comparison.settings import CompareSettings
from ptune.comparison.summary import Comparison, Spread, summarize_method
from ptune.comparison.worker import _is_out_of_memory
from ptune.saved.format import read_prompt

METHODS = ("full", "mlp", "lora", "peft-mlp")
Compare = Callable[..., Ran]


@pytest.fixture
def results(compared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((compared / "results.json").read_text(encoding="utf-8"))
    return found


def by_name(results: dict[str, Any]) -> dict[str, Any]:
    return {one["method"]: one for one in results["methods"]}


def test_parameters_are_the_models_own(results: dict[str, Any], tiny_model_dir: Path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    count, width = sum(weight.numel() for weight in base.parameters()), base.config.hidden_size
    mlp = 4 * width + 3 * (width * width + width)
    found = by_name(results)
    assert results["base"]["all_parameters"] == count
    assert (found["full"]["trainable_parameters"], found["full"]["all_parameters"]) == (count, count)
    for name in ("mlp", "peft-mlp"):
        assert (found[name]["trainable_parameters"], found[name]["all_parameters"]) == (mlp, count + mlp)
    assert found["mlp"]["trainable_percent"] == pytest.approx(100 * mlp / (count + mlp))
    assert 0 < found["lora"]["trainable_parameters"] < count / 2


def test_all_saw_the_same_rows(results: dict[str, Any]):
    assert results["same_rows_in_the_same_order"] is True
    runs = [one for one in results["runs"] if one["status"] == "ok"]
    assert len(runs) == len(METHODS)
    assert len({run["rows_digest"] for run in runs}) == 1
    assert len({run["tokens"] for run in runs}) == 1


def test_prompts_losses_are_those_of_ptune_train(
    compared: Path, results: dict[str, Any], compare_words: list[object], tmp_path: Path
):
    own = [word for word in compare_words if word not in ("--learning-rates", "mlp=1e-2")]
    done = run(
        "train",
        *own,
        "--encoder",
        "mlp",
        "--learning-rate",
        "1e-2",
        "--logging-steps",
        1,
        "--output",
        tmp_path / "p",
        "--json",
    )
    assert done.code == 0, done.err
    said = json.loads(done.out)
    found = next(one for one in results["runs"] if one["method"] == "mlp")
    assert found["held_out_loss"] == pytest.approx(said["held_out_loss_after"], rel=1e-6)
    assert results["base"]["held_out_loss"] == pytest.approx(said["held_out_loss_before"], rel=1e-6)
    logged = [json.loads(line) for line in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert [loss for _, loss in found["losses"]] == pytest.approx(losses, rel=1e-6)


def test_lora_starts_where_full_fine_tuning_does(results: dict[str, Any]):
    """LoRA adds nothing at its start, so the first losses are both the model's own on the same rows."""
    first = {one["method"]: one["losses"][0][1] for one in results["runs"]}
    assert first["lora"] == pytest.approx(first["full"], rel=1e-5)
    assert abs(first["mlp"] - first["full"]) > 1e-4


def test_what_was_trained_is_kept_and_fits_its_size(compared: Path, results: dict[str, Any]):
    found = by_name(results)
    runs = compared / "runs"
    prompt = runs / "mlp-seed42"
    assert read_prompt(prompt).vectors.shape[0] == 4
    assert found["mlp"]["bytes_on_disk"] == (prompt / "adapter_model.safetensors").stat().st_size
    assert found["mlp"]["bytes_to_train_on"] == (prompt / "encoder.safetensors").stat().st_size
    adapter = load_file(runs / "lora-seed42" / "adapter_model.safetensors")
    assert sum(part.numel() for part in adapter.values()) == found["lora"]["trainable_parameters"]
    assert not (runs / "full-seed42").exists()
    assert found["full"]["bytes_on_disk"] > 4 * found["full"]["trainable_parameters"] * 0.9


def test_memory_and_time_are_there(results: dict[str, Any]):
    for one in results["methods"]:
        assert one["peak_gib"]["mean"] >= one["loaded_gib"]["mean"] >= 0
        assert one["step_seconds"]["mean"] > 0
        assert one["step_cpu_seconds"]["mean"] > 0
        assert one["tokens_per_second"]["mean"] > 0


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_asks_nobody(compared: Path):
    page = _Page()
    page.feed((compared / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    text = " ".join(page.text)
    assert "p-tuning (MLP)" in text
    assert "the same for all methods (checked)" in text


def test_names_from_outside_are_text_on_the_page(compared: Path):
    comparison = _comparison(compared)
    evil = "<script>alert(1)</script>"
    comparison.settings["recipe"]["data"] = evil
    assert evil not in html_report(comparison)
    assert "&lt;script&gt;" in html_report(comparison)


def test_terminal_and_markdown_show_the_tutorials_columns(compared: Path):
    said = (compared / "stdout.txt").read_text(encoding="utf-8")
    for column in ("condition", "model parameters", "trainable parameters", "loaded (GiB)", "training (GiB)"):
        assert column in said
        assert column in (compared / "report.md").read_text(encoding="utf-8")
    for picture in ("loss.png", "held_out.png", "memory.png"):
        assert (compared / picture).stat().st_size > 10_000


def test_the_same_command_measures_nothing_again_and_a_method_can_be_added(
    compared: Path, compare: Compare, tmp_path: Path
):
    folder = tmp_path / "again"
    shutil.copytree(compared, folder)
    (folder / "runs" / "lora-seed42.json").unlink()
    done = compare("--methods", "full,mlp,lora", output=folder)
    assert done.code == 0, done.err
    assert "2/4 full, seed 42: 3 steps" in done.err
    assert "(from before)" in next(line for line in done.err.splitlines() if "full" in line)
    assert "(from before)" not in next(line for line in done.err.splitlines() if "lora" in line)
    before = json.loads((compared / "runs" / "lora-seed42.json").read_text())
    after = json.loads((folder / "runs" / "lora-seed42.json").read_text())
    assert after["losses"] == before["losses"]


def test_other_settings_are_not_mixed_in(compared: Path, compare: Compare, tmp_path: Path):
    folder = tmp_path / "again"
    shutil.copytree(compared, folder)
    done = compare("--limit", "12", output=folder)
    assert done.code == 2
    assert "other settings (limit)" in done.err
    assert "--overwrite" in done.err


def test_a_result_of_another_job_is_not_taken(compared: Path):
    job = Job(method="mlp", seed=42, folder=str(compared / "runs" / "mlp-seed42"), recipe={"model": "another"})
    assert job.result_file.is_file()
    assert _kept(job) is None


def test_a_killed_process_is_a_row_that_says_so(compared: Path, tmp_path: Path):
    job = _job(compared, "mlp", tmp_path)

    def kill(_: dict[str, Any]) -> None:
        for child in psutil.Process().children():
            if "ptune.comparison.worker" in child.cmdline():
                child.kill()

    result = _carry_out(job, kill)
    assert result.status == OUT_OF_MEMORY
    assert "memory" in str(result.error)
    row = summarize_method("mlp", CompareSettings(methods="mlp"), [result])
    assert not row.ok
    assert row.status.startswith(OUT_OF_MEMORY)


def test_an_interrupted_job_leaves_no_process_and_no_result(compared: Path, tmp_path: Path):
    job = _job(compared, "mlp", tmp_path)

    def interrupt(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _carry_out(job, interrupt)
    assert not [one for one in psutil.Process().children() if "ptune.comparison.worker" in one.cmdline()]
    assert _kept(job) is None


def test_keys_and_values_beside_the_others(
    compared: Path, compare: Compare, compare_words: list[object], tmp_path: Path
):
    folder = tmp_path / "again"
    shutil.copytree(compared, folder)
    done = compare("--methods", "mlp,prefix,prefix-mlp", output=folder)
    assert done.code == 0, done.err
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["same_rows_in_the_same_order"] is True
    own = [word for word in compare_words if word not in ("--learning-rates", "mlp=1e-2")]
    for name in ("prefix", "prefix-mlp"):
        found = by_name(results)[name]
        trained = run("train", *own, "--encoder", name, "--logging-steps", 1, "--output", tmp_path / name, "--json")
        assert trained.code == 0, trained.err
        said = json.loads(trained.out)
        assert found["learning_rate"] == LEARNING_RATES[name]
        assert found["trainable_parameters"] == said["trainable_parameters"]
        assert found["held_out_loss"]["mean"] == pytest.approx(said["held_out_loss_after"], rel=1e-6)
        kept = folder / "runs" / f"{name}-seed42" / "adapter_model.safetensors"
        assert found["bytes_on_disk"] == kept.stat().st_size
    assert "p-tuning v2" in done.out
    assert "prefix tuning (MLP)" in done.out


def test_missing_memory_is_told_from_other_faults():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**47, dtype=torch.uint8).fill_(1)
    assert _is_out_of_memory(caught.value)
    assert not _is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_method_without_a_result_is_shown_beside_the_others(compared: Path, tmp_path: Path):
    whole = _comparison(compared)
    lost = JobResult(method="lora", seed=42, status=OUT_OF_MEMORY, key="", error="2 GiB asked | none left")
    methods = tuple(
        summarize_method("lora", CompareSettings(), [lost]) if one.method == "lora" else one for one in whole.methods
    )
    changed = Comparison(**{**vars(whole), "methods": methods})
    text = markdown_report(changed, [])
    assert "| LoRA | out of memory |" in text
    assert "2 GiB asked" in text
    assert "out of memory" in html_report(changed)
    assert all(len({len(row) for row in (table.columns, *table.rows)}) == 1 for table in tables(changed))


def test_figures_over_seeds():
    assert Spread.of([1.0, 3.0, None]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([None]) is None
    assert spread(Spread(2.0, 1.0, 3.0), 2) == "2.00 (1.00–3.00)"
    assert spread(Spread(2.0, 1.999, 2.001), 2) == "2.00"
    curves = [
        JobResult(method="mlp", seed=seed, status="ok", key="", losses=((1, seed), (2, 2.0 * seed))) for seed in (1, 3)
    ]
    row = summarize_method("mlp", CompareSettings(seeds=2), curves)
    assert row.losses == ((1, 2.0, 1.0, 3.0), (2, 4.0, 2.0, 6.0))


def test_smoothing_keeps_constants_and_ends():
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    line = [float(number) for number in range(100)]
    assert smoothed(line) == pytest.approx(line)


def test_memory_is_told_as_shares_of_full_fine_tuning(compared: Path):
    comparison = _comparison(compared)
    peaks = {one.method: one.peak_gib.mean for one in comparison.methods if one.peak_gib is not None}
    said = memory_ratio(comparison)
    assert said == f"Memory in training, full : mlp, full = 1: 1.00 : {peaks['mlp'] / peaks['full']:.2f}."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "full,mpl"], "Did you mean 'mlp'?"),
        (["--methods", ","], "methods names none"),
        (["--seeds", "0"], "seeds must be at least 1, not 0"),
        (["--learning-rate", "1e-3"], "learning_rates, as mlp=1e-3"),
        (["--learning-rates", "mlp=fast"], "'fast' for mlp is not a number"),
        (["--learning-rates", "mlp=nan"], "must be above 0"),
        (["--methods", "full", "--learning-rates", "mlp=1e-3"], "not among the methods full"),
        (["--eval-strategy", "epoch"], "eval_strategy is decided by the comparison"),
        (["--encoder", "lsmt"], "Did you mean 'lstm'?"),
        (["--tokens-per-batch", "64"], "unknown flag --tokens-per-batch"),
        (["--num-frozen-tokens", "1"], "unknown flag --num-frozen-tokens"),
        (
            ["--methods", "mlp,prefix", f"--{CHECKPOINTING.replace('_', '-')}"],
            "drops the keys and values that prefix gives",
        ),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--model", "./nowhere"], "there is no model folder './nowhere'"),
    ],
)
def test_wrong_input_is_one_line(compare: Compare, tmp_path: Path, words: list[str], said: str):
    done = compare(*words)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_folder_of_others_is_left_alone(compare: Compare, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    done = compare()
    assert done.code == 2
    assert "not empty" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def _job(compared: Path, method: str, folder: Path) -> Job:
    """A job like one of the comparison's, into another folder."""
    about = json.loads((compared / "settings.json").read_text(encoding="utf-8"))
    recipe = {**about["recipe"], "encoder": "mlp", "output": str(folder)}
    return Job(
        method=method, seed=42, folder=str(folder / "runs" / f"{method}-seed42"), recipe=recipe,
        arguments=about["arguments"], learning_rate=1e-2,
    )  # fmt: skip


def _comparison(folder: Path) -> Comparison:
    """The comparison in a folder, from its results file."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    runs = [JobResult.from_dict(one) for one in found["runs"]]
    settings = CompareSettings(methods=found["settings"]["comparison"]["methods"])
    return Comparison(
        settings=found["settings"],
        machine=found["machine"],
        versions=found["versions"],
        base=JobResult.from_dict(found["base"]),
        methods=tuple(
            summarize_method(name, settings, [run for run in runs if run.method == name]) for name in settings.names()
        ),
        runs=tuple(runs),
        same_rows=True,
        on_cuda=False,
    )


def test_base_is_measured_once(compared: Path):
    assert (compared / "runs" / f"{BASE}.json").is_file()
