"""Jobs of the service: many photos in one request, worked on in the background."""
