"""Photos to pixels and label maps to files; knows nothing of HTTP."""
