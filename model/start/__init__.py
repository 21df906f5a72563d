"""From a folder or a label tool's export to a served model, in one command."""
