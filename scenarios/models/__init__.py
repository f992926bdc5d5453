"""The real models of a study: opened once, asked along answers, their predictions kept."""
