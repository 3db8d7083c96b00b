"""`python -m zsaq_cli`: the same as `zsaq`."""

from zsaq_cli import main

if __name__ == "__main__":
    main()
