"""A synthetic population of several banks with fraud that crosses them, deterministic by seed.

Nothing refers to anybody real: bank codes of the IBANs are not assigned, addresses are of the benchmarking range of
RFC 2544, mail domains end in ``.example`` (RFC 2606).
"""

from sandbox.population.generate import FIRST_DAY, SCHEMA, Population, generate, save, simulate

__all__ = ["FIRST_DAY", "SCHEMA", "Population", "generate", "save", "simulate"]
