"""`ptune demo`: the whole story on a real 135M model from a package, with data written for it; no network, a few minutes.

A customer's message is to become a JSON ticket. The message is all the model is given: what to do with it is in the prompt alone, so the frozen
model fails, and whatever it gets right afterwards the virtual tokens have learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.cli.flags import Parser
from ptune.recipe import TrainRecipe

if TYPE_CHECKING:
    from rich.console import Console

    from ptune.evaluation.report import Figure, Sample
    from ptune.training.run import TrainResult

MODEL = "builtin:smollm2-135m"
INIT_TEXT = "Turn the customer message into a JSON ticket with intent, product, urgency and order."
VIRTUAL_TOKENS = 32
STEPS = 90
TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "seed": 7,
    "save_strategy": "no",
    "eval_strategy": "no",
}
MAX_NEW_TOKENS = 48
SHOWN = 3


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = Parser("demo", "Train a prompt that turns customer messages into JSON tickets, on SmolLM2-135M.")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for prompt, plot and report")
    parser.add_argument("--max-steps", type=int, default=STEPS, metavar="N", help="optimizer steps")
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="held-out messages to answer")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier demo left in OUTPUT")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line on stdout")
    args = parser.parse(argv)
    from ptune.cli.quiet import console, quiet_libraries

    quiet_libraries()
    from transformers import TrainingArguments

    from ptune.training.run import train

    say = console()
    recipe = demo_recipe(args.output, overwrite=args.overwrite)
    values: dict[str, Any] = {**recipe.trainer_defaults(), **TRAINING, "max_steps": args.max_steps}
    say.print("A customer's message is to become a JSON ticket. Model: SmolLM2-135M, frozen. Only the prompt learns.")
    result = train(recipe, TrainingArguments(output_dir=recipe.output, **values), say)
    figures, samples, scores = measure(result, args.rows, say)
    report = finish(result, figures, samples)
    show(figures, samples, say)
    for name, path in (("prompt", result.folder), ("plot", result.folder / "loss.png"), ("report", report)):
        say.print(f"{name:<7} {path}", highlight=False)
    say.print(f'try it  ptune chat {result.folder}   (or: ptune generate {result.folder} "…" --compare)', highlight=False)
    if args.json:
        print(json.dumps({**result.to_dict(), **scores}))
    return 0


def demo_recipe(output: Path, *, overwrite: bool) -> TrainRecipe:
    """What the demo trains."""
    data = Path(__file__).parent.parent / "demo"
    return TrainRecipe(
        model=MODEL,
        data=str(data / "train.jsonl"),
        eval_data=str(data / "heldout.jsonl"),
        output=str(output),
        overwrite=overwrite,
        encoder="residual",
        num_virtual_tokens=VIRTUAL_TOKENS,
        init_text=INIT_TEXT,
    )


def measure(result: TrainResult, rows: int, say: Console) -> tuple[list[Figure], list[Sample], dict[str, Any]]:
    """Answer held-out messages with and without the prompt, and score the answers."""
    from ptune.evaluation.generation import generate_answers
    from ptune.evaluation.json_metrics import score_json
    from ptune.evaluation.report import Figure, Sample

    assert result.held_out is not None and result.before is not None and result.after is not None
    examples = list(result.held_out)[:rows]
    prompts = [result.template.prompt(example.instruction, example.input) for example in examples]
    answers = {}
    for key, with_prompt in (("before", False), ("after", True)):
        with say.status(f"answering {len(examples)} held-out messages {'with' if with_prompt else 'without'} the prompt"):
            answers[key] = generate_answers(
                result.model, result.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, with_prompt=with_prompt
            )
    expected = [example.output for example in examples]
    before, after = score_json(answers["before"], expected), score_json(answers["after"], expected)
    figures = [
        Figure("held-out loss (nats a token)", f"{result.before.loss:.3f}", f"{result.after.loss:.3f}"),
        Figure("valid JSON", f"{before.valid:.0%}", f"{after.valid:.0%}"),
        Figure("exact match", f"{before.exact:.0%}", f"{after.exact:.0%}"),
        *[Figure(f"{key} right", f"{before.fields[key]:.0%}", f"{after.fields[key]:.0%}") for key in after.fields],
    ]
    samples = [
        Sample(examples[row].instruction, expected[row], answers["before"][row].strip(), answers["after"][row].strip())
        for row in range(min(SHOWN, len(examples)))
    ]
    scores = {
        "valid_json_before": before.valid,
        "valid_json_after": after.valid,
        "exact_match_before": before.exact,
        "exact_match_after": after.exact,
        "answered_rows": len(examples),
    }
    return figures, samples, scores


def finish(result: TrainResult, figures: list[Figure], samples: list[Sample]) -> Path:
    """Write the report beside the prompt."""
    from ptune.evaluation.report import write_report
    from ptune.training.progress import clock
    from ptune.training.run import PLOT

    trainable, total = result.model.get_nb_trainable_parameters()
    return write_report(
        result.folder / "report.md",
        title="Customer messages to JSON tickets",
        facts=[
            f"SmolLM2-135M, frozen; {trainable:,} of {total:,} parameters trained (residual encoder)",
            f"{len(result.examples):,} training messages, {result.steps} steps, {clock(result.seconds)} min",
            f"prompt: {VIRTUAL_TOKENS} virtual tokens",
            result.memory.line(),
        ],
        figures=figures,
        samples=samples,
        plot=PLOT,
    )


def show(figures: list[Figure], samples: list[Sample], say: Console) -> None:
    """The tables on the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "frozen model alone", "with the prompt", title="held-out messages", title_justify="left")
    for item in figures:
        table.add_row(item.name, item.before, item.after)
    say.print(table)
    examples = Table("message", "with the prompt", "frozen model alone", show_lines=True)
    for sample in samples:
        right = sample.after == sample.expected
        after = Text(("✓ " if right else "✗ ") + sample.after, style="green" if right else "red")
        short = sample.before if len(sample.before) <= 160 else sample.before[:157] + "…"
        examples.add_row(Text(sample.text), after, Text(short or "(nothing)"))
    say.print(examples)
