"""Recipes, flags, and places to write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from architectures import CONTEXT
from commands import run
from ptune.choices import CHECKPOINTING
from robustness.workshop import Case, Place, Words

_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefghij"
)


def _recipe(text: str | bytes) -> Callable[[Place], Words]:
    return lambda at: ["train", "--config", at.file("recipe.yaml", text)]


def _flags(**flags: object) -> Callable[[Place], Words]:
    return lambda at: at.train(**flags)


def _deep(at: Place) -> Path:
    """A trained prompt of keys and values."""
    done = run(*at.train(encoder="prefix", output=at.at / "deep"))
    assert done.code == 0, done.err
    return at.at / "deep"


def _numbered_columns(at: Place) -> Words:
    return [*at.train(), "--config", at.file("recipe.yaml", "columns: {1: 2}")]


def _recipe_is_a_folder(at: Place) -> Words:
    (at.at / "recipe.yaml").mkdir()
    return ["train", "--config", at.at / "recipe.yaml"]


def _output(name: str, content: str = "mine", **flags: object) -> Callable[[Place], Words]:
    """A run into a folder that holds this file of somebody's."""

    def make(at: Place) -> Words:
        path = at.file(f"out/{name}", content)
        return at.train(output=path.relative_to(at.at).parts[0] and at.at / "out", **flags)

    return make


def _below_a_file(at: Place) -> Words:
    return at.train(output=at.file("file", "mine") / "out")


def _plot_nowhere(at: Place) -> Words:
    return ["inspect", at.kit.prompt, "--no-nearest", "--plot", at.at / "none" / "x.png"]


def _plot_into_a_file(at: Place) -> Words:
    return ["inspect", at.kit.prompt, "--no-nearest", "--plot", at.file("f", "mine") / "x.png"]


def _no_checkpoint(at: Place) -> Words:
    folder: Path = at.at / "earlier"
    folder.mkdir()
    return at.train(resume_from_checkpoint=folder)


