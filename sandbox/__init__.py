"""A whole consortium on one machine: a seeded population or a real file, real processes, and a report of the outcome.

Only the sandbox ever holds every bank's rows. That is what lets it compute the upper bound (all rows pooled) and
check what the protocols returned; nothing in here runs in production.
"""
