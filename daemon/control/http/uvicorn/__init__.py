"""HTTP by uvicorn and FastAPI: the server, the application, and the way a socket is taken out of it."""
