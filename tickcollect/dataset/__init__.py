"""The recorded data as a dataset: what reads it, never what collects it."""
