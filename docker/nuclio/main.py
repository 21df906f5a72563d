"""What Nuclio loads; the function is in service/label_tools/nuclio.py."""

from service.label_tools.nuclio import handler, init_context

__all__ = ["handler", "init_context"]
