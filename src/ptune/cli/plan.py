"""`ptune plan`: parameters, memory and time of each method, before anything is loaded."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ptune.choices import CHECKPOINTING, DTYPE_NAMES
from ptune.cli.flags import Parser, flag, number
from ptune.errors import ConfigError
from ptune.methods.names import DEFAULT_METHODS, METHODS, find_method

if TYPE_CHECKING:
    from ptune.planning.clock import MachineRates
    from ptune.planning.forecast import Forecast, Forecaster

_UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}
_MORE = """\
Nothing but the model's config.json is read (or downloaded). Memory is what the process holds above its start on the
CPU, and what tensors take on CUDA; GiB are 2^30 bytes, GB 10^9. It is split as it lies at the fullest moment of a step:
where that is the loss, the gradients are not there yet. Rows are counted at full length, so that real batches of
shorter rows take less. The time holds for this machine, from a second of trying (--no-calibrate skips them)."""


def build_parser() -> Parser:
    """The command's flags, named as those of `ptune train`."""
    parser = Parser(
        "plan",
        "Forecast parameters, memory and time of each method from the model's configuration alone.",
        usage="--model MODEL [flags]",
        more=_MORE,
    )
    whole = number(int, least=1)
    parser.add_argument("--model", required=True, help="hub id, folder with a config.json, .gguf file, or builtin:NAME")
    parser.add_argument(
        "--methods",
        "--encoder",
        type=_methods,
        default=DEFAULT_METHODS,
        metavar="A,B",
        help=f"of {', '.join(METHODS)}",
    )
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="auto", help="weights of the frozen model")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it will train")
    parser.add_argument(
        "--per-device-train-batch-size",
        type=_numbers,
        default=(8,),
        metavar="N,N",
        help="rows a forward pass; several are tried",
    )
    parser.add_argument("--gradient-accumulation-steps", type=whole, default=1, metavar="N", help="passes a step")
    parser.add_argument(
        "--max-length", type=_numbers, default=(256,), metavar="N,N", help="tokens a row; several are tried"
    )
    parser.add_argument("--num-virtual-tokens", type=whole, default=10, metavar="N", help="virtual tokens")
    parser.add_argument(
        "--encoder-hidden-size", type=whole, metavar="N", help="width of the encoder; by default the model's"
    )
    parser.add_argument("--encoder-num-layers", type=whole, default=2, metavar="N", help="layers of LSTM or MLP")
    parser.add_argument("--lora-r", type=whole, default=8, metavar="N", help="LoRA's rank")
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=True, help="as in ptune train")
    parser.add_argument("--activation-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument(
        "--memory", type=_memory, metavar="SIZE", help="what there is, as 24GiB or 24GB: the largest batch that fits"
    )
    parser.add_argument("--rows", type=whole, metavar="N", help="rows of the data, for the time of an epoch")
    parser.add_argument("--calibrate", action=argparse.BooleanOptionalAction, default=True, help="time this machine")
    parser.add_argument("--revision", help="revision of the model on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries(data=False)
    forecaster = _forecaster(args)
    from ptune.planning.forecast import forecast_all

    found = forecast_all(forecaster, args.methods, args.per_device_train_batch_size, args.max_length)
    largest = _largest(forecaster, args) if args.memory else {}
    rates = _rates(forecaster, args)
    command = _command(args, found, largest)
    if args.json:
        print(json.dumps(_as_dict(args, forecaster, found, largest, rates, command=command)))
    else:
        _show(args, found, largest, rates, command)
    return 0


def _forecaster(args: argparse.Namespace) -> Forecaster:
    import torch

    from ptune.loading.load import load_config
    from ptune.loading.place import chosen_dtype
    from ptune.methods.apply import MethodSettings
    from ptune.planning.forecast import Forecaster

    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(chosen_dtype(args.dtype, torch.device(device))).removeprefix("torch.")
    return Forecaster(
        load_config(args.model, trust_remote_code=args.trust_remote_code, revision=args.revision),
        MethodSettings(
            num_virtual_tokens=args.num_virtual_tokens,
            encoder_hidden_size=args.encoder_hidden_size,
            encoder_num_layers=args.encoder_num_layers,
            lora_r=args.lora_r,
            packing=args.packing,
        ),
        dtype=dtype,
        device=device,
        accumulation=args.gradient_accumulation_steps,
        checkpointing=args.activation_checkpointing,
    )


def _largest(forecaster: Forecaster, args: argparse.Namespace) -> dict[str, int]:
    """The most rows that fit, by method, at the first length."""
    return {
        method: forecaster.largest_batch(method, args.max_length[0], args.memory / 2**30) for method in args.methods
    }


def _rates(forecaster: Forecaster, args: argparse.Namespace) -> MachineRates | None:
    """How fast this machine is; None when it is not to be asked, or not the one that will train."""
    import torch

    if not args.calibrate or (forecaster.device == "cuda" and not torch.cuda.is_available()):
        return None
    from ptune.loading.place import DTYPES
    from ptune.planning.clock import calibrate

    text = forecaster.config.get_text_config(decoder=True)
    tokens = args.per_device_train_batch_size[0] * args.max_length[0]
    return calibrate(tokens=tokens, width=text.hidden_size, dtype=DTYPES[forecaster.dtype], device=forecaster.device)


def _command(args: argparse.Namespace, found: Sequence[Forecast], largest: dict[str, int]) -> str:
    """The command that trains the first of ptune's methods in the plan, with the largest batch that fits."""
    own = [one for one in found if METHODS[one.method].is_ptune and largest.get(one.method, 1) > 0]
    if not own:
        return f"ptune compare --model {args.model} --data DATA --output OUTPUT --methods {','.join(args.methods)}"
    one = next((one for one in own if one.method == "mlp"), own[0])
    rows = min(one.rows, largest.get(one.method, one.rows))
    words = [
        f"ptune train --model {args.model} --data DATA --output OUTPUT --encoder {METHODS[one.method].encoder}",
        f"--num-virtual-tokens {args.num_virtual_tokens} --max-length {one.length}",
        f"--per-device-train-batch-size {rows} --dtype {one.dtype}",
    ]
    if args.gradient_accumulation_steps > 1:
        words.append(f"--gradient-accumulation-steps {args.gradient_accumulation_steps}")
    if args.activation_checkpointing:
        words.append(flag(CHECKPOINTING))
    return " ".join(words)


def _as_dict(
    args: argparse.Namespace,
    forecaster: Forecaster,
    found: Sequence[Forecast],
    largest: dict[str, int],
    rates: MachineRates | None,
    *,
    command: str,
) -> dict[str, Any]:
    """Every figure, as plain values."""
    from dataclasses import asdict

    return {
        "model": args.model,
        "base_parameters": forecaster.base_parameters,
        "context_length": forecaster.context_length,
        "forecasts": [
            {**one.to_dict(), "step_seconds": None if rates is None else rates.step_seconds(one)} for one in found
        ],
        "memory_bytes": args.memory,
        "largest_batch": largest or None,
        "machine": None if rates is None else asdict(rates),
        "command": command,
    }


def _show(
    args: argparse.Namespace,
    found: Sequence[Forecast],
    largest: dict[str, int],
    rates: MachineRates | None,
    command: str,
) -> None:
    """The tables, for people."""
    from ptune.cli.quiet import output

    console = output(width=200)
    once = {one.method: one for one in reversed(found)}
    rows: list[Sequence[str]] = [
        (one.title, f"{one.base_parameters:,}", f"{one.trainable_parameters:,}", f"{one.trainable_percent:.4f}%")
        for one in (once[name] for name in args.methods)
    ]
    _table(console, "Parameters", ("condition", "model parameters", "trainable parameters", "trainable"), rows)
    columns = [
        "condition",
        "batch",
        "loaded",
        "training",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "overhead",
    ]
    timed = rates is not None
    rows = []
    for one in found:
        parts = one.memory
        figures = (parts.weights, parts.gradients, parts.optimizer, parts.activations, parts.logits, parts.overhead)
        row = [one.title, f"{one.rows} × {one.length}", f"{one.loaded_gib:.2f}", f"{parts.total:.2f}"]
        row += [f"{figure:.2f}" for figure in figures]
        if rates is not None:
            row += _times(one, rates.step_seconds(one), args.rows)
        rows.append(row)
    columns += ["s/step", "tokens/s"] + (["an epoch"] if args.rows else []) if timed else []
    place = found[0].device.upper() if found[0].device == "cpu" else "CUDA"
    _table(console, f"Memory in GiB, {found[0].dtype} on {place}", columns, rows)
    if args.memory:
        rows = [(METHODS[name].title, _fits(count)) for name, count in largest.items()]
        title = f"Largest batch in {args.memory / 2**30:.1f} GiB, rows of {args.max_length[0]} tokens"
        _table(console, title, ("condition", "rows"), rows)
    if not timed and args.calibrate:
        print("No time is forecast: this machine has no GPU to ask.")
    print(f"Next: {command}")


def _fits(count: int) -> str:
    if count:
        return f"{count:,}"
    return "none: shorten --max-length, or use --dtype bfloat16, --activation-checkpointing or another method"


def _times(one: Forecast, seconds: float, rows: int | None) -> list[str]:
    """Time of a step, tokens a second and time of an epoch, as text."""
    from ptune.training.progress import clock

    row = [f"{seconds:.2f}", f"{one.tokens / seconds:,.0f}"]
    if rows:
        row.append(clock(seconds * -(-rows // (one.rows * one.accumulation))))
    return row


def _table(console: Any, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(title, style="bold", highlight=False)
    table = Table()
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _methods(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        try:
            find_method(name)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    if not names:
        raise argparse.ArgumentTypeError("names no method")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 with commas between them."""
    convert: Callable[[str], Any] = number(int, least=1)
    found = tuple(dict.fromkeys(int(convert(part.strip())) for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError("names no number")
    return found


def _memory(text: str) -> int:
    """A size as bytes: a number with its unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    if match is None or match[2].lower() not in _UNITS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 24GiB (2^30 bytes) or 24GB (10^9)")
    return int(float(match[1]) * _UNITS[match[2].lower()])
