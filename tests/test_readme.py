"""The two READMEs stay level with each other, with the committed results and with the command line."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ptune.choices import LEARNING_RATES
from ptune.cli import compare, export, import_, inspect, plan, serve, train, tune
from ptune.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh.md"]


@pytest.mark.parametrize("name", READMES)
def test_quoted_demo_figures_are_the_committed_ones(name: str) -> None:
    """A row of the table for each score and cost; the interval stands behind a score that has one."""
    text = (ROOT / name).read_text(encoding="utf-8")
    whole = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    evaluation = whole["result"]["evaluation"]
    costs = [evaluation["costs"][column] for column in ("alone", "written", "prompt")]
    rows = [
        [_percent(evaluation["metrics"][metric][column]) for column in ("alone", "written", "prompt")]
        for metric in ("json_valid", "json_exact")
    ]
    rows.append([str(cost["prompt_tokens"]) for cost in costs])
    rows.append([f"{whole['cpu_seconds_an_answer'][column]:.2f}" for column in ("alone", "written", "prompt")])
    for cells in rows:
        assert f" | {' | '.join(cells)} |\n" in text, cells
    (caption,) = [part for part in text.split("\n\n") if part.startswith("*`make demo`")]
    minutes, seconds = divmod(whole["quiet_training_seconds"], 60)
    assert f"{minutes}:{seconds:02d}" in caption or f"{minutes} 分 {seconds} 秒" in caption
    for number in (evaluation["items"], costs[2]["prompt_tokens"]):
        assert re.search(rf"(?<![\d.]){number}(?!\d)", caption), number


def _percent(score: dict[str, float]) -> str:
    """`88% [81, 94]`; without the interval where all resamples gave the same."""
    value, low, high = (f"{100 * score[key]:.0f}" for key in ("value", "low", "high"))
    return f"{value}%" if low == high else f"{value}% [{low}, {high}]"


def _cases(result: str) -> dict[str, Any]:
    """Contenders of each case of a benchmark's committed result."""
    whole = json.loads((ROOT / f"benchmarks/results/{result}.json").read_text(encoding="utf-8"))
    return {case["label"]: case["contenders"] for case in whole["cases"]}


def test_quoted_training_figures_are_the_committed_ones() -> None:
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    cases = _cases("training_speed").values()
    rows = [[f"{case[who]['peak_gib']['median']:.1f} GiB" for case in cases] for who in ("peft", "ptune-packed")]
    for whose in ("peft", "peft-grouped"):
        ratios = [case["ptune-packed"]["ratios"][whose]["cpu_seconds"]["median"] for case in cases]
        rows.append([f"{one:.1f}×" for one in ratios])
    for cells in rows:
        assert f"| {' | '.join(cells)} |" in text


def test_quoted_figures_of_mixtures_are_the_committed_ones() -> None:
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    cases = _cases("mixtures").values()
    for whose in ("peft", "peft-grouped", "ptune-padded"):
        ratios = [case["ptune-packed"]["ratios"][whose]["cpu_seconds"]["median"] for case in cases]
        assert f"| {' | '.join(f'{one:.1f}×' for one in ratios)} |" in text
    whose = ("peft", "ptune-padded", "ptune-packed")
    memory = ["; ".join(f"{case[one]['peak_gib']['median']:.1f}" for one in whose) for case in cases]
    assert f"| {' | '.join(f'{one} GiB' for one in memory)} |" in text


def test_quoted_launches_are_the_committed_ones() -> None:
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/launches.json").read_text(encoding="utf-8"))
    models, before = found["models"].values(), found["before"]
    for each in (
        *([model[who] for model in models] for who in ("PEFT", "ptune", "ptune, padded attention")),
        before["models"].values(),
    ):
        cells = [(one["kernels"], one["waits"]) for one in each]
        shown = [f"{kernels:,} kernels, {waits} wait{'s' * (waits > 1)}" for kernels, waits in cells]
        assert f"| {' | '.join(shown)} |" in text
    assert f"`{before['commit'][:7]}`" in text
    for model in models:
        assert model["ptune"]["kernels"] < 0.6 * model["PEFT"]["kernels"]
        assert model["ptune"]["waits"] <= model["PEFT"]["waits"]
        assert model["ptune, padded rows"]["waits"] <= 3


