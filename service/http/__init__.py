"""The HTTP service: the application, its routes, requests and answers."""
