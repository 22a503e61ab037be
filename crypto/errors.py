"""What can be wrong with bytes: every leaf is a fact, and no message contains a secret."""


class CryptoError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidEncodingError(CryptoError):
    """Bytes are not the one encoding of a valid value (length, range, or form)."""


class InvalidSignatureError(CryptoError):
    """A signature does not verify under the stated key."""


class InvalidProofError(CryptoError):
    """A zero-knowledge or Merkle proof does not verify."""


class InvalidShareError(CryptoError):
    """One key holder's answer is wrong; ``index`` attributes it."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"key share {index}: {reason}")
        self.index = index
        self.reason = reason


class UnsealingError(CryptoError):
    """Authenticated decryption failed: wrong key, changed ciphertext or changed associated data."""


class OutOfRangeError(CryptoError):
    """A value or a count lies outside what the parameters can carry exactly."""
