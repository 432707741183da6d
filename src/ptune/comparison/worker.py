"""The process of one job: `python -m ptune.comparison.worker`, the job as JSON on standard input.

Progress goes to standard output, one JSON object a line; the result to the job's own file. Where memory does not
suffice the result says so. Exit codes: 0 with a result, 2 for an error of the user's (one line on standard error).
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from ptune.comparison.job import OUT_OF_MEMORY, Job, JobResult
from ptune.errors import PTuneError, one_line
from ptune.saved.files import make_folder, write_json


def tell(progress: dict[str, Any]) -> None:
    """Write a line of progress."""
    print(json.dumps(progress), flush=True)  # noqa: T201 (the pipe to the parent)


def main() -> int:
    """Carry out the job on standard input."""
    _be_the_first_to_go()
    job = Job.from_json(sys.stdin.read())
    make_folder(job.result_file.parent)
    import torch
    import transformers

    from ptune.comparison.measured_run import run_job

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        result = run_job(job, tell)
    except PTuneError as error:
        print(one_line(error), file=sys.stderr)  # noqa: T201
        return error.exit_code
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        result = JobResult(
            method=job.method, seed=job.seed, status=OUT_OF_MEMORY, key=job.key(), error=one_line(error)[:300]
        )
    write_json(job.result_file, result.to_dict())
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether it is memory that was missing; PyTorch's CPU allocator says so in a plain RuntimeError."""
    import torch

    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said


def _be_the_first_to_go() -> None:
    """Ask Linux to end this process, not its parent or a neighbour, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main())