SPEED_ROWS = [
    ("Zen 5", "training_speed", "mlp n=10", "", "float32"),
    ("Zen 4", "floor_zen4_alpaca", "mlp n=10", " float32", "float32"),
    ("Zen 4", "floor_zen4_alpaca", "mlp n=10", " bfloat16", "bfloat16"),
    ("Zen 4", "floor_zen4_dense", "mlp n=10", " float32", "float32"),
    ("Zen 4", "floor_zen4_dense", "mlp n=10", " bfloat16", "bfloat16"),
    ("Zen 2", "training_speed_demo", "mlp n=10", "", "float32"),
]
"""The README's speed table: processor, result, case, what the contenders' names end in, precision."""


@pytest.mark.parametrize("name", READMES)
def test_the_speed_table_is_that_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\|.*\| Zen \d", line)]
    assert len(lines) == len(SPEED_ROWS)
    for line, (processor, result, case, kind, precision) in zip(lines, SPEED_ROWS, strict=True):
        found = _cases(result)[case]
        ours = found[f"ptune-packed{kind}"]
        times = [ours["ratios"][f"{who}{kind}"]["cpu_seconds"]["median"] for who in ("peft", "peft-grouped")]
        memory = [found[f"{who}{kind}"]["peak_gib"]["median"] for who in ("peft", "ptune-packed")]
        assert processor in line
        assert precision in line
        assert line.endswith(f"| {times[0]:.1f}×; {times[1]:.1f}× | {memory[0]:.1f}; {memory[1]:.1f} GiB |"), line
    most = max(
        case["ptune-packed"]["ratios"]["peft"]["cpu_seconds"]["median"] for case in _cases("training_speed").values()
    )
    assert re.search(rf"(?<![\d.]){most:.1f} (times|倍)", text)


def test_quoted_figures_of_rows_of_one_length_are_the_committed_ones() -> None:
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    (demo,) = _cases("training_speed_demo").values()
    for one in ("peft", "peft-grouped"):
        ratio = demo["ptune-packed"]["ratios"][one]["cpu_seconds"]["median"]
        assert f"| {ratio:.1f}× | {demo[one]['peak_gib']['median']:.1f} GiB |" in text


def test_quoted_figures_of_bfloat16_are_the_committed_ones() -> None:
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    for rows, result in (("Alpaca", "floor_zen4_alpaca"), ("dense", "floor_zen4_dense")):
        found = _cases(result)["mlp n=10"]
        for kind in ("float32", "bfloat16"):
            ours = found[f"ptune-packed {kind}"]
            ratios = {who: each["cpu_seconds"]["median"] for who, each in ours["ratios"].items()}
            pairs = [(ratios[f"peft {one}"], ratios[f"peft-grouped {one}"]) for one in ("float32", "bfloat16")]
            share = min(ratios[f"floor-{one} {kind}"] for one in ("torch", "onednn"))
            memory = "; ".join(
                f"{found[f'{who} {kind}']['peak_gib']['median']:.1f}" for who in ("peft", "ptune-packed")
            )
            cells = [f"{rows}, {kind}", *(f"{one:.1f}×; {other:.1f}×" for one, other in pairs), f"{share:.2f}"]
            assert f"| {' | '.join(cells)} | {memory} GiB |" in text
    learned = json.loads((ROOT / "benchmarks/results/precision.json").read_text(encoding="utf-8"))
    for task in learned["compared"]:
        exact, rounded = (", ".join(f"{loss:.3f}" for loss in each) for each in task["held_out_loss"].values())
        difference = f"{task['difference_of_means']:+.3f} | {max(task['spread_of_seeds'].values()):.3f}"
        assert f"| {exact} | {rounded} | {difference} |" in text
        assert task["within_the_spread"]
    ratios = [one["packed_over_peft"][0] for one in learned["gradients"]]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times PEFT's" in text


