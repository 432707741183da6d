"""Prompts served over HTTP: `engine` answers many requests in one batch, `web` speaks OpenAI's API."""
