"""The model card of a saved prompt: a README with the front matter the hub reads.

What a value says is shown as text: it can be no link, picture, HTML or YAML of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ptune.errors import printable

_LOAD = """```python
from ptune import PTunedModel

model = PTunedModel.from_pretrained("this-folder")
```

or `ptune chat this-folder`. """
_LOAD_TASK = """```python
from ptune import PTunedTaskModel, TaskAnswerer

model = PTunedTaskModel.from_pretrained("this-folder")
answerer = TaskAnswerer.open("this-folder")
```

or `ptune generate this-folder "text"`. """
_BY_PEFT = 'PEFT reads the folder too: `PeftModel.from_pretrained(base_model, "this-folder")`.'

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_MARKS = re.compile(r"([\\`\[\]|<>&])")
"""What begins a link, a picture, code, HTML, or the next cell."""
_MOST = 500
"""Characters of a value."""


def model_card(details: Mapping[str, Any], peft_obstacle: str | None = None) -> str:
    """Markdown for a prompt.

    Args:
        details: The content of its `ptune.json`.
        peft_obstacle: Why PEFT cannot take it, as a sentence without a full stop.
    """
    config = details["config"]
    base, task = config.get("base_model_name_or_path") or "unknown", config.get("task_type")
    labels = details.get("labels")
    lines = ["---", "library_name: ptune", "tags: [p-tuning, soft-prompt, peft]"]
    if base != "unknown" and _HUB_ID.fullmatch(base):
        lines.append(f"base_model: '{base}'")
    lines += ["---", "", f"# A soft prompt of {config['num_virtual_tokens']} virtual tokens", ""]
    rows = {
        "Frozen model": base,
        "Prompt encoder": details.get("encoder"),
        "Virtual tokens × dimension": f"{config['num_virtual_tokens']} × {_numbers(details)}",
        "Trainable parameters": details.get("trainable_parameters"),
        "Trained on": details.get("data"),
        "Template": details.get("template") or None,
        "Task": None if task in (None, "CAUSAL_LM") else details.get("task") or task,
        "Labels": ", ".join(map(str, labels)) if isinstance(labels, (list, tuple)) else labels,
    }
    if compressed := details.get("compression"):
        rows["Compressed text"] = f"{compressed.get('text')}, {compressed.get('tokens')} tokens"
    rows |= {name.replace("_", " "): value for name, value in dict(details.get("metrics") or {}).items()}
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    peft = _BY_PEFT if peft_obstacle is None else f"PEFT cannot: {peft_obstacle}."
    load = _LOAD if task in (None, "CAUSAL_LM") else _LOAD_TASK
    return "\n".join([*lines, "", "## Use", "", load + peft, ""])


def _numbers(details: Mapping[str, Any]) -> str:
    """The size of a virtual token; of a deep prompt, keys and values of each layer."""
    config = details["config"]
    deep = details.get("config_class") in ("PrefixTuningConfig", "CartridgeConfig")
    return f"{config['num_layers']} layers × 2 × {config['token_dim']}" if deep else f"{config['token_dim']}"


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    short = text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
    return _MARKS.sub(r"\\\1", printable("⏎".join(short.splitlines())))