def test_quoted_answering_and_floor_figures_are_the_committed_ones() -> None:
    text = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    answers = _cases("generation_speed")["mlp n=100"]
    first = {who: 1 / answers[who]["ratios"]["base"]["first_token_cpu_seconds"]["median"] for who in ("ptune", "peft")}
    decode = {who: answers[who]["ratios"]["base"]["decode_cpu_seconds"]["median"] for who in ("ptune", "peft")}
    floor = _cases("floor")["mlp n=10 float32"]["ptune-packed"]["ratios"]
    figures = [*first.values(), *decode.values(), floor["floor-onednn"]["cpu_seconds"]["median"]]
    for figure in [*(f"{one:.2f}" for one in figures), f"{floor['floor-torch']['cpu_seconds']['median']:.1f}"]:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", text), figure


def test_quoted_learning_figures_are_the_committed_ones() -> None:
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/learning.json").read_text(encoding="utf-8"))
    assert f"{found['settings']['steps']} steps of 8 rows" in text
    for one in found["compared"]:
        losses = [one["held_out_loss"].get(who) for who in ("reference", "ptune", "ptune_half")]
        cells = [
            "" if part is None else f"{statistics.fmean(part):.3f} ({min(part):.3f} to {max(part):.3f})"
            for part in losses
        ]
        row = " | ".join(
            [{"trec": "TREC", "sst2": "SST-2", "e2e": "E2E"}[one["task"]], str(one["virtual_tokens"]), *cells]
        )
        assert f"| {row.rstrip()} |\n" in text, row
        assert statistics.fmean(losses[1]) < statistics.fmean(losses[0]), "the page says that it learns better"
    points = found["robustness"]["points"].values()
    assert all(ours["held_out_loss"] < theirs["held_out_loss"] for ours, theirs in zip(*points, strict=True)), (
        "the page says so"
    )


def test_quoted_task_scores_are_the_committed_ones() -> None:
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/task_scores.json").read_text(encoding="utf-8"))
    learned = json.loads((ROOT / "benchmarks/results/learning.json").read_text(encoding="utf-8"))
    assert found["status"] == "ok"
    for who in found["tasks"][0]["contenders"]:
        cells = []
        for task in found["tasks"]:
            runs = task["contenders"].get(who, [])
            losses = [run["held_out_loss"] for run in runs if "held_out_loss" in run]
            cells += [f"{statistics.fmean(losses):.3f}" if losses else "", _scores_of(runs)]
        assert f"| {' | '.join(cells)} |\n".replace("  ", " ") in text, (who, cells)
    for task in found["tasks"]:
        (one,) = [
            part
            for part in learned["compared"]
            if (part["task"], part["virtual_tokens"]) == (task["task"], task["virtual_tokens"])
        ]
        for who, side in (("ptune", "ptune"), ("PEFT's start, best rate", "reference")):
            losses = [run["held_out_loss"] for run in task["contenders"][who]]
            assert losses == pytest.approx(one["held_out_loss"][side], rel=1e-3), "the prompts of the table above"


def _scores_of(runs: list[dict[str, Any]]) -> str:
    """`75% (71 to 79); 62%`: the mean of each score, of the first one also the least and the greatest of the runs."""
    shown = []
    for name in runs[0]["scores"] if runs else ():
        factor, unit = (1, "") if name in ("bleu", "chrf") else (100, "%")
        values = [factor * run["scores"][name]["value"] for run in runs]
        spread = f" ({min(values):.0f} to {max(values):.0f})" if len(runs) > 1 and not shown else ""
        shown.append(f"{statistics.fmean(values):.0f}{unit}{spread}")
    return "; ".join(shown)


