"""What an HTTP server needs before it accepts connections: checks at start, and TLS."""
