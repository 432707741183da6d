"""OpenAI's API over the engine: routes, keys, limits, logs, measurements, and the server itself."""
