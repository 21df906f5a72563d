"""Long work: jobs of many photos, kept in a folder and in SQLite, so that a restart loses none."""
