"""Read the photos of a request that are not the body itself: in JSON, in a ZIP, behind a URL."""
