"""The paper's whole sequence of trainings and evaluations as one command."""
