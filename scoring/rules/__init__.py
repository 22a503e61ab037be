"""Rules: a whitelisted expression language over columns, compiled to NumPy and to a scalar path."""
