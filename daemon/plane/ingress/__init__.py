"""The way in over HTTP: requests of clients, read by the plane itself."""
