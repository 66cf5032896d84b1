"""``python -m locdistill``."""

from locdistill.cli import main

if __name__ == "__main__":
    main()