def test_quoted_figures_of_keys_and_values_are_the_committed_ones() -> None:
    concepts, speed = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("concepts", "speed"))
    found = json.loads((ROOT / "benchmarks/results/deep_prompts.json").read_text(encoding="utf-8"))
    runs: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for run in found["runs"]:
        runs.setdefault((run["encoder"], run["learning_rate"]), []).append(run)
    for (encoder, rate), those in runs.items():
        losses = _means_and_ends([run["held_out_loss"] for run in those])
        named = "default" if rate is None else f"{rate:g}{', the default' if rate == LEARNING_RATES[encoder] else ''}"
        seconds = statistics.fmean(run["cpu_seconds"] for run in those)
        count = those[0]["trainable_parameters"]
        assert f"| `{encoder}` | {named} | {count:,} | {losses} | {seconds:.0f} s |" in concepts
    assert {one["task"] for one in found["tasks"]["compared"]} == {"sst2", "e2e"}
    for one in found["tasks"]["compared"]:
        for encoder in ("embedding", "prefix"):
            its = one[encoder]
            tried = ", ".join(f"{rate}: {run['loss_chosen_by']:.3f}" for rate, run in its["rates_tried"].items())
            seeds = ", ".join(f"{loss:.3f}" for loss in its["held_out_loss"])
            cells = [{"sst2": "SST-2", "e2e": "E2E"}[one["task"]], f"`{encoder}`", f"{its['trainable_parameters']:,}"]
            cells += [tried, f"{its['best_rate']:g}", seeds]
            assert f"| {' | '.join(cells)} | {statistics.fmean(its['held_out_loss']):.3f} |" in concepts, cells
    other = {name: run["held_out_loss"] for name, run in found["tasks"]["runs"].items()}
    assert f"a second seed at 0.06 ends at {other['sst2/prefix-n20-60-steps-rate-0.06-seed-1']:.3f})" in concepts
    lower = [f"{other[f'e2e/prefix-n20-60-steps-rate-0.018-seed-{seed}']:.3f}" for seed in range(3)]
    assert f"(E2E at 0.018: {', '.join(lower)})" in concepts
    cases = _cases("deep_speed").values()
    rows = [[f"{case[who]['peak_gib']['median']:.1f} GiB" for case in cases] for who in ("peft", "ptune-packed")]
    for whose in ("peft", "peft-grouped"):
        ratios = [case["ptune-packed"]["ratios"][whose]["cpu_seconds"]["median"] for case in cases]
        rows.append([f"{one:.1f}×" for one in ratios])
    for cells in rows:
        assert f"| {' | '.join(cells)} |" in speed, cells
    training = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert f"[{rows[2][0].rstrip('×')} times less CPU time](speed.md#training) than with PEFT's prefix" in training


def test_quoted_forecasts_of_keys_and_values_are_the_committed_ones() -> None:
    text = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    (found,) = _cases("forecast_deep").values()
    for name in ("prefix", "prefix-mlp"):
        measured, told, error = (found[name][key]["median"] for key in ("peak_gib", "forecast_gib", "error_percent"))
        figures = f"{measured:.2f} GiB, forecast {told:.2f} ({error:+.1f}%)"
        assert re.search(rf"`{name}` [^`]*{re.escape(figures)}", text), figures


