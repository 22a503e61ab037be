"""Mathematics on bytes: no network, clock, files, threads or business meaning."""
