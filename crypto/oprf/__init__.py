"""OPRF and VOPRF of RFC 9497 with ristretto255 and SHA-512."""
