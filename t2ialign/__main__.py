"""``python -m t2ialign``."""

from t2ialign.cli import main

if __name__ == "__main__":
    main()
