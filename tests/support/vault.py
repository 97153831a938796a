"""One secret key for every agent of a test."""

from typing import Final

from handlers.vault import Vault

TEST_SECRET: Final = "a secret key for tests only"
TEST_VAULT: Final = Vault(TEST_SECRET)
