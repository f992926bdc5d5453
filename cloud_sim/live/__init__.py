"""The real cloud: a transformers model behind a WebSocket."""
