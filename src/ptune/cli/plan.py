"""`ptune plan`: parameters, memory and time of each method, before anything is loaded."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ptune.choices import CHECKPOINTING, CLASSIFY, DTYPE_NAMES, LM, TAG, TASKS
from ptune.cli.flags import Parser, flag, number
from ptune.cli.plan_data import RowSizes, add_data_flags, check_data_flags, given_data, row_sizes
from ptune.cli.plan_tables import show_plan
from ptune.errors import ConfigError, unknown
from ptune.methods.names import DEFAULT_METHODS, METHODS, find_method
from ptune.recipe import VIRTUAL_TOKENS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ptune.planning.clock import MachineRates
    from ptune.planning.forecast import Forecast, Forecaster

_TARGET_LENGTH = 128
_UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}
_MORE = """\
Nothing but the model's config.json is read (or downloaded); with --data its tokenizer and the data too. Memory is what
the process holds above its start on the CPU, and what tensors take on CUDA; GiB are 2^30 bytes, GB 10^9. It is split as
it lies at the fullest moment of a step: where that is the loss, the gradients are not there yet. Rows are counted at
full length, or with --data at that of the longest, so that real batches of shorter rows take less. The time holds for
this machine, from a second of trying (--no-calibrate skips them)."""


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
    parser.add_argument(
        "--num-virtual-tokens",
        type=whole,
        metavar="N",
        help=f"virtual tokens; by default those of the template, or {VIRTUAL_TOKENS}",
    )
    parser.add_argument(
        "--num-labels", type=whole, metavar="N", help="classes or tags, where no data tell; two classes by default"
    )
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
    add_data_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    check_data_flags(args)
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries(data=False)
    config = _config(args)
    data = row_sizes(args)
    forecaster = _forecaster(args, config, data)
    from ptune.planning.forecast import forecast_all

    lengths = args.max_length if data is None else (data.longest,)
    found = forecast_all(forecaster, args.methods, args.per_device_train_batch_size, lengths)
    largest = _largest(forecaster, args, lengths[0]) if args.memory else {}
    rates = _rates(forecaster, args, lengths[0])
    timed = found if data is None or rates is None else [_of_average(forecaster, one, data) for one in found]
    command = _command(args, found, largest, virtual=forecaster.settings.num_virtual_tokens)
    if args.json:
        told = _as_dict(args, forecaster, found, largest, rates, command=command, timed=timed)
        print(json.dumps({**told, "data": None if data is None else data.to_dict()}))
        return 0
    if data is not None:
        print(data.line())
    show_plan(args, found, timed, largest, rates, rows_of_data=args.rows if data is None else data.rows)
    print(f"Next: {command}")
    return 0


def _config(args: argparse.Namespace) -> PretrainedConfig:
    """The model's configuration, checked against the task before any data are read."""
    from ptune.loading.load import load_config
    from ptune.training.run_model import TASK_TYPES

    task = TASK_TYPES[_task(args)]
    return load_config(args.model, trust_remote_code=args.trust_remote_code, revision=args.revision, task=task)


def _task(args: argparse.Namespace) -> str:
    """The task's name.

    Raises:
        ConfigError: There is none of that name.
    """
    name = getattr(args, "task", LM)
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return str(name)


def _of_average(forecaster: Forecaster, one: Forecast, data: RowSizes) -> Forecast:
    """The same for rows of average length: long rows and short ones come in turn."""
    return forecaster.forecast(one.method, one.rows, data.mean, target_length=data.mean_target)


def _forecaster(args: argparse.Namespace, config: PretrainedConfig, data: RowSizes | None) -> Forecaster:
    import torch

    from ptune.loading.place import chosen_dtype
    from ptune.methods.apply import MethodSettings
    from ptune.planning.forecast import Forecaster
    from ptune.training.run_model import TASK_TYPES

    task, labels, target = _task(args), args.num_labels, getattr(args, "target_length", _TARGET_LENGTH)
    more: dict[str, Any] = {}
    if data is not None:
        labels = data.num_labels if task in (CLASSIFY, TAG) else None
        target = data.longest_target or target
        more = {} if data.supervised_share is None else {"supervised_share": data.supervised_share}
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(chosen_dtype(args.dtype, torch.device(device))).removeprefix("torch.")
    return Forecaster(
        config,
        MethodSettings(
            num_virtual_tokens=(args.num_virtual_tokens or VIRTUAL_TOKENS) if data is None else data.virtual_tokens,
            encoder_hidden_size=args.encoder_hidden_size,
            encoder_num_layers=args.encoder_num_layers,
            lora_r=args.lora_r,
            packing=args.packing,
        ),
        dtype=dtype,
        device=device,
        accumulation=args.gradient_accumulation_steps,
        checkpointing=args.activation_checkpointing,
        task=TASK_TYPES[task],
        num_labels=labels,
        target_length=target,
        **more,
    )


def _largest(forecaster: Forecaster, args: argparse.Namespace, length: int) -> dict[str, int]:
    """The most rows that fit, by method, at the first length."""
    return {method: forecaster.largest_batch(method, length, args.memory / 2**30) for method in args.methods}


def _rates(forecaster: Forecaster, args: argparse.Namespace, length: int) -> MachineRates | None:
    """How fast this machine is; None when it is not to be asked, or not the one that will train."""
    import torch

    if not args.calibrate or (forecaster.device == "cuda" and not torch.cuda.is_available()):
        return None
    from ptune.loading.place import DTYPES
    from ptune.planning.clock import calibrate

    text = forecaster.config.get_text_config(decoder=True)
    tokens = args.per_device_train_batch_size[0] * length
    return calibrate(tokens=tokens, width=text.hidden_size, dtype=DTYPES[forecaster.dtype], device=forecaster.device)


def _command(args: argparse.Namespace, found: Sequence[Forecast], largest: dict[str, int], *, virtual: int) -> str:
    """The command that trains the first of ptune's methods in the plan, with the largest batch that fits."""
    own = [one for one in found if METHODS[one.method].is_ptune and largest.get(one.method, 1) > 0]
    if not own:
        methods = ",".join(args.methods)
        return f"ptune compare --model {args.model} {given_data(args)} --output OUTPUT --methods {methods}"
    one = next((one for one in own if one.method == "mlp"), own[0])
    rows = min(one.rows, largest.get(one.method, one.rows))
    length = args.max_length[0] if "data" in vars(args) else one.length
    words = [
        f"ptune train --model {args.model} {given_data(args)} --output OUTPUT --encoder {METHODS[one.method].encoder}",
        f"--num-virtual-tokens {virtual} --max-length {length}",
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
    timed: Sequence[Forecast],
) -> dict[str, Any]:
    """Every figure, as plain values."""
    from dataclasses import asdict

    return {
        "model": args.model,
        "task": _task(args),
        "base_parameters": forecaster.base_parameters,
        "context_length": forecaster.context_length,
        "forecasts": [
            {**one.to_dict(), "step_seconds": None if rates is None else rates.step_seconds(average)}
            for one, average in zip(found, timed, strict=True)
        ],
        "memory_bytes": args.memory,
        "largest_batch": largest or None,
        "machine": None if rates is None else asdict(rates),
        "command": command,
    }


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
