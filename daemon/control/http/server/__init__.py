"""What an HTTP server needs before it accepts a connection: checks at start, and TLS."""
