"""What is a soft prompt's held-out loss worth? Task scores beside zero-shot, few-shot and full fine-tuning.

    python benchmarks/task_scores.py --data ../shared/data --work DIR [--tasks trec,sst2,e2e]

The tasks, rows, steps and prompts of `learning.py` at 20 virtual tokens (run it first with the same `--work`, which
holds its prompts): `ptune train` as it comes, and PEFT's start at its best rate, three seeds each. Beside them the
frozen SmolLM2-135M alone, told the job in words with four examples, and all of its weights trained on the same rows for
as many steps, at the best of `RATES` by the loss on rows that are reported nowhere else. SST-2 and TREC are scored by
the label that is the likeliest, E2E by greedy answers against all references.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from harness import OK, RESULTS, heading, write
from learning import Lab, kept_runs, read_tasks
from ptune import evaluate
from ptune.answering import Answerer
from ptune.data.collate import PaddingCollator
from ptune.data.template import get_template
from ptune.evaluation.columns import ALONE, PROMPT, WRITTEN
from ptune.evaluation.held_out_loss import held_out_loss
from ptune.loading.load import load_base, load_tokenizer
from ptune.methods.apply import apply_method
from ptune.model.wrapper import PTunedModel
from ptune.training.rows import load_rows
from ptune.training.train import training_arguments

LENGTH, SHOTS = 20, 4
RATES = (1e-5, 3e-5, 1e-4)
IN_WORDS = {
    "sst2": "Is this film review positive or negative?",
    "trec": "What is this question about: description, entity, abbreviation, human, location or number?",
    "e2e": "Describe the restaurant in a sentence or two that say all of these facts.",
}
METRICS = {"sst2": ("accuracy", "macro_f1"), "trec": ("accuracy", "macro_f1"), "e2e": ("bleu", "rouge_l", "chrf")}


def scores(lab: Lab, prompt: str | Answerer, columns: tuple[str, ...], *, words: bool) -> dict[str, dict[str, float]]:
    """Each metric in some columns of `ptune evaluate`."""
    told: dict[str, Any] = {"shots": SHOTS, "written_prompt": IN_WORDS[lab.name]} if words else {"shots": 0}
    found = evaluate(
        prompt,
        data=str(lab.file("held_out")),
        shots_data=str(lab.file("train")) if words else None,
        metrics=METRICS[lab.name],
        **told,
    )
    return {column: {name: found.score(name, column) for name in METRICS[lab.name]} for column in columns}


def of_prompt(lab: Lab, name: str, *, first: bool) -> dict[str, Any]:
    """The scores of a prompt that `learning.py` trained; with the first one those of the frozen model too."""
    columns = (PROMPT, ALONE, WRITTEN) if first else (PROMPT,)
    folder = lab.folder / name
    return lab.once(
        f"scores-{name}",
        lambda _name: scores(lab, Answerer.open(folder, dtype="float32"), columns, words=first),
    )


def fine_tuned(lab: Lab, rate: float, any_prompt: Path) -> dict[str, Any]:
    """All weights trained, by Trainer as its users write it; Adam as it comes there."""

    def run(name: str) -> dict[str, Any]:
        recipe = lab.recipe(name, LENGTH, dtype="float32")
        given = {"max_steps": lab.options.steps, "seed": 0, "learning_rate": rate, "adam_beta1": 0.9}
        more = {"adam_beta2": 0.999, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
        args = training_arguments(recipe, {**given, **more})
        tokenizer = load_tokenizer(recipe.model)
        template = get_template(recipe.template, tokenizer)
        rows = load_rows(recipe, template, tokenizer, args, progress=False)
        base = load_base(recipe, args.device, tokenizer)
        collate = PaddingCollator(pad_token_id=int(tokenizer.pad_token_id or 0))
        model = apply_method("full", base)
        Trainer(model=model, args=args, train_dataset=rows.tokens.dataset, data_collator=collate).train()
        chosen_by = load_rows(lab.recipe(name, LENGTH, "chosen_by"), template, tokenizer, args, progress=False)
        bare = PTunedModel(base).eval()
        bare.load_prompt(any_prompt, trainable=False, force=True)
        losses = {
            part: held_out_loss(bare, dataset, collate, with_prompt=False).loss
            for part, dataset in (
                ("loss_chosen_by", chosen_by.held_out_tokens.dataset),
                ("held_out_loss", rows.held_out_tokens.dataset),
            )
        }
        answerer = Answerer(bare, tokenizer, template)
        return {"learning_rate": rate, **losses, "scores": scores(lab, answerer, (ALONE,), words=False)[ALONE]}

    return lab.once(f"fine-tuned-{lab.options.steps}-steps-rate-{rate:g}", run)


def measured(lab: Lab, learned: dict[str, Any]) -> dict[str, Any]:
    """One task: each contender's scores, of every seed."""
    steps, seeds = lab.options.steps, range(lab.options.seeds)
    ours = [f"ptune-n{LENGTH}-{steps}-steps-rate-default-seed-{seed}" for seed in seeds]
    theirs = [f"reference-n{LENGTH}-{steps}-steps-rate-{learned['reference_rate']:g}-seed-{seed}" for seed in seeds]
    first = of_prompt(lab, ours[0], first=True)
    tuned = [fine_tuned(lab, rate, lab.folder / ours[0]) for rate in RATES]
    best = min(tuned, key=lambda one: one["loss_chosen_by"])
    each = {
        "frozen model alone": [first[ALONE]],
        f"in words, {SHOTS} examples": [first[WRITTEN]],
        "PEFT's start, best rate": [of_prompt(lab, name, first=False)[PROMPT] for name in theirs],
        "ptune": [first[PROMPT], *(of_prompt(lab, name, first=False)[PROMPT] for name in ours[1:])],
        "full fine-tuning": [best["scores"]],
    }
    return {
        "task": lab.name,
        "rows": lab.options.held_out,
        "scores": each,
        "fine_tuning": {key: best[key] for key in ("learning_rate", "held_out_loss")},
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--data", default="../shared/data", help="folder with sst2, trec and e2e_nlg")
    parser.add_argument("--work", required=True, help="of learning.py, with its prompts")
    parser.add_argument("--tasks", default="trec,sst2,e2e")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--learned", type=Path, default=RESULTS / "learning.json")
    parser.add_argument("--output", type=Path, default=RESULTS / "task_scores.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = kept_runs(Path(options.work))
    compared = json.loads(options.learned.read_text(encoding="utf-8"))["compared"]
    learned = {one["task"]: one for one in compared if one["virtual_tokens"] == LENGTH}
    tasks = read_tasks(Path(options.data))
    result: dict[str, Any] = {
        **heading((__doc__ or "").partition("\n")[0], "python benchmarks/task_scores.py"),
        "tasks": [],
    }
    table = Table("task", "contender", "score (mean of the seeds)")
    for name in options.tasks.split(","):
        result["tasks"].append(measured(Lab(options, name, tasks[name], runs), learned[name]))
        write({**result, "status": "not finished"}, options.output)
        for contender, found in result["tasks"][-1]["scores"].items():
            means = {key: statistics.fmean(one[key] for one in found) for key in found[0]}
            table.add_row(name, contender, ", ".join(f"{key} {value:.3f}" for key, value in means.items()))
    write({**result, "status": OK}, options.output)
    Console().print(table)


if __name__ == "__main__":
    main()
