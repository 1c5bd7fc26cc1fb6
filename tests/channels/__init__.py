"""Services on loopback that people would be told through: Telegram's Bot API, a mail server, a webhook."""
