"""The HTTP API without HTTP: errors, keys, models, schemas and formats."""
