"""Searches that cannot be, and studies of something else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from commands import run
from robustness.workshop import ROWS, Case, Place, Words


def _tune(at: Place, *more: object, **flags: object) -> list[object]:
    """The words of a search that would be fine but for these flags."""
    given = {"eval_rows": 1, "num_virtual_tokens": 2, "max_steps": 1, "trials": 1, **flags}
    return ["tune", *at.train(**given)[1:], *more]


def _flags(*more: object, **flags: object) -> Callable[[Place], Words]:
    return lambda at: _tune(at, *more, **flags)


def _begun(at: Place) -> Path:
    """The folder of a search that has ended."""
    folder = at.at / "search"
    done = run(*_tune(at, output=folder))
    assert done.code == 0, done.err
    return folder


def _again(*more: object) -> Callable[[Place], Words]:
    """Going on with a search with other settings."""
    return lambda at: ["tune", "--resume", _begun(at), *more]


def _other_model(at: Place) -> Words:
    from architectures import build

    folder, model = _begun(at), at.model()
    build("llama", seed=7).save_pretrained(model)
    return ["tune", "--resume", folder, "--model", model]


def _other_rows(at: Place) -> Words:
    rows = [*json.loads(ROWS), {"instruction": "e", "output": "f"}]
    return ["tune", "--resume", _begun(at), "--data", at.file("other.json", json.dumps(rows))]


def _no_database(at: Place) -> Words:
    return _tune(at, storage=f"sqlite:///{at.file('study.db', 'not a database ' * 100)}")


def _somebody_elses(at: Place) -> Words:
    """An optuna study of the same name."""
    import optuna

    path = at.at / "study.db"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="ptune")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    return _tune(at, "--resume", storage=f"sqlite:///{path}")


def _newer_database(at: Place) -> Words:
    """As a later optuna may write it."""
    folder = _begun(at)
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("UPDATE version_info SET schema_version = 99")
        database.execute("UPDATE alembic_version SET version_num = 'v99'")
    database.close()
    return ["tune", "--resume", folder]


def _space(text: str) -> Callable[[Place], Words]:
    return lambda at: _tune(at, "--search-space", at.file("space.yaml", text))


def _occupied(at: Place) -> Words:
    return _tune(at, output=at.file("mine/notes.txt", "mine").parent)


def _settings_broken(at: Place) -> Words:
    return ["tune", "--resume", at.file("search/tune.yaml", "model: [1\ndata").parent]


_S = "search"
SEARCH = tuple(
    Case(_S, name, make, says, needs="optuna")
    for name, make, says in (
        ("no held-out rows", _flags(eval_rows=0), ("needs held-out rows", "eval_rows or eval_data")),
        (
            "an unknown encoder to try",
            _flags("--encoder", "mlp", "lsmt"),
            ("unknown encoder 'lsmt'", "Did you mean 'lstm'?"),
        ),
        ("lists in a list to try", _space("encoder: [[mlp], {a: b}]"), ("encoder must be a list (text each)",)),
        ("a key that is none", _space("encodr: mlp"), ("unknown key 'encodr'", "Did you mean 'encoder'?")),
        ("a start from no text", _flags("--init", "text"), ("init text needs init_text",)),
        (
            "a range of rates the wrong way round",
            _flags("--learning-rate", "1e-2", "1e-4"),
            ("the least and the greatest rate, not 0.01 0.0001",),
        ),
        (
            "four numbers that are none",
            _flags("--learning-rate", "nan", trials=0, time_limit="nan", measurements=0),
            ("4 settings", "learning_rate must be above 0", "trials must be at least 1", "not nan"),
        ),
        ("no virtual tokens", _flags(num_virtual_tokens=0), ("num_virtual_tokens must be at least 1, not 0",)),
        ("more virtual tokens than context", _flags(num_virtual_tokens=1000), ("1000 virtual tokens", "context of")),
        ("checkpoints of trials", _flags(save_steps=5), ("save_steps is decided by the search",)),
        ("rows longer than a batch", _flags(tokens_per_batch=3), ("tokens_per_batch=3", "row")),
        ("an unknown pruner", _flags(pruner="hyperband"), ("unknown pruner 'hyperband'", "halving, median, none")),
        ("a folder of somebody else's", _occupied, ("mine is not empty", "no search's")),
        (
            "a search that is there already",
            lambda at: _tune(at, output=_begun(at)),
            ("holds a search already", "--resume"),
        ),
        ("nothing to resume", _flags("--resume", "nothing"), ("no search in nothing",)),
        ("two folders to resume", _again("--output", "elsewhere"), ("name two folders", "leave --output out")),
        ("settings that are cut", _settings_broken, ("tune.yaml:2:", "not YAML")),
        ("a study of another model", _other_model, ("was begun with another model", "another --output")),
        ("a study of other rows", _other_rows, ("was begun with other training rows",)),
        ("a study with another template", _again("--template", "{instruction}={output}"), ("template=",)),
        (
            "a study of another search",
            _again("--encoder", "mlp"),
            ("encoder=['embedding', 'residual', 'mlp'", "not ['mlp']"),
        ),
        ("a study of another seed", _again("--seed", 1), ("seed=42, not 1",)),
        ("a study that is not ptune's", _somebody_elses, ("the study 'ptune' in sqlite:", "is not ptune's")),
        ("a database that is none", _no_database, ("study.db cannot be used", "file is not a database")),
        ("a database of a later optuna", _newer_database, ("study.db cannot be opened", "--storage")),
        ("a database address that is none", _flags(storage="my studies"), ("my studies cannot be used",)),
        ("a database that nobody knows", _flags(storage="nosuch://x/y"), ("nosuch://x/y cannot be used",)),
    )
)
