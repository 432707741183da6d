"""Every bad input that is tried. A case is one entry; `docs/bad-input.md` and the tests are made of this list."""

from __future__ import annotations

from robustness.cases_compress import COMPRESSION
from robustness.cases_data import DATA
from robustness.cases_evaluate import EVALUATE
from robustness.cases_flags import FLAGS
from robustness.cases_model import MODEL
from robustness.cases_prompt import PROMPT
from robustness.cases_serving import SERVING
from robustness.cases_tasks import TASKS
from robustness.cases_training import CHECKPOINT, TROUBLE
from robustness.cases_tuning import SEARCH
from robustness.workshop import Case

CASES: tuple[Case, ...] = (
    *PROMPT,
    *DATA,
    *MODEL,
    *FLAGS,
    *EVALUATE,
    *CHECKPOINT,
    *TROUBLE,
    *SEARCH,
    *COMPRESSION,
    *TASKS,
    *SERVING,
)
