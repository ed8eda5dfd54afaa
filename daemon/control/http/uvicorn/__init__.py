"""HTTP by uvicorn and FastAPI: the server, the application, and how a socket is taken out of them."""
