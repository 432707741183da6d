"""Whether the hub can be reached, asked once: the libraries try again for a minute before they say that it cannot."""

from __future__ import annotations

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

SECONDS = 10
"""How long one answer is waited for."""
_TRANSPORT = ("TransportError", "ConnectionError", "Timeout", "OSError")
"""What the classes of faults without an answer descend from, in the HTTP libraries that huggingface_hub has used."""


def no_connection(
    repository: str,
    file: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    kind: str = "model",
) -> Exception | None:
    """What stands between this machine and a file on the hub; None where the hub answers, whatever it says.

    Nothing is asked offline (`HF_HUB_OFFLINE`), nor for what cannot be the name of a repository: None then too.

    Args:
        repository: `owner/name`.
        file: In it.
        revision: Branch, tag or commit.
        token: For a private repository.
        kind: `model` or `dataset`.
    """
    if is_offline_mode():
        return None
    try:
        address = hf_hub_url(repository, file, revision=revision, repo_type=kind)
        get_hf_file_metadata(address, token=token, timeout=SECONDS)
    except (HfHubHTTPError, HFValidationError):
        return None
    except Exception as fault:  # the class depends on the HTTP library of the installed huggingface_hub
        if any(one.__name__ in _TRANSPORT for one in type(fault).__mro__):
            return fault
        raise
    return None
