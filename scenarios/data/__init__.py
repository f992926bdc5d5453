"""Cases that ship with the package (`scenarios.datasets`, form `notes`)."""
