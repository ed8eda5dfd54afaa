"""The API whoever speaks HTTP: errors, keys, models, schemas, formats."""
