"""Make a served model from a folder or a label tool's export, in one command."""
