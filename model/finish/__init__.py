"""What improves a trained checkpoint without training it further."""
