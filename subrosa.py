"""The ``subrosa`` command (filled in below)."""
