"""The coordinator over HTTP: requests in, signed answers out."""
