"""Messages to webhooks: which are due, and sending them."""
