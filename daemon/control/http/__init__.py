"""The HTTP front: OpenAI's API, pages and uploads over HTTP. Main thread; imported only where it is switched on."""
