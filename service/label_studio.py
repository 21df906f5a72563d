"""The command `python -m service.label_studio`; the code is in service/label_tools."""

from service.label_tools.label_studio import main

if __name__ == "__main__":
    raise SystemExit(main())
