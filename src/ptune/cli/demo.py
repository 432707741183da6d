"""`ptune demo`: the whole story on a real 135M model from a package; no network, a few minutes.

A customer's message is to become a JSON ticket. The message is all the model is given: what to do with it is in the
prompt alone, so the frozen model fails, and whatever it gets right afterwards the virtual tokens have learned. The data
was written for this project; `ptune.demo.tickets` makes it.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptune.cli.flags import Parser
from ptune.recipe import TrainRecipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from ptune.evaluation.json_metrics import JsonScores
    from ptune.evaluation.run_report import Figure, Sample
    from ptune.training.train import TrainResult

MODEL = "builtin:smollm2-135m"
INIT_TEXT = (
    '{"intent":"refund|cancel|delivery|repair|invoice","product":"kettle|lamp|laptop|phone|jacket|chair",'
    '"urgency":"urgent|normal","order":"A-1234|none"}'
)
"""The shape of a ticket: after 40 steps of a trial its held-out loss was 0.130, that of a list of the labels 0.224."""
VIRTUAL_TOKENS = 54
"""As many as the text has tokens."""
STEPS = 100
TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "learning_rate": 4e-3,
    "seed": 7,
    "save_strategy": "no",
    "eval_strategy": "no",
}
MAX_NEW_TOKENS = 48
SHOWN = 3
PICTURE = "result.png"


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

    from ptune.training.train import train

    say = console()
    recipe = demo_recipe(args.output, overwrite=args.overwrite)
    say.print("A customer's message is to become a JSON ticket. Model: SmolLM2-135M, frozen. Only the prompt learns.")
    result = train(recipe, {**TRAINING, "max_steps": args.max_steps}, say)
    outcome = measure(result, args.rows, say)
    report = finish(result, outcome)
    show(outcome, say)
    for name, path in (("prompt", result.folder), ("plot", result.folder / PICTURE), ("report", report)):
        say.print(f"{name:<7} {path}", highlight=False)
    program = sys.argv[0] if Path(sys.argv[0]).name == "ptune" else "ptune"
    say.print(f"try it  {program} chat {result.folder} --compare", highlight=False)
    if args.json:
        print(json.dumps({**result.to_dict(), **outcome.to_dict()}))
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


@dataclass(frozen=True)
class Outcome:
    """Scores of the frozen model alone and with the prompt, and some of the answers."""

    loss: tuple[float, float]
    before: JsonScores
    after: JsonScores
    samples: list[Sample]
    answered: int

    def figures(self) -> list[Figure]:
        """The rows of the table."""
        from ptune.evaluation.run_report import Figure

        loss = Figure("held-out loss (nats a token)", f"{self.loss[0]:.3f}", f"{self.loss[1]:.3f}")
        return [loss, *[Figure(name, f"{old:.0%}", f"{new:.0%}") for name, (old, new) in self.shares().items()]]

    def shares(self) -> dict[str, tuple[float, float]]:
        """Each share before and after."""
        fields = {f"{key} right": (self.before.fields[key], self.after.fields[key]) for key in self.after.fields}
        return {
            "valid JSON": (self.before.valid, self.after.valid),
            "exact match": (self.before.exact, self.after.exact),
            **fields,
        }

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, for `--json`."""
        return {
            "valid_json_before": self.before.valid,
            "valid_json_after": self.after.valid,
            "exact_match_before": self.before.exact,
            "exact_match_after": self.after.exact,
            "answered_rows": self.answered,
        }


def measure(result: TrainResult, rows: int, say: Console) -> Outcome:
    """Answer held-out messages with and without the prompt, and score the answers."""
    from rich.progress import Progress

    from ptune.evaluation.answers import generate_answers
    from ptune.evaluation.json_metrics import score_json
    from ptune.evaluation.run_report import Sample

    assert result.held_out is not None
    assert result.before is not None
    assert result.after is not None
    examples = list(result.held_out)[:rows]
    prompts = [result.template.prompt(example.instruction, example.input) for example in examples]
    answers = {}
    for with_prompt in (False, True):
        task = f"answering {len(examples)} held-out messages {'with' if with_prompt else 'without'} the prompt"
        if not say.is_terminal:
            say.print(task)
        with Progress(console=say, disable=not say.is_terminal) as bar:
            row = bar.add_task(task, total=len(examples))
            answers[with_prompt] = generate_answers(
                result.model,
                result.tokenizer,
                prompts,
                max_new_tokens=MAX_NEW_TOKENS,
                with_prompt=with_prompt,
                progress=functools.partial(_advance, bar, row),
            )
    expected = [example.output for example in examples]
    rows_of = zip(examples, expected, answers[False], answers[True], strict=True)
    samples = [Sample(example.instruction, want, old.strip(), new.strip()) for example, want, old, new in rows_of]
    return Outcome(
        loss=(result.before.loss, result.after.loss),
        before=score_json(answers[False], expected),
        after=score_json(answers[True], expected),
        samples=samples[:SHOWN],
        answered=len(examples),
    )


def _advance(bar: Progress, row: TaskID, done: int) -> None:
    bar.update(row, completed=done)


def finish(result: TrainResult, outcome: Outcome) -> Path:
    """Write picture and report beside the prompt."""
    from ptune.evaluation.picture import plot_before_after
    from ptune.evaluation.run_report import write_report
    from ptune.training.output import METRICS
    from ptune.training.progress import clock, read_metrics

    records = read_metrics(result.folder / METRICS)
    plot_before_after(
        result.folder / PICTURE,
        title=f"SmolLM2-135M, frozen, before and after {clock(result.seconds)} minutes of P-tuning",
        losses=[(record["step"], record["loss"]) for record in records if "loss" in record],
        scores=outcome.shares(),
    )
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
        figures=outcome.figures(),
        samples=outcome.samples,
        plot=PICTURE,
    )


def show(outcome: Outcome, say: Console) -> None:
    """The tables on the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "frozen model alone", "with the prompt", title="held-out messages", title_justify="left")
    for item in outcome.figures():
        table.add_row(item.name, item.before, item.after)
    say.print(table)
    for sample in outcome.samples:
        right = sample.after == sample.expected
        say.print(Text(sample.text, style="bold"))
        say.print(
            Text(
                f"  {'✓' if right else '✗'} with the prompt: {_short(sample.after)}", style="green" if right else "red"
            )
        )
        if not right:
            say.print(Text(f"    expected: {sample.expected}"))
        say.print(Text(f"    frozen model alone: {_short(sample.before)}", style="dim"))
        say.print()


def _short(text: str) -> str:
    """One line of at most 120 characters."""
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= 120 else line[:119] + "…"