def _means_and_ends(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def test_quoted_few_shot_figures_are_the_committed_ones() -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/few_shot.json").read_text(encoding="utf-8"))
    for one in found["compared"]:
        scores = [one["scores"][who] for who in ("commonest label", "alone", "in front", "around")]
        means = [[statistics.fmean(each[name]) for name in ("accuracy", "macro_f1")] for each in scores]
        cells = [one["task"], str(one["rows"]), *("; ".join(f"{100 * mean:.0f}%" for mean in pair) for pair in means)]
        gap = one["differences"]["around less in front"]["accuracy"]
        cells.append("{value:+.0f} [{low:+.0f}, {high:+.0f}]".format(**{key: 100 * gap[key] for key in gap}))
        assert f"| {' | '.join(cells)} |\n" in text, cells
    told = found["settings"]
    (paragraph,) = [part for part in text.split("\n\n") if "benchmarks/results/few_shot.json" in part]
    for words in (f"{told['steps']} steps of {told['batch']} rows", f"{told['longest_text_tokens']} tokens"):
        assert words in paragraph, words
    assert told["seeds"] == 3
    assert "three seeds" in paragraph
    beyond = {one["task"] for one in found["compared"] if _leaves_zero_out(one, "around less in front")}
    assert beyond == {"RTE"}, "the page says where the places differ"
    better = {
        one["task"]
        for one in found["compared"]
        for place in ("in front", "around")
        if _leaves_zero_out(one, f"{place} less alone")
    }
    assert better == {"BoolQ"}, "the page says where a prompt differs from the model alone"
    faster = set()
    for one in found["compared"]:
        front, around = (
            [run["train_loss"] for name, run in found["runs"].items() if name.startswith(f"{one['task']}/{place}-")]
            for place in ("in front", "around")
        )
        if max(around) < min(front):
            faster.add(one["task"])
    assert faster == {"CB", "RTE", "BoolQ"}, "the page says where the loss falls faster"


def _leaves_zero_out(task: dict[str, Any], difference: str) -> bool:
    gap = task["differences"][difference]["accuracy"]
    return bool(gap["low"] > 0 or gap["high"] < 0)


def test_quoted_evaluation_speeds_are_the_committed_ones() -> None:
    text = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    (section,) = [part for part in text.split("\n## ") if part.startswith("Speed\n")]
    for processor, result in (("Zen 5", "evaluation_speed"), ("Zen 2", "evaluation_speed_zen2")):
        (case,) = json.loads((ROOT / f"benchmarks/results/{result}.json").read_text(encoding="utf-8"))["cases"]
        ratios = case["contenders"]["ptune"]["ratios"]
        for part in ("loss", "answers"):
            times = [ratios[whose][f"{part}_cpu_seconds"]["median"] for whose in ("peft", "peft-sorted")]
            cells = f"| {processor} | {' | '.join(f'{one:.1f}×' for one in times)} |\n"
            assert cells in f"{section}\n", cells
        losses = [each["rounds"][0]["loss"] for each in case["contenders"].values()]
        assert max(losses) - min(losses) < 1e-5 * max(losses)
        settings = case["settings"]
        assert f" {settings['rows']:,} rows" in section
        assert settings["answered_rows"] == settings["rows"] or f"{settings['answered_rows']} of them" in section
        for told in (f"{settings['n']} virtual tokens", f"{settings['new_tokens']} tokens"):
            assert told in section, told


@pytest.mark.parametrize("name", READMES)
def test_quoted_figures_on_saving_are_the_committed_ones(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    results = ROOT / "benchmarks/results"
    found = json.loads((results / "resume.json").read_text(encoding="utf-8"))["summary"]
    assert found["damaged_checkpoints"] == found["lost_checkpoints"] == 0
    quoted = [found[key] for key in ("runs", "same_to_the_last_bit", "kills", "kills_during_a_save")]
    (line,) = [line for line in text.splitlines() if f"{found['kills']} " in line]
    assert all(re.search(rf"(?<!\d){number}(?!\d)", line) for number in quoted)
    bad = json.loads((results / "bad_inputs.json").read_text(encoding="utf-8"))["cases"]
    assert re.search(rf"\[\D*{len(bad)}\D*\]\(docs/bad-input.md\)", text)
    for encoder, case in _cases("best_checkpoint").items():
        recorded, reloaded = (case["peft"][key]["median"] for key in ("best_recorded", "best_reloaded"))
        assert re.search(rf"{encoder.split()[0].upper()} {recorded:.3f}\D+{reloaded:.3f}", text)
        for ours in ("ptune", "ptune-plain"):
            assert case[ours]["best_recorded"] == case[ours]["best_reloaded"]
            assert case[ours]["end_alone"] == case[ours]["end_resumed"]


@pytest.mark.parametrize("name", READMES)
def test_quoted_figures_on_architectures_are_the_committed_ones(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    whole = json.loads((ROOT / "benchmarks/results/architecture_sweep.json").read_text(encoding="utf-8"))
    outcomes = Counter(one["outcome"] for one in whole["models"])
    assert f"transformers {whole['versions']['transformers'].rpartition('.')[0]}" in text
    (paragraph,) = [part for part in text.split("\n\n") if "docs/architectures.md" in part and "XLNet" in part]
    models, impossible = len(whole["models"]), len(whole["impossible"])
    for number in (models + impossible, outcomes["right"], outcomes["refused"], impossible):
        assert re.search(rf"(?<![\d.]){number}(?![\d.]\d)", paragraph), number


@pytest.mark.parametrize("name", READMES)
def test_commands_and_flags_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    commands = set(re.findall(r"^ptune (\w+)", text, flags=re.MULTILINE))
    assert commands
    assert commands <= set(COMMANDS)
    trainer = {
        "--learning-rate", "--num-train-epochs", "--max-steps", "--report-to", "--load-best-model-at-end",
    }  # fmt: skip
    own = (train, tune, compare, plan, inspect, export, import_, serve)
    known = {*(flag for command in own for flag in command.build_parser().flags()), *trainer, "--compare"}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_both_have_the_same_sections_and_code() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"^#+ ", r"^```\w*", r"^\| "):
        counts = [len(re.findall(pattern, text, flags=re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern


def test_quoted_accuracies_of_classifiers_are_the_committed_ones() -> None:
    tasks = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/classify.json").read_text(encoding="utf-8"))
    models = {"builtin:smollm2-135m": "SmolLM2-135M", "all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}
    for model, part in found.items():
        for one in part["compared"]:
            cells = [{"sst2": "SST-2", "trec": "TREC"}[one["task"]], models[model]]
            for who in ("ptune", "peft"):
                each = [100 * accuracy for accuracy in one[who]["held_out_accuracy"]]
                cells.append(f"{statistics.fmean(each):.0f}% ({', '.join(f'{accuracy:.0f}' for accuracy in each)})")
            cells.append(f"{one['peft_best_rate']:g}")
            cells += [f"{statistics.fmean(one[who]['held_out_loss']):.3f}" for who in ("ptune", "peft")]
            assert f"| {' | '.join(cells)} |" in tasks, cells
    scores = json.loads((ROOT / "benchmarks/results/task_scores.json").read_text(encoding="utf-8"))
    assert scores["status"] == "ok"


def test_quoted_trials_of_keys_and_values_are_the_committed_ones() -> None:
    """Half the steps behind keys and values, below what the reference reaches in all of them."""
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    trials = json.loads((ROOT / "benchmarks/results/learning_trials.json").read_text(encoding="utf-8"))["trials"]
    compared = json.loads((ROOT / "benchmarks/results/learning.json").read_text(encoding="utf-8"))["compared"]
    for length in (20, 10):
        cells = [str(length)]
        for task in ("trec", "sst2", "e2e"):
            wanted = {"task": task, "num_virtual_tokens": length, "encoder": "prefix", "max_steps": 30}
            (one,) = [trial["loss"] for trial in trials if wanted.items() <= trial.items() and "rows" in trial]
            cells.append(f"{statistics.fmean(one):.3f} ({min(one):.3f} to {max(one):.3f})")
            (other,) = [part for part in compared if (part["task"], part["virtual_tokens"]) == (task, length)]
            assert statistics.fmean(one) < statistics.fmean(other["held_out_loss"]["reference"])
        assert f"| {' | '.join(cells)} |" in text, cells
    rates = {trial["rate_factor"]: trial["loss"][0] for trial in trials if "Gemma" in trial.get("model", "")}
    for factor in (0.1, 0.3, 1.0, 3.0, 10.0):
        assert f"{rates[factor]:.3f}" in text
    assert min(rates, key=rates.__getitem__) == 1.0
