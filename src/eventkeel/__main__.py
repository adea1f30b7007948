"""``python -m eventkeel`` is ``eventkeel``."""

from eventkeel.cli import main

if __name__ == "__main__":
    main()
