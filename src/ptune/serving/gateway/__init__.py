"""`ptune serve --upstream`: the same API, answered by other servers of the frozen model, such as vLLM's."""
