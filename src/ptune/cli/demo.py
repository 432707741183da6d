"""`ptune demo`: the whole story on a real 135M model from a package; no network, a few minutes.

A customer's message is to become a JSON ticket. The message is all the model is given: what to do with it is in the
prompt alone, so the frozen model fails, and whatever it gets right afterwards the virtual tokens have learned. Beside
both stands what one would do without training: the frozen model, told its job in words and shown four examples. The
data was written for this project; `ptune.demo.tickets` makes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.cli.flags import Parser
from ptune.recipe import TrainRecipe

if TYPE_CHECKING:
    from rich.console import Console

    from ptune.evaluation.evaluate import Evaluation
    from ptune.evaluation.evaluation_result import Cost, MetricScores
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
    "lr_scheduler_type": "cosine",
    "seed": 7,
    "save_strategy": "no",
    "eval_strategy": "no",
}
WRITTEN_PROMPT = (
    "Turn the customer's message into a JSON ticket with the keys intent, product, urgency and order. "
    "intent is refund, cancel, delivery, repair or invoice. product is kettle, lamp, laptop, phone, jacket or chair. "
    "urgency is urgent or normal. order is the order number, or none. Write the ticket and nothing else."
)
WRITTEN_SHOTS = 4
MAX_NEW_TOKENS = 48
SHOWN = 3
PICTURE, EVALUATION = "result.png", "evaluation"


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = Parser("demo", "Train a prompt that turns customer messages into JSON tickets, on SmolLM2-135M.")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for prompt, picture and report"
    )
    parser.add_argument("--max-steps", type=int, default=STEPS, metavar="N", help="optimizer steps")
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="held-out messages to answer")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier demo left in OUTPUT")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line on stdout")
    args = parser.parse(argv)
    from ptune.cli.quiet import console, quiet_libraries

    quiet_libraries()

    from ptune.training.progress import clock
    from ptune.training.train import train

    say = console()
    recipe = demo_recipe(args.output, overwrite=args.overwrite)
    say.print("A customer's message is to become a JSON ticket. Model: SmolLM2-135M, frozen. Only the prompt learns.")
    result = train(recipe, {**TRAINING, "max_steps": args.max_steps}, say)
    evaluation = measure(result, args.rows, say)
    draw(
        result.folder / PICTURE,
        result.folder,
        items=len(evaluation.items),
        took=f"{clock(result.seconds)} minutes",
        metrics=evaluation.metrics,
        costs=evaluation.costs,
    )
    show(evaluation, say)
    report = result.folder / EVALUATION / "report.html"
    for name, path in (("prompt", result.folder), ("picture", result.folder / PICTURE), ("report", report)):
        say.print(f"{name:<7} {path}", highlight=False)
    program = sys.argv[0] if Path(sys.argv[0]).name == "ptune" else "ptune"
    say.print(f"try it  {program} chat {result.folder} --compare", highlight=False)
    if args.json:
        print(json.dumps({**result.to_dict(), **figures(evaluation)}))
    return 0


DATA = Path(__file__).parent.parent / "demo"
TRAIN, HELD_OUT = str(DATA / "train.jsonl"), str(DATA / "heldout.jsonl")


def demo_recipe(output: Path, *, overwrite: bool) -> TrainRecipe:
    """What the demo trains: in float32, so that every processor learns the same but for rounding."""
    return TrainRecipe(
        model=MODEL,
        dtype="float32",
        data=TRAIN,
        eval_data=HELD_OUT,
        output=str(output),
        overwrite=overwrite,
        encoder="residual",
        num_virtual_tokens=VIRTUAL_TOKENS,
        init_text=INIT_TEXT,
    )


def measure(result: TrainResult, rows: int, say: Console) -> Evaluation:
    """Answer held-out messages alone, told in words, and with the prompt; score the answers, and report."""
    from ptune.evaluation.evaluate import evaluate

    return evaluate(
        result.answerer(),
        console=say,
        data=HELD_OUT,
        limit=rows,
        metrics=("loss", "json"),
        written_prompt=WRITTEN_PROMPT,
        shots=WRITTEN_SHOTS,
        shots_data=TRAIN,
        max_new_tokens=MAX_NEW_TOKENS,
        output=str(result.folder / EVALUATION),
        overwrite=True,
    )


def draw(
    picture: Path,
    folder: Path,
    *,
    items: int,
    took: str,
    metrics: Sequence[MetricScores],
    costs: Mapping[str, Cost],
) -> None:
    """Draw how the loss of the run in `folder` fell, and what each of the three reaches and costs."""
    from ptune.evaluation.score_picture import plot_learning_and_scores
    from ptune.saved.loss_history import METRICS
    from ptune.training.progress import read_metrics

    plot_learning_and_scores(
        picture,
        title=f"SmolLM2-135M, frozen, on {items:,} held-out messages: alone, told in words, and after "
        f"{took} of P-tuning",
        losses=[(record["step"], record["loss"]) for record in read_metrics(folder / METRICS) if "loss" in record],
        metrics=metrics,
        costs=costs,
    )


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """The main figures, for `--json`."""
    from ptune.evaluation.columns import ALONE, PROMPT, WRITTEN

    columns = {"before": ALONE, "told": WRITTEN, "after": PROMPT}
    names = {"valid_json": "json_valid", "exact_match": "json_exact"}
    return {
        **{
            f"{title}_{when}": evaluation.score(name, column)
            for title, name in names.items()
            for when, column in columns.items()
        },
        "answered_rows": len(evaluation.items),
        "evaluation": evaluation.to_dict(),
    }


def show(evaluation: Evaluation, say: Console) -> None:
    """What each of the three reaches and costs, on the terminal, and some of the answers."""
    from rich.text import Text

    from ptune.evaluation.columns import TITLES
    from ptune.evaluation.evaluation_report import samples, scores_and_costs_table
    from ptune.evaluation.json_metrics import match_json
    from ptune.evaluation.page import show_tables

    table = scores_and_costs_table(evaluation)
    title = (
        f"{len(evaluation.items):,} held-out messages; told in words: the job and {WRITTEN_SHOTS} examples before each"
    )
    show_tables([replace(table, title=title)], say)
    say.print()
    for sample in samples(evaluation, SHOWN):
        said = dict(sample.answers)
        say.print(Text(sample.text, style="bold"))
        for title in TITLES.values():
            right = match_json(said[title], [said["expected"]]).exact
            style = "green" if right else "dim"
            say.print(Text(f"  {'✓' if right else '✗'} {title}: {_short(said[title])}", style=style))
        say.print(Text(f"    expected: {said['expected']}"))
        say.print()


def _short(text: str) -> str:
    """One line of at most 120 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:119] + "…"
