"""Load on a running service: shared by `service.bench`, `.bench_client` and `.soak`."""
