"""Models and how they run: contract, engine, batcher; knows neither HTTP nor images."""
