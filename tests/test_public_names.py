"""The public face: every name is there, is the one a type checker sees, and costs nothing until it is used."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import ptune

HEAVY = {"torch", "transformers", "datasets", "peft", "numpy", "pandas", "pyarrow", "matplotlib", "accelerate"}


def loaded_after(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def declared_for_type_checkers() -> dict[str, str]:
    """Name and module of every import under `if TYPE_CHECKING:` in the package root."""
    tree = ast.parse(Path(ptune.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("name", ptune.__all__)
def test_name_resolves(name: str):
    value = getattr(ptune, name)
    assert name == "__version__" or value.__name__ == name


def test_type_checkers_see_what_runs():
    declared = declared_for_type_checkers()
    assert declared == ptune._HOMES
    assert set(declared) | {"__version__"} == set(ptune.__all__)
    assert set(dir(ptune)) == set(ptune.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PromptEncoder'"):
        _ = ptune.PromptEncoder
    assert not hasattr(ptune, "get_peft_modle")


def test_version_is_that_of_the_installed_package():
    assert importlib.metadata.version("ptune") == ptune.__version__


def test_package_is_marked_as_typed():
    assert Path(ptune.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "import ptune",
        "import ptune; ptune.PromptEncoderConfig(num_virtual_tokens=10); ptune.PTuneError",
        "import ptune; ptune.Example, ptune.load_examples",
        "import ptune.data.template",
        "import ptune.cli.main",
    ],
)
def test_light_modules_stay_light(statement: str):
    assert loaded_after(statement) == set()


@pytest.mark.parametrize("name", ["PromptEncoderConfig", "PromptTuningConfig", "TaskType"])
def test_peft_accepts_the_same_spelling(name: str):
    peft = pytest.importorskip("peft")
    theirs, ours = getattr(peft, name), getattr(ptune, name)
    if name == "TaskType":
        assert {item.name: item.value for item in theirs}.items() <= {item.name: item.value for item in ours}.items()
        return
    missing = set(theirs.__dataclass_fields__) - set(ours.__dataclass_fields__)
    assert missing == set()


def test_training_from_python_needs_nothing_of_the_command_lines(tmp_path: Path) -> None:
    """Progress bars, pictures, recipes and forecasts have libraries of their own; a script of one's own has none."""
    code = f"""
import sys
for name in ("rich", "matplotlib", "psutil", "uvicorn", "fastapi"):
    sys.modules[name] = None
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from ptune import PackingCollator, PromptEncoderConfig, PTunedModel, PTuneTrainer, get_peft_model
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                    num_attention_heads=2, max_position_embeddings=64))
model = get_peft_model(base, PromptEncoderConfig(num_virtual_tokens=3))
rows = Dataset.from_list([{{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}}] * 4)
args = TrainingArguments({str(tmp_path)!r}, max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
PTuneTrainer(model=model, args=args, train_dataset=rows, data_collator=PackingCollator()).train()
PTunedModel.from_pretrained({str(tmp_path)!r} + "/checkpoint-1", base=base)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
