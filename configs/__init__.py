"""Settings of every entry point: one dataclass each in `schema.py`, one YAML file each here."""
