"""The HTTP API independent of HTTP: errors, keys, models, schemas and formats."""
