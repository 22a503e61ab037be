"""Wire types: one canonical encoding each, and who must have signed it."""
