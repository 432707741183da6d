"""The model card of a saved prompt: a README with the front matter the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LOAD = """```python
from ptune import PTunedModel

model = PTunedModel.from_pretrained("this-folder")
```

or `ptune chat this-folder`. PEFT reads the folder too: `PeftModel.from_pretrained(base_model, "this-folder")`."""


def model_card(details: Mapping[str, Any]) -> str:
    """Markdown for a prompt with these details (the content of `ptune.json`)."""
    config = details["config"]
    base = config.get("base_model_name_or_path") or "unknown"
    lines = ["---", "library_name: ptune", "tags: [p-tuning, soft-prompt, peft]"]
    if base != "unknown" and not base.startswith(("/", ".", "builtin:")):
        lines.append(f"base_model: {base!r}")
    lines += ["---", "", f"# A soft prompt of {config['num_virtual_tokens']} virtual tokens", ""]
    rows = {
        "Frozen model": base,
        "Prompt encoder": details.get("encoder"),
        "Virtual tokens × dimension": f"{config['num_virtual_tokens']} × {config['token_dim']}",
        "Trainable parameters": details.get("trainable_parameters"),
        "Trained on": details.get("data"),
        "Template": details.get("template"),
    }
    rows |= {name.replace("_", " "): value for name, value in dict(details.get("metrics") or {}).items()}
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join([*lines, "", "## Use", "", _LOAD, ""])


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\n", "⏎").replace("|", "\\|")
