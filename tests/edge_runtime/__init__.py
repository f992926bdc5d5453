"""The device's parts, each against an oracle."""