_R, _F, _O = "recipe", "flags", "output"
FLAGS = (
    Case(
        _R, "no such recipe", lambda at: ["train", "--config", at.at / "no.yaml"], ("cannot read the recipe", "no.yaml")
    ),
    Case(_R, "a folder for a recipe", _recipe_is_a_folder, ("cannot read the recipe", "directory")),
    Case(_R, "not YAML", _recipe("model: [1\ndata"), ("recipe.yaml:2:", "not YAML")),
    Case(_R, "a billion laughs", _recipe(_LAUGHS), ("recipe.yaml:2:", "it uses an alias (*)")),
    Case(
        _R,
        "a Python object",
        _recipe("model: !!python/object/apply:os.system ['touch stolen']"),
        ("recipe.yaml:1:", "python/object"),
    ),
    Case(_R, "a key twice", _recipe("model: a\nmodel: b"), ("it has a key twice (model)",)),
    Case(
        _R,
        "a number of 40,000 bits",
        _recipe("max_steps: 0x" + "f" * 10_000),
        ("'max_steps' is a whole number of 40,000 bits",),
    ),
    Case(_R, "a null character", _recipe('output: "a\\0b"'), ("'output' holds a null character",)),
    Case(_R, "a tag that does not fit", _recipe("limit: !!bool maybe"), ("not YAML that can be used", "maybe")),
    Case(_R, "not UTF-8", _recipe(b"model: \xff"), ("not UTF-8", "byte 7")),
    Case(_R, "1 MB", _recipe("# " + "x" * 1_000_000), ("more than 65,536 bytes",)),
    Case(
        _R,
        "10,000 lists in one another",
        _recipe("model: " + "[" * 10_000),
        ("recipe.yaml:1:", "more than 20 lists or tables in one another"),
    ),
    Case(_R, "a list", _recipe("- model"), ("holds no keys",)),
    Case(_R, "an unknown key", _recipe("modle: x"), ("unknown key 'modle'", "Did you mean 'model'?")),
    Case(
        _R,
        "four values of another type",
        _recipe("model: 5\nlimit: many\noverwrite: 'yes'\ncolumns: x"),
        ("4 settings", "model must be text, not 5"),
    ),
    Case(_R, "columns that are numbers", _numbered_columns, ("unknown field in columns '1'",)),
    Case(_F, "an unknown command", lambda at: ["trian"], ("unknown command 'trian'", "Did you mean 'train'?")),
    Case(
        _F,
        "tokens of a start text that is not there",
        _flags(encoder="prefix", init_text_tokens="last"),
        ("init_text_tokens is given, but no init_text",),
    ),
    Case(
        _F,
        "more frozen virtual tokens than there are",
        _flags(encoder="prefix", num_frozen_tokens=11),
        ("num_frozen_tokens must be from 0 to num_virtual_tokens=10, not 11",),
    ),
    Case(
        _F,
        "keys and values inside a template",
        _flags(encoder="prefix", template="{instruction} {prompt:3} {output}"),
        ("the template has 3 virtual tokens inside the text", "take another encoder"),
    ),
    Case(
        _F,
        "keys and values under activation checkpointing",
        lambda at: [*at.train(encoder="prefix-mlp"), f"--{CHECKPOINTING.replace('_', '-')}"],
        ("checkpointing drops the keys and values", "Leave it out"),
    ),
    Case(
        _F,
        "keys and values compared under activation checkpointing",
        lambda at: [
            "compare",
            *at.train()[1:],
            "--methods",
            "mlp,prefix",
            f"--{CHECKPOINTING.replace('_', '-')}",
        ],
        ("checkpointing drops the keys and values that prefix gives", "out of --methods"),
    ),
    Case(
        _F,
        "keys and values planned under activation checkpointing",
        lambda at: [
            "plan",
            "--model",
            at.kit.model,
            "--methods",
            "prefix,prefix-mlp",
            "--max-length",
            64,
            "--activation-checkpointing",
            "--no-calibrate",
        ],
        ("checkpointing drops the keys and values that prefix gives", "out of --methods"),
    ),
    Case(
        _F,
        "embeddings from keys and values",
        lambda at: at.train(init_from=_deep(at), encoder="residual"),
        ("no virtual-token embeddings for another encoder to start from",),
    ),
    Case(
        _F,
        "ChatGLM's name for a flag",
        _flags(pre_seq_len=128),
        ("unknown flag --pre-seq-len, did you mean --num-virtual-tokens?",),
    ),
    Case(
        _F,
        "a text that is not UTF-8",
        lambda at: ["generate", at.kit.prompt, "\udcc4\udce3"],
        ("a word of the command line is not UTF-8: \\xc4\\xe3",),
    ),
    Case(_F, "an unknown flag", _flags(encodr="lstm"), ("unknown flag --encodr", "did you mean --encoder?")),
    Case(_F, "nothing said", lambda at: ["train"], ("model, data and output are missing",)),
    Case(_F, "a stray word", lambda at: [*at.train(), "stray"], ("unexpected argument 'stray'",)),
    Case(_F, "an unknown encoder", _flags(encoder="lsmt"), ("unknown encoder 'lsmt'", "Did you mean 'lstm'?")),
    Case(
        _F,
        "three settings at once",
        _flags(encoder="lsmt", max_length=1, eval_rows=-1),
        ("3 settings", "(1)", "(2)", "(3)"),
    ),
    Case(_F, "no virtual tokens", _flags(num_virtual_tokens=0), ("at least 1, not 0",)),
    Case(
        _F, "as many virtual tokens as context", _flags(num_virtual_tokens=CONTEXT), (f"context of {CONTEXT} tokens",)
    ),
    Case(_F, "a learning rate in words", _flags(learning_rate="fast"), ("--learning-rate", "'fast'")),
    Case(_F, "a learning rate that is NaN", _flags(learning_rate="nan"), ("learning_rate",)),
    Case(_F, "a batch of nothing", _flags(per_device_train_batch_size=0), ("at least 1, not 0",)),
    Case(_F, "nothing to train", _flags(max_steps=0), ("nothing to train",)),
    Case(_F, "more held out than there is", _flags(eval_rows=1000), ("eval_rows=1000 leaves none",)),
    Case(_F, "a template file that is not there", _flags(template="@no.txt"), ("template file", "no.txt")),
    Case(
        _F,
        "a template with an unknown placeholder",
        _flags(template="{instruktion}{output}"),
        ("{instruktion}", "Did you mean '{instruction}'"),
    ),
    Case(_F, "a template without an answer", _flags(template="{instruction}"), ("0 times {output}",)),
    *(
        Case(
            _F,
            f"a template with {block}",
            _flags(template=f"{block}{{instruction}}{{output}}"),
            (f"'{block}', which is no place for virtual tokens", "Write {prompt:3}"),
        )
        for block in ("{prompt:0}", "{prompt:x}", "{prompt:1e3}")
    ),
    Case(
        _F,
        "a template with {prompt} beside another block",
        _flags(template="{prompt}{instruction}{prompt:2}{output}"),
        ("does not say how many virtual tokens {prompt} is", "Write {prompt:3}"),
    ),
    Case(
        _F,
        "a template with {prompt} twice under one name",
        _flags(template="{prompt:2:a}{instruction}{prompt:2:a}{output}"),
        ("has {prompt} twice under the name 'a'", "another name"),
    ),
    Case(
        _F,
        "a template with virtual tokens after the answer",
        _flags(template="{instruction}{output}{prompt:2}"),
        ("{prompt:2} after {output}", "Put it before {output}"),
    ),
    Case(
        _F,
        "a template with virtual tokens and no answer",
        _flags(template="{prompt:2}{instruction}"),
        ("0 times {output}",),
    ),
    Case(
        _F,
        "other virtual tokens than the template has",
        _flags(template="{prompt:2}{instruction}{prompt:3}{output}", num_virtual_tokens=4),
        ("num_virtual_tokens=4, but the template has 5: {prompt:2}, {prompt:3}", "Leave num_virtual_tokens out"),
    ),
    Case(
        _F,
        "more virtual tokens in the template than context",
        _flags(template="{instruction}{prompt:9999}{output}"),
        (f"context of {CONTEXT} tokens",),
    ),
    Case(
        _F,
        "a text without a question for a template with virtual tokens inside",
        lambda at: at.on_data("x.txt", "One text.\n", template="{instruction}{prompt:2}{output}"),
        ("a text without a question has no place for {prompt:2}", "at its start"),
    ),
    Case(
        _F,
        "a template without a place for the prompt's virtual tokens",
        lambda at: ["generate", at.configured(tokens_in_text=2), "x"],
        ("'tutorial' has no {prompt:N}", "4 virtual tokens, 2 of them inside the text", "was trained with"),
    ),
    *(
        Case(
            _F,
            f"virtual tokens inside the text exported to {form}",
            lambda at, form=form: [
                *("export", at.configured(tokens_in_text=2), "--to", form, "--output", at.at / "x.safetensors"),
            ],
            ("2 of the prompt's 4 virtual tokens stand inside the text", "puts all of them before it"),
        )
        for form in ("peft", "embeds")
    ),
    Case(
        _F,
        "a prompt's name that cannot be part of a token",
        lambda at: ["export", at.kit.prompt, "--to", "model", "--name", "a|>b", "--output", at.at / "out"],
        ("'a|>b' cannot be part of a token", "--name", "letters, digits"),
    ),
    Case(
        _F,
        "two prompts of one name in one model",
        lambda at: ["export", at.kit.prompt, at.kit.prompt, "--to", "model", "--output", at.at / "out"],
        ("two prompts are named", "--name"),
    ),
    Case(
        _F,
        "two prompts exported to a form for one",
        lambda at: ["export", at.kit.prompt, at.kit.prompt, "--to", "peft", "--output", at.at / "out"],
        ("takes one prompt, and there are 2", "--to model"),
    ),
    Case(
        _F,
        "a size of files that is none",
        lambda at: [
            *("export", at.kit.prompt, "--to", "model", "--max-shard-size", "big", "--output", at.at / "out"),
        ],
        ("max_shard_size='big' is no size", "5GB"),
    ),
    Case(_F, "a name of 100,000 characters", _flags(encoder="x" * 100_000), ("unknown encoder 'xxx", "Known: ")),
    Case(
        _F,
        "an unknown device",
        lambda at: ["generate", at.kit.prompt, "x", "--device", "nowhere"],
        ("unknown device 'nowhere'",),
    ),
    Case(_F, "an unknown device map", _flags(device_map="nowhere"), ("device_map: 'nowhere'", "sequential", "cuda:1")),
    Case(_F, "a GPU that is not there", _flags(device_map="cuda:99"), ("device 'cuda:99' is not there",)),
    Case(
        _R,
        "a device map of what the model has not",
        lambda at: [*at.train(), "--config", at.file("recipe.yaml", "device_map: {model.layer: cpu}")],
        ("unknown part of the model in device_map 'model.layer'", "Did you mean 'model.layers'?"),
    ),
    Case(
        _F,
        "a device beside a device map",
        lambda at: ["generate", at.kit.prompt, "x", "--device", "cpu", "--device-map", "auto"],
        ("exclude each other",),
    ),
    Case(
        _F,
        "an unknown attention",
        _flags(attn_implementation="flash_attention"),
        ("unknown attn_implementation 'flash_attention'", "Did you mean 'flash_attention_"),
    ),
    Case(_F, "shards in one process", _flags(fsdp=True), ("FSDP shards", "the only one", "torchrun")),
    Case(
        _F,
        "an answer longer than the context",
        lambda at: ["generate", at.kit.prompt, "x", "--max-new-tokens", 127],
        ("Lower --max-new-tokens to",),
    ),
    Case(_F, "no text to answer", lambda at: ["generate", at.kit.prompt], ("no text to answer",), stdin=" \n"),
    Case(
        _F,
        "a picture of another kind",
        lambda at: ["inspect", at.kit.prompt, "--no-nearest", "--plot", at.at / "x.jpg"],
        ("PNG", "x.jpg"),
    ),
    Case(_O, "the output is a file", lambda at: at.train(output=at.file("out", "mine")), ("out is a file",)),
    Case(_O, "the output is below a file", _below_a_file, ("is a file",)),
    Case(_O, "the output is where nobody can write", _flags(output="/proc/ptune-out"), ("/proc/ptune-out",)),
    Case(_O, "the output is not empty", _output("notes.txt"), ("not empty", "--overwrite")),
    Case(
        _O, "a README of somebody else's", _output("README.md", "# Mine", overwrite=True), ("README.md is not ptune's",)
    ),
    Case(_O, "weights of somebody else's", _output("adapter_model.safetensors", overwrite=True), ("is not ptune's",)),
    Case(
        _O,
        "checkpoints of somebody else's",
        _output("checkpoint-5/pytorch_model.bin", overwrite=True),
        ("checkpoint-5 is not ptune's",),
    ),
    Case(_O, "nothing to resume from", _no_checkpoint, ("no checkpoint",)),
    Case(_O, "a picture into no folder", _plot_nowhere, ("none",)),
    Case(_O, "a picture below a file", _plot_into_a_file, ("x.png",)),
)
