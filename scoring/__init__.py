"""Scoring of transactions: schema, features, rules, verdicts. NumPy and Numba only, no clock, files or network.

Batch in, batch out: a ``schema.TransactionBatch`` goes through ``features.FeatureEngine`` (windows kept between
batches), and the columns that come out are judged by versioned rules. A single transaction is a batch of one.
"""
