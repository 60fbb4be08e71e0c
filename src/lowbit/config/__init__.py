"""Typed configuration: schemas, composition, validation and run identity (imports neither torch nor transformers)."""
