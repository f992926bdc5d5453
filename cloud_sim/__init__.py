"""The far side: the cloud model's server, and the simulated network and cloud."""
