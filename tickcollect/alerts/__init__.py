"""Alerts: `incidents` decides what is told, once and in words that help; `channels` and `post` bring it to people."""
